"""Counts of more keys than fit into memory: sorted runs on disk, merged once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Counts = NDArray[np.uint32]

# 128 MB of keys are sorted at a time; that memory is needed about twice.
CAPACITY = 1 << 24
# Keys of all runs together that a merge holds at a time.
MERGED = 1 << 22


class KeyCounter:
    """Counts unsigned 64-bit keys in bounded memory and n log n time.

    Keys are gathered in a buffer. A full buffer is sorted, its equal keys become one with a count, and the run goes to
    disk: 12 bytes a distinct key. :meth:`counted` merges the runs. Counts are exact below 2^32.

    Args:
        folder: where the runs lie until the counter is closed.
        capacity: keys gathered before they are sorted.
        merged: keys read at a time in a merge, of all runs together; at least one of each run is.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, KeyCounter(Path(folder), capacity=4) as counter:
        ...     counter.add(np.array([7, 3, 7, 7, 5, 3], dtype=np.uint64))
        ...     [pair for block in counter.counted() for pair in zip(*map(np.ndarray.tolist, block), strict=True)]
        [(3, 2), (5, 1), (7, 3)]
    """

    def __init__(self, folder: Path, *, capacity: int = CAPACITY, merged: int = MERGED) -> None:
        self._merged = merged
        self._buffer: Keys = np.empty(capacity, dtype=np.uint64)
        self._held = 0
        self._runs: list[tuple[int, int]] = []
        self._written = 0
        self._paths = (folder / "runs.keys", folder / "runs.counts")
        self._keys, self._counts = (path.open("w+b") for path in self._paths)

    def __enter__(self) -> KeyCounter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the runs; nothing can be counted afterwards."""
        self._keys.close()
        self._counts.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def add(self, keys: Keys) -> None:
        """Counts each of some keys once."""
        start = 0
        while start < len(keys):
            part = keys[start : start + len(self._buffer) - self._held]
            self._buffer[self._held : self._held + len(part)] = part
            self._held += len(part)
            start += len(part)
            if self._held == len(self._buffer):
                self._write_run(*self._take_buffer())

    def counted(self) -> Iterator[tuple[Keys, Counts]]:
        """Yields all keys in ascending order, each once, with their counts, block by block; adding ends with it."""
        last = self._take_buffer()
        if not self._runs:
            self._buffer = np.empty(0, dtype=np.uint64)
            yield last
            return
        self._write_run(*last)
        self._buffer = np.empty(0, dtype=np.uint64)
        size = max(1, self._merged // len(self._runs))
        runs = [_Run(self._keys, self._counts, *bounds, size) for bounds in self._runs]
        while runs := [run for run in runs if run.fill()]:
            # Up to here nothing that is still on disk can come in between.
            limit = min(run.keys[-1] for run in runs)
            parts = [run.take(limit) for run in runs]
            yield _summed(np.concatenate([keys for keys, _ in parts]), np.concatenate([counts for _, counts in parts]))

    def _take_buffer(self) -> tuple[Keys, Counts]:
        held, self._held = self._buffer[: self._held], 0
        held.sort()
        starts = _starts(held)
        return held[starts], np.diff(starts, append=len(held)).astype(np.uint32)

    def _write_run(self, keys: Keys, counts: Counts) -> None:
        if len(keys):
            keys.tofile(self._keys)
            counts.tofile(self._counts)
            self._runs.append((self._written, self._written + len(keys)))
            self._written += len(keys)


@dataclass
class _Run:
    """What is left of a sorted run: the part in memory, and where the rest lies."""

    key_file: BinaryIO
    count_file: BinaryIO
    next: int
    end: int
    size: int
    keys: Keys = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    counts: Counts = field(default_factory=lambda: np.empty(0, dtype=np.uint32))

    def fill(self) -> bool:
        """Reads on if nothing is in memory; tells whether anything is left."""
        if not len(self.keys) and self.next < self.end:
            number = min(self.size, self.end - self.next)
            self.key_file.seek(self.next * 8)
            self.keys = np.fromfile(self.key_file, dtype=np.uint64, count=number)
            self.count_file.seek(self.next * 4)
            self.counts = np.fromfile(self.count_file, dtype=np.uint32, count=number)
            self.next += number
        return len(self.keys) > 0

    def take(self, limit: np.uint64) -> tuple[Keys, Counts]:
        end = int(np.searchsorted(self.keys, limit, side="right"))
        taken = self.keys[:end], self.counts[:end]
        self.keys, self.counts = self.keys[end:], self.counts[end:]
        return taken


def _summed(keys: Keys, counts: Counts) -> tuple[Keys, Counts]:
    order = np.argsort(keys)
    keys, counts = keys[order], counts[order]
    starts = _starts(keys)
    return keys[starts], np.add.reduceat(counts, starts, dtype=np.uint32)


def _starts(keys: Keys) -> NDArray[np.intp]:
    """Returns where each distinct key of a sorted array begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), dtype=bool), keys[1:] != keys[:-1]]))
