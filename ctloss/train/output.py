"""The output folder of a run: which run it belongs to, what can be resumed, and its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..shared.files import PARTIAL, complete, remove_incomplete, write_atomically
from .recipe import Recipe, RecipeError

RUN_FILE, RESULTS_FILE, CARD_FILE, PICTURE_FILE = "run.json", "results.json", "README.md", "words.png"
LOG_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.json"
WRITTEN = (RUN_FILE, RESULTS_FILE, CARD_FILE, PICTURE_FILE, LOG_FILE, SAMPLES_FILE)
CHECKPOINTS, CHECKPOINT = "checkpoints", "checkpoint"
# What runs did before a recipe had these fields.
BEFORE: dict[str, dict[str, Any]] = {"objective": {"negatives_across": "own"}, "optimisation": {"gradient_cache": None}}
OPTIMIZER_TENSORS, OPTIMIZER_SETTINGS = "optimizer.safetensors", "optimizer.json"


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Returns (step, folder) of the complete checkpoints in an output folder, the newest last."""
    return complete(folder / CHECKPOINTS, CHECKPOINT)


def claim_folder(folder: Path, recipe: Recipe, *, resume: bool) -> list[Path]:
    """Assigns an existing output folder to a run, or checks that it is already the run's.

    Removes checkpoints that are incomplete or damaged, and returns them.

    Raises:
        RecipeError: the folder holds another run, this one without ``resume``, or other files.
    """
    claim = folder / RUN_FILE
    wanted = recipe.as_dict()
    started = (folder / RESULTS_FILE).is_file() or bool(checkpoints(folder))
    if not claim.is_file() and any(path.name != RUN_FILE + PARTIAL for path in folder.iterdir()):
        raise RecipeError(
            f"output: expected a new or empty folder, or that of a run, got {folder} with other files in it; "
            "choose another with --output"
        )
    if not claim.is_file() or not started:
        # A run that was refused or killed before its first checkpoint must not block the next one.
        write_atomically(claim, json.dumps(wanted, indent=2) + "\n")
        resume = True
    found = json.loads(claim.read_text(encoding="utf-8"))
    for part, values in BEFORE.items():
        found[part] = {**values, **found.get(part, {})}
    if found != wanted:
        raise RecipeError(
            f"output: expected a folder of this run, got {folder}, which holds another "
            f"({_differences(found, wanted)}); choose another with --output, or use the recipe of that run"
        )
    if not resume:
        raise RecipeError(
            f"output: expected a new folder, got {folder}, which already holds this run; "
            "add --resume to continue it, or choose another folder with --output"
        )
    for name in WRITTEN:
        (folder / (name + PARTIAL)).unlink(missing_ok=True)
    return remove_incomplete(folder / CHECKPOINTS, CHECKPOINT)


def claim_samples(folder: Path, samples: dict[str, str]) -> None:
    """Records what a run is trained on or, once it has a checkpoint, checks that nothing has changed.

    ``samples`` holds hashes of the parts' samples and of the tokenizer by name.

    Raises:
        RecipeError: something differs from what the run was started with.
    """
    record = folder / SAMPLES_FILE
    if record.is_file() and checkpoints(folder):
        found = json.loads(record.read_text(encoding="utf-8"))
        changed = [name for name in samples if found.get(name) != samples[name]]
        if changed:
            raise RecipeError(
                f"corpus: expected the data that the run in {folder} was started with, got other content in: "
                f"{', '.join(changed)}; restore the files of corpus, lexicon or alignments, or choose another --output"
            )
    write_atomically(record, json.dumps(samples, indent=2) + "\n")


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


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    pairs = []
    for group in wanted:
        old, new = found.get(group), wanted[group]
        if isinstance(new, dict) and isinstance(old, dict):
            pairs += [f"{key} {old.get(key)!r} there, {new[key]!r} here" for key in new if old.get(key) != new[key]]
        elif old != new:
            pairs.append(f"{group} {old!r} there, {new!r} here")
    return ", ".join(pairs)
