"""Results of several seeds, and which differences between rows are beyond their noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t

from ctloss.evaluate import Results, TaskResult

# In the remark of a score of the majority class.
MAJORITY = "majority"
# What :func:`values` uses as the seed of a score without one.
SEEDLESS = 0


@dataclass(frozen=True)
class Column:
    """A number of a row: a metric of an evaluation in a language, or its mean over ``languages`` where they are given.

    ``lower`` says whether lower is better.
    """

    title: str
    task: str
    metric: str
    language: str = "mean"
    languages: tuple[str, ...] = ()
    lower: bool = False


@dataclass(frozen=True)
class Difference:
    """The mean over seeds of the difference of two rows, and half the width of its 95 % interval."""

    mean: float
    half_width: float | None
    seeds: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval excludes 0; False where a single seed gives no interval."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def joined(name: str, runs: Mapping[int, Results]) -> Results:
    """Results of several seeds as those of one model; every score gets its run's seed, except the majority class's."""
    tasks: dict[str, TaskResult] = {}
    for seed, results in runs.items():
        for task, result in results.tasks.items():
            there = tasks.get(task, TaskResult({**result.settings, "seeds": []}, [], 0.0))
            of_data = [score for score in result.scores if MAJORITY in score.about and score not in there.scores]
            scores = of_data + [
                dataclasses.replace(score, seed=seed) for score in result.scores if MAJORITY not in score.about
            ]
            settings = {**there.settings, "seeds": [*there.settings["seeds"], seed]}
            tasks[task] = TaskResult(settings, there.scores + scores, there.seconds + result.seconds)
    return Results(name, name, tasks)


def values(results: Results, column: Column) -> dict[int, float]:
    """A column's number of a row for every seed, 0 for no seed; those of the majority class do not count."""
    found: dict[int, list[float]] = {}
    languages = column.languages or (column.language,)
    for score in results.tasks[column.task].scores if column.task in results.tasks else []:
        if score.metric == column.metric and score.language in languages and MAJORITY not in score.about:
            found.setdefault(score.seed or SEEDLESS, []).append(score.value)
    return {seed: fmean(several) for seed, several in found.items()}


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """The second row less the first, paired by seed: the same seed means the same data in the same order.

    A row without seeds, such as the base where nothing is fine-tuned, is paired with each seed of the other.

    Returns:
        The difference with the half width of Student's interval at 95 %; None without a common seed.

    Example:
        >>> difference({1: 0.5, 2: 0.5}, {1: 0.75, 2: 0.625})
        Difference(mean=0.1875, half_width=0.794..., seeds=2)
    """
    if set(first) == {SEEDLESS}:
        first = dict.fromkeys(second, first[SEEDLESS])
    differences = [second[seed] - first[seed] for seed in second if seed in first]
    if not differences:
        return None
    count = len(differences)
    half = float(t.ppf(0.975, count - 1)) * stdev(differences) / count**0.5 if count > 1 else None
    return Difference(fmean(differences), half, count)
