"""Scores summed up: over languages, and over seeds with their spread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from .score import Score

ALL = "mean"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a score over seeds; the deviation of one run is None."""

    task: str
    language: str
    metric: str
    about: str
    mean: float
    deviation: float | None
    runs: int


def with_means(scores: Iterable[Score]) -> list[Score]:
    """Returns the scores and, of every kind and seed, their mean over languages as language ``"mean"``.

    Example:
        >>> with_means([Score("xnli", "de", "accuracy", 0.5, 1), Score("xnli", "fr", "accuracy", 0.7, 1)])[-1]
        Score(task='xnli', language='mean', metric='accuracy', value=0.6, seed=1, about='mean of 2')
    """
    scores = list(scores)
    kinds: dict[tuple[str, str, int | None, str], list[float]] = defaultdict(list)
    for score in scores:
        kinds[score.task, score.metric, score.seed, score.about].append(score.value)
    return scores + [
        Score(task, ALL, metric, fmean(values), seed, "; ".join(filter(None, (about, f"mean of {len(values)}"))))
        for (task, metric, seed, about), values in kinds.items()
    ]


def over_seeds(scores: Iterable[Score]) -> list[Spread]:
    """Returns mean and spread over seeds of every score.

    Example:
        >>> over_seeds([Score("xnli", "de", "accuracy", value, seed) for seed, value in enumerate((0.5, 0.7))])
        [Spread(task='xnli', language='de', metric='accuracy', about='', mean=0.6, deviation=0.14..., runs=2)]
    """
    kinds: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for score in scores:
        kinds[score.task, score.language, score.metric, score.about].append(score.value)
    return [
        Spread(*kind, mean=fmean(values), deviation=stdev(values) if len(values) > 1 else None, runs=len(values))
        for kind, values in kinds.items()
    ]
