"""Refuses to import a part of the package whose extra is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec


def require_extra(extra: str, modules: Sequence[str]) -> None:
    """Makes sure that the modules of an extra are installed; call it before importing anything else.

    An extra has the name of the package in ctloss that needs it.

    Raises:
        ModuleNotFoundError: some are missing; the message lists them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"ctloss.{extra}: expected the packages of its extra, got an environment without {', '.join(missing)}; "
            f"pip install 'ctloss[{extra}]'",
            name=missing[0],
        )
