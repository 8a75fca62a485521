"""Zero-shot transfer: fine-tuned on English, tested in every language, once a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .kept import digest_of_model
from .labelled import is_labelled, read_files, read_split
from .options import XTREME_OPTIONS, FinetuneOptions
from .score import DataError
from .tasks import LabelledPair, Row, Task

if TYPE_CHECKING:
    from .head import Head

# What a run may differ in from the one it goes on from: the rows that the files hold are compared themselves.
NOT_COMPARED = frozenset(
    {"seeds", "train", "dev", "hold_out", "test_split", "output", "evaluation_batch_size", "checkpoint_every"}
)


def transfer(
    model: str,
    data: str | Path,
    task: Task,
    head: Head,
    languages: Sequence[str] | None,
    options: FinetuneOptions | None,
) -> tuple[dict[str, list[Row]], dict[int, dict[str, list[Any]]]]:
    """Fine-tunes on English once a seed and predicts the test rows of every language.

    Args:
        model: name or folder of a Hugging Face encoder.
        data: see :func:`ctloss.evaluate.labelled.read_split`.
        task, head: what to learn, and what to put on the encoder for it.
        languages: codes; None for all that the data have.
        options: None for XTREME's.

    Returns:
        Test rows by language, and by seed and language one prediction a row.

    Raises:
        DataError: the data are not as promised.
        ValueError: see :func:`ctloss.evaluate.finetune.finetune`.
    """
    options = options or XTREME_OPTIONS[task.name]
    # All files are read before anything is trained: a malformed one should not show after hours.
    tests = read_split(data, task, options.test_split, languages)
    train, dev = english_rows(data, task, options)
    if options.output is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("expected an output folder that all processes share, got None; name one")
        with tempfile.TemporaryDirectory() as folder:
            return tests, _all_seeds(model, task, head, train, dev, tests, options, Path(folder))
    return tests, _all_seeds(model, task, head, train, dev, tests, options, Path(options.output) / task.name)


def english_rows(data: str | Path, task: Task, options: FinetuneOptions) -> tuple[list[Row], list[Row]]:
    """Returns the English rows to train on, and those that choose the best step.

    Raises:
        DataError: they have no labels, or so few that none can be held out.
    """

    def rows(files: Sequence[str | Path], split: str) -> list[Row]:
        found = (
            read_files([Path(file) for file in files], task) if files else read_split(data, task, split, ["en"])["en"]
        )
        if not is_labelled(found):
            raise DataError(
                f"{', '.join(map(str, files)) or data}: expected labels in the English {split} rows, got none; use "
                "labelled files"
            )
        return found

    train = rows(options.train, "train")
    if not options.hold_out:
        return train, rows(options.dev, "dev")
    trained, held_out = _split(train, options.hold_out)
    if not (trained and held_out):
        raise DataError(
            f"{', '.join(map(str, options.train)) or data}: expected rows enough to hold out {options.hold_out} "
            f"of them, got {len(train)}; give more rows, or dev files"
        )
    return trained, held_out


def _split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Parts rows by their text alone: equal texts stay together, and no order of the file counts."""

    def place(row: Row) -> str:
        text = row.first if isinstance(row, LabelledPair) else " ".join(row.words)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    places = list(map(place, rows))
    # Of the places in order, those up to this one are held out.
    number = round(share * len(rows))
    last = sorted(places)[number - 1] if number else ""
    return (
        [row for row, at in zip(rows, places, strict=True) if at > last],
        [row for row, at in zip(rows, places, strict=True) if at <= last],
    )


def _all_seeds(
    model: str,
    task: Task,
    head: Head,
    train: Sequence[Row],
    dev: Sequence[Row],
    tests: Mapping[str, Sequence[Row]],
    options: FinetuneOptions,
    folder: Path,
) -> dict[int, dict[str, list[Any]]]:
    from .finetune import finetune

    settings = {
        **{name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_COMPARED},
        "task": task.name,
        "model": digest_of_model(model),
        "train": _digest(train),
        "dev": _digest(dev),
    }
    return {
        seed: finetune(
            model,
            head,
            train,
            dev,
            tests,
            options,
            seed=seed,
            folder=folder / f"seed-{seed}",
            settings={**settings, "seed": seed},
        )
        for seed in options.seeds
    }


def _digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()
