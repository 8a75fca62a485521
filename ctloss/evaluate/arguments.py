"""The command's options that may differ by task: ``VALUE ... TASK=VALUE ...``, and those of fine-tuning."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from .evaluations import EVALUATIONS
from .options import XTREME_OPTIONS, FinetuneOptions

# Field of FinetuneOptions: how its value is read, and what it is.
FINETUNING: dict[str, tuple[Any, str]] = {
    "learning_rate": (float, "at the start, after the warm-up"),
    "epochs": (float, "passes over the English training data"),
    "max_steps": (int, "steps instead of epochs"),
    "batch_size": (int, "items of a step, of all devices together"),
    "batches": (str, "random, or by_length for items of about one length in a step, which is faster"),
    "accumulation": (int, "parts that a device's share of a batch is cut into, against lack of memory"),
    "max_length": (int, "most wordpieces of an item; sentences of tagged words are split, pairs cut"),
    "weight_decay": (float, "of AdamW"),
    "warmup_steps": (int, "steps of linear warm-up"),
    "clip": (float, "bound of the gradient's norm"),
    "evaluate_every": (int, "steps between two scores on English dev"),
    "checkpoint_every": (int, "steps between two checkpoints, from which a killed run goes on"),
    "evaluation_batch_size": (int, "items that a device predicts at a time"),
    "precision": (str, "fp32, or bf16 for autocast"),
    "train": (tuple, "English training files instead of the data's own"),
    "dev": (tuple, "English files that choose the best step instead of the data's own"),
    "hold_out": (float, "share of the training data, drawn by text, that chooses the best step instead of dev"),
    "test_split": (str, "the split that is scored"),
}
# Encoders that are used as they are have options of these names too.
PREFIXED = ("batch_size", "max_length")


def add_finetuning(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each setting of fine-tuning, unset unless given."""
    section = parser.add_argument_group(
        "fine-tuning (xnli, pawsx, pos, ner)",
        "XTREME's settings for mBERT, where nothing is given; a value may be for one task, TASK=VALUE",
    )
    for name, (_, help) in FINETUNING.items():
        shown = {task: getattr(XTREME_OPTIONS[_xtremes(task)], name) for task in finetuned_tasks()}
        section.add_argument(
            flag(name), dest=f"finetune_{name}", nargs="+", metavar="X", help=f"{help} ({_defaults(shown)})"
        )


def flag(name: str) -> str:
    """Returns the option for a setting of fine-tuning.

    Example:
        >>> flag("learning_rate"), flag("batch_size")
        ('--learning-rate', '--finetune-batch-size')
    """
    return f"--{'finetune-' if name in PREFIXED else ''}{name.replace('_', '-')}"


def finetuned_tasks() -> list[str]:
    """Returns the evaluations that fine-tune."""
    return [task for task, evaluation in EVALUATIONS.items() if evaluation.task is not None]


def by_task(values: Sequence[str] | None, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Returns by task the values of an option: its own, ``TASK=VALUE``, or else those for no task by name.

    Example:
        >>> by_task(["de", "fr", "bucc=zh"], ["xnli", "bucc"])
        {'xnli': ['de', 'fr'], 'bucc': ['zh']}
    """
    of_all: list[str] = []
    own: dict[str, list[str]] = {}
    for value in values or ():
        task, equals, rest = value.partition("=")
        if equals and task in EVALUATIONS:
            own.setdefault(task, []).append(rest)
        else:
            of_all.append(value)
    found = {task: own.get(task, of_all) for task in tasks}
    return {task: chosen for task, chosen in found.items() if chosen}


def refuse_unused(option: str, values: Sequence[str], tasks: Sequence[str]) -> None:
    """Makes sure that every value of an option is for one of the tasks that use it.

    Raises:
        ValueError: one is for another task, or there is none to use it.
    """
    for value in values:
        task, equals, _ = value.partition("=")
        if not tasks or (equals and task in EVALUATIONS and task not in tasks):
            raise ValueError(
                f"expected {option} for a task that uses it, got {value!r} for {', '.join(tasks) or 'none'}; name the "
                f"task in --tasks or leave {option} out"
            )


def finetuning(given: dict[str, list[str] | None], tasks: Sequence[str], seeds: int) -> dict[str, FinetuneOptions]:
    """Returns the options of every fine-tuned task among ``tasks``.

    Args:
        given: values of the option for each setting, None where it was not given.
        tasks: all that are to be run.
        seeds: how many, from 1.

    Raises:
        ValueError: a value that is no number, several where one is wanted, one out of its range, or one that no task
            uses.
    """
    if seeds < 1:
        raise ValueError(f"expected --seeds at least 1, got {seeds}")
    tuned = [task for task in finetuned_tasks() if task in tasks]
    for name, values in given.items():
        refuse_unused(flag(name), values or (), tuned)
    options = {}
    for task in tuned:
        changes: dict[str, Any] = {"seeds": tuple(range(1, seeds + 1))}
        for name, (kind, _) in FINETUNING.items():
            values = by_task(given.get(name), [task]).get(task)
            if values is None:
                continue
            if kind is tuple:
                changes[name] = tuple(values)
                continue
            if len(values) > 1:
                raise ValueError(f"expected one {flag(name)} for {task}, got {', '.join(values)}")
            try:
                changes[name] = kind(values[0])
            except ValueError:
                expected = "a whole number" if kind is int else "a number"
                raise ValueError(f"expected {expected} for {flag(name)} of {task}, got {values[0]!r}") from None
        options[task] = dataclasses.replace(XTREME_OPTIONS[_xtremes(task)], **changes)
    return options


def _xtremes(task: str) -> str:
    finetuned = EVALUATIONS[task].task
    assert finetuned is not None
    return finetuned.name


def _defaults(shown: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return "none" if value in (None, (), 0) else str(value)

    if len(set(shown.values())) == 1:
        return f"default: {text(next(iter(shown.values())))}"
    return ", ".join(f"{task}: {text(value)}" for task, value in shown.items())
