"""Refuses to go on without the library that these losses are for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OLDEST = 5


def require_sentence_transformers() -> None:
    """Makes sure that sentence-transformers is installed, and new enough.

    Raises:
        ModuleNotFoundError: it is not installed.
        ImportError: it is older than version 5.
    """
    wanted = f"ctloss.integrations.sentence_transformers: expected sentence-transformers {OLDEST} or later"
    advice = f"pip install 'sentence-transformers[train]>={OLDEST}'"
    try:
        found = version("sentence-transformers")
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            f"{wanted}, got an environment without it; {advice}", name="sentence_transformers"
        ) from None
    if int(found.split(".")[0]) < OLDEST:
        raise ImportError(f"{wanted}, got {found}; {advice}")
