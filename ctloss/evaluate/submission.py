"""Predictions as XTREME's submissions want them: one folder a task, in it test-LANGUAGE.tsv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .kept import write_atomically

# Two-letter codes are what XTREME's files are named by, also where our data go by three.
XTREME_TASKS = ("xnli", "pawsx", "udpos", "panx", "bucc2018", "tatoeba")


def submission_file(folder: str | Path, task: str, language: str) -> Path:
    """Returns where the predictions of a language go.

    Raises:
        ValueError: no task of XTREME's that is predicted here, or no two-letter code.

    Example:
        >>> submission_file("predictions", "udpos", "de").as_posix()
        'predictions/udpos/test-de.tsv'
    """
    if task not in XTREME_TASKS:
        raise ValueError(f"expected a task of {', '.join(XTREME_TASKS)}, got {task!r}")
    if not (len(language) == 2 and language.isascii() and language.isalpha() and language.islower()):
        raise ValueError(
            f"expected the two-letter code of a language, as XTREME's files are named by, got {language!r}"
        )
    return Path(folder) / task / f"test-{language}.tsv"


def write_submission(folder: str | Path, task: str, predictions: Mapping[str, Sequence[str]]) -> list[Path]:
    """Writes the predictions of a task, each file whole or not at all; returns the files.

    Args:
        folder: of the submission.
        task: XTREME's name of the task.
        predictions: lines by two-letter code, as :class:`ctloss.evaluate.Outcome` has them.

    Raises:
        ValueError: as :func:`submission_file`, or a line within a line.
    """
    paths = {language: submission_file(folder, task, language) for language in predictions}
    for language, lines in predictions.items():
        if broken := next((number for number, line in enumerate(lines, 1) if "\n" in line or "\r" in line), None):
            raise ValueError(f"{paths[language]}, line {broken}: expected one line, got one with a line end in it")
        write_atomically(paths[language], "".join(f"{line}\n" for line in lines))
    return list(paths.values())
