"""The output folder of a run: whose it is, and what of it may be gone on with."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .recipe import Recipe, RecipeError

CHECKPOINTS = "checkpoints"
MARKER = "complete.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_SETTINGS = "optimizer.json"
RUN_FILE, RESULTS_FILE, CARD_FILE, PICTURE_FILE = "run.json", "results.json", "README.md", "words.png"
LOG_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.json"
WRITTEN = (RUN_FILE, RESULTS_FILE, CARD_FILE, PICTURE_FILE, LOG_FILE, SAMPLES_FILE)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from starting a run in the folder, which is made if missing, while the block runs.

    The lock goes with its process, however that ends. Where the system has no flock, nothing is locked.

    Raises:
        RecipeError: another process runs there, or there is a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RecipeError(f"output: expected a folder, got the file {folder}; name another with --output") from error
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(
                f"output: expected a folder that no run writes to, got {folder}, where one is going on; "
                "wait for it to end, or name another with --output"
            ) from error
        yield
    finally:
        os.close(descriptor)


def claim_folder(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Makes an output folder that exists this run's own, or makes sure that it is; removes what a kill left of files.

    Raises:
        RecipeError: the folder holds another run, this one without ``resume``, or files that are no run's.
    """
    claim = folder / RUN_FILE
    wanted = json.loads(json.dumps(recipe.as_dict()))
    started = (folder / RESULTS_FILE).is_file() or bool(checkpoints(folder / CHECKPOINTS))
    if claim.is_file() and not started:
        # Nothing was learnt yet: a run refused or killed before its first checkpoint must not bar the next.
        write_atomically(claim, json.dumps(wanted, indent=2) + "\n")
        resume = True
    if not claim.is_file():
        if any(path.name != RUN_FILE + ".partial" for path in folder.iterdir()):
            raise RecipeError(
                f"output: expected a new or empty folder, or that of a run, got {folder} with other files in it; "
                "name another with --output"
            )
        write_atomically(claim, json.dumps(wanted, indent=2) + "\n")
        return
    found = json.loads(claim.read_text(encoding="utf-8"))
    if found != wanted:
        changed = _differences(found, wanted)
        raise RecipeError(
            f"output: expected a folder of this run, got {folder}, which holds another ({changed}); "
            "name another with --output, or give the recipe of the run that is there"
        )
    if not resume:
        raise RecipeError(
            f"output: expected a new folder, got {folder}, which holds this very run; "
            "add --resume to go on with it, or name another with --output"
        )
    remove_incomplete(folder / CHECKPOINTS)
    for name in WRITTEN:
        (folder / f"{name}.partial").unlink(missing_ok=True)


def claim_samples(folder: Path, samples: dict[str, str]) -> None:
    """Records what a run is trained on, or, where it has a checkpoint, makes sure that it is still the same.

    Args:
        folder: the output folder.
        samples: hashes of the parts' samples and of the tokenizer, by name.

    Raises:
        RecipeError: some of it is not what the run was started with.
    """
    record = folder / SAMPLES_FILE
    if record.is_file() and checkpoints(folder / CHECKPOINTS):
        found = json.loads(record.read_text(encoding="utf-8"))
        changed = [name for name in samples if found.get(name) != samples[name]]
        if changed:
            raise RecipeError(
                f"corpus: expected what the run in {folder} was started with, got another content of: "
                f"{', '.join(changed)}; restore the files of corpus, lexicon or alignments, or name another --output"
            )
    write_atomically(record, json.dumps(samples, indent=2) + "\n")


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    pairs = []
    for group in wanted:
        old, new = found.get(group), wanted[group]
        if isinstance(new, dict) and isinstance(old, dict):
            pairs += [f"{key} {old.get(key)!r} there, {new[key]!r} here" for key in new if old.get(key) != new[key]]
        elif old != new:
            pairs.append(f"{group} {old!r} there, {new!r} here")
    return ", ".join(pairs)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a restart, sees all of it or none."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write into, which becomes ``folder`` when the block ends without an error.

    The files' sizes go into a marker, written last; then the folder gets its name. Killed before that, it is nothing
    that :func:`is_complete` would accept.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    for path in files:
        _flush(path)
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    write_atomically(partial / MARKER, json.dumps({"files": sizes}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    _flush(folder.parent)


def is_complete(folder: Path) -> bool:
    """Tells whether a folder has its marker and every file that the marker names, at its full size."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def checkpoint_folder(output: Path, step: int) -> Path:
    """Returns where the checkpoint of a step goes."""
    return output / f"checkpoint-{step}"


def checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Returns (step, folder) of the complete checkpoints of a run, the newest last."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in found if match and is_complete(path))


def remove_incomplete(output: Path) -> list[Path]:
    """Removes the checkpoints that an interrupted run left half-written, and nothing else; returns what was removed."""
    whole = {path for _, path in checkpoints(output)}
    named = (path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+(\.partial)?", path.name))
    removed = sorted(path for path in named if path.is_dir() and path not in whole)
    for path in removed:
        shutil.rmtree(path)
    return removed


def remove_old(output: Path, keep: int) -> None:
    """Removes all but the newest checkpoints; each loses its marker first, so that no half of one is ever counted."""
    for _, folder in checkpoints(output)[:-keep]:
        (folder / MARKER).unlink()
        shutil.rmtree(folder)


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes an optimiser's state as safetensors and JSON."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    (folder / OPTIMIZER_SETTINGS).write_text(json.dumps(state["param_groups"], indent=2) + "\n", encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restores what :func:`save_optimizer` wrote, bit for bit."""
    from safetensors.torch import load_file

    state: dict[int, dict[str, Any]] = {}
    for key, value in load_file(folder / OPTIMIZER_TENSORS).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = json.loads((folder / OPTIMIZER_SETTINGS).read_text(encoding="utf-8"))
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
