"""The figure of scores by language: a panel for each evaluation, all on one scale, in rows of equal width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...shared.pictures import MARKERS, Theme, add_legend, draw
from ..data.sources import EVALUATIONS
from .scores import ALL, MAJORITY, MOST_DIRECTIONS, Results, Spread, is_mean, over_seeds

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The metric drawn for each evaluation, and how the languages drawn begin.
DRAWN = dict.fromkeys(EVALUATIONS, "accuracy") | {"align": "aer"}
DRAWN |= dict.fromkeys(("pos", "ner", "bucc", "xquad", "mlqa", "tydiqa"), "f1")
STARTS = {"tatoeba": "eng-", "flores": "eng_Latn-", "ntrex": "eng-"}
METRICS = {"f1": "F1", "aer": "error rate, lower is better"}
# Inches: of a row's panels together, left of them, between them, above and below each; of a letter of a title, and of a
# language's code.
WIDTH, LEFT, GAP, TITLE, BELOW, LETTER, SMALL = 10.0, 0.65, 0.3, 0.3, 0.12, 0.085, 0.072
# A row's height on paper, where there are few rows and where there are many.
TALL, LOW = 2.4, 1.5
# Inches for languages' codes that stand across.
ACROSS = 0.2


class Panel(NamedTuple):
    """Some languages of an evaluation: each model's scores by language, and the accuracies of the majority class."""

    title: str
    languages: list[str]
    models: list[dict[str, Spread]]
    majority: list[float]


def draw_languages(results: Sequence[Results], path: Path) -> bool:
    """Draws scores by language, one panel per evaluation; colour and marker are a model, whiskers spreads over seeds.

    All panels have one scale, in per cent. An evaluation in many languages goes on in further panels. The dashed line
    for XNLI and PAWS-X is the accuracy of always answering the most frequent label. Of more than 250 directions none
    is drawn; the figure says so. The pictures are PNG files: ``path`` for light pages, and beside it, with ``-dark`` at
    the end of its name, one for dark pages.

    Returns:
        Whether there was anything to draw.
    """
    # A model's points in a language stand side by side.
    slot = max(0.24, 0.04 * len(results) + 0.1)
    found = [panel for task in DRAWN if (panel := _panel(results, task)) is not None]
    panels = [piece for panel in found if len(panel.languages) <= MOST_DIRECTIONS for piece in _pieces(panel, slot)]
    if not panels:
        return False
    told = [
        f"Not drawn: {panel.title}, {len(panel.languages)} directions (see results.json)"
        for panel in found
        if len(panel.languages) > MOST_DIRECTIONS
    ]
    if any(spread.deviation is not None for panel in panels for own in panel.models for spread in own.values()):
        told.append("Whiskers: standard deviation over seeds")
    names = [model.name for model in results]
    draw(path, lambda theme: _figure(_rows(panels, slot), names, told, slot, theme))
    return True


def _panel(results: Sequence[Results], task: str) -> Panel | None:
    """An evaluation with all its languages; directions from English if there are any."""
    metric = DRAWN[task]
    spreads = [over_seeds(model.tasks[task].scores if task in model.tasks else []) for model in results]
    drawn = [
        [s for s in own if s.metric == metric and MAJORITY not in s.about and not is_mean(s.language)]
        for own in spreads
    ]
    start = STARTS.get(task, "")
    if not any(spread.language.startswith(start) for own in drawn for spread in own):
        start = ""
    models = [
        {spread.language.removeprefix(start): spread for spread in own if spread.language.startswith(start)}
        for own in drawn
    ]
    if not any(models):
        return None
    majority = {s.mean for own in spreads for s in own if MAJORITY in s.about and s.language == ALL}
    title = f"{EVALUATIONS[task].title}: {METRICS.get(metric, metric)}{f', {start}X' if start else ''}"
    return Panel(title, sorted({language for own in models for language in own}), models, sorted(majority))


def _pieces(panel: Panel, slot: float) -> list[Panel]:
    """A panel in as many as it takes rows, of about equal numbers of languages."""
    count = math.ceil(len(panel.languages) * slot / WIDTH)
    size = math.ceil(len(panel.languages) / count)
    return [
        panel._replace(
            title=panel.title if not first else f"{panel.title}, continued",
            languages=panel.languages[first : first + size],
        )
        for first in range(0, len(panel.languages), size)
    ]


def _rows(panels: Sequence[Panel], slot: float) -> list[list[tuple[float, float, Panel]]]:
    """Each row's panels, one after another as they fit: where a panel begins in its row, its width, and it."""
    rows: list[list[tuple[float, float, Panel]]] = []
    for panel in panels:
        # No title runs into the next.
        width = max(len(panel.languages) * slot, LETTER * len(panel.title))
        start = rows[-1][-1][0] + rows[-1][-1][1] + GAP if rows else 0.0
        if not rows or start + width > WIDTH + 1e-6:
            rows.append([(0.0, width, panel)])
        else:
            rows[-1].append((start, width, panel))
    return rows


def _figure(
    rows: Sequence[Sequence[tuple[float, float, Panel]]],
    names: Sequence[str],
    told: Sequence[str],
    slot: float,
    theme: Theme,
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = [panel for row in rows for *_, panel in row]
    looks = [(theme.series[number % len(theme.series)], MARKERS[number % len(MARKERS)]) for number in range(len(names))]
    size = 5.5 if len(names) <= 4 else 4.5
    handles: list[tuple[str, Artist]] = [
        (name, Line2D([], [], color=colour, marker=marker, ls="", markersize=size))
        for number, (name, (colour, marker)) in enumerate(zip(names, looks, strict=True))
        if any(panel.models[number] for panel in panels)
    ]
    if any(panel.majority for panel in panels):
        handles.append(("majority class", Line2D([], [], color=theme.ink, ls="--", lw=0.8)))
    # Inches, from the top.
    entry = 0.45 + 0.08 * max(len(name) for name, _ in handles)
    across = LEFT + max(start + width for row in rows for start, width, _ in row) + 0.15
    across = max(across, LEFT + entry, *(SMALL * len(text) + 0.3 for text in told), 4.0)
    columns = min(len(handles), max(1, int((across - LEFT) / entry)))
    legend = 0.15 + 0.21 * math.ceil(len(handles) / columns)
    tall = TALL if len(rows) <= 2 else LOW
    below = [BELOW + max(_label_height(panel, width) for _, width, panel in row) for row in rows]
    down = legend + sum(below) + len(rows) * (TITLE + tall) + 0.1 + 0.2 * len(told)
    figure = Figure(figsize=(across, down))
    corner = {"loc": "upper left", "bbox_to_anchor": ((LEFT - 0.1) / across, 1.0), "borderaxespad": 0.4}
    add_legend(figure, handles, ncols=columns, fontsize=9, handletextpad=0.3, columnspacing=1.2, **corner)
    highest = max(
        [spread.mean + (spread.deviation or 0) for panel in panels for own in panel.models for spread in own.values()]
        + [level for panel in panels for level in panel.majority]
    )
    # Room for a marker at the highest score.
    limits = (0, 104 * min(max(highest, 0.01), 1))
    place = legend
    for row, space in zip(rows, below, strict=True):
        for start, width, panel in row:
            bottom = down - place - TITLE - tall
            axis = figure.add_axes(((LEFT + start) / across, bottom / down, width / across, tall / down))
            axis.set(xlim=(-0.5, len(panel.languages) - 0.5), ylim=limits)
            # However wide the panel, a language's points stand together.
            _draw_panel(axis, panel, looks, size, min(0.75, 1.5 * slot * len(panel.languages) / width), theme)
            if _label_height(panel, width) > ACROSS:
                axis.tick_params(axis="x", rotation=90)
            if start:
                axis.tick_params(axis="y", labelleft=False, length=0)
            else:
                axis.set_ylabel("per cent")
        place += TITLE + tall + space
    for number, text in enumerate(told):
        figure.text((LEFT - 0.55) / across, (0.1 + 0.2 * number) / down, text, fontsize=8)
    return figure


def _label_height(panel: Panel, width: float) -> float:
    """Inches below a panel for its languages: across if all of them fit, else upright."""
    longest = SMALL * max(map(len, panel.languages))
    return ACROSS if longest <= 0.8 * width / len(panel.languages) else longest + 0.12


def _draw_panel(
    axis: Axes, panel: Panel, looks: Sequence[tuple[str, str]], size: float, spread: float, theme: Theme
) -> None:
    """Draws a panel's points; those of a language take the share ``spread`` of the room that it has."""
    for number, (scores, (colour, marker)) in enumerate(zip(panel.models, looks, strict=True)):
        aside = spread * (number - (len(looks) - 1) / 2) / len(looks)
        there = [(place + aside, scores[code]) for place, code in enumerate(panel.languages) if code in scores]
        if there:
            points, *_ = axis.errorbar(
                [place for place, _ in there],
                [100 * found.mean for _, found in there],
                yerr=[100 * (found.deviation or 0.0) for _, found in there],
                color=colour,
                fmt=marker,
                markersize=size,
                markeredgewidth=0,
                elinewidth=1,
                zorder=3,
            )
            # A marker on the edge, at 0, shows whole.
            points.set_clip_on(False)
    for level in panel.majority:
        axis.axhline(100 * level, color=theme.ink, linestyle="--", linewidth=0.8)
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xticks(range(len(panel.languages)), panel.languages, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.tick_params(axis="x", length=0)
    axis.grid(linewidth=0.5, alpha=0.7)
