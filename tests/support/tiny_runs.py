"""A parallel corpus of a few hundred sentences and a recipe that pretrains on it in seconds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path

from ctloss.train import Recipe, tiny

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
        "max_pairs": 64,
        "layers": 2,
        "hidden": 32,
        "vocabulary": 200,
        "alpha": 0.1,
        "batch_size": 8,
        "max_steps": 18,
        "epochs": 3,
        "log_every": 3,
        "evaluate_every": 9,
        "checkpoint_every": 4,
        "evaluation_pairs": 15,
        "held_out_words": 0.2,
        "precision": "fp32",
        "pictured_words": 3,
    }


def small_recipe(corpus: Path, **changes: object) -> Recipe:
    return tiny().override(**{**small_options(corpus), **changes})


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
