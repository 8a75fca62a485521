"""How the documents' figures look: as all figures of the package, and with names at the ends of lines."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from ctloss.shared.pictures import Theme, draw

__all__ = ["Theme", "draw", "label_ends", "spread"]
matplotlib.use("Agg")


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]], *, gap: float = 12) -> None:
    """Write each line's name to the right of its end, pushed apart to ``gap`` points where they would overlap.

    Args:
        axes: with its limits and scales set, in a figure of its final size.
        ends: name, x, y and colour of each line's last point.
        gap: points between two names.
    """
    scale = axes.figure.dpi / 72
    order = sorted(ends, key=lambda end: end[2])
    heights = [axes.transData.transform((x, y))[1] / scale for _, x, y, _ in order]
    places = spread(heights, gap)
    for (name, x, y, colour), height, place in zip(order, heights, places, strict=True):
        shift = ScaledTranslation(6 / 72, (place - height) / 72, axes.figure.dpi_scale_trans)
        axes.text(x, y, name, color=colour, va="center", fontsize=9, transform=axes.transData + shift)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places moved as little as groups allow so that neighbours are ``gap`` apart.

    Example:
        >>> spread([0.0, 1.0, 9.0], 2.0)
        [-0.5, 1.5, 9.0]
    """
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _span(groups[-2], gap)[1] + gap > _span(groups[-1], gap)[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_span(group, gap)[0] + gap * i for group in groups for i in range(len(group))]


def _span(group: Sequence[float], gap: float) -> tuple[float, float]:
    """Where a group's first and last place end up around its mean."""
    middle, half = sum(group) / len(group), gap * (len(group) - 1) / 2
    return middle - half, middle + half
