"""The README's figures, drawn from the tables of results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.ratios import time_ratios
from benchmarks.results import read_csv

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
Series = dict[str, list[tuple[float, float]]]


def _drawn(rows: Sequence[Mapping[str, str]], column: str) -> list[Mapping[str, str]]:
    return [row for row in rows if row.get(column) and row["provider"] in STYLES]


def _lines(axes: Axes, series: Series) -> None:
    for name in STYLES:
        if name in series:
            colour, marker = STYLES[name]
            own = name.startswith("ctloss")
            points = sorted(series[name])
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=2.2 if own else 1.1,
                zorder=3 if own else 2,
                label=name,
            )


def _panels(rows: Sequence[Mapping[str, str]], across: str, down: str) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    columns, lines = (list(dict.fromkeys(row[key] for row in rows)) for key in (across, down))
    figure = Figure(figsize=(4.2 * len(columns) + 1.8, 3.1 * len(lines) + 0.4), layout="constrained")
    grid = figure.subplots(len(lines), len(columns), squeeze=False, sharex=True)
    axes = {(a, b): grid[i][j] for i, b in enumerate(lines) for j, a in enumerate(columns)}
    for (a, b), one in axes.items():
        one.set_title(f"{b}, {a}", fontsize=10)
        one.grid(alpha=0.3)
        one.set_xscale("log")
        one.set_yscale("log")
        one.tick_params(labelsize=8)
    return figure, axes


def _plain_axes(axes: Axes, counts: Sequence[float]) -> None:
    """Ticks at the measured n, and plain numbers on both axes."""
    axes.set_xticks(sorted(set(counts)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _finish(figure: Figure, axes: Mapping[tuple[str, str], Axes], title: str, x: str, y: str, path: Path) -> None:
    handles: dict[str, Artist] = {}
    for one in axes.values():
        handles |= {label: handle for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a picture in the format of its name, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    figure.savefig(unfinished, dpi=130, format=path.suffix[1:])
    unfinished.replace(path)


def draw_times(source: Path, target: Path) -> None:
    """Time against the best eager form, by n: a panel for each loss and dtype, at the first d and number of threads."""
    rows = _drawn(time_ratios(read_csv(source)), "ratio")
    rows = [row for row in rows if (row["d"], row["threads"]) == (rows[0]["d"], rows[0]["threads"])]
    figure, panels = _panels(rows, "dtype", "loss")
    for (dtype, loss), axes in panels.items():
        series: Series = defaultdict(list)
        for row in rows:
            if (row["dtype"], row["loss"]) == (dtype, loss) and row["provider"] not in ("cross_entropy", "logsumexp"):
                series[row["provider"]].append((float(row["n"]), float(row["ratio"])))
        if not series:
            axes.set_axis_off()
            continue
        _lines(axes, series)
        axes.axhline(1, color="black", linewidth=0.8)
        _plain_axes(axes, [float(row["n"]) for row in rows])
    title = f"Forward and backward, d = {rows[0]['d']}, {rows[0]['device']}, {rows[0]['threads']} thread(s)"
    _finish(figure, panels, title, "pairs n", "time / best eager form", target)


def draw_memory(source: Path, target: Path) -> None:
    """Peak memory beyond the inputs, by n: a panel for each loss and dtype."""
    rows = _drawn(read_csv(source), "peak_bytes")
    rows = [row for row in rows if row["d"] == rows[0]["d"]]
    figure, panels = _panels(rows, "dtype", "loss")
    for (dtype, loss), axes in panels.items():
        series: Series = defaultdict(list)
        for row in rows:
            if (row["dtype"], row["loss"]) == (dtype, loss) and float(row["peak_bytes"]) > 0:
                series[row["provider"]].append((float(row["n"]), float(row["peak_bytes"]) / 2**20))
        _lines(axes, series)
        _plain_axes(axes, [float(row["n"]) for row in rows])
    title = f"Peak memory of forward and backward beyond the inputs, d = {rows[0]['d']}"
    _finish(figure, panels, title, "pairs n", "MiB", target)


def draw_numerics(source: Path, target: Path) -> None:
    """Gradient error against φ by implementation of infoNCE, float32 and bfloat16.

    Errors are drawn between 1e-8 and 10; NaN is drawn at the top.
    """
    rows = [row for row in _drawn(read_csv(source), "gradient_error") if row["mode"] in ("float32", "bfloat16")]
    rows = [row for row in rows if row["loss"].startswith("info")]
    figure, panels = _panels(rows, "mode", "loss")
    for (mode, loss), axes in panels.items():
        series: Series = defaultdict(list)
        for row in rows:
            if (row["mode"], row["loss"]) == (mode, loss) and row["provider"] != "eager":
                error = float(row["gradient_error"])
                series[row["provider"]].append((float(row["phi"]), min(max(error, 1e-8), 10) if error == error else 10))
        _lines(axes, series)
        axes.set_ylim(1e-8, 20)
    # The panels share this axis; training goes to the right.
    next(iter(panels.values())).invert_xaxis()
    shape = f"n = {rows[0]['n']}, d = {rows[0]['d']}"
    title = f"Error of the gradient on trained batches ({shape}); NaN and all above 10 drawn at 10"
    _finish(figure, panels, title, "φ: share of the negatives over the positive's", "‖g − g_ref‖ / ‖g_ref‖", target)


FIGURES = {"sweep": ("speed", draw_times), "memory": ("memory", draw_memory), "numerics": ("numerics", draw_numerics)}


def draw_all(results: Path, figures: Path, device_kind: str) -> list[Path]:
    """Draw a figure from each table that is there.

    Args:
        results: folder of ``sweep-cpu.csv`` and the like.
        figures: where the pictures go.
        device_kind: "cpu" or "cuda".

    Returns:
        The files written.
    """
    written = []
    for table, (picture, draw) in FIGURES.items():
        source = results / f"{table}-{device_kind}.csv"
        if source.is_file():
            target = figures / (f"{picture}.png" if device_kind == "cpu" else f"{picture}-{device_kind}.png")
            draw(source, target)
            written.append(target)
    return written
