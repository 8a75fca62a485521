"""Results of a model as its evaluation would leave them, with round numbers, and how tests look into outcomes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctloss.evaluate import DataError, Outcome, Results, Score, TaskResult


def made(name: str, shift: float = 0.0) -> Results:
    """Results with two seeds of XNLI, whose majority class has a third, and Tatoeba in two languages."""
    xnli = [
        Score("xnli", language, "accuracy", number + shift, seed, about)
        for seed, numbers in ((1, (0.50, 0.60)), (2, (0.54, 0.66)))
        for language, number, about in (("de", numbers[0], ""), ("mean", sum(numbers) / 2, "mean of 2"))
    ]
    xnli += [Score("xnli", "mean", "accuracy", 1 / 3, about="majority class; mean of 2")]
    tatoeba = [
        Score("tatoeba", "eng-deu", "accuracy", 0.25 + shift),
        Score("tatoeba", "eng-X", "accuracy", 0.41 + shift, about="mean of 2"),
        Score("tatoeba", "X-eng", "accuracy", 0.43 + shift, about="mean of 2"),
    ]
    settings = {"pooling": "layer", "layer": None, "prefix": "query: ", "max_length": None, "languages": None}
    finetuning = {"seeds": [1, 2], "epochs": 2.0, "train": ["sick.tsv"], "dev": [], "languages": None}
    tasks = {"xnli": TaskResult(finetuning, xnli, 1.0), "tatoeba": TaskResult(settings, tatoeba, 1.0)}
    return Results(name, f"runs/{name}", tasks)


def value(outcome: Outcome, language: str, metric: str, **also: object) -> float:
    """The one score of a language by a metric, and by whatever else tells it apart."""
    wanted = {"language": language, "metric": metric, **also}
    [found] = [score.value for score in outcome.scores if wanted.items() <= vars(score).items()]
    return found


def refused(message: str, *, where: Path, line: int | None = None) -> pytest.RaisesExc:
    """Expects a DataError that names the place before the message."""
    place = re.escape(str(where)) + (f", line {line}: " if line else ": ")
    return pytest.raises(DataError, match=f"^{place}.*{message}")
