"""Figures of the study: retrieval against batch size, and pull and push during the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.ablation.logs import Study
from benchmarks.ablation.plan import NOT_CLIPPED, SCALED, USUAL
from benchmarks.cpu.plots import save

COLOURS = {"info-snt": "C0", "CZ-snt": "C1"}
FORCES = {"z_mean": "mean z", "pull": "norm of the pull", "push": "norm of the push"}
# Line and marker of an arm of the study.
VARIANTS = {USUAL: ("-", "o"), NOT_CLIPPED: ("none", "x"), SCALED: (":", "^")}


def draw_study(study: Study, path: Path) -> None:
    """Draw retrieval on the validation pairs against batch size, a panel for each precision; a dot is a seed."""
    precisions = sorted({arm.precision for arm in study}, reverse=True)
    figure = Figure(figsize=(4.5 * len(precisions), 3.4), layout="constrained")
    axes = figure.subplots(1, len(precisions), sharey=True, squeeze=False)
    for axis, precision in zip(axes[0], precisions, strict=True):
        for place, (name, colour) in enumerate(COLOURS.items()):
            for variant, (line, marker) in VARIANTS.items():
                arms = sorted(
                    arm for arm in study if (arm.precision, arm.variant, arm.name) == (precision, variant, name)
                )
                runs = [[run["validation"] for run in study[arm].values()] for arm in arms]
                sizes = [arm.batch_size for arm in arms]
                label = f"{name}, {variant}" if variant else name
                if sizes:
                    means = list(map(fmean, runs))
                    axis.plot(sizes, means, linestyle=line, marker=marker, color=colour, label=label)
                    for size, values in zip(sizes, runs, strict=True):
                        dots = [size * (0.97 + 0.06 * place)] * len(values)
                        axis.scatter(dots, values, s=8, color=colour, alpha=0.5)
        axis.set(title=precision, xlabel="batch size", xscale="log")
        ticks = sorted({arm.batch_size for arm in study})
        axis.set_xticks(ticks, ticks, minor=False)
        axis.set_xticks([], minor=True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("retrieval, validation pairs")
    axes[0, 0].legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_forces(logs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw mean z, pull and push during the runs, given the lines of their logs by label."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for label, lines in logs.items():
        # Runs with smaller batches take more steps for the same number of pairs.
        steps = [line["step"] / lines[-1]["step"] for line in lines if "pull" in line]
        for axis, (name, title) in zip(axes, FORCES.items(), strict=True):
            axis.plot(steps, [line[name] for line in lines if "pull" in line], label=label)
            axis.set(title=title, xlabel="share of the run")
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    save(figure, path)
