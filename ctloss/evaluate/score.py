"""What an evaluation hands back: numbers, and predictions as XTREME's submissions want them."""

from __future__ import annotations

from dataclasses import dataclass


class DataError(ValueError):
    """Data of a task are not what their format promises; the message names the file and, if it can, the line."""


@dataclass(frozen=True)
class Score:
    """One number: of a task in one language (``"en"``, ``"deu-eng"``), by a metric (``"accuracy"``, ``"f1"``).

    Shares lie in [0, 1], cosines in [-1, 1]; ``about`` says what the names leave open.

    Example:
        >>> Score("tatoeba", "eng-deu", "accuracy", 0.962)
        Score(task='tatoeba', language='eng-deu', metric='accuracy', value=0.962, seed=None, about='')
    """

    task: str
    language: str
    metric: str
    value: float
    seed: int | None = None
    about: str = ""


@dataclass(frozen=True)
class Outcome:
    """Scores of a task, and of each language the lines of XTREME's submission file test-LANGUAGE.tsv."""

    scores: list[Score]
    predictions: dict[str, list[str]]
