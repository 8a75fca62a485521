"""How the documents' figures look: twice, on light and on dark pages, in colours that everybody can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from ctloss.shared.files import writing_file

matplotlib.use("Agg")


@dataclass(frozen=True)
class Theme:
    """Colours on one kind of page. ``suffix`` ends the names of the files; an empty paper lets the page shine through.

    The eight colours are those of Okabe and Ito (2008); on dark pages the darker ones are lightened.
    """

    suffix: str
    ink: str
    faint: str
    paper: str
    colours: Mapping[str, str]


LIGHT = Theme(
    "",
    ink="#1f2328",
    faint="#c8ccd1",
    paper="#ffffff",
    colours={
        "orange": "#e69f00",
        "sky": "#56b4e9",
        "green": "#009e73",
        "yellow": "#f0e442",
        "blue": "#0072b2",
        "red": "#d55e00",
        "purple": "#cc79a7",
        "grey": "#6e7781",
    },
)
DARK = Theme(
    "-dark",
    ink="#e6e8eb",
    faint="#4a4f57",
    paper="",
    colours={**LIGHT.colours, "green": "#1fc39a", "blue": "#4ba3e3", "red": "#f0803c", "grey": "#9aa3ad"},
)
THEMES = (LIGHT, DARK)


def draw(path: Path, make: Callable[[Theme], Figure]) -> list[Path]:
    """Write ``make``'s figure for light pages to ``path`` and for dark ones beside it; returns both paths."""
    written = []
    for theme in THEMES:
        target = path.with_name(f"{path.stem}{theme.suffix}{path.suffix}")
        with _colours(theme):
            figure = make(theme)
            save(figure, target, theme.paper)
        written.append(target)
    return written


@contextmanager
def _colours(theme: Theme) -> Iterator[None]:
    inks = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    look: dict[Any, Any] = {
        **dict.fromkeys(inks, theme.ink),
        "axes.facecolor": "none",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 10,
        "grid.color": theme.faint,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(look):
        yield


def save(figure: Figure, path: Path, paper: str = "") -> None:
    """Write a picture in the format of its name, whole or not at all; without paper its ground is transparent."""
    with writing_file(path) as partial:
        figure.savefig(partial, dpi=160, format=path.suffix[1:], facecolor=paper or "none")


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
