"""What is trained and evaluated: the rows of the table, the study of batch sizes, and how large everything is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from benchmarks.ablation.base import Base

# What each method changes of the recipe. The first three are the rows of Chen et al. 2022, Table 1.
METHODS: dict[str, dict[str, Any]] = {
    "info-snt": {"loss": "info_nce", "levels": "sentence", "head": True},
    "CZ-snt": {"loss": "cz_nce", "levels": "sentence", "head": True},
    "ML-CTL-CZ": {"loss": "cz_nce", "levels": "multi", "head": True},
    "ML-CTL-CZ without head": {"loss": "cz_nce", "levels": "multi", "head": False},
    "sentences and words apart": {"loss": "cz_nce", "levels": "apart", "head": False},
}
PAPER_ORDER = ("base", "info-snt", "CZ-snt", "ML-CTL-CZ")
STARTS = ("base", "random")


@dataclass(frozen=True)
class Row:
    """One pretraining run of a method, named as in tables, from ``"base"`` or ``"random"`` weights.

    The seed is that of batches, dropout, masks and the head; ``changes`` are those to the recipe.
    """

    name: str
    start: str
    seed: int
    changes: dict[str, Any]

    def key(self, also: dict[str, Any]) -> str:
        """A name for its folder, different for any other configuration and whatever else its result depends on."""
        text = json.dumps({**asdict(self), **also}, sort_keys=True)
        title = f"{self.name} {self.start}".lower().replace(" ", "-")
        return f"{title}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Scale:
    """How large an ablation is.

    Attributes:
        base: the encoder and its masked language modelling.
        better_after: steps of fine-tuning after which the base must tag English better than random weights, and of
            contrastive training after which both are compared; 0 to take any base.
        per_source: at most this many sentence pairs of a language and corpus.
        steps, batch_size: of every row of the table.
        learning_rate: of every contrastive run, at its peak.
        methods: of the table's rows.
        seeds: of the table's rows and of the study.
        study_pairs: sentence pairs that each run of the study sees, whatever its batch size.
        batch_sizes: of the study.
        finetuning: changes of the fine-tuned tasks' settings, by task; ``""`` for all.
        languages: codes by evaluation; without an entry, all languages of its data.
    """

    base: Base = field(default_factory=Base)
    better_after: int = 150
    per_source: int = 5000
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (1, 2, 3)
    study_pairs: int = 12800
    batch_sizes: tuple[int, ...] = (8, 32, 64)
    finetuning: dict[str, dict[str, Any]] = field(default_factory=dict)
    languages: dict[str, list[str]] = field(default_factory=dict)


FULL = Scale(
    finetuning={
        "": {"learning_rate": 3e-4, "warmup_steps": 100, "epochs": 2, "precision": "bf16"},
        "xnli": {"epochs": 1},
        # 1,800 pairs: with fewer epochs than XTREME nothing is learnt.
        "pawsx": {"epochs": 5, "warmup_steps": 20},
    },
)
QUICK = Scale(
    base=Base(hidden=128, heads=2, vocabulary=8000, steps=200),
    better_after=0,
    per_source=400,
    steps=40,
    seeds=(1,),
    study_pairs=640,
    finetuning={"": {"learning_rate": 3e-4, "max_steps": 40}},
    languages={
        "tatoeba": ["deu", "fra", "cmn"],
        "align": ["en-fr", "zh-en"],
        "xnli": ["en", "zh"],
        "pawsx": ["en", "zh"],
        "pos": ["en", "zh"],
        "ner": ["en", "zh"],
    },
)


def table_rows(scale: Scale) -> list[Row]:
    """The contrastive rows of the table: every method from both starts, the seeds one after the other."""
    return [
        Row(name, start, seed, {**METHODS[name], "max_steps": scale.steps, "batch_size": scale.batch_size})
        for seed in scale.seeds
        for start in STARTS
        for name in scale.methods
    ]


# Variants of the study's runs: the usual one of every batch size, and two others.
USUAL, NOT_CLIPPED, SCALED = "", "not clipped", "rate by √batch"


class Arm(NamedTuple):
    """What the study's runs differ in, apart from their seed.

    Attributes:
        batch_size, precision, clip: of the recipe; a clip of 0 is none.
        scaled: whether the learning rate is that of the table's batch size times √(batch size ÷ table's).
        name: of the method.
    """

    batch_size: int
    precision: str
    clip: float
    scaled: bool
    name: str

    @property
    def variant(self) -> str:
        """One of USUAL, NOT_CLIPPED and SCALED."""
        return NOT_CLIPPED if not self.clip else SCALED if self.scaled else USUAL


def study_arms(scale: Scale) -> list[Arm]:
    """Both losses at every batch size in float32 and bfloat16, the smallest without clipping, smaller rates too."""
    arms = []
    for size in scale.batch_sizes:
        variants = [("fp32", 1.0, False), ("bf16", 1.0, False)]
        variants += [("fp32", 0.0, False)] * (size == scale.batch_sizes[0])
        variants += [("fp32", 1.0, True)] * (size < scale.batch_size)
        arms += [Arm(size, *variant, name) for variant in variants for name in ("info-snt", "CZ-snt")]
    return arms


def study_row(arm: Arm, seed: int, scale: Scale) -> Row:
    """A run of the study: from the base, without masked language modelling, on as many pairs as every other."""
    changes = {
        **METHODS[arm.name],
        "alpha": 0.0,
        "precision": arm.precision,
        "clip": arm.clip,
        "batch_size": arm.batch_size,
        "max_steps": scale.study_pairs // arm.batch_size,
    }
    if arm.scaled:
        changes["learning_rate"] = scale.learning_rate * (arm.batch_size / scale.batch_size) ** 0.5
    return Row(arm.name, "base", seed, changes)
