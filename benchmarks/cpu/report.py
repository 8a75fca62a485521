"""The documents' tables of times on the CPU, written from a sweep's results, with the goals beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import ctloss
from benchmarks.markdown import insert, table
from benchmarks.providers import DTYPES, LOSSES
from benchmarks.ratios import CASE, seconds, time_ratios
from benchmarks.results import read_csv

OWN = "ctloss-torch"
PASSES = ("forward+backward", "forward")
MARKERS = "<!-- python -m benchmarks table -->\n\n", "\n\n<!-- end of python -m benchmarks table -->"

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

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Tables:
    """Markdown for the README and for docs/performance.md."""

    readme: str
    performance: str

    def insert(self, root: Path) -> None:
        """Put both in their places in the documents below a folder."""
        insert(root / "README.md", *MARKERS, self.readme)
        insert(root / "docs" / "performance.md", *MARKERS, self.performance)


def of_results(results: Path) -> Tables:
    """The tables of a folder that holds ``sweep-cpu.csv`` and ``memory-cpu.csv``.

    Raises:
        FileNotFoundError: if one of them is not there.
    """
    sweep = read_csv(results / "sweep-cpu.csv")
    timed = {which: time_ratios(sweep, which) for which in PASSES}
    own = [row for row in timed[PASSES[0]] if row["provider"] == OWN]
    about = f"{own[0]['device']}, torch {own[0]['torch']}"
    beside = _beside_others(own, timed[PASSES[0]])
    parts = [
        f"{about}; one thread, its CPU time. infoNCE, negatives of both languages, d = 256, forward and backward.",
        _goals(own),
        "Every other case: time over the best eager form; forward alone as in evaluation. Share: of the pace of a "
        "float32 product timed in the same rounds, counting 3N²d flops where logits are kept and 4N²d where they are "
        "formed again (across the languages 6n²d and 8n²d). Two threads by the wall clock.",
        _all_cases(own, timed[PASSES[1]]),
        "Peak memory of forward and backward beyond the inputs, infoNCE over both languages, float32, d = 256, MiB:",
        _memory(read_csv(results / "memory-cpu.csv")),
    ]
    return Tables(beside, "\n\n".join(parts))


def _is(row: Mapping[str, str], **wanted: str) -> bool:
    return all(row[key] == value for key, value in wanted.items())


def _number(row: Mapping[str, str], key: str) -> int:
    return int(row[key])


def _case(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in CASE)


def _order(row: Mapping[str, str]) -> tuple[object, ...]:
    dtypes = ("float32", "bfloat16", "float16", "float64")
    return row["loss"], _number(row, "threads"), _number(row, "d"), dtypes.index(row["dtype"]), _number(row, "n")


def _beside_others(own: Rows, timed: Rows) -> str:
    """The README's: our time, and over that of others, with both errors."""
    by_case: dict[tuple[str, ...], dict[str, Mapping[str, str]]] = defaultdict(dict)
    for row in timed:
        by_case[_case(row)][row["provider"]] = row
    lines = []
    for row in sorted((row for row in own if _is(row, **MAIN)), key=_order):
        others = by_case[_case(row)]
        over = {name: f"{seconds(row) / seconds(other):.2f}" for name, other in others.items()}
        lines.append(
            [
                row["dtype"],
                f"{_number(row, 'n'):,}",
                f"{seconds(row) * 1e3:.3g}",
                f"{float(row['ratio']):.2f}",
                over.get("compile", ""),
                over.get("lightly", ""),
                f"{float(row['gradient_error']):.0e}",
                f"{float(others['eager']['gradient_error']):.0e}",
            ]
        )
    names = ["", "n", "ms", "÷ best eager", "÷ compile", "÷ lightly", "gradient's error", "eager's"]
    return table(names, lines)


def _goals(own: Rows) -> str:
    lines = []
    for row in sorted((row for row in own if _is(row, **MAIN)), key=_order):
        ratio, n = float(row["ratio"]), _number(row, "n")
        required, hoped = (goals.get(row["dtype"], {}).get(n) for goals in (REQUIRED, HOPED))
        cells = [
            "" if goal is None else f"{goal} {'met' if round(ratio, 2) <= goal else 'missed'}"
            for goal in (required, hoped)
        ]
        lines.append([row["dtype"], f"{n:,}", f"{ratio:.2f}", *cells])
    return table(["", "n", "÷ best eager", "goal", "stretch"], lines)


def _all_cases(own: Rows, forward: Rows) -> str:
    alone = {_case(row): row for row in forward if row["provider"] == OWN}
    lines = [
        [
            row["loss"],
            row["threads"],
            row["d"],
            row["dtype"],
            f"{_number(row, 'n'):,}",
            f"{float(row['ratio']):.2f}",
            f"{float(alone[_case(row)]['ratio']):.2f}",
            _share(row),
        ]
        for row in sorted(own, key=_order)
    ]
    return table(["loss", "threads", "d", "", "n", "forward+backward", "forward", "share"], lines)


def _share(row: Mapping[str, str]) -> str:
    """How much of the pace of a float32 product the loss reaches."""
    if not row.get("product_flops"):
        return ""
    n, d, both = _number(row, "n"), _number(row, "d"), row["loss"].endswith("both")
    rows_squared = (2 * n) ** 2 if both else 2 * n**2
    flops = (3 if _kept(row) else 4) * rows_squared * d
    return f"{flops / seconds(row) / float(row['product_flops']):.0%}"


def _kept(row: Mapping[str, str]) -> bool:
    """Whether the torch path keeps the logits of such a case for its gradient."""
    name, negatives = LOSSES[row["loss"]]
    rows = torch.empty(int(row["n"]), int(row["d"]), dtype=DTYPES[row["dtype"]])
    plan = ctloss.explain(rows, rows, loss=name, negatives=negatives, impl="torch")
    return plan.configuration["gradient"] == "from logits kept"


def _memory(rows: Rows) -> str:
    measured = [row for row in rows if row["peak_bytes"]]
    names = list(dict.fromkeys(row["provider"] for row in measured))
    sizes = list(dict.fromkeys(row["n"] for row in measured))
    peaks = {(row["provider"], row["n"]): float(row["peak_bytes"]) / 2**20 for row in measured}
    lines = [
        [f"{int(n):,}", *(f"{peaks[name, n]:,.0f}" if (name, n) in peaks else "" for name in names)] for n in sizes
    ]
    return table(["n", *names], lines)
