"""Tables in Markdown, and their places in documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import write_text


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with a line of names; what would end a cell is replaced.

    Example:
        >>> print(table(["n", "ms"], [[512, "1|2"]]))
        | n | ms |
        | --- | --- |
        | 512 | 1/2 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def insert(document: Path, begin: str, end: str, text: str) -> None:
    """Put text in place of what a document holds between two markers.

    Raises:
        ValueError: if the document lacks a marker.
    """
    head, tail = around(document, begin, end)
    write_text(document, head + begin + text + end + tail)


def around(document: Path, begin: str, end: str) -> tuple[str, str]:
    """What a document has before the first of two markers and after the second.

    Raises:
        ValueError: if the document lacks a marker.
    """
    head, found, rest = document.read_text(encoding="utf-8").partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(
            f"expected the lines {begin.strip()!r} and {end.strip()!r} in {document}, found none; add them"
        )
    return head, tail
