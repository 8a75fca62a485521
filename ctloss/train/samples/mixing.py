"""How often an epoch sees the rows of a language pair or a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Protocol

import numpy as np

from ...shared.options import require


class Origin(Protocol):
    """Where rows come from: a language pair of a file."""

    @property
    def name(self) -> str:
        """The file."""

    @property
    def source_language(self) -> str:
        """Its code."""

    @property
    def target_language(self) -> str:
        """Its code."""


def times_of_origins(mixing: Iterable[str], origins: Sequence[Origin]) -> np.ndarray:
    """Returns how often an epoch sees the rows of each origin, (origins,) float64: once unless ``mixing`` names it.

    Args:
        mixing: entries such as ``"en-fr=2"``, by language pair, or ``"news.tsv=.5"``, by the origin's name, with or
            without its folder. The more exact of two names goes before the other.
        origins: where the rows come from.

    Raises:
        OptionError: an entry is not of this form, names no origin or one that another entry names, or nothing is left.

    Example:
        >>> from types import SimpleNamespace
        >>> french = SimpleNamespace(name="news.tsv", source_language="en", target_language="fr")
        >>> times_of_origins(["en-fr=2.5"], [french])
        array([2.5])
    """
    names = [
        (origin.name, PurePath(origin.name).name, f"{origin.source_language}-{origin.target_language}")
        for origin in origins
    ]
    known = list(dict.fromkeys(name for of_origin in zip(*names, strict=True) for name in of_origin))
    given: dict[str, float] = {}
    for entry in mixing:
        name, equals, number = entry.rpartition("=")
        times = _number(number)
        require(
            bool(equals) and times is not None, "mixing", "NAME=TIMES, such as en-fr=2", entry, "write it like that"
        )
        require(
            name in known, "mixing", f"names among {', '.join(reversed(known))}", name, "name a language pair or a file"
        )
        require(name not in given, "mixing", "each name once", name, "drop one")
        given[name] = times or 0.0
    times_of = np.array([next((given[name] for name in each if name in given), 1.0) for each in names])
    require(bool(times_of.any()), "mixing", "something above 0", " ".join(mixing), "raise one")
    return times_of


def _number(text: str) -> float | None:
    """A finite number of at least 0, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
