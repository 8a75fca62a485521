"""A parallel corpus of a few hundred sentences and a recipe that pretrains on it in seconds."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from ctloss.train import Recipe, tiny
from ctloss.train.arguments import defaults

CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in defaults() else "gradient_checkpointing"
"""The name by which the installed transformers knows the field."""

SUBJECTS = {"cat": "chat", "dog": "chien", "horse": "cheval", "bird": "oiseau", "girl": "fille", "queen": "reine"}
VERBS = {"sees": "voit", "eats": "mange", "finds": "trouve", "likes": "aime", "hears": "entend"}
OBJECTS = {"bread": "pain", "apple": "pomme", "house": "maison", "book": "livre", "water": "eau", "stone": "pierre"}


def write_corpus(folder: Path) -> Path:
    """Writes en-fr.tsv with every subject, verb and object; returns its path."""
    rows = [
        f"the {s} {v} a {o}\tle {SUBJECTS[s]} {VERBS[v]} un {OBJECTS[o]}"
        for s, v, o in itertools.product(SUBJECTS, VERBS, OBJECTS)
    ]
    random.Random(0).shuffle(rows)
    path = folder / "en-fr.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def small_options(corpus: Path) -> dict[str, object]:
    """Returns options with which the tiny recipe takes seconds, with dropout, masked language modelling and words."""
    return {
        "corpus": (str(corpus),),
        "max_pairs": 60,
        "layers": 2,
        "hidden": 32,
        "vocabulary": 200,
        "alpha": 0.1,
        "per_device_train_batch_size": 8,
        "max_steps": 18,
        "num_train_epochs": 3,
        "logging_steps": 3,
        "eval_steps": 9,
        "save_steps": 4,
        "evaluation_pairs": 15,
        "held_out_words": 0.2,
        "precision": "fp32",
        "pictured_words": 3,
    }


def small_recipe(corpus: Path, **changes: object) -> Recipe:
    return tiny().override(**small_options(corpus)).override(**changes)


def quick_recipe(corpus: Path, **changes: object) -> Recipe:
    """Returns a run of a second: one layer, ten steps, no masked language modelling, no picture."""
    quick = {"layers": 1, "alpha": 0.0, "max_steps": 10, "logging_steps": 2, "save_steps": 4, "eval_steps": 5}
    return small_recipe(corpus, **quick, pictured_words=0).override(**changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of a run or a checkpoint, those of its head too."""
    head = folder / "cce_head.safetensors"
    return {**load_file(folder / "model.safetensors"), **(load_file(head) if head.exists() else {})}


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def metrics(folder: Path) -> list[dict[str, float]]:
    """Returns the log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = ("pairs_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def small_arguments(corpus: Path) -> list[str]:
    """Returns the same options as ``small_recipe`` for the command line."""
    return arguments(small_options(corpus))


def arguments(options: Mapping[str, object]) -> list[str]:
    """Returns options, by the names of a recipe's fields, for the command line."""
    given = []
    for name, value in options.items():
        if isinstance(value, bool):
            given.append(("--" if value else "--no-") + name.replace("_", "-"))
            continue
        given += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else [value])]
    return given
