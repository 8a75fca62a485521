"""The figures of the measurements, drawn from the tables of results."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.cpu.report import time_ratios
from benchmarks.figures import Theme, draw, label_ends
from benchmarks.results import read_csv

# Colour and marker of each implementation.
STYLES: Mapping[str, tuple[str, str]] = {
    "ctloss": ("red", "o"),
    "ctloss-torch": ("red", "o"),
    "ctloss-triton": ("orange", "s"),
    "eager": ("blue", "^"),
    "compile": ("sky", "v"),
    "cross_entropy": ("blue", "^"),
    "logsumexp": ("purple", "x"),
    "naive": ("grey", "P"),
    "lightly": ("green", "D"),
    "open_clip": ("orange", "<"),
    "sentence-transformers": ("purple", ">"),
    "metric-learning": ("sky", "*"),
}
LOSSES = {"info-both": "negatives of both sides", "info-cross": "negatives of the other side"}
DTYPES = ("float32", "bfloat16")
# Lines that are as near as this factor to one another, at both ends and in the mean, are one to the eye.
ONE_LINE = 1.5
Rows = Sequence[Mapping[str, str]]
Point = tuple[float, float]
Lines = Mapping[str, list[Point]]


def lines_of(rows: Rows, without: Sequence[str], point: Callable[[Mapping[str, str]], Point]) -> Lines:
    """Sorted points by implementation."""
    series: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        if row["provider"] not in without:
            series[row["provider"]].append(point(row))
    return {name: sorted(series[name]) for name in STYLES if name in series}


def plot(axes: Axes, lines: Lines, theme: Theme) -> None:
    """Draw the lines, ours thicker and on top."""
    for name, points in lines.items():
        colour, marker = STYLES[name]
        width, order = (2.4, 3) if name.startswith("ctloss") else (1.2, 2)
        axes.plot(
            *zip(*points, strict=True),
            color=theme.colours[colour],
            marker=marker,
            markersize=4.5,
            linewidth=width,
            zorder=order,
        )
    axes.grid(alpha=0.6, linewidth=0.6)


def label(axes: Axes, lines: Lines, theme: Theme, *, end: int = -1, together: bool = False) -> None:
    """Name the lines at their ends, with ``together`` those that lie on one another at once."""
    groups: list[list[str]] = []
    for name, points in lines.items():
        group = next((one for one in groups if together and _are_one(points, lines[one[0]])), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    label_ends(axes, [(", ".join(g), *lines[g[0]][end], theme.colours[STYLES[g[0]][0]]) for g in groups])


def _are_one(points: list[Point], others: list[Point]) -> bool:
    if [x for x, _ in points] != [x for x, _ in others]:
        return False
    factors = [abs(math.log(a / b)) for (_, a), (_, b) in zip(points, others, strict=True)]
    return max(fmean(factors), factors[0], factors[-1]) < math.log(ONE_LINE)


def _grid(rows: Rows, across: str, theme: Theme, title: str) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Panels of one scale: down infoNCE's kinds of negatives, to the right the dtypes that were measured."""
    down = [loss for loss in LOSSES if any(row["loss"] == loss for row in rows)]
    columns = [dtype for dtype in DTYPES if any(row[across] == dtype for row in rows)]
    figure = Figure(figsize=(4.9 * len(columns) + 0.6, 2.7 * len(down) + 0.8), layout="constrained")
    grid = figure.subplots(len(down), len(columns), squeeze=False, sharex=True, sharey=True)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=11)
    if len(down) > 1:
        for axes, loss in zip(grid[:, 0], down, strict=True):
            axes.set_ylabel(LOSSES[loss], color=theme.ink)
    figure.suptitle(title, fontsize=11)
    return figure, {(loss, dtype): grid[i][j] for i, loss in enumerate(down) for j, dtype in enumerate(columns)}


def _pair_counts(axes: Axes, lines: Lines, room: float) -> None:
    """Logarithmic axes with ticks at the measured n and plain numbers, and room for names at the right."""
    sizes = sorted({n for points in lines.values() for n, _ in points})
    axes.set(xscale="log", yscale="log", xlim=(sizes[0] * 0.85, sizes[-1] * (sizes[-1] / sizes[0]) ** room))
    axes.spines.bottom.set_bounds(sizes[0], sizes[-1])
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def draw_times(rows: Rows, target: Path) -> bool:
    """infoNCE's time over the best eager form, by n, at the first d and number of threads.

    Like the other two, returns whether there was anything to draw.
    """
    rows = time_ratios([row for row in rows if row["provider"] in STYLES and row["loss"] in LOSSES])
    rows = [row for row in rows if row["dtype"] in DTYPES]
    if not rows:
        return False
    rows = [row for row in rows if (row["d"], row["threads"]) == (rows[0]["d"], rows[0]["threads"])]
    # Sizes that every panel has.
    sizes = set.intersection(*({r["n"] for r in rows if r["loss"] == loss} for loss in {row["loss"] for row in rows}))
    rows = [row for row in rows if row["n"] in sizes]
    title = f"infoNCE, forward and backward: time over the best eager form (d = {rows[0]['d']}, {rows[0]['device']})"

    def make(theme: Theme) -> Figure:
        figure, panels = _grid(rows, "dtype", theme, title)
        found = {}
        for (loss, dtype), axes in panels.items():
            chosen = [row for row in rows if (row["loss"], row["dtype"]) == (loss, dtype)]
            found[axes] = lines_of(
                chosen, ("cross_entropy", "logsumexp"), lambda row: (float(row["n"]), float(row["ratio"]))
            )
            plot(axes, found[axes], theme)
        for axes, lines in found.items():
            _pair_counts(axes, lines, 0.32)
            axes.plot(axes.get_xticks()[[0, -1]], [1, 1], color=theme.ink, linewidth=0.8)
        figure.supxlabel("pairs n", fontsize=10)
        figure.draw_without_rendering()
        for axes, lines in found.items():
            label(axes, lines, theme)
        return figure

    draw(target, make)
    return True


def draw_memory(rows: Rows, target: Path) -> bool:
    """infoNCE's peak memory beyond the inputs, by n, at the first loss, dtype and d."""
    rows = [row for row in rows if row["provider"] in STYLES and float(row.get("peak_bytes") or 0) > 0]
    if not rows:
        return False
    rows = [row for row in rows if all(row[key] == rows[0][key] for key in ("loss", "dtype", "d"))]
    lines = lines_of(rows, (), lambda row: (float(row["n"]), float(row["peak_bytes"]) / 2**20))

    def make(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        plot(axes, lines, theme)
        _pair_counts(axes, lines, 0.35)
        title = f"Memory of forward and backward beyond the inputs ({rows[0]['dtype']}, d = {rows[0]['d']})"
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="pairs n", ylabel="peak, MiB")
        figure.draw_without_rendering()
        label(axes, lines, theme)
        return figure

    draw(target, make)
    return True


def draw_numerics(rows: Rows, target: Path) -> bool:
    """Gradient error against φ by implementation of infoNCE, float32 and bfloat16.

    Errors are drawn between 1e-7 and 10; NaN is drawn at the top.
    """
    rows = [row for row in rows if row["provider"] in STYLES and row["mode"] in DTYPES]
    rows = [row for row in rows if row["gradient_error"] and row["loss"] in LOSSES]
    if not rows:
        return False
    shape = f"n = {rows[0]['n']}, d = {rows[0]['d']}"
    title = f"Relative error of infoNCE's gradient on trained batches ({shape}; above 10 and NaN at 10)"

    def make(theme: Theme) -> Figure:
        figure, panels = _grid(rows, "mode", theme, title)
        found = {}
        for (loss, mode), axes in panels.items():
            chosen = [row for row in rows if (row["loss"], row["mode"]) == (loss, mode)]
            found[axes] = lines_of(chosen, ("eager",), error_at)
            plot(axes, found[axes], theme)
        # Training goes to the right, where names need room.
        axes.set(xscale="log", yscale="log", ylim=(1e-7, 20), xlim=(0.3, 1e-66))
        axes.set_xticks([10.0**-power for power in (4, 12, 20, 28, 36)])
        axes.xaxis.set_minor_locator(NullLocator())
        figure.supxlabel("φ, the negatives' share over the positive's; training goes to the right", fontsize=10)
        figure.draw_without_rendering()
        for axes, lines in found.items():
            axes.spines.bottom.set_bounds(0.3, 1e-36)
            label(axes, lines, theme, end=0, together=True)
        return figure

    draw(target, make)
    return True


def error_at(row: Mapping[str, str]) -> Point:
    """φ and the gradient's error, between 1e-7 and 10."""
    error = float(row["gradient_error"])
    return float(row["phi"]), min(max(error, 1e-7), 10) if error == error else 10


FIGURES = {"sweep": ("speed", draw_times), "memory": ("memory", draw_memory), "numerics": ("numerics", draw_numerics)}


def draw_all(results: Path, figures: Path, device_kind: str) -> list[Path]:
    """Draw a figure from each table, ``sweep-cpu.csv`` and so on, that is there; returns the files written."""
    written = []
    for table, (picture, make) in FIGURES.items():
        source = results / f"{table}-{device_kind}.csv"
        if source.is_file():
            target = figures / (f"{picture}.png" if device_kind == "cpu" else f"{picture}-{device_kind}.png")
            if make(read_csv(source), target):
                written.append(target)
    return written
