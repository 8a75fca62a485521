"""How rows travel from rank to rank, and which rank forms which block of logits, as the schedule has it."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from benchmarks.figures import Theme, draw
from ctloss.ranks import schedule

COLOURS = ("red", "blue", "green", "orange", "purple", "sky")


Span = tuple[float, float]


def blocks(world: int) -> list[tuple[int, Span, Span]]:
    """The blocks of the forward: which rank forms it, where its own rows begin and end, where the other's do."""
    found = [(rank, _part(rank, "all"), _part(rank, "all")) for rank in range(world)]
    for rank in range(world):
        for step in schedule.forward(rank, world):
            other = (rank + step.hop) % world
            found.append((rank, _part(rank, step.own), _part(other, step.other)))
    return found


def _part(rank: int, part: schedule.Part) -> Span:
    return (rank + 0.5 * (part == "second"), rank + 1 - 0.5 * (part == "first"))


def draw_ring(world: int, path: Path) -> list[Path]:
    """Draw the ring at the left and the table of blocks at the right."""

    def make(theme: Theme) -> Figure:
        figure = Figure(figsize=(9.0, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _ring(left, world, theme)
        _blocks(right, world, theme)
        return figure

    return draw(path, make)


def _ring(axes: Axes, world: int, theme: Theme) -> None:
    angles = [math.pi / 2 - 2 * math.pi * rank / world for rank in range(world)]
    for rank, angle in enumerate(angles):
        place = (math.cos(angle), math.sin(angle))
        axes.scatter(*place, s=2600, color=theme.colours[COLOURS[rank]], zorder=2)
        axes.text(*place, f"rank {rank}", ha="center", va="center", fontsize=9, color="white", weight="bold", zorder=3)
        before = angles[rank - 1]
        arrow = FancyArrowPatch(
            place,
            (math.cos(before), math.sin(before)),
            connectionstyle="arc3,rad=0.35",
            arrowstyle="-|>",
            mutation_scale=16,
            shrinkA=28,
            shrinkB=28,
            color=theme.ink,
        )
        axes.add_patch(arrow)
    axes.text(0, 0, "each rank's rows\ntravel half way round", ha="center", va="center", fontsize=10, color=theme.ink)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    axes.set_axis_off()
    axes.set_title("who sends to whom", fontsize=11)


def _blocks(axes: Axes, world: int, theme: Theme) -> None:
    for rank, (top, bottom), (start, end) in blocks(world):
        colour = theme.colours[COLOURS[rank]]
        axes.add_patch(Rectangle((start, top), end - start, bottom - top, facecolor=colour, edgecolor="none"))
        axes.text(
            (start + end) / 2, (top + bottom) / 2, f"rank {rank}", ha="center", va="center", fontsize=8, color="white"
        )
        if start != top or end != bottom:
            mirror = Rectangle((top, start), bottom - top, end - start, facecolor=colour, alpha=0.22, edgecolor="none")
            axes.add_patch(mirror)
    for line in range(world + 1):
        axes.plot([0, world], [line, line], color=theme.ink, linewidth=0.8)
        axes.plot([line, line], [0, world], color=theme.ink, linewidth=0.8)
    names = [f"rows of {rank}" for rank in range(world)]
    axes.set_xticks([rank + 0.5 for rank in range(world)], names, fontsize=9)
    axes.set_yticks([rank + 0.5 for rank in range(world)], names, fontsize=9)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.02, world + 0.02), ylim=(world + 0.02, -0.02), aspect="equal")
    axes.set_xlabel("pale: the same logits seen from the other rank, not formed again", fontsize=9)
    axes.set_title("who forms which block of logits", fontsize=11)
