"""Checkpoints that count only when whole, and the optimiser's state without pickles."""

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

CHECKPOINTS = "checkpoints"
MARKER = "complete.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_SETTINGS = "optimizer.json"


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
