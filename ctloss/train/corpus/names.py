"""The languages that a file is named after."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...shared.languages import CODE, XTREME_CODES, find_code, is_language, primary

_LARGE = frozenset(XTREME_CODES.values())


def languages_in(name: str, languages: Sequence[str] = ()) -> tuple[str, str] | None:
    """Returns the two languages that a name without its ending is named after, None if it is not named so.

    The name ends in two codes with a hyphen between them. Codes have hyphens too: of all readings, the one with
    ``languages`` counts (the first and one of the others, spelled as there), or else the one of the largest languages,
    then the longest.

    Example:
        >>> [languages_in(name) for name in ("news.en-fr", "en-zh-tw", "zho_Hans-eng_Latn", "news")]
        [('en', 'fr'), ('en', 'zh-tw'), ('zho_Hans', 'eng_Latn'), None]
    """
    readings = _readings(name)
    for pair in readings:
        if (source := find_code(pair[0], languages[:1])) and (target := find_code(pair[1], languages[1:])):
            return source, target
    likely = [pair for pair in readings if all(map(is_language, pair))]
    # XTREME's languages stand for the large ones: in ted-en-fr no code is meant to be Tepo Krumen.
    return max(likely, key=lambda pair: sum(primary(code) in _LARGE for code in pair), default=None)


def _readings(name: str) -> list[tuple[str, str]]:
    """Returns all pairs of codes that a name ends in: the longest first, then those with the shorter first code."""
    readings = []
    for start in re.finditer(r"(?<![A-Za-z0-9])(?=[a-z])", name):
        tail = name[start.start() :]
        for hyphen in re.finditer("-", tail):
            pair = tail[: hyphen.start()], tail[hyphen.end() :]
            if all(map(CODE.fullmatch, pair)):
                readings.append(pair)
    return readings
