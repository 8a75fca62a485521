"""The gradient cache: equal to the plain step, in the memory of a part of the batch."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

import ctloss
from ctloss.train import CCEEncoder, RecipeError, pretrain, tiny
from ctloss.train.model.encoder import small_backbone
from ctloss.train.model.objective import Objective
from support.tiny_runs import small_recipe, write_corpus

pytestmark = pytest.mark.numeric
PAIRS = 8
Gradients = dict[str, torch.Tensor]


def objective(cache: int | None, *, dropout: float = 0.3, levels: str = "multi") -> Objective:
    torch.manual_seed(0)
    backbone = small_backbone(
        vocabulary=40, layers=2, hidden=16, heads=2, dropout=dropout, max_length=12, pad=0, mlm=True
    )
    encoder = CCEEncoder(backbone, levels=levels, head=True)
    return Objective(encoder, loss="cz_nce", temperature=0.5, alpha=0.5, gradient_cache=cache).train()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    made: dict[str, torch.Tensor] = {}
    for side in ("source", "target"):
        ids = torch.randint(5, 40, (PAIRS, 9), generator=generator)
        mask = (torch.arange(9) < torch.randint(4, 10, (PAIRS, 1), generator=generator)).long()
        chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool()
        made |= {
            f"{side}_ids": ids * mask,
            f"{side}_mask": mask,
            f"{side}_span": torch.tensor([[1, 3]] * PAIRS),
            f"{side}_masked_ids": torch.where(chosen, 4, ids * mask),
            f"{side}_labels": torch.where(chosen, ids, -100),
        }
    return made


def step(model: Objective, *, autocast: bool = False) -> tuple[float, Gradients]:
    """Loss and gradients of a step with this seed of dropout, as Trainer takes it."""
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch())["loss"]
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def by_hand(model: Objective, size: int) -> tuple[float, Gradients]:
    """The plain step on parts of the batch in one graph, with the same draws of dropout; levels multi."""
    torch.manual_seed(7)
    made = batch()

    def both(name: str) -> torch.Tensor:
        return torch.cat([made[f"source_{name}"], made[f"target_{name}"]])

    def parts(*names: str) -> list[tuple[torch.Tensor, ...]]:
        return list(zip(*(both(name).split(2 * size) for name in names), strict=True))

    vectors = torch.cat([model.encoder(*part) for part in parts("ids", "mask", "span")])
    x, y = vectors.chunk(2)
    logits = torch.cat(
        [
            model.encoder.mlm_logits(model.encoder.first_and_last(ids, mask)[1])
            for ids, mask in parts("masked_ids", "mask")
        ]
    )
    entropies = torch.nn.functional.cross_entropy(logits.transpose(1, 2), both("labels"), reduction="none")
    counts = [(made[f"{side}_labels"] != -100).sum() for side in ("source", "target")]
    mlm = sum(side.sum() / count for side, count in zip(entropies.chunk(2), counts, strict=True)) / 2
    loss = ctloss.cz_nce(x, y, temperature=0.5) + 0.5 * mlm
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_same(
    one: tuple[float, Gradients], other: tuple[float, Gradients], *, relative: float = 1e-5, absolute: float = 1e-6
) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        np.testing.assert_allclose(gradient, other[1][name], rtol=relative, atol=absolute, err_msg=name)


@pytest.mark.parametrize("size", [1, 3, PAIRS])
def test_step_with_dropout_is_the_plain_step_on_the_same_parts(size: int) -> None:
    assert_same(step(objective(size)), by_hand(objective(None), size))


def test_one_part_is_the_plain_step_with_dropout() -> None:
    for levels in ("multi", "apart", "sentence"):
        assert_same(step(objective(PAIRS, levels=levels)), step(objective(None, levels=levels)))


def test_without_dropout_parts_do_not_matter() -> None:
    for levels in ("multi", "apart"):
        assert_same(step(objective(3, dropout=0.0, levels=levels)), step(objective(None, dropout=0.0, levels=levels)))


def test_autocast_is_kept() -> None:
    cached, plain = (step(objective(size), autocast=True) for size in (PAIRS, None))
    # The plain step adds up two uses of a weight in bfloat16, before they become the gradient.
    assert_same(cached, plain, relative=2**-7, absolute=1e-4)
    assert cached[0] != step(objective(PAIRS))[0]


class Saved:
    """A tensor that the graph holds."""

    def __init__(self, tensor: torch.Tensor) -> None:
        # The graph of the tensor would hold itself.
        self.tensor = tensor.detach()


def test_only_vectors_are_kept_between_the_passes() -> None:
    def kept(size: int | None) -> tuple[int, int]:
        """Bytes of activations that the graph of a batch holds after the forward pass, and the most rows at a time."""
        model, rows, alive = objective(size), [], weakref.WeakSet[Saved]()
        model.encoder.backbone.base_model.register_forward_pre_hook(
            lambda module, positional, named: rows.append(len(named["input_ids"])), with_kwargs=True
        )
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> Saved:
            alive.add(saved := Saved(tensor))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            loss = model(**batch())["loss"]
        storages = {saved.tensor.untyped_storage().data_ptr(): saved.tensor.untyped_storage() for saved in alive}
        held = sum(storage.nbytes() for place, storage in storages.items() if place not in weights)
        loss.backward()
        return held, max(rows)

    plain, cached = kept(None), kept(2)
    assert plain[1] == 2 * PAIRS
    assert cached[1] == 4
    assert cached[0] < plain[0] / 10


def test_a_run_with_a_cache_is_the_run_without(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    curves: list[Any] = []
    for name, changes in (("cached", {"gradient_cache": 3}), ("plain", {})):
        recipe = small_recipe(corpus, dropout=0.0, head=False, max_steps=6, log_every=1, pictured_words=0, **changes)
        pretrain(recipe, tmp_path / name)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        curves.append([[line["loss"], line["grad_norm"]] for line in lines if "loss" in line])
    assert len(curves[0]) == 6
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5, atol=1e-5)


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RecipeError, match="gradient_cache: expected at least 1, got 0"):
        tiny().override(gradient_cache=0)
    with pytest.raises(
        RecipeError, match="gradient_cache: expected at most the per_device_train_batch_size 8, got 9; lower it"
    ):
        tiny().override(gradient_cache=9, batch_size=8)
