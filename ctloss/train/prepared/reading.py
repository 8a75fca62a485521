"""The first pass: parallel text of every form into Arrow files of equal form, in parts that a killed build keeps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ...shared.files import write_atomically, writing_file
from ...shared.text import DataError
from ..corpus import BadLine, Bitext, Chunk
from ..text.embedded import Split
from ..text.sentences import ParallelSentence, WordPair
from .folder import batches_of

# Few enough that little is lost with a killed process and that the bar moves, many enough to start workers for.
ROWS = 65_536
# Bad lines that are shown.
SHOWN = 10

RAW = pa.schema(
    {
        "source": pa.string(),
        "target": pa.string(),
        "origin": pa.int16(),
        # Character spans of the word pairs that come with the text.
        "words": pa.list_(pa.list_(pa.int32(), 4)),
    }
)


class Input(NamedTuple):
    """Parallel text, and the part that it is given for."""

    split: Split
    bitext: Bitext


@dataclass
class Part:
    """What one file of the pass holds, and where the next one goes on.

    Attributes:
        rows: sentence pairs in it.
        input, chunk: the place of the first chunk after it.
        given, empty, bad: by input: pairs and bad lines read, pairs with a side without text, bad lines.
        lines: the first bad lines.
        words: whether word pairs come with some of the text.
    """

    rows: int = 0
    input: int = 0
    chunk: int = 0
    given: Counter[int] = field(default_factory=Counter)
    empty: Counter[int] = field(default_factory=Counter)
    bad: Counter[int] = field(default_factory=Counter)
    lines: list[BadLine] = field(default_factory=list)
    words: bool = False

    @classmethod
    def read(cls, path: Path) -> Part:
        """Reads what :meth:`write` wrote."""
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("given", "empty", "bad"):
            document[name] = Counter({int(key): value for key, value in document[name].items()})
        document["lines"] = [BadLine(*line) for line in document["lines"]]
        return cls(**document)

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        write_atomically(path, json.dumps(vars(self)))


class Raw(NamedTuple):
    """All that was read: the files with at least one pair, and the sums of what they hold."""

    files: list[Path]
    total: Part


def pairs_in(inputs: Sequence[Input]) -> int | None:
    """Counts the lines of all inputs; None if those of some can only be told by reading them."""
    counts = [one.bitext.count for one in inputs]
    return None if None in counts else sum(count() for count in counts if count is not None)


def read_inputs(inputs: Sequence[Input], folder: Path, move: Callable[[int], None]) -> Raw:
    """Reads all inputs into a folder, or what is missing there of an earlier process's work.

    Args:
        inputs: the same as before, in the same order.
        folder: gets the files ``00000.arrow``, ``00000.json`` and so on; the latter is written last.
        move: is told how many pairs and bad lines were read.
    """
    folder.mkdir(exist_ok=True)
    parts: list[Part] = []
    while (path := _place(folder, len(parts), "json")).is_file():
        parts.append(Part.read(path))
        move(parts[-1].given.total())
    start = (parts[-1].input, parts[-1].chunk) if parts else (0, 0)
    part, batches = Part(), list[pa.RecordBatch]()
    for number in range(start[0], len(inputs)):
        for place, chunk in enumerate(inputs[number].bitext.chunks()):
            if (number, place) < start:
                continue
            batches.append(_batch(part, number, chunk))
            move(len(chunk.sources) + len(chunk.bad))
            if part.rows >= ROWS:
                part.input, part.chunk = number, place + 1
                _write(folder, len(parts), part, batches)
                parts.append(part)
                part, batches = Part(), []
    if start[0] < len(inputs):
        part.input, part.chunk = len(inputs), 0
        _write(folder, len(parts), part, batches)
        parts.append(part)
    total = Part()
    for one in parts:
        total.rows += one.rows
        total.words |= one.words
        for name in ("given", "empty", "bad"):
            getattr(total, name).update(getattr(one, name))
        total.lines = [*total.lines, *one.lines][:SHOWN]
    return Raw([_place(folder, number, "arrow") for number, one in enumerate(parts) if one.rows], total)


def check_bad_lines(total: Part, most: int) -> str | None:
    """Returns a note about the lines that could not be read, if there are any.

    Raises:
        DataError: there are more than ``most``.
    """
    bad = total.bad.total()
    if not bad:
        return None
    shown = "".join(f"\n  {line.file}, line {line.line}: {line.reason}: {line.text!r}" for line in total.lines)
    more = f"\n  and {bad - len(total.lines):,} more" if bad > len(total.lines) else ""
    if bad > most:
        raise DataError(
            f"corpus: expected at most {most:,} lines that cannot be read, got {bad:,}; correct them, or skip them "
            f"with --max-bad-lines {bad}{shown}{more}"
        )
    return f"skipped {bad:,} lines that cannot be read{shown}{more}"


def sentences(batch: pa.RecordBatch | pa.Table, languages: Sequence[tuple[str, str]]) -> list[ParallelSentence]:
    """Returns rows of the pass as sentence pairs; ``languages`` are those of each origin."""
    found = []
    columns = (batch.column(name).to_pylist() for name in ("source", "target", "origin", "words"))
    for source, target, origin, words in zip(*columns, strict=True):
        source_language, target_language = languages[origin]
        found.append(ParallelSentence(source, target, source_language, target_language, _pairs(words)))
    return found


def batches_kept(files: Iterable[Path], parts: np.ndarray, wanted: int) -> Iterator[pa.RecordBatch]:
    """Yields of all rows those whose part is the wanted one, batch by batch."""
    start = 0
    for path in files:
        for batch in batches_of(path):
            chosen = parts[start : start + len(batch)] == wanted
            start += len(batch)
            if chosen.any():
                yield batch.filter(pa.array(chosen))


def _place(folder: Path, number: int, ending: str) -> Path:
    return folder / f"{number:05d}.{ending}"


def _write(folder: Path, number: int, part: Part, batches: list[pa.RecordBatch]) -> None:
    with writing_file(_place(folder, number, "arrow")) as path, pa.ipc.new_stream(str(path), RAW) as writer:
        for batch in batches:
            writer.write_batch(batch)
    part.write(_place(folder, number, "json"))


def _batch(part: Part, number: int, chunk: Chunk) -> pa.RecordBatch:
    kept = [i for i, texts in enumerate(zip(chunk.sources, chunk.targets, strict=True)) if all(texts)]
    part.rows += len(kept)
    part.given[number] += len(chunk.sources) + len(chunk.bad)
    part.empty[number] += len(chunk.sources) - len(kept)
    part.bad[number] += len(chunk.bad)
    part.lines = [*part.lines, *chunk.bad][:SHOWN]
    part.words |= chunk.words is not None
    words = None if chunk.words is None else [[(*a, *b) for a, b in chunk.words[i]] for i in kept]
    columns = [
        pa.array([chunk.sources[i] for i in kept], pa.string()),
        pa.array([chunk.targets[i] for i in kept], pa.string()),
        pa.array(np.full(len(kept), number, dtype=np.int16)),
        pa.nulls(len(kept), RAW.field("words").type) if words is None else pa.array(words, RAW.field("words").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RAW)


def _pairs(words: list[list[int]] | None) -> tuple[WordPair, ...] | None:
    return None if words is None else tuple(((a, b), (c, d)) for a, b, c, d in words)
