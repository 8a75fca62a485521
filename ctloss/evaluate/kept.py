"""What a fine-tuning keeps on disk: its settings, the last whole checkpoint and the best model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

WHOLE = "whole"
SETTINGS = "settings.json"
FINISHED = "finished.json"


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a restart, sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def claim(folder: Path, settings: Mapping[str, object]) -> None:
    """Writes the settings of a run into its folder, or compares them with those of what is kept there.

    Raises:
        ValueError: the folder belongs to a run with other settings.
    """
    path = folder / SETTINGS
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if not path.exists() or (best(folder) is None and not _whole_checkpoints(folder)):
        # A run that was refused or killed before it kept anything binds nobody.
        write_atomically(path, text)
        return
    there, ours = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
    different = sorted(name for name in there.keys() | ours.keys() if there.get(name) != ours.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{folder}: expected an empty folder or a run with the same settings, got one with {name} "
            f"{there.get(name)!r} instead of {ours.get(name)!r}; choose another folder, or remove this one"
        )


def mark_whole(checkpoint: Path) -> None:
    """Marks a checkpoint as completely written, and removes the ones before it."""
    write_atomically(checkpoint / WHOLE, "")
    for step, other in _numbered(checkpoint.parent, "checkpoint"):
        if other != checkpoint and step < int(checkpoint.name.rpartition("-")[2]):
            _remove(other)


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the last whole checkpoint of a run, if any, and removes what a killed run left half-written."""
    whole = _whole_checkpoints(folder)
    for _, checkpoint in _numbered(folder, "checkpoint"):
        if checkpoint not in whole:
            _remove(checkpoint)
    return whole[-1] if whole else None


@contextmanager
def writing_best(folder: Path, step: int, score: float) -> Iterator[Path]:
    """Yields an empty folder for a model, which becomes the run's best when the block ends without an error."""
    partial = folder / "best.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    write_atomically(partial / "score.json", json.dumps({"step": step, "score": score}) + "\n")
    final = folder / f"best-{step}"
    _remove(final)
    os.replace(partial, final)
    for _, other in _numbered(folder, "best"):
        if other != final:
            _remove(other)


def best(folder: Path) -> tuple[Path, float] | None:
    """Returns the run's best model and its score; of two with one score, the earlier."""
    models = [
        (path, float(json.loads((path / "score.json").read_text(encoding="utf-8"))["score"]))
        for _, path in _numbered(folder, "best")
    ]
    return max(models, key=lambda model: model[1]) if models else None


def finish(folder: Path, steps: int) -> None:
    """Marks a run as finished; its checkpoints are of no more use and are removed."""
    write_atomically(folder / FINISHED, json.dumps({"steps": steps}) + "\n")
    for _, checkpoint in _numbered(folder, "checkpoint"):
        _remove(checkpoint)


def is_finished(folder: Path) -> bool:
    """Tells whether a run came to its end and has its best model."""
    return (folder / FINISHED).exists() and best(folder) is not None


def digest_of_model(model: str) -> str:
    """Returns what tells a model apart: a digest of a folder's configuration, tokenizer and weights, or its name."""
    patterns = ("config.json", "tokenizer*", "vocab*", "*.model", "*.safetensors")
    files = sorted({path for pattern in patterns for path in Path(model).glob(pattern) if path.is_file()})
    if not files:
        return model
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def _whole_checkpoints(folder: Path) -> list[Path]:
    return [path for _, path in _numbered(folder, "checkpoint") if (path / WHOLE).exists()]


def _numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    named = ((re.fullmatch(rf"{kind}-(\d+)", path.name), path) for path in folder.glob(f"{kind}-*"))
    return sorted((int(match[1]), path) for match, path in named if match)


def _remove(folder: Path) -> None:
    (folder / WHOLE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
