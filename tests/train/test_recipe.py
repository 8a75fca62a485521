"""Recipes: the presets, what is refused and how it is said, and what a prepared folder decides."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from ctloss.train import Recipe, RecipeError, paper, tiny
from ctloss.train.arguments import FORMER, every_name


def test_paper_is_the_paper() -> None:
    recipe = paper()
    assert recipe.encoder.encoder == "bert-base-multilingual-cased"
    assert recipe.encoder.lower_case
    assert recipe.data.max_length == 128
    assert (recipe.objective.loss, recipe.objective.levels, recipe.objective.negatives) == ("cz_nce", "multi", "both")
    assert (recipe.objective.temperature, recipe.objective.alpha, recipe.objective.mlm_probability) == (0.07, 0.1, 0.15)
    training = recipe.training
    assert (training.optim, training.weight_decay) == ("adamw_torch_fused", 0.0)
    assert (training.learning_rate, training.lr_scheduler_type, training.warmup_steps) == (2e-6, "thirds", 0)
    assert (training.per_device_train_batch_size, training.seed) == (64, 2021)


def test_tiny_is_self_contained() -> None:
    recipe = tiny()
    assert recipe.data.corpus == ("embedded",)
    assert recipe.encoder.encoder == "small"
    assert recipe.objective.temperature == 0.07


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "2"}, r"layers: expected a whole number, got '2'"),
        ({"layers": True}, r"layers: expected a whole number, got True"),
        ({"layers": 0}, r"layers: expected at least 1, got 0; raise it"),
        ({"temperature": 0.0}, r"temperature: expected a number above 0, got 0\.0; raise it"),
        ({"temperature": float("nan")}, r"temperature: expected a finite number, got nan"),
        ({"loss": "triplet"}, r"loss: expected one of cz_nce, info_nce, got 'triplet'; choose one of them"),
        ({"levels": "word"}, r"levels: expected one of multi, sentence, apart, got 'word'"),
        ({"negatives": "none"}, r"negatives: expected one of both, cross, got 'none'"),
        ({"alpha": -0.1}, r"alpha: expected at least 0, got -0\.1"),
        ({"alpha": 0.1, "mlm_probability": 0.0}, r"mlm_probability: expected a share above 0 when alpha is above 0"),
        ({"hidden": 100, "heads": 3}, r"hidden: expected a multiple of heads=3, got 100"),
        ({"dropout": 1.0}, r"dropout: expected a number from 0 up to but not including 1, got 1\.0"),
        ({"languages": ("en",)}, r"languages: expected none, or at least two, got \('en',\); add the other languages"),
        ({"languages": ("en", "en")}, r"languages: expected distinct codes"),
        (
            {"lexicon": ("a.tsv",), "alignments": ("b",)},
            r"alignments: expected one of lexicon, alignments and align, got 'lexicon and alignments'; drop the others",
        ),
        ({"corpus": "embedded"}, r"corpus: expected a tuple of texts, got 'embedded'"),
        ({"lexicon": ("",)}, r"lexicon: expected files, got ''; name one, or leave it out"),
        ({"encoder": "x", "layers": 4}, r"layers: expected its default 2, got 4; a given encoder has its own"),
        ({"encoder": "x", "dropout": 0.2}, r"dropout: expected its default 0\.1, got 0\.2"),
        ({"alpha": 0.0, "mlm_probability": 0.3}, r"mlm_probability: expected its default 0\.15, got 0\.3; alpha is 0"),
        ({"only_with_words": True}, r"only_with_words: expected its default False, got True; levels multi does so"),
    ],
)
def test_bad_values_of_the_groups_are_refused_with_a_reason(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny().override(**changes)


def test_override_leaves_the_recipe_alone() -> None:
    recipe = tiny()
    changed = recipe.override(batch_size=16, loss="info_nce")
    assert (changed.training.per_device_train_batch_size, changed.objective.loss) == (16, "info_nce")
    assert changed.override(batch_size=64, loss="cz_nce") == recipe
    assert recipe == tiny()


def test_field_names_are_unique_across_parts() -> None:
    names = [item.name for group in Recipe.groups().values() for item in fields(group)] + every_name()
    assert [name for name in names if names.count(name) > 1 and name not in FORMER] == []


def test_recipe_is_json() -> None:
    document = json.loads(json.dumps(paper().as_dict()))
    assert document["data"]["corpus"] == ["embedded"]
    assert document["training"]["learning_rate"] == 2e-6


SETTINGS = {"corpus": ["a.tsv"], "languages": ["en", "fr"], "stop_words": "iso", "vocabulary": 300}


def test_a_prepared_folder_says_what_it_was_made_with() -> None:
    recipe = tiny().override(prepared="p", batch_size=8, layers=3).prepared_with(SETTINGS, given=("layers",))
    assert (recipe.data.corpus, recipe.data.languages, recipe.data.stop_words) == (("a.tsv",), ("en", "fr"), "iso")
    assert (recipe.encoder.vocabulary, recipe.encoder.layers) == (300, 3)
    assert recipe.training.per_device_train_batch_size == 8
    assert recipe.prepared_with(SETTINGS, given=("corpus", "stop_words")) == recipe


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"vocabulary": 400}, (), "vocabulary: expected 300, as the folder p was prepared with, got 400; leave it out"),
        ({"vocabulary": 400}, ("vocabulary",), "vocabulary: expected 300, as the folder p"),
        ({"corpus": ("b.tsv",)}, ("corpus",), r"corpus: expected \('a.tsv',\), .* got \('b.tsv',\)"),
        # Given, though it is the default.
        ({"stop_words": "short"}, ("stop_words",), "stop_words: expected 'iso', .* got 'short'; leave it out, or"),
    ],
)
def test_what_contradicts_a_prepared_folder_is_refused(
    changes: dict[str, Any], given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny().override(prepared="p", **changes).prepared_with(SETTINGS, given)
