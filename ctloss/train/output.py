"""The output folder of a run: which run it belongs to, and what can be resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..shared.files import PARTIAL, complete, incomplete, name_complete, numbered, remove_folder, write_atomically
from ..shared.pictures import both
from .recipe import Recipe, RecipeError
from .resumption import another_run, goes_on, is_former, read_document, read_run_state

RUN_FILE, RESULTS_FILE, CARD_FILE, PICTURE_FILE = "run.json", "results.json", "README.md", "words.png"
LOG_FILE, SAMPLES_FILE, UPLOAD_FILE = "metrics.jsonl", "samples.json", "uploaded.json"
WRITTEN = (RUN_FILE, RESULTS_FILE, CARD_FILE, *both(PICTURE_FILE), LOG_FILE, SAMPLES_FILE, UPLOAD_FILE)
CHECKPOINTS, CHECKPOINT = "checkpoints", "checkpoint"


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Returns (step, folder) of the complete checkpoints in an output folder, the newest last."""
    return complete(folder / CHECKPOINTS, CHECKPOINT)


def claim_folder(folder: Path, recipe: Recipe, *, resume: bool, processes: int = 1) -> list[str]:
    """Assigns an existing output folder to a run, or checks that it is already the run's and may go on like this.

    Removes checkpoints that are incomplete or damaged. A finished run that is to be longer is finished no more.

    Args:
        folder, recipe: the run.
        resume: whether someone asked for a run that goes on.
        processes: of this run.

    Returns:
        What to tell: what was removed, and what is not as it was when the run began.

    Raises:
        RecipeError: the folder holds another run, this one without ``resume``, one that cannot go on like this, or
            other files; or all its checkpoints are damaged.
    """
    claim = folder / RUN_FILE
    saved = folder / CHECKPOINTS
    if saved.is_symlink() or (saved.exists() and not saved.is_dir()):
        what = f"a link to {os.readlink(saved)}" if saved.is_symlink() else "something else"
        raise RecipeError(
            f"output: expected {saved} to be a folder of the run, got {what}, in which nothing will be removed; remove "
            "it, or put the whole output folder elsewhere with --output"
        )
    if claim.is_file():
        name_complete(folder / CHECKPOINTS, CHECKPOINT)
    finished = (folder / RESULTS_FILE).is_file()
    if not claim.is_file() and any(path.name != RUN_FILE + PARTIAL for path in folder.iterdir()):
        raise RecipeError(
            f"output: expected a new or empty folder, or that of a run, got {folder} with other files in it; "
            "choose another with --output"
        )
    said: list[str] = []
    former = False
    if not claim.is_file() or not (finished or numbered(folder / CHECKPOINTS, CHECKPOINT)):
        # A run that was refused or killed before its first checkpoint must not block the next one.
        removed = incomplete(folder / CHECKPOINTS, CHECKPOINT)
    else:
        found = read_document(claim)
        former = is_former(found)
        _check_run(folder, found, recipe, resume=resume, finished=finished)
        removed = incomplete(folder / CHECKPOINTS, CHECKPOINT)
        sound = [path for _, path in numbered(folder / CHECKPOINTS, CHECKPOINT) if path not in removed]
        if not sound and not finished:
            raise RecipeError(
                f"output: expected a sound checkpoint in {folder / CHECKPOINTS}, got only damaged ones "
                f"({', '.join(path.name for path in removed)}); restore one, or remove that folder to begin again at "
                "step 0"
            )
        if not former:
            state = read_run_state(sound[-1]) if sound else None
            said, longer = goes_on(found, recipe, state, processes, finished=finished)
            if longer:
                (folder / RESULTS_FILE).unlink(missing_ok=True)
    if not former:
        write_atomically(claim, json.dumps(recipe.as_dict(), indent=2) + "\n")
    for name in WRITTEN:
        (folder / (name + PARTIAL)).unlink(missing_ok=True)
    for path in removed:
        remove_folder(path)
    return [*(f"removed, as it was incomplete or damaged: {path}" for path in removed), *said]


def claim_samples(folder: Path, samples: dict[str, str]) -> None:
    """Records what a run is trained on or, once it has a checkpoint, checks that nothing has changed.

    ``samples`` holds fingerprints by name, such as that of the prepared folder.

    Raises:
        RecipeError: something differs from what the run was started with.
    """
    record = folder / SAMPLES_FILE
    if record.is_file() and checkpoints(folder):
        found = read_document(record)
        changed = [name for name in samples if found.get(name) != samples[name]]
        if changed:
            raise RecipeError(
                f"corpus: expected the data that the run in {folder} was started with, got other content in: "
                f"{', '.join(changed)}; restore the files of corpus, lexicon or alignments, or choose another --output"
            )
    write_atomically(record, json.dumps(samples, indent=2) + "\n")


def _check_run(folder: Path, found: dict[str, Any], recipe: Recipe, *, resume: bool, finished: bool) -> None:
    if is_former(found) and not finished:
        raise RecipeError(
            f"output: expected a run of this version, got {folder}, begun by an earlier one, whose batches differ; "
            "finish it with that version, or choose another with --output"
        )
    differences = another_run(found, recipe)
    if differences:
        raise RecipeError(
            f"output: expected a folder of this run, got {folder}, which holds another "
            f"({', '.join(differences)}); choose another with --output, or use the recipe of that run"
        )
    if not resume:
        raise RecipeError(
            f"output: expected a new folder, got {folder}, which already holds this run; "
            "add --resume to continue it, or choose another folder with --output"
        )
