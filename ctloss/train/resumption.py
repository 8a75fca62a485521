"""A run that goes on: what its last checkpoint was written by, what may have changed since, and what is another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..shared.files import write_atomically
from ..shared.training import uses_bfloat16
from .arguments import defaults, translated
from .effects import BATCHES, ENDLESS, LENGTH, MEMORY, may_change
from .recipe import Recipe, RecipeError

STATE_FILE = "run_state.json"
# The parts of a recipe before its training was Trainer's arguments.
FORMER_PARTS = ("optimisation", "bookkeeping")


@dataclass(frozen=True)
class RunState:
    """What a checkpoint was written by.

    Attributes:
        step: optimizer steps done.
        processes, batch_size: a batch has ``batch_size`` pairs on each of ``processes`` processes.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``, whatever ``"auto"`` meant.
        warmup_steps: fixed when the run began; a longer run keeps them, although they may have been a share.
    """

    step: int
    processes: int
    batch_size: int
    precision: str
    warmup_steps: int


def write_run_state(state: RunState, checkpoint: Path) -> None:
    """Writes what a checkpoint is written by into its folder."""
    write_atomically(checkpoint / STATE_FILE, json.dumps(asdict(state), indent=2) + "\n")


def read_run_state(checkpoint: Path) -> RunState:
    """Reads what :func:`write_run_state` wrote.

    Raises:
        RecipeError: there is no such file, or it holds something else.
    """
    document = read_document(checkpoint / STATE_FILE)
    for item in fields(RunState):
        kind = {"int": int, "str": str}[str(item.type)]
        value = document.get(item.name)
        if type(value) is not kind:
            raise RecipeError(
                f"output: expected {item.name} to be {'a whole number' if kind is int else 'text'} in "
                f"{checkpoint / STATE_FILE}, got {value!r}; restore the file, or remove the checkpoint"
            )
    return RunState(**{item.name: document[item.name] for item in fields(RunState)})


def read_document(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        RecipeError: it cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        got = f"{type(document).__name__} {str(document)[:40]}"
    except (OSError, ValueError, RecursionError) as error:
        document, got = None, getattr(error, "strerror", None) or str(error)
    if not isinstance(document, dict):
        raise RecipeError(
            f"output: expected a JSON object in {path}, got {got}; restore the file, or choose another --output"
        )
    return document


def precision_of(precision: str, *, cpu: bool = False) -> str:
    """Returns what a recipe's precision means on this device: ``"fp32"``, ``"bf16"`` or ``"fp16"``."""
    return "bf16" if uses_bfloat16(precision, cpu=cpu) else precision.replace("auto", "fp32")


def is_former(found: Mapping[str, Any]) -> bool:
    """Tells whether a stored recipe is one of an earlier version."""
    return any(part in found for part in FORMER_PARTS)


def another_run(found: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Returns in what a stored recipe, of this or an earlier version, is that of another run.

    Fields that an earlier version did not have are not compared, nor those that may change.
    """
    former, wanted = is_former(found), recipe.as_dict()
    differences = [_said("name", found.get("name"), recipe.name)] if found.get("name") != recipe.name else []
    for part in recipe.groups():
        stored = _stored(found, part)
        for name in dict.fromkeys([*wanted[part], *stored]):
            there, here = stored.get(name), wanted[part].get(name)
            if former and (name not in stored or name not in wanted[part]):
                continue
            if isinstance(here, list) and not isinstance(there, list):
                # What is several texts now was one, or none.
                there = [] if there is None else [there]
            if there != here and (part, name) not in (("data", "prepared"), ("data", "max_bad_lines")):
                differences.append(_said(name, there, here))
    elsewhere = set() if former else {"precision"} | BATCHES | LENGTH
    for name, (there, here) in _changed(found, recipe).items():
        if name not in elsewhere and not _may_change(name, recipe):
            differences.append(_said(name, there, here))
    return differences


def goes_on(
    found: Mapping[str, Any], recipe: Recipe, state: RunState | None, processes: int, *, finished: bool
) -> tuple[list[str], bool]:
    """Checks that a run may go on with a recipe that differs from the stored one in what :func:`another_run` ignores.

    Args:
        found: the stored recipe, of this version.
        state: of the checkpoint that the run goes on from; None if there is none.
        processes: with which it goes on.
        finished: whether the run had come to its end.

    Returns:
        What to tell, and whether the run goes on beyond the end that it had.

    Raises:
        RecipeError: the length, the batches or the precision must not change like that.
    """
    changed = _changed(found, recipe)
    said = [_said(name, *values) for name, values in changed.items() if _may_change(name, recipe)]
    before, now = _stored(found, "data").get("prepared"), recipe.data.prepared
    if before != now:
        said.append(_said("prepared", before, now))
    told = [f"changed since the run began: {', '.join(said)}"] if said else []
    if MEMORY & changed.keys() and not finished:
        told.append("the gradient of a step stays the same, the draws of dropout and rounding may not")
    lengths = {name: values for name, values in changed.items() if name in LENGTH}
    for name, (there, here) in lengths.items():
        _check_length(name, there, here, recipe, state)
        told.append(f"length of the run: {_said(name, there, here)}")
    if lengths or not finished or BATCHES & changed.keys():
        told += _check_batches(changed, recipe, state, processes)
    if lengths or not finished or "precision" in changed:
        _check_precision(changed, recipe, state)
    return told, bool(lengths)


def _check_length(name: str, there: Any, here: Any, recipe: Recipe, state: RunState | None) -> None:
    schedule = recipe.training.lr_scheduler_type
    if schedule not in ENDLESS:
        raise RecipeError(
            f"{name}: expected {there!r}, as the learning rate of the run follows lr_scheduler_type {schedule}, which "
            f"depends on its length, got {here!r}; give {there!r}, or begin another run (runs with "
            f"{', '.join(sorted(ENDLESS))} can be made longer)"
        )
    if state is None:
        raise RecipeError(
            f"{name}: expected {there!r}, as no checkpoint of the run is left to go on from, got {here!r}; give "
            f"{there!r}, or begin another run from its encoder"
        )
    if name == "max_steps" and 0 < here < state.step:
        raise RecipeError(f"max_steps: expected at least the {state.step} steps done, got {here}; raise it")


def _check_precision(changed: Mapping[str, Any], recipe: Recipe, state: RunState | None) -> None:
    given = recipe.training.precision
    before, now = changed.get("precision", (given, given))
    if state is not None:
        before, now = state.precision, precision_of(given, cpu=recipe.training.use_cpu)
    if before != now:
        meant = f", which is {now} on this device" if given == "auto" else ""
        raise RecipeError(
            f"precision: expected {before!r}, which the run has had, got {given!r}{meant}; give --precision {before}"
        )


def _check_batches(changed: Mapping[str, Any], recipe: Recipe, state: RunState | None, processes: int) -> list[str]:
    size = recipe.training.per_device_train_batch_size
    if state is None:
        there = next((changed[name][0] for name in BATCHES & changed.keys()), size)
        state = RunState(0, processes, there, "", 0)
    batch = state.processes * state.batch_size
    if (processes, size) == (state.processes, state.batch_size):
        return []
    had, has = f"{state.processes} × {state.batch_size}", f"{processes} × {size}"
    if recipe.objective.negatives_across == "own" and processes != state.processes:
        raise RecipeError(
            f"processes: expected {state.processes}, each with its own negatives, got {processes}; start "
            f"{state.processes}, for instance with torchrun --nproc-per-node {state.processes}"
        )
    if processes * size != batch:
        hint = (
            f"give --batch-size {batch // processes}"
            if batch % processes == 0 and batch // processes >= 2
            else f"start a number of processes that divides {batch}"
        )
        raise RecipeError(
            f"batch_size: expected batches of {batch} pairs ({had}: processes × pairs on each), which the run has had, "
            f"got {processes * size} ({has}); {hint}"
        )
    return [
        f"the run had {had} pairs a batch (processes × pairs on each) and goes on with {has}: its batches stay the "
        "same, dropout and rounding do not"
    ]


def _may_change(name: str, recipe: Recipe) -> bool:
    training = recipe.training
    return may_change(name, training.lr_scheduler_type, training.early_stopping_patience is not None)


def _changed(found: Mapping[str, Any], recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Returns (stored, wanted) of each training argument that differs."""
    stored, wanted = _training(found), recipe.training.as_dict()
    pairs = {
        name: (stored.get(name, defaults().get(name)), wanted.get(name, defaults().get(name)))
        for name in [*wanted, *(name for name in stored if name not in wanted)]
        if not (is_former(found) and name not in stored)
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _training(found: Mapping[str, Any]) -> dict[str, Any]:
    if not is_former(found):
        return _stored(found, "training")
    values = {name: value for part in FORMER_PARTS for name, value in _stored(found, part).items()}
    if values.get("optimizer") == "adam":
        values.pop("weight_decay", None)
    return translated(values)


def _stored(found: Mapping[str, Any], part: str) -> dict[str, Any]:
    values = found.get(part)
    return dict(values) if isinstance(values, dict) else {}


def _said(name: str, there: Any, here: Any) -> str:
    return f"{name} {there!r} there, {here!r} here"
