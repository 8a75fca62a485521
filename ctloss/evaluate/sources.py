"""Where the data of each evaluation lie, and what tells them apart from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from glob import escape
from pathlib import Path

from .evaluations import EVALUATIONS, Evaluation
from .labelled import HUB, find_files
from .options import FinetuneOptions
from .score import DataError


def find_data(given: Sequence[str], options: dict[str, FinetuneOptions | None]) -> dict[str, str]:
    """Returns the data of each evaluation.

    Args:
        given: folders of several tasks' data, searched in their order, and ``TASK=PATH`` or ``TASK=hub:NAME``, which
            go first.
        options: by evaluation that is to be run, those of its fine-tuning, None where there is none.

    Raises:
        DataError: there are none for an evaluation, with all places that were looked at.
        ValueError: a name that is no evaluation's, or a hub's data set for one that reads files alone.
    """
    named, folders = {}, []
    for item in given:
        name, equals, value = item.partition("=")
        if equals and name in EVALUATIONS:
            named[name] = value
        elif equals and not Path(item).exists():
            raise ValueError(f"expected TASK=PATH with a task of {', '.join(EVALUATIONS)}, got {item!r}")
        else:
            folders.append(Path(item))
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of data, got no such folder; check --data")
    found = {}
    for task, chosen in options.items():
        evaluation = EVALUATIONS[task]
        if task in named:
            if named[task].startswith(HUB) and evaluation.task is None:
                raise ValueError(f"expected files for {task}, got {named[task]!r}; only fine-tuned tasks read the hub")
            candidates = [named[task]]
        else:
            candidates = [str(folder / place) for folder in folders for place in evaluation.places]
            if task != "pairs":
                candidates += [str(folder) for folder in folders]
        for place in candidates:
            if place.startswith(HUB) or files_of(evaluation, place, chosen):
                found[task] = place
                break
        else:
            raise DataError(
                f"{task}: expected {_wanted(evaluation, chosen)}, got none in {', '.join(candidates) or 'no folder'}; "
                f"give --data FOLDER that holds them, or {task}=PATH"
            )
    return found


def files_of(evaluation: Evaluation, data: str, options: FinetuneOptions | None) -> list[Path]:
    """Returns all files that an evaluation may read, in all languages."""
    place = Path(data)
    if evaluation.task is not None and options is not None:
        tests = find_files(place, evaluation.task, options.test_split)
        files = [path for paths in tests.values() for path in paths]
        if files:
            for split, given in (("train", options.train), ("dev", options.dev)):
                files += map(Path, given) if given else find_files(place, evaluation.task, split).get("en", [])
        return files
    if evaluation.patterns:
        return sorted({path for pattern in evaluation.patterns for path in place.glob(pattern) if path.is_file()})
    return sorted(path for path in place.parent.glob(f"{escape(place.name)}.*") if path.is_file())


def digest_of_data(evaluation: Evaluation, data: str, options: FinetuneOptions | None) -> str:
    """Returns a digest of the files that an evaluation may read; a hub's data set is known by its name.

    Raises:
        DataError: a file given by name is missing.
    """
    files = files_of(evaluation, data, options)
    total = hashlib.sha256()
    if data.startswith(HUB):
        total.update(data.encode())
        files = [Path(file) for file in (*options.train, *options.dev)] if options is not None else []
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: expected a readable file, got {error.strerror}; check the path") from error
        total.update(f"{path.name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def _wanted(evaluation: Evaluation, options: FinetuneOptions | None) -> str:
    if options is not None:
        return f"files {options.test_split}-LANGUAGE.tsv"
    if evaluation.patterns:
        return f"files {', '.join(evaluation.patterns)}"
    return "files PREFIX.LANGUAGE, such as test.de and test.en for the path test"
