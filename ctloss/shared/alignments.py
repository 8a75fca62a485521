"""Word alignments in text files: what a token is, and the links between tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]
Link = tuple[int, str, int]

_TOKEN = re.compile(r"[^ \t]+")
_LINK = re.compile(r"([0-9]+)([-p])([0-9]+)")


def token_spans(text: str) -> list[Span]:
    """Returns the character spans (start, end), end exclusive, of a text's tokens.

    Only the ASCII space and the tab part tokens, as in the programs that write alignments: a no-break space, U+202F,
    U+3000, U+2028 or U+0085 is part of a token, or a token of its own.

    Example:
        >>> token_spans("10\\u00a0000 euros")
        [(0, 6), (7, 12)]
    """
    return [match.span() for match in _TOKEN.finditer(text)]


def tokens(text: str) -> list[str]:
    """Returns the tokens of a text themselves; see :func:`token_spans`."""
    return _TOKEN.findall(text)


def read_links(line: str) -> Iterator[tuple[str, Link | None]]:
    """Yields each link of a line as it stands, and as (source position, ``"-"`` or ``"p"``, target position).

    ``i-j`` is a sure link and ``ipj`` a possible one; what is neither yields None.

    Example:
        >>> list(read_links("0-0 2p1 x"))
        [('0-0', (0, '-', 0)), ('2p1', (2, 'p', 1)), ('x', None)]
    """
    for link in tokens(line):
        match = _LINK.fullmatch(link)
        yield link, (int(match[1]), match[2], int(match[3])) if match else None
