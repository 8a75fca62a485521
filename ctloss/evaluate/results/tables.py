"""Markdown tables without empty columns."""

from __future__ import annotations

from collections.abc import Sequence

# What a cell without a value shows.
NOTHING = "–"


def with_values(
    columns: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1
) -> tuple[list[str], list[list[str]]]:
    """Returns the columns of a table, and the cells in them, without those in which no row has a value.

    Args:
        names: the first columns say what a row is, and stay.

    Example:
        >>> with_values(["model", "F1", "EM"], [["ours", "–", "3.0"], ["base", "–", "–"]])
        (['model', 'EM'], [['ours', '3.0'], ['base', '–']])
    """
    kept = [place for place in range(len(columns)) if place < names or any(row[place] != NOTHING for row in rows)]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Returns a Markdown table without empty columns, see :func:`with_values`."""
    columns, rows = with_values(columns, rows, names)
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])
