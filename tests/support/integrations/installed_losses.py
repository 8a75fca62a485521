"""The losses of the installed sentence-transformers, whatever its version calls their module and lets them take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import requires, version
from typing import Any

import pytest
from packaging.requirements import Requirement

try:
    from sentence_transformers.sentence_transformer import losses
except ImportError:
    # Versions 5.
    from sentence_transformers import losses  # type: ignore[no-redef, attr-defined]

VERSION = version("sentence-transformers")
INSTALLED = f"sentence-transformers {VERSION}"
# Between these two nothing has been tried.
IS_OLD = tuple(map(int, VERSION.split(".")[:2])) < (6, 2)
WITHOUT_EXTRA = {"extra": ""}


def lacking(name: str, options: Iterable[str] = ()) -> str:
    """Why the installed version cannot be asked for a loss with these options; empty where it can."""
    known = inspect.signature(getattr(losses, name)).parameters
    # Deprecated classes hide their own signature behind a wrapper.
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return ""
    missing = [option for option in options if option not in known]
    return f"{name} of {INSTALLED} has no {missing[0]}" if missing else ""


def skip_if(reason: str) -> None:
    """Skip the test for a reason, if there is one."""
    if reason:
        pytest.skip(reason)


def not_in_old(reason: str) -> pytest.MarkDecorator:
    """Skip where the installed version is known to do something else."""
    return pytest.mark.skipif(IS_OLD, reason=f"{INSTALLED} {reason}")


def _unmet() -> str:
    for line in requires("sentence-transformers") or ():
        wanted = Requirement(line)
        needed = wanted.marker is None or wanted.marker.evaluate(WITHOUT_EXTRA)
        if wanted.name == "transformers" and needed and version("transformers") not in wanted.specifier:
            return f"{INSTALLED} trains with transformers{wanted.specifier}, not {version('transformers')}"
    return ""


trains = pytest.mark.skipif(bool(_unmet()), reason=_unmet())


class _Theirs:
    """Each loss by its name; the test is skipped where the installed version does not take its options."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            skip_if(lacking(name, options))
            return getattr(losses, name)(*arguments, **options)

        return made


theirs = _Theirs()
