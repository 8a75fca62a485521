"""Recipes: the presets, what is refused and how it is said, and the command line made from them."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from ctloss.train import Recipe, RecipeError, paper, tiny
from ctloss.train.__main__ import parser


def test_paper_is_the_paper() -> None:
    recipe = paper()
    assert recipe.encoder.encoder == "bert-base-multilingual-cased"
    assert recipe.encoder.lower_case
    assert recipe.data.max_length == 128
    assert (recipe.objective.loss, recipe.objective.levels, recipe.objective.negatives) == ("cz_nce", "multi", "both")
    assert (recipe.objective.temperature, recipe.objective.alpha, recipe.objective.mlm_probability) == (0.07, 0.1, 0.15)
    optimisation = recipe.optimisation
    assert (optimisation.optimizer, optimisation.learning_rate, optimisation.schedule) == ("adam", 2e-6, "thirds")
    assert (optimisation.batch_size, recipe.bookkeeping.seed) == (64, 2021)


def test_tiny_is_self_contained() -> None:
    recipe = tiny()
    assert recipe.data.corpus == ("embedded",)
    assert recipe.encoder.encoder == "small"
    assert recipe.objective.temperature == 0.07


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, r"batch_size: expected at least 2, got 1; a row's negatives are the other rows"),
        ({"batch_size": "64"}, r"batch_size: expected a whole number, got '64'"),
        ({"epochs": True}, r"epochs: expected a whole number, got True"),
        ({"temperature": 0.0}, r"temperature: expected a number above 0, got 0\.0; raise it"),
        ({"temperature": float("nan")}, r"temperature: expected a finite number, got nan"),
        ({"loss": "triplet"}, r"loss: expected one of cz_nce, info_nce, got 'triplet'; choose one of them"),
        ({"levels": "word"}, r"levels: expected one of multi, sentence, apart, got 'word'"),
        ({"negatives": "none"}, r"negatives: expected one of both, cross, got 'none'"),
        ({"alpha": -0.1}, r"alpha: expected at least 0, got -0\.1"),
        ({"alpha": 0.1, "mlm_probability": 0.0}, r"mlm_probability: expected a share above 0 when alpha is above 0"),
        ({"hidden": 100, "heads": 3}, r"hidden: expected a multiple of heads=3, got 100"),
        ({"dropout": 1.0}, r"dropout: expected a number from 0 up to but not including 1, got 1\.0"),
        ({"warmup": 1.5}, r"warmup: expected a number from 0 up to"),
        ({"languages": ("en",)}, r"languages: expected none, or at least two, got \('en',\); add the other languages"),
        ({"languages": ("en", "en")}, r"languages: expected distinct codes"),
        (
            {"lexicon": "a.tsv", "alignments": ("b",)},
            r"alignments: expected either a lexicon or alignments, got 'both'",
        ),
        ({"corpus": "embedded"}, r"corpus: expected a tuple of texts, got 'embedded'"),
        ({"max_steps": 0}, r"max_steps: expected at least 1, got 0"),
        ({"seed": 2**32}, r"seed: expected at most 4294967295, got 4294967296; lower it"),
        ({"lexicon": ""}, r"lexicon: expected a file, got ''; name one, or leave it out"),
        ({"encoder": "x", "layers": 4}, r"layers: expected its default 2, got 4; a given encoder has its own"),
        ({"encoder": "x", "dropout": 0.2}, r"dropout: expected its default 0\.1, got 0\.2"),
        (
            {"optimizer": "adam", "weight_decay": 0.1},
            r"weight_decay: expected its default 0\.01, got 0\.1; adam has none",
        ),
        ({"alpha": 0.0, "mlm_probability": 0.3}, r"mlm_probability: expected its default 0\.15, got 0\.3; alpha is 0"),
        ({"only_with_words": True}, r"only_with_words: expected its default False, got True; levels multi does so"),
        ({"seed": -1}, r"seed: expected at least 0, got -1"),
        ({"precision": "fp16"}, r"precision: expected one of auto, fp32, bf16, got 'fp16'"),
        ({"batchsize": 2}, r"recipe: expected fields among corpus, .*batch_size.*, got batchsize"),
    ],
)
def test_bad_values_are_refused_with_a_reason(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny().override(**changes)


def test_override_leaves_the_recipe_alone() -> None:
    recipe = tiny()
    changed = recipe.override(batch_size=16, loss="info_nce")
    assert (changed.optimisation.batch_size, changed.objective.loss) == (16, "info_nce")
    assert recipe == tiny()


def test_field_names_are_unique_across_parts() -> None:
    names = [item.name for group in Recipe.groups().values() for item in fields(group)]
    assert len(names) == len(set(names))


def test_recipe_is_json() -> None:
    document = json.loads(json.dumps(paper().as_dict()))
    assert document["data"]["corpus"] == ["embedded"]
    assert document["optimisation"]["learning_rate"] == 2e-6


def test_every_field_is_an_option_with_help() -> None:
    text = parser().format_help()
    for group in Recipe.groups().values():
        for item in fields(group):
            assert "--" + item.name.replace("_", "-") in text
            assert item.metadata["help"]
    assert max(map(len, text.splitlines())) <= 120
