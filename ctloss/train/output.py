"""The output folder of a run: whose it is, and what of it may be gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .checkpoint import CHECKPOINTS, checkpoints, remove_incomplete, write_atomically
from .recipe import Recipe, RecipeError

RUN_FILE, RESULTS_FILE = "run.json", "results.json"


def claim_folder(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Makes the output folder this run's own, or makes sure that it is, and removes what a kill left half-written.

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
        if folder.is_dir() and any(path.name != RUN_FILE + ".partial" for path in folder.iterdir()):
            raise RecipeError(
                f"output: expected a new or empty folder, or that of a run, got {folder} with other files in it; "
                "name another with --output"
            )
        folder.mkdir(parents=True, exist_ok=True)
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
    remove_incomplete(folder)


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    pairs = []
    for group in wanted:
        old, new = found.get(group), wanted[group]
        if isinstance(new, dict) and isinstance(old, dict):
            pairs += [f"{key} {old.get(key)!r} there, {new[key]!r} here" for key in new if old.get(key) != new[key]]
        elif old != new:
            pairs.append(f"{group} {old!r} there, {new!r} here")
    return ", ".join(pairs)
