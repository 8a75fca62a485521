"""Text that says something: lines without a character that shows are refused, as empty ones are."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from ...shared.text import DataError, read_lines

# Controls, formats such as the zero-width space, and separators.
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
# Letters and marks that have no form of their own: fillers of Hangul, selectors of variants.
_FORMLESS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0").union(
    map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0))
)


def is_blank(text: str) -> bool:
    """Tells whether a text has no character that shows: only spaces, controls, and characters of no width.

    Example:
        >>> [is_blank(text) for text in ("", " \\u200b\\ufeff\\x07", "\\u200ba", "\\u0301")]
        [True, True, False, False]
    """
    return all(unicodedata.category(character) in _UNSEEN or character in _FORMLESS for character in text)


def require_text(place: str, text: str, wanted: str = "a sentence") -> None:
    """Raises DataError for a text that is blank; ``place`` names its file and line."""
    if is_blank(text):
        got = f"one of characters that do not show ({text[:40]!r})" if text.strip() else "an empty one"
        raise DataError(f"{place}: expected {wanted}, got {got}; remove it, or give its text")


def read_sentences(path: Path) -> list[str]:
    """Returns the lines of a file, none of them blank, without white space at their ends.

    Raises:
        DataError: the file cannot be read, is not UTF-8, has no line, or has a blank one.
    """
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        require_text(f"{path}, line {number}", line)
    return lines
