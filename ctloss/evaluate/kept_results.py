"""results.json: what an output folder knows of a model, task by task, and under which settings."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .kept import write_atomically
from .score import Score

FILE = "results.json"
# With more of these a result is made anew; fine-tuned models that are there serve again.
MAY_GROW = ("seeds", "languages")


@dataclass(frozen=True)
class TaskResult:
    """Scores of one evaluation, the settings they were made with, and the seconds it took."""

    settings: dict[str, Any]
    scores: list[Score]
    seconds: float


@dataclass(frozen=True)
class Results:
    """What is known of a model.

    Args:
        name: its name in tables and figures.
        model: name or folder of the model.
        tasks: by the evaluation's name.
    """

    name: str
    model: str
    tasks: dict[str, TaskResult] = field(default_factory=dict)


def read_results(folder: str | Path) -> Results:
    """Reads the results of an output folder.

    Raises:
        ValueError: there are none, or the file is not ours.
    """
    path = Path(folder) / FILE
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        tasks = {
            task: TaskResult(kept["settings"], [Score(**score) for score in kept["scores"]], kept["seconds"])
            for task, kept in read["tasks"].items()
        }
        return Results(read["name"], read["model"], tasks)
    except OSError as error:
        raise ValueError(
            f"{path}: expected results of python -m ctloss.evaluate, got {error.strerror}; give its output folder"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected results as python -m ctloss.evaluate writes them, got another file ({error!r}); "
            "name another folder"
        ) from error


def write_results(folder: str | Path, results: Results) -> None:
    """Writes results.json, whole or not at all."""
    write_atomically(Path(folder) / FILE, json.dumps(dataclasses.asdict(results), indent=1, ensure_ascii=False) + "\n")


def add_result(folder: str | Path, results: Results, task: str, result: TaskResult) -> None:
    """Adds a task to the results in a folder, beside those that other processes may have added meanwhile.

    Args:
        folder: the output folder, which must be there.
        results: name and model; its tasks are read again.
        task: the evaluation's name.
        result: its result.
    """
    with _alone(Path(folder)):
        there = read_results(folder).tasks if (Path(folder) / FILE).exists() else {}
        write_results(folder, dataclasses.replace(results, tasks={**there, task: result}))


def serves(kept: TaskResult | None, settings: Mapping[str, Any], place: str) -> bool:
    """Tells whether a result that is there is the one asked for.

    Args:
        kept: the result, if any.
        settings: those asked for, as JSON has them.
        place: named in the error.

    Returns:
        False if there is none, or if other seeds or languages are asked for, all of those kept among them.

    Raises:
        ValueError: it was made with other settings, or of other files.
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    # Two processes that read, add and write at once would lose one's result. The lock goes with its process.
    try:
        import fcntl
    except ImportError:  # Windows has no flock.
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _holds(asked: list[Any] | None, there: list[Any] | None) -> bool:
    # No list means all that there are.
    return asked is None or (there is not None and set(there) <= set(asked))
