"""Parallel text in lines: line-aligned files, TSV and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...shared.text import SHOWN, BadLine, DataError, Lines, count_lines, line_chunks, nfc, require_equal_counts
from .bitext import Rows
from .columns import Columns, columns_in_row, fault_of

# To unpack these takes longer than all the rest of reading.
SLOW = (".bz2", ".xz")


def counting(path: Path) -> Callable[[], int] | None:
    """Returns what counts the lines of a file, None if that would take as long as reading it."""
    return None if path.suffix in SLOW else partial(count_lines, path)


def read_aligned(source: Path, target: Path, size: int) -> Iterator[Rows]:
    """Reads two line-aligned files; a line that is bad in one of them is left out of both.

    Raises:
        DataError: the files have different numbers of lines; found where the shorter one ends.
    """
    for first, second in zip_longest(line_chunks(source, size), line_chunks(target, size)):
        if first is None or second is None or len(first.texts) != len(second.texts):
            require_equal_counts({path: count_lines(path) for path in (source, target)})
            raise DataError(f"{source}: expected a file that stays as it is, got one that changes; read it again")
        bad = {line.line: line for line in (*second.bad, *first.bad)}
        yield Rows(first.first, first.texts, second.texts, [bad[number] for number in sorted(bad)])


def read_tsv(path: Path, size: int) -> Iterator[Rows]:
    """Reads lines ``source TAB target``; a line with fewer or more columns is bad, an empty one at the end is none."""
    for lines in _without_empty_end(path, size):
        sources, targets = [], []
        bad = {line.line: line for line in lines.bad}
        for number, text in enumerate(lines.texts, start=lines.first):
            columns = text.split("\t")
            if len(columns) != 2:
                reason = f"expected two columns with one tab between them, got {_counted(columns)}"
                bad.setdefault(number, BadLine(str(path), number, reason, text[:SHOWN]))
                columns = ["", ""]
            sources.append(columns[0])
            targets.append(columns[1])
        yield Rows(lines.first, sources, targets, [bad[number] for number in sorted(bad)])


def read_json(path: Path, columns: Columns, size: int) -> Iterator[Rows]:
    """Reads lines with a JSON object each; a line without both texts is bad, an empty one at the end is none."""
    for lines in _without_empty_end(path, size):
        sources, targets = [], []
        bad = {line.line: line for line in lines.bad}
        for number, text in enumerate(lines.texts, start=lines.first):
            pair = ("", "")
            if number not in bad:
                row = _parsed(text)
                pair = (columns.source.of(row), columns.target.of(row))
                if reason := fault_of(columns, *pair) if isinstance(row, dict) else _no_object(text):
                    bad[number] = BadLine(str(path), number, reason, text[:SHOWN])
                    pair = ("", "")
            sources.append(nfc(pair[0]))
            targets.append(nfc(pair[1]))
        yield Rows(lines.first, sources, targets, [bad[number] for number in sorted(bad)])


def json_columns(path: Path, languages: tuple[str, ...], named: tuple[str, str] | None) -> list[Columns]:
    """Finds the columns of JSON lines by the first line that has them; see :func:`columns_in_row`.

    Raises:
        DataError: none of the first lines has them.
    """
    failed: DataError | None = None
    for text in next(line_chunks(path), Lines(1, [], [])).texts:
        row = _parsed(text)
        if isinstance(row, dict):
            try:
                return columns_in_row(str(path), row, languages, named)
            except DataError as error:
                failed = failed or error
    raise failed or DataError(
        f'{path}: expected a JSON object in each line, such as {{"en": "one", "fr": "un"}}, got none; write one '
        "object a line"
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _no_object(text: str) -> str:
    return f"expected a JSON object, got {'other text' if text.strip() else 'an empty line'}"


def _counted(columns: list[str]) -> str:
    return "an empty line" if columns == [""] else f"{len(columns)} columns" if len(columns) > 1 else "no tab"


def _without_empty_end(path: Path, size: int) -> Iterator[Lines]:
    """Yields the lines of a file up to the last that is not empty."""
    held = 0
    for lines in line_chunks(path, size):
        bad = {line.line - lines.first for line in lines.bad}
        length = len(lines.texts)
        while length and length - 1 not in bad and not lines.texts[length - 1].strip(" "):
            length -= 1
        if length:
            for start in range(lines.first - held, lines.first, size):
                yield Lines(start, [""] * min(size, lines.first - start), [])
            held = 0
            yield Lines(lines.first, lines.texts[:length], lines.bad)
        held += len(lines.texts) - length
