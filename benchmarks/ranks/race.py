"""Ours against the others on every cell: losses, numbers of ranks, rows of a rank; the most important cells first."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import results
from benchmarks.ranks.processes import Question, RanksFailed, ask_all
from benchmarks.ranks.rivals import CONTESTANTS

RANKS, ROWS, LOSSES = (1, 2, 4), (256, 1024, 4096), ("both", "cross")
D = 256
MINUTES = 40.0
SECONDS = 10.0
"""For the times of a cell, shared by all that take part."""
LIMIT_SECONDS = 900.0
"""A cell or a peak that takes longer is given up."""
NOT_REACHED = "not reached"
MEMORY_SHARE = 2 / 3
"""Of the machine's free memory, what all ranks may take together."""

Row = dict[str, object]


@dataclass(frozen=True)
class Cell:
    """A loss of so many rows (pairs) on each of so many ranks."""

    loss: str
    ranks: int
    rows: int
    d: int = D
    dtype: str = "float32"


JUDGED_RANKS, JUDGED_ROWS = 2, 1024


def cells(losses: Iterable[str], ranks: Iterable[int], rows: Iterable[int], d: int = D) -> list[Cell]:
    """All combinations: those that have a goal first, then by their work."""
    every = [Cell(loss, world, own, d) for loss in losses for world in ranks for own in rows]
    return sorted(every, key=lambda cell: (not judged(cell), cell.ranks * cell.rows, cell.rows, cell.loss))


def judged(cell: Cell) -> bool:
    """Whether a cell has a goal."""
    return (cell.ranks, cell.rows, cell.d) == (JUDGED_RANKS, JUDGED_ROWS, D)


def run(
    chosen: Sequence[Cell],
    contestants: Sequence[str] = tuple(CONTESTANTS),
    *,
    minutes: float = MINUTES,
    seconds: float = SECONDS,
    device: str = "cpu",
) -> list[Row]:
    """A row for each cell and contestant, with ``note`` where something was not measured."""
    end = time.monotonic() + 60 * minutes
    found: list[Row] = []
    for cell in chosen:
        if time.monotonic() > end:
            found += [_row(cell, device, {"contestant": "everybody", "note": NOT_REACHED})]
            continue
        found += [_row(cell, device, row) for row in measure(cell, contestants, seconds, device)]
        print(f"{cell.loss} {cell.ranks} x {cell.rows}", file=sys.stderr, flush=True)
    return found


def measure(cell: Cell, contestants: Sequence[str], seconds: float, device: str) -> Iterator[Row]:
    """A cell's rows: times of all in one group of processes, the peak of each in a fresh one."""
    allowed = _free_bytes(device) * MEMORY_SHARE / (1 if device == "cuda" else cell.ranks)
    fits = []
    for name in contestants:
        needed = CONTESTANTS[name].room(cell.rows, cell.rows * cell.ranks)
        if needed <= allowed:
            fits.append(name)
        else:
            note = f"would need about {needed / 2**30:.1f} GiB a rank, more than the {allowed / 2**30:.1f} GiB allowed"
            yield {"contestant": name, "note": note}
    about = asdict(cell)
    ranks = about.pop("ranks")
    takes_part = [name for name in fits if CONTESTANTS[name].only in (None, cell.loss)]
    problems: list[Question] = [("times", {**about, "contestants": fits, "seconds": seconds})]
    problems += [("peak", {**about, "contestant": name}) for name in takes_part]
    times, *peaks = ask_all(problems, ranks, device=device, limit=LIMIT_SECONDS)
    if isinstance(times, RanksFailed):
        yield {"contestant": "everybody", "note": str(times)}
        return
    of_contestant = dict(zip(takes_part, peaks, strict=True))
    for row in merged(times):
        if "note" not in row:
            peak = of_contestant[str(row["contestant"])]
            row |= {"memory_note": str(peak)} if isinstance(peak, RanksFailed) else {"peak_bytes": max(peak)}
        yield row


def merged(answers: Sequence[Sequence[dict[str, Any]]]) -> list[Row]:
    """One row a contestant from those of all ranks: the mean CPU time, the longest wait, the most bytes."""
    found = []
    for of_ranks in zip(*answers, strict=True):
        row: Row = dict(of_ranks[0])
        if "cpu_s" in row:
            row["cpu_s"] = statistics.fmean(each["cpu_s"] for each in of_ranks)
            row["wall_s"] = max(each["wall_s"] for each in of_ranks)
            row["sent_bytes"] = max(each["sent_bytes"] for each in of_ranks)
        found.append(row)
    return found


def _row(cell: Cell, device: str, row: Row) -> Row:
    # One thread a rank, whatever this process has.
    backend = "nccl" if device == "cuda" else "gloo"
    return {**asdict(cell), **row, **results.describe(device), "threads": "1", "backend": backend}


def _free_bytes(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
