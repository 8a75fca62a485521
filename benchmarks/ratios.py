"""Times over those of the fastest eager form."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

EAGER_FORMS = ("eager", "cross_entropy", "logsumexp")
CASE = ("loss", "n", "d", "dtype", "device", "threads")


def seconds(row: Mapping[str, str]) -> float:
    """A row's time: on the CPU with one thread the thread's CPU time, otherwise the wall clock's."""
    alone = row["threads"] == "1" and row["device_kind"] == "cpu"
    return float(row["cpu_s" if alone else "wall_s"])


def time_ratios(rows: Sequence[Mapping[str, str]], which: str = "forward+backward") -> list[dict[str, str]]:
    """Each row of a sweep that has a time, with ``ratio``: over that of the fastest eager form of the same case."""
    timed = [row for row in rows if row["pass"] == which and row.get("wall_s")]
    best: dict[tuple[str, ...], float] = defaultdict(lambda: math.inf)
    for row in timed:
        if row["provider"] in EAGER_FORMS:
            case = tuple(row[key] for key in CASE)
            best[case] = min(best[case], seconds(row))
    return [{**row, "ratio": str(seconds(row) / best[tuple(row[key] for key in CASE)])} for row in timed]
