"""What goes wrong without the losses, in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.figures import Theme, draw, label_ends

# Beyond this φ the errors change little.
LAST = 1e-16
NAMES = {"cross_entropy": ("cross_entropy", "blue"), "ctloss": ("ctloss", "red")}
STROKES = {"float32": "-", "bfloat16": "--"}


def draw_front(rows: Sequence[Mapping[str, str]], path: Path) -> list[Path]:
    """Draw the gradient's error against φ, ours and ``cross_entropy``'s, from the table of ``benchmarks numerics``."""
    lines = {
        (name, mode): sorted(
            (float(row["phi"]), float(row["gradient_error"]))
            for row in rows
            if (row["provider"], row["mode"], row["loss"]) == (name, mode, "info-cross") and float(row["phi"]) >= LAST
        )
        for name in NAMES
        for mode in STROKES
    }

    def make(theme: Theme) -> Figure:
        figure = Figure(figsize=(7.6, 3.9), layout="constrained")
        axes = figure.subplots()
        ends = []
        for (name, mode), points in lines.items():
            title, colour = NAMES[name]
            axes.plot(
                *zip(*points, strict=True),
                STROKES[mode],
                color=theme.colours[colour],
                linewidth=2.4,
                marker="o",
                markersize=4.5,
            )
            ends.append((f"{title}, {mode}", *points[0], theme.colours[colour]))
        axes.axhline(1, color=theme.ink, linewidth=0.8, linestyle=":")
        axes.text(0.1, 1.15, "nothing right any more", fontsize=9, va="bottom", color=theme.ink)
        axes.set(xscale="log", yscale="log", xlim=(0.3, LAST / 1e7), ylim=(1e-7, 5))
        axes.set_xticks([10.0**-power for power in range(1, 17, 3)])
        axes.spines.bottom.set_bounds(0.3, LAST)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.6, linewidth=0.6)
        axes.set_xlabel("φ, the negatives' share over the positive's: pairs get solved from left to right", loc="left")
        axes.set_ylabel("relative error of the gradient")
        figure.draw_without_rendering()
        label_ends(axes, ends)
        return figure

    return draw(path, make)
