"""The documents' tables of times on the CPU, made from a sweep's results, with the goals next to them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ctloss
from benchmarks.providers import DTYPES, LOSSES
from benchmarks.results import read_csv, table

COMMAND = "python -m benchmarks table"
OWN = "ctloss-torch"
EAGER_FORMS = ("eager", "cross_entropy", "logsumexp")
CASE = ("loss", "n", "d", "dtype", "device", "threads")

# Time over the best eager form, infoNCE over both languages, d = 256, one thread: what must hold, what is hoped for.
REQUIRED = {
    "float32": {4: 1.25, 16: 1.25, 32: 1.0, 64: 1.0, 128: 0.80, 512: 0.65, 2048: 0.45, 8192: 0.35},
    "bfloat16": {4: 1.25, 16: 1.25, 32: 1.25, 64: 1.25, 128: 1.5, 512: 1.0, 2048: 0.70, 8192: 0.55},
}
HOPED = {
    "float32": {128: 0.75, 512: 0.55, 2048: 0.38, 8192: 0.25},
    "bfloat16": {128: 1.3, 512: 0.9, 2048: 0.6, 8192: 0.45},
    "float16": dict.fromkeys((32, 64, 128, 512), 0.25),
}
MAIN = {"loss": "info-both", "d": "256", "threads": "1"}

Row = Mapping[str, str]
Rows = Sequence[Row]


def seconds(row: Row) -> float:
    """A row's time: CPU time of the thread if there is only one and no GPU, otherwise wall-clock time."""
    single = row["threads"] == "1" and row["device_kind"] == "cpu"
    return float(row["cpu_s" if single else "wall_s"])


def _case(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in CASE)


def time_ratios(rows: Rows, which: str = "forward+backward") -> list[dict[str, str]]:
    """Each row of a sweep that has a time, with its ``ratio`` to the fastest eager form of the same case."""
    timed = [row for row in rows if row["pass"] == which and row.get("wall_s")]
    best: dict[tuple[str, ...], float] = defaultdict(lambda: math.inf)
    for row in timed:
        if row["provider"] in EAGER_FORMS:
            best[_case(row)] = min(best[_case(row)], seconds(row))
    return [{**row, "ratio": str(seconds(row) / best[_case(row)])} for row in timed]


def tables(results: Path) -> str:
    """The page's tables in Markdown: ours next to others, the goals, every case, memory.

    Raises:
        FileNotFoundError: the folder of results lacks ``sweep-cpu.csv`` or ``memory-cpu.csv``.
    """
    sweep = read_csv(results / "sweep-cpu.csv")
    both, forward = (time_ratios(sweep, which) for which in ("forward+backward", "forward"))
    own = sorted((row for row in both if row["provider"] == OWN), key=_order)
    main = [row for row in own if all(row[key] == value for key, value in MAIN.items())]
    parts = [
        f"{own[0]['device']}, torch {own[0]['torch']}; one thread, its CPU time. infoNCE, negatives of both languages, "
        "d = 256, forward and backward. Below 1, ctloss is faster. Errors are relative, of the gradient, against "
        "float64.",
        _next_to_others(main, both),
        "The same cases against their goals:",
        _goals(main),
        "Every case: time over the best eager form; forward only, as in evaluation. Share: of the pace of a float32 "
        "product timed in the same rounds, counting 3N²d flops where logits are kept and 4N²d where they are formed "
        "again (across the languages 6n²d and 8n²d). Two threads by the wall clock.",
        _all_cases(own, forward),
        "Peak memory of forward and backward beyond the inputs, infoNCE over both languages, float32, d = 256, MiB:",
        _memory(read_csv(results / "memory-cpu.csv")),
    ]
    return "\n\n".join(parts)


def _order(row: Row) -> tuple[object, ...]:
    dtypes = ("float32", "bfloat16", "float16", "float64")
    return row["loss"], int(row["threads"]), int(row["d"]), dtypes.index(row["dtype"]), int(row["n"])


def _next_to_others(main: Rows, timed: Rows) -> str:
    """Our time, and over that of others, with both errors."""
    by_case: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for row in timed:
        by_case[_case(row)][row["provider"]] = row
    lines = []
    for row in main:
        others = by_case[_case(row)]
        over = [
            f"{seconds(row) / seconds(others[name]):.2f}" if name in others else "" for name in ("compile", "lightly")
        ]
        found = [f"{float(each['gradient_error']):.0e}" for each in (row, others["eager"])]
        ms = f"{seconds(row) * 1e3:.3g}"
        lines.append([row["dtype"], f"{int(row['n']):,}", ms, f"{float(row['ratio']):.2f}", *over, *found])
    names = ["", "n", "ms", "÷ best eager", "÷ compile", "÷ lightly", "gradient's error", "eager's"]
    return table(names, lines)


def met(ratio: float, goal: float | None) -> str:
    """A goal, and whether a ratio meets it to two digits."""
    return "" if goal is None else f"{goal} {'met' if round(ratio, 2) <= goal else 'missed'}"


def _goals(main: Rows) -> str:
    lines = []
    for row in main:
        ratio, n = float(row["ratio"]), int(row["n"])
        goals = [met(ratio, each.get(row["dtype"], {}).get(n)) for each in (REQUIRED, HOPED)]
        lines.append([row["dtype"], f"{n:,}", f"{ratio:.2f}", *goals])
    return table(["", "n", "÷ best eager", "goal", "stretch"], lines)


def _all_cases(own: Rows, forward: Rows) -> str:
    evaluated = {_case(row): float(row["ratio"]) for row in forward if row["provider"] == OWN}
    lines = []
    for row in own:
        about = [row["loss"], row["threads"], row["d"], row["dtype"], f"{int(row['n']):,}"]
        lines.append([*about, f"{float(row['ratio']):.2f}", f"{evaluated[_case(row)]:.2f}", _share(row)])
    return table(["loss", "threads", "d", "", "n", "forward+backward", "forward", "share"], lines)


def _share(row: Row) -> str:
    """How much of the pace of a float32 product a softmax loss reaches."""
    if not row.get("product_flops") or row["loss"] == "siglip":
        return ""
    n, d, both = int(row["n"]), int(row["d"]), row["loss"].endswith("both")
    rows_squared = (2 * n) ** 2 if both else 2 * n**2
    flops = (3 if _kept(row) else 4) * rows_squared * d
    return f"{flops / seconds(row) / float(row['product_flops']):.0%}"


def _kept(row: Row) -> bool:
    """Whether the torch path keeps the logits of such a case for its gradient."""
    name, negatives = LOSSES[row["loss"]]
    rows = torch.empty(int(row["n"]), int(row["d"]), dtype=DTYPES[row["dtype"]])
    options: dict[str, Any] = {"loss": name, "negatives": negatives, "impl": "torch"}
    return ctloss.explain(rows, rows, **options).configuration["gradient"] == "from logits kept"


def _memory(rows: Rows) -> str:
    measured = [row for row in rows if row["peak_bytes"]]
    names, sizes = (list(dict.fromkeys(row[key] for row in measured)) for key in ("provider", "n"))
    peaks = {(row["provider"], row["n"]): f"{float(row['peak_bytes']) / 2**20:,.0f}" for row in measured}
    return table(["n", *names], [[f"{int(n):,}", *(peaks.get((name, n), "") for name in names)] for n in sizes])
