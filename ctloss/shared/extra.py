"""Refuses to import a part of the package whose extra is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec


def require_extra(extra: str, modules: Sequence[str]) -> None:
    """Makes sure that the modules of an extra are there; called before anything else is imported.

    Args:
        extra: its name, which is also that of the package in ctloss that needs it.
        modules: the names by which its packages are imported.

    Raises:
        ModuleNotFoundError: some are missing; the message lists them.

    Example:
        >>> require_extra("train", ["torch", "no_such_module"])
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: ctloss.train: expected the packages of its extra, got none named no_such_module; \
pip install 'ctloss[train]'
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"ctloss.{extra}: expected the packages of its extra, got none named {', '.join(missing)}; "
            f"pip install 'ctloss[{extra}]'",
            name=missing[0],
        )
