"""Which rows are compared with which, for the options that decide it, as the losses themselves have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

import ctloss
from benchmarks.figures import Theme, draw

PAIRS, QUEUE = 4, 3
PALE = 0.35
# What a cell of a table is: the anchor itself or not compared, a negative, the positive.
NOTHING, NEGATIVE, POSITIVE = 0, 1, 2
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    'negatives="both"': {"negatives": "both"},
    'negatives="cross"': {"negatives": "cross"},
    'negatives="own"': {"negatives": "own"},
    'negatives="both", ids=[1, 2, 1, 3]': {"negatives": "both", "ids": torch.tensor([1, 2, 1, 3])},
    'negatives="cross", directions="x",\ncandidates=hard': {"negatives": "cross", "directions": "x"},
    'negatives="none", directions="x",\ncandidates=queue': {"negatives": "none", "directions": "x"},
}


def compared(options: Mapping[str, Any], candidates: bool) -> Tensor:
    """What each row's z depends on, by its derivatives.

    Args:
        options: of :func:`ctloss.contrast`.
        candidates: whether there are further rows.

    Returns:
        ``(anchors, rows)`` of cells; the rows are those of x, those of y, and the candidates.
    """
    sizes = [PAIRS, PAIRS, QUEUE if candidates else 0]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(sizes), 6, dtype=torch.float64, generator=generator, requires_grad=True)
    x, y, more = rows.split(sizes)
    z = ctloss.contrast(x, y, candidates=more if candidates else None, normalize=False, impl="reference", **options).z
    cells = torch.full((len(z), len(rows)), NOTHING)
    for anchor in range(len(z)):
        (gradient,) = torch.autograd.grad(z[anchor], rows, retain_graph=True)
        cells[anchor, gradient.abs().amax(1) > 0] = NEGATIVE
        cells[anchor, anchor] = NOTHING
        cells[anchor, (anchor + PAIRS) % (2 * PAIRS)] = POSITIVE
    return cells


def draw_negatives(path: Path) -> list[Path]:
    """Draw a table of anchors against rows for each of the options."""
    tables = {title: compared(options, "candidates" in title) for title, options in OPTIONS.items()}

    def make(theme: Theme) -> Figure:
        colours = {NOTHING: theme.faint, NEGATIVE: theme.colours["red"], POSITIVE: theme.colours["blue"]}
        figure = Figure(figsize=(9.6, 6.2), layout="constrained")
        for axes, (title, cells) in zip(figure.subplots(2, 3).flat, tables.items(), strict=True):
            # Sides and candidates stand apart.
            places = [row + 0.3 * (row // PAIRS) for row in range(cells.shape[1])]
            for anchor, line in enumerate(cells.tolist()):
                for place, cell in zip(places, line, strict=True):
                    corner = (place - 0.44, anchor - 0.44)
                    alpha = PALE if cell == NOTHING else 1
                    axes.add_patch(Rectangle(corner, 0.88, 0.88, color=colours[cell], alpha=alpha, linewidth=0))
            names = [f"{side}{i}" for side in "xy" for i in range(1, PAIRS + 1)]
            names += [f"{'h' if 'hard' in title else 'q'}{i}" for i in range(1, QUEUE + 1)]
            axes.set_xticks(places, names[: cells.shape[1]], fontsize=9)
            axes.set_yticks(range(len(cells)), names[: len(cells)], fontsize=9)
            axes.tick_params(length=0, labeltop=True, labelbottom=False)
            # The same cells in every table.
            axes.set(xlim=(-0.6, 11.3), ylim=(2 * PAIRS - 0.4, -0.6), aspect="equal")
            axes.spines[:].set_visible(False)
            axes.set_title(title, fontsize=10, family="monospace", loc="left")
        handles = [
            Patch(color=colours[POSITIVE], label="the positive"),
            Patch(color=colours[NEGATIVE], label="a negative"),
            Patch(color=colours[NOTHING], alpha=PALE, label="not compared"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=10)
        figure.suptitle("Each line is an anchor, each column a row that it may be compared with", fontsize=11)
        return figure

    return draw(path, make)
