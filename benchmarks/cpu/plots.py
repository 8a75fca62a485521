"""The figures of the documents, drawn from the tables of results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.cpu.report import time_ratios
from benchmarks.results import read_csv
from ctloss.shared.files import writing_file

matplotlib.use("Agg")

STYLES: Mapping[str, tuple[str, str]] = {
    "ctloss": ("#c1121f", "o"),
    "ctloss-torch": ("#c1121f", "o"),
    "ctloss-triton": ("#f77f00", "s"),
    "eager": ("#1d3557", "^"),
    "compile": ("#457b9d", "v"),
    "cross_entropy": ("#1d3557", "^"),
    "logsumexp": ("#6d597a", "x"),
    "naive": ("#8d99ae", "P"),
    "lightly": ("#2a9d8f", "D"),
    "open_clip": ("#606c38", "<"),
    "sentence-transformers": ("#bc6c25", ">"),
    "metric-learning": ("#b5838d", "*"),
}
Rows = Sequence[Mapping[str, str]]
Panels = Mapping[tuple[str, str], Axes]
Point = tuple[float, float]


def _panels(
    rows: Rows, across: str, without: Sequence[str], point: Callable[[Mapping[str, str]], Point]
) -> tuple[Figure, Panels]:
    """A line for each provider but those left out, a panel for each loss (down) and ``across``, logarithmic axes."""
    columns, lines = (list(dict.fromkeys(row[key] for row in rows)) for key in (across, "loss"))
    figure = Figure(figsize=(4.2 * len(columns) + 1.8, 3.1 * len(lines) + 0.4), layout="constrained")
    grid = figure.subplots(len(lines), len(columns), squeeze=False, sharex=True)
    panels = {(a, b): grid[i][j] for i, b in enumerate(lines) for j, a in enumerate(columns)}
    for (a, b), axes in panels.items():
        axes.set_title(f"{b}, {a}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.set(xscale="log", yscale="log")
        axes.tick_params(labelsize=8)
        series: dict[str, list[Point]] = defaultdict(list)
        for row in rows:
            if (row[across], row["loss"]) == (a, b) and row["provider"] not in without:
                series[row["provider"]].append(point(row))
        for name, (colour, marker) in STYLES.items():
            if name in series:
                width, order = (2.2, 3) if name.startswith("ctloss") else (1.1, 2)
                points = zip(*sorted(series[name]), strict=True)
                axes.plot(*points, color=colour, marker=marker, markersize=4, linewidth=width, zorder=order, label=name)
        if not series:
            axes.set_axis_off()
    return figure, panels


def _pair_counts(panels: Panels, rows: Rows) -> None:
    """Ticks at the measured n, and plain numbers on both axes."""
    for axes in panels.values():
        axes.set_xticks(sorted({float(row["n"]) for row in rows}))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())


def _finish(figure: Figure, panels: Panels, title: str, x: str, y: str, path: Path) -> bool:
    handles: dict[str, Artist] = {}
    for axes in panels.values():
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    save(figure, path)
    return True


def save(figure: Figure, path: Path) -> None:
    """Write a picture in the format of its name, whole or not at all."""
    with writing_file(path) as partial:
        figure.savefig(partial, dpi=130, format=path.suffix[1:])


def draw_times(rows: Rows, target: Path) -> bool:
    """Time over the best eager form, by n: a panel for each loss and dtype, at the first d and number of threads.

    Like the other two, returns whether there was anything to draw.
    """
    rows = time_ratios([row for row in rows if row["provider"] in STYLES])
    if not rows:
        return False
    rows = [row for row in rows if (row["d"], row["threads"]) == (rows[0]["d"], rows[0]["threads"])]
    without = ("cross_entropy", "logsumexp")
    figure, panels = _panels(rows, "dtype", without, lambda row: (float(row["n"]), float(row["ratio"])))
    for axes in (axes for axes in panels.values() if axes.lines):
        axes.axhline(1, color="black", linewidth=0.8)
    _pair_counts(panels, rows)
    title = f"Forward and backward, d = {rows[0]['d']}, {rows[0]['device']}, {rows[0]['threads']} thread(s)"
    return _finish(figure, panels, title, "pairs n", "time / best eager form", target)


def draw_memory(rows: Rows, target: Path) -> bool:
    """Peak memory beyond the inputs, by n: a panel for each loss and dtype, at the first d."""
    rows = [row for row in rows if row["provider"] in STYLES and float(row.get("peak_bytes") or 0) > 0]
    if not rows:
        return False
    rows = [row for row in rows if row["d"] == rows[0]["d"]]
    figure, panels = _panels(rows, "dtype", (), lambda row: (float(row["n"]), float(row["peak_bytes"]) / 2**20))
    _pair_counts(panels, rows)
    title = f"Peak memory of forward and backward beyond the inputs, d = {rows[0]['d']}"
    return _finish(figure, panels, title, "pairs n", "MiB", target)


def draw_numerics(rows: Rows, target: Path) -> bool:
    """Gradient error against φ by implementation of infoNCE, float32 and bfloat16.

    Errors are drawn between 1e-8 and 10; NaN is drawn at the top.
    """
    rows = [row for row in rows if row["provider"] in STYLES and row["mode"] in ("float32", "bfloat16")]
    rows = [row for row in rows if row["gradient_error"] and row["loss"].startswith("info")]
    if not rows:
        return False

    def point(row: Mapping[str, str]) -> Point:
        error = float(row["gradient_error"])
        return float(row["phi"]), min(max(error, 1e-8), 10) if error == error else 10

    figure, panels = _panels(rows, "mode", ("eager",), point)
    for axes in panels.values():
        axes.set_ylim(1e-8, 20)
    # The panels share this axis; training goes to the right.
    next(iter(panels.values())).invert_xaxis()
    shape = f"n = {rows[0]['n']}, d = {rows[0]['d']}"
    title = f"Error of the gradient on trained batches ({shape}); NaN and everything above 10 drawn at 10"
    return _finish(
        figure, panels, title, "φ: share of the negatives over the positive's", "‖g − g_ref‖ / ‖g_ref‖", target
    )


FIGURES = {"sweep": ("speed", draw_times), "memory": ("memory", draw_memory), "numerics": ("numerics", draw_numerics)}


def draw_all(results: Path, figures: Path, device_kind: str) -> list[Path]:
    """Draw a figure from each table, ``sweep-cpu.csv`` and so on, that is there; returns the files written."""
    written = []
    for table, (picture, draw) in FIGURES.items():
        source = results / f"{table}-{device_kind}.csv"
        if source.is_file():
            target = figures / (f"{picture}.png" if device_kind == "cpu" else f"{picture}-{device_kind}.png")
            if draw(read_csv(source), target):
                written.append(target)
    return written
