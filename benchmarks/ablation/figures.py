"""Figures of the table, and of the study: retrieval against batch size, pull and push at its runs' start and end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from benchmarks.ablation.logs import Study
from benchmarks.ablation.plan import NOT_CLIPPED, SCALED, USUAL, Arm
from benchmarks.figures import Theme, draw, label_ends

COLOURS = {"info-snt": "blue", "CZ-snt": "red"}
FORCES = {"pull": "pull on the positive", "push": "push from the negatives"}
# Line and marker of an arm of the study.
VARIANTS = {USUAL: ("-", "o"), NOT_CLIPPED: ("none", "X"), SCALED: (":", "^")}

# Of the table's rows, from the one that all others start from.
ROWS = ("grey", "blue", "red", "green", "orange", "purple")


def draw_scores(scores: Mapping[str, Mapping[str, tuple[float, float]]], path: Path) -> None:
    """Draw the table: for each task a line of dots, one for each row of the table, with its spread over seeds.

    Args:
        scores: mean and standard deviation in per cent, by the table's row and by task.
        path: of the picture.
    """
    tasks = list(dict.fromkeys(task for row in scores.values() for task in row))

    def make(theme: Theme) -> Figure:
        figure = Figure(figsize=(8.6, 0.5 * len(tasks) + 1.6), layout="constrained")
        axes = figure.subplots()
        for number, (name, found) in enumerate(scores.items()):
            # Rows of one task stand a little below one another.
            places = [tasks.index(task) + 0.11 * (number - (len(scores) - 1) / 2) for task in found]
            means, spreads = ([value[part] for value in found.values()] for part in (0, 1))
            colour = theme.colours[ROWS[number % len(ROWS)]]
            axes.errorbar(means, places, xerr=spreads, fmt="o", markersize=6, color=colour, label=name)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.invert_yaxis()
        axes.set(xlim=(0, None), xlabel="per cent, mean over languages; whiskers: standard deviation over seeds")
        axes.grid(axis="x", alpha=0.6, linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper center", ncols=3, fontsize=9)
        return figure

    draw(path, make)


def draw_study(study: Study, path: Path) -> None:
    """Draw retrieval on the validation pairs against batch size, a panel for each precision; a dot is a seed."""
    precisions = sorted({arm.precision for arm in study}, reverse=True)
    sizes = sorted({arm.batch_size for arm in study})

    def make(theme: Theme) -> Figure:
        figure = Figure(figsize=(4.9 * len(precisions), 3.6), layout="constrained")
        axes = figure.subplots(1, len(precisions), sharey=True, squeeze=False)[0]
        ends = []
        for axis, precision in zip(axes, precisions, strict=True):
            named = []
            for name, colour in COLOURS.items():
                for variant, (line, marker) in VARIANTS.items():
                    arms = sorted(a for a in study if (a.precision, a.variant, a.name) == (precision, variant, name))
                    if not arms:
                        continue
                    runs = [[run["validation"] for run in study[arm].values()] for arm in arms]
                    means, batches = list(map(fmean, runs)), [arm.batch_size for arm in arms]
                    ink = theme.colours[colour]
                    axis.plot(batches, means, linestyle=line, marker=marker, markersize=6, color=ink)
                    for size, values in zip(batches, runs, strict=True):
                        axis.scatter([size] * len(values), values, s=10, color=ink, alpha=0.5)
                    named.append((f"{name}, {variant}" if variant else name, batches[-1], means[-1], ink))
            ends.append(named)
            axis.set(xlabel="pairs in a batch", xscale="log", ylim=(0, None))
            axis.set_title(precision, fontsize=11)
            axis.set_xlim(sizes[0] * 0.85, sizes[-1] * max(sizes[-1] / sizes[0], 2) ** 0.75)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.set_xticks([], minor=True)
            axis.spines.bottom.set_bounds(sizes[0], sizes[-1])
        axes[0].set_ylabel("share of validation pairs found")
        figure.draw_without_rendering()
        for axis, named in zip(axes, ends, strict=True):
            label_ends(axis, named)
        return figure

    draw(path, make)


def draw_forces(study: Study, path: Path) -> None:
    """Draw the norms of pull and push from the start to the end of the usual float32 runs, means over seeds."""
    arms = sorted(arm for arm in study if (arm.precision, arm.variant) == ("fp32", USUAL))
    if not arms:
        return

    def make(theme: Theme) -> Figure:
        figure = Figure(figsize=(9.8, 3.8), layout="constrained")
        axes = figure.subplots(1, len(FORCES), sharey=True)
        for axis, (force, title) in zip(axes, FORCES.items(), strict=True):
            for arm in arms:
                axis.plot([0, 1], _from_to(study, arm, force), color=theme.colours[COLOURS[arm.name]], marker="o")
            axis.set_title(title, fontsize=11)
            axis.set(xlim=(-0.12, 1.8), ylim=(0, None))
            axis.set_xticks([0, 1], ["start", "end"])
            axis.spines.bottom.set_bounds(0, 1)
        axes[0].set_ylabel("norm of the gradient's part")
        figure.draw_without_rendering()
        for axis, force in zip(axes, FORCES, strict=True):
            label_ends(
                axis,
                [
                    (f"{a.name}, batch {a.batch_size}", 1, _from_to(study, a, force)[1], theme.colours[COLOURS[a.name]])
                    for a in arms
                ],
            )
        return figure

    draw(path, make)


def _from_to(study: Study, arm: Arm, force: str) -> tuple[float, float]:
    first, last = (fmean(run[key] for run in study[arm].values()) for key in (f"{force}_first", force))
    return first, last
