"""Scores: their means and spreads, the results.json that keeps them, and predictions in XTREME's submission layout."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ...shared.files import locked, write_atomically
from .items import Items, read_items, write_items

ALL = "mean"
# With more directions than this, tables show those with English only, and the figure shows none.
MOST_DIRECTIONS = 250
# What scores of always answering the most frequent label say of themselves.
MAJORITY = "majority class"
FILE = "results.json"
# Asking for more of these computes a result again; models that are already fine-tuned are reused.
MAY_GROW = ("seeds", "languages")
# XTREME names its files by two-letter codes, even where its data use three letters.
XTREME_TASKS = ("xnli", "pawsx", "udpos", "panx", "xquad", "mlqa", "tydiqa", "bucc2018", "tatoeba")
# Their answers are JSON by the question's id; all other tasks have an item a line.
QUESTION_TASKS = ("xquad", "mlqa", "tydiqa")


@dataclass(frozen=True)
class Score:
    """One number: a task in one language (``"en"``, ``"deu-eng"``), by a metric (``"accuracy"``, ``"f1"``).

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
    """A task's scores; by language, the lines of XTREME's submission file; and scores by item.

    The file is test-LANGUAGE.tsv, or .json for questions.
    """

    scores: list[Score]
    predictions: dict[str, list[str]]
    items: Sequence[Items] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a score over seeds; with a single seed the deviation is None."""

    task: str
    language: str
    metric: str
    about: str
    mean: float
    deviation: float | None
    runs: int


@dataclass(frozen=True)
class TaskResult:
    """The scores of one evaluation, the settings they were computed with, and the seconds it took."""

    settings: dict[str, Any]
    scores: list[Score]
    seconds: float


@dataclass(frozen=True)
class Results:
    """All results of a model, its name or folder, by evaluation; ``name`` is what tables and figures call it.

    ``folder`` is where they were read from, if they were.
    """

    name: str
    model: str
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)

    def items(self, task: str) -> list[Items]:
        """Reads the items of an evaluation; none if they were not kept, as by earlier versions."""
        result = self.tasks.get(task)
        if self.folder is None or result is None:
            return []
        values = [(score.language, score.metric, score.seed, score.value) for score in result.scores]
        return read_items(self.folder, task, values)


def with_means(scores: Iterable[Score], *, pivot: str | None = None, by_about: bool = True) -> list[Score]:
    """Returns the scores followed by their means over languages, one for each task, metric and seed.

    Args:
        pivot: the language in every pair; each direction is then averaged separately, as ``"PIVOT-X"`` and
            ``"X-PIVOT"``. Without a pivot the mean's language is ``"mean"``.
        by_about: whether scores with different ``about`` are averaged separately.

    Example:
        >>> with_means([Score("xnli", "de", "accuracy", 0.5, 1), Score("xnli", "fr", "accuracy", 0.7, 1)])[-1]
        Score(task='xnli', language='mean', metric='accuracy', value=0.6, seed=1, about='mean of 2')
    """
    scores = list(scores)
    kinds: dict[tuple[str, str, str, int | None, str], list[float]] = defaultdict(list)
    for score in scores:
        name = ALL
        if pivot is not None:
            name = f"{pivot}-X" if score.language.startswith(f"{pivot}-") else f"X-{pivot}"
        kinds[score.task, name, score.metric, score.seed, score.about if by_about else ""].append(score.value)
    return scores + [
        Score(task, name, metric, fmean(values), seed, "; ".join(filter(None, (about, f"mean of {len(values)}"))))
        for (task, name, metric, seed, about), values in kinds.items()
    ]


def is_mean(language: str) -> bool:
    """Tells whether a score's language stands for several, as :func:`with_means` names them.

    Example:
        >>> [is_mean(language) for language in ("mean", "eng-X", "X-eng", "eng-deu")]
        [True, True, True, False]
    """
    return language == ALL or language.startswith("X-") or language.endswith("-X")


def over_seeds(scores: Iterable[Score]) -> list[Spread]:
    """Returns the mean and spread of every score over seeds.

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


def read_results(folder: str | Path) -> Results:
    """Reads the results in an output folder.

    Raises:
        ValueError: there are none, or the file is not one that this package writes.
    """
    path = Path(folder) / FILE
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        # JSON may hold half of a surrogate pair, of which no report can be written.
        json.dumps(read, ensure_ascii=False).encode()
        tasks = {
            task: TaskResult(kept["settings"], [Score(**score) for score in kept["scores"]], kept["seconds"])
            for task, kept in read["tasks"].items()
        }
        return Results(read["name"], read["model"], tasks, Path(folder))
    except OSError as error:
        raise ValueError(
            f"{path}: expected results of python -m ctloss.evaluate, got {error.strerror}; give its output folder"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected results as python -m ctloss.evaluate writes them, got another file ({error!r}); "
            "give another folder"
        ) from error


def write_results(folder: str | Path, results: Results) -> None:
    """Writes results.json, whole or not at all."""
    kept = {name: value for name, value in dataclasses.asdict(results).items() if name != "folder"}
    write_atomically(Path(folder) / FILE, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def add_result(
    folder: str | Path, results: Results, task: str, result: TaskResult, items: Sequence[Items] = ()
) -> None:
    """Adds one task's result to those in a folder, which may have grown since ``results`` were read from it."""
    with locked(Path(folder), wait=True):
        there = read_results(folder).tasks if (Path(folder) / FILE).exists() else {}
        write_items(folder, task, items)
        write_results(folder, dataclasses.replace(results, tasks={**there, task: result}))


def serves(kept: TaskResult | None, settings: Mapping[str, Any], place: str) -> bool:
    """Tells whether a kept result is the one asked for.

    It is not if there is none, or if it has only some of the seeds or languages asked for.

    Raises:
        ValueError: it was computed with other settings or from other files; the message begins with ``place``.
    """
    if kept is None:
        return False
    there = kept.settings
    different = sorted(name for name in there.keys() | settings.keys() if there.get(name) != settings.get(name))
    for name in different:
        if name not in MAY_GROW or not _holds(settings.get(name), there.get(name)):
            meant = "data (a digest of its files' names and contents)" if name == "data" else name
            raise ValueError(
                f"{place}: expected a result with {meant} {settings.get(name)!r}, got one with {there.get(name)!r}; "
                "choose another --output, or go back to those settings"
            )
    return not different


def _holds(asked: list[Any] | None, there: list[Any] | None) -> bool:
    # No list means all that there are.
    return asked is None or (there is not None and set(there) <= set(asked))


def write_submission(folder: str | Path, task: str, predictions: Mapping[str, Sequence[str]]) -> list[Path]:
    """Writes a task's predictions as FOLDER/TASK/test-LANGUAGE.tsv, each file whole or not at all; returns the files.

    Those of questions end in .json.

    Raises:
        ValueError: the task is not one of XTREME's that are predicted here, a language is not a two-letter code, or a
            line contains a line end.
    """
    if task not in XTREME_TASKS:
        raise ValueError(f"expected a task of {', '.join(XTREME_TASKS)}, got {task!r}")
    ending = "json" if task in QUESTION_TASKS else "tsv"
    paths = {language: Path(folder) / task / f"test-{language}.{ending}" for language in predictions}
    for language, lines in predictions.items():
        if not (len(language) == 2 and language.isascii() and language.isalpha() and language.islower()):
            raise ValueError(f"expected the two-letter code of a language, as in XTREME's file names, got {language!r}")
        if broken := next((number for number, line in enumerate(lines, 1) if "\n" in line or "\r" in line), None):
            raise ValueError(f"{paths[language]}, line {broken}: expected one line, got one that contains a line end")
    for language, lines in predictions.items():
        write_atomically(paths[language], "".join(f"{line}\n" for line in lines))
    return list(paths.values())
