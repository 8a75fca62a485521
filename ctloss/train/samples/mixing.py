"""How often an epoch sees the rows of a language pair or a file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath
from typing import Protocol

import numpy as np

from ...shared.options import require

# How often an epoch sees a row at most.
MOST = 1000


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


def times_of_origins(
    mixing: Iterable[str], origins: Sequence[Origin], trained: Collection[int] | None = None
) -> np.ndarray:
    """Returns how often an epoch sees the rows of each origin, (origins,) float64: once unless ``mixing`` names it.

    Args:
        mixing: entries such as ``"en-fr=2"``, by language pair, or ``"news.tsv=.5"``, by the origin's name, with or
            without its folder. The more exact of two names goes before the other.
        origins: where the rows come from.
        trained: numbers of the origins that training rows come from; by default all. Others cannot be named.

    Raises:
        OptionError: an entry is not of this form, is beyond 1,000 times, names no such origin or one that another entry
            names, or nothing is left.

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
    named = [each for number, each in enumerate(names) if trained is None or number in trained]
    known = list(dict.fromkeys(name for of_origin in zip(*named, strict=True) for name in of_origin))
    given: dict[str, float] = {}
    for entry in mixing:
        name, equals, number = entry.rpartition("=")
        times = _number(number)
        require(
            bool(equals) and times is not None,
            "mixing",
            "NAME=TIMES, such as en-fr=2, with a finite number from 0 on",
            entry,
            "write it like that",
        )
        require((times or 0.0) <= MOST, "mixing", f"at most {MOST:,} times", entry, "lower it")
        require(
            name in known, "mixing", f"names among {', '.join(reversed(known))}", name, "name a language pair or a file"
        )
        require(name not in given, "mixing", "each name once", name, "drop one")
        given[name] = times or 0.0
    times_of = np.array([next((given[name] for name in each if name in given), 1.0) for each in names])
    left = times_of if trained is None else times_of[sorted(trained)]
    require(bool(left.any()), "mixing", "something above 0", " ".join(mixing), "raise one")
    return times_of


def _number(text: str) -> float | None:
    """A finite number of at least 0, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
