"""SentenceTransformerTrainer trains with these losses as with the ones that they replace, and writes its model card."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from tiny_sentence_model import dataset, save
from torch import nn

import ctloss.integrations.sentence_transformers as ours
from support.integrations.installed_losses import IS_OLD, lacking, skip_if, theirs, trains

Made = Callable[[], SentenceTransformer]
STEPS, RATE = 3, 0.1


def train(
    model: SentenceTransformer, loss: nn.Module, rows: Dataset, folder: Path, **arguments: Any
) -> SentenceTransformerTrainer:
    chosen: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": STEPS,
        "learning_rate": RATE,
        # AdamW would turn rounding into steps of full size where a gradient is nothing but rounding.
        "optim": "sgd",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
    }
    made = SentenceTransformerTrainingArguments(**chosen | arguments)
    trainer = SentenceTransformerTrainer(model=model, args=made, train_dataset=rows, eval_dataset=rows, loss=loss)
    trainer.train()
    return trainer


@trains
@pytest.mark.parametrize(
    ("name", "columns", "options"),
    [
        ("MultipleNegativesRankingLoss", 2, {}),
        (
            "MultipleNegativesRankingLoss",
            4,
            {
                "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
                "hardness_mode": "all_negatives",
                "hardness_strength": 5.0,
            },
        ),
        ("CachedMultipleNegativesRankingLoss", 3, {"mini_batch_size": 3}),
        ("CachedGISTEmbedLoss", 3, {"mini_batch_size": 3, "temperature": 0.2}),
    ],
)
def test_same_weights(tmp_path: Path, name: str, columns: int, options: dict[str, Any]) -> None:
    """With dropout, whose draws agree because the encoder runs as often and over the same rows."""
    # Cached losses of versions 5 draw for padding too.
    start = save(tmp_path / "start", dropout=0.0 if IS_OLD and "Cached" in name else 0.1)
    made = partial(SentenceTransformer, start, device="cpu")
    rows, weights, curves = dataset(STEPS * 8, columns), [], []
    for library in (ours, theirs):
        model = made()
        guide = {"guide": made()} if "GIST" in name else {}
        trainer = train(model, getattr(library, name)(model, **guide, **options), rows, tmp_path)
        curves.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        curves[-1].append(trainer.evaluate()["eval_loss"])
        weights.append({name: one.detach().clone() for name, one in model.named_parameters()})
    before = dict(made().named_parameters())
    moved = max((weights[1][name] - one).abs().max().item() for name, one in before.items())
    # Float32 losses and gradients of some 1e-6 relative error, over a few steps.
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)
    for name, one in weights[1].items():
        torch.testing.assert_close(weights[0][name], one, rtol=0, atol=1e-3 * moved)
    assert len(curves[0]) == STEPS + 1
    assert moved > 1e-2


@trains
def test_with_our_sampler_and_labels(tiny: Made, tmp_path: Path) -> None:
    rows = dataset(32, 2, label=[number % 4 for number in range(32)])
    model = tiny()
    loss = ours.MultipleNegativesRankingLoss(model, labels_are_ids=True, objective="cz_nce")
    sampler = partial(ours.DistinctTextsBatchSampler, window=2)
    trainer = train(model, loss, rows, tmp_path, batch_sampler=sampler)
    assert trainer.state.global_step == STEPS
    supervised = train(
        model, ours.SupConLoss(model), rows.remove_columns("positive"), tmp_path, batch_sampler="group_by_label"
    )
    assert all(line["loss"] > 0 for line in supervised.state.log_history if "loss" in line)


@trains
def test_model_card(tiny: Made, tmp_path: Path) -> None:
    model = tiny()
    train(model, ours.CZNCELoss(model, dims=(32, 8)), dataset(16), tmp_path, max_steps=1)
    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "ctloss.integrations.sentence_transformers.ranking.CZNCELoss" in card
    assert '"objective": "cz_nce"' in card
    assert '"scale": 20.0' in card
    assert "eprint={2202.13083}" in card
    assert "eprint={2205.13147}" in card


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_the_card_names_the_same_arguments_as_theirs(tiny: Made, name: str) -> None:
    model = tiny()
    options: dict[str, Any] = {"scale": 5.0, "similarity_fct": model.similarity}
    found = getattr(ours, name)(model, **options)
    skip_if(lacking(name, found.get_config_dict()))
    expected = getattr(theirs, name)(model, **options)
    assert list(found.get_config_dict().items()) == list(expected.get_config_dict().items())
    assert found.temperature == expected.temperature
