"""Models to fine-tune: what their configuration may say, and which are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from ctloss.evaluate import FinetuneOptions, evaluate_panx, evaluate_pawsx
from support import tiny_tasks

QUICK = FinetuneOptions(learning_rate=4e-3, batch_size=16, max_steps=2, max_length=32)


def changed(model: str, folder: Path, **changes: Any) -> str:
    """Copies a model with other entries in its configuration, and with ``tokenizer=None`` without its tokenizer."""
    shutil.copytree(model, folder)
    if "tokenizer" in changes:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    configuration = folder / "config.json"
    configuration.write_text(json.dumps(json.loads(configuration.read_text()) | changes))
    return str(folder)


@contextmanager
def weights_of(model: str) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the weights in a model's folder, and writes them back as changed."""
    path = Path(model) / "model.safetensors"
    weights = load_file(path)
    yield weights
    save_file(weights, path, metadata={"format": "pt"})


def test_hidden_states_in_the_configuration_change_nothing(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "panx")
    other = changed(model, tmp_path / "other", output_hidden_states=True)
    assert evaluate_panx(other, tmp_path, ["xx"], QUICK) == evaluate_panx(model, tmp_path, ["xx"], QUICK)


def test_models_that_do_not_fit_are_refused(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    bare = changed(model, tmp_path / "bare", tokenizer=None)
    small = changed(model, tmp_path / "small", vocab_size=20)
    five, cut = changed(model, tmp_path / "five"), changed(model, tmp_path / "cut")
    weights = Path(cut) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    holed = changed(model, tmp_path / "holed")
    with weights_of(holed) as kept:
        lost = min(name for name in kept if "attention" in name)
        del kept[lost]
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=5).save_pretrained(five)
    for name, message in (
        (bare, "without a vocabulary"),
        (small, f"expected a tokenizer of at most 20 tokens, .* got one of {len(tiny_tasks.VOCABULARY)}"),
        (five, "expected whole weights that fit the configuration, .* without a head of other labels"),
        (cut, "expected whole weights that fit the configuration"),
        (holed, f"expected all weights of .*, got .* without .*{lost}, which would be random numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_pawsx(name, tmp_path, ["xx"], QUICK)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.nan, "expected finite weights, got NaN or infinity in bert.embeddings"),
        # Finite, but too large to compute with.
        (3e38, "expected finite logits from the fine-tuned model, got NaN or infinity"),
    ],
)
def test_a_diverged_model_is_refused(tmp_path: Path, model: str, weight: float, message: str) -> None:
    """Without a refusal, NaN would pass for the first label."""
    tiny_tasks.write_task(tmp_path, "pawsx")
    broken = changed(model, tmp_path / "broken")
    with weights_of(broken) as weights:
        weights["embeddings.LayerNorm.bias"].fill_(weight)
    with pytest.raises(ValueError, match=message):
        evaluate_pawsx(broken, tmp_path, ["xx"], QUICK)


def test_refused_settings(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    for changes, message in (
        ({"max_length": 65}, "expected max_length at most 64, the wordpieces that .* takes, got 65"),
        ({"accumulation": 3}, "expected a batch_size that 1 processes times 3 accumulated parts divide, got 16"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(QUICK, **changes))
    pickled = Path(changed(model, tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected an encoder with its weights as safetensors"):
        evaluate_pawsx(str(pickled), tmp_path, ["xx"], QUICK)
