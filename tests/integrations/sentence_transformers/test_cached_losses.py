"""The cached losses are the uncached ones, also with dropout, widths and mini-batches of tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import torch
from sentence_transformers import SentenceTransformer
from tiny_sentence_model import gradients, tokens
from torch import Tensor, nn

import ctloss.integrations.sentence_transformers as ours
from support.integrations.installed_losses import losses, not_in_old, theirs

pytestmark = pytest.mark.numeric

Made = Callable[[], SentenceTransformer]
GTE = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def trained(model: SentenceTransformer, loss: nn.Module, factor: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    value = loss(tokens(model, 7, 3), None)
    (value * factor).backward()
    return value.detach(), gradients(model)


def assert_alike(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Float32 sums of the same terms in another order."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    largest = max(one.abs().max().item() for one in expected[1].values())
    for name, one in expected[1].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-4, atol=2e-6 * largest)


@not_in_old("draws for padding too")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": GTE},
        {"hardness_mode": "hard_negatives", "hardness_strength": 5.0},
        {"mini_batch_num_tokens": 20},
        {"mini_batch_size": 100},
    ],
)
def test_same_as_theirs_with_dropout(tiny: Made, options: dict[str, Any]) -> None:
    """Both draw for each mini-batch in turn, and again the same in the second run."""
    found, expected = (
        trained(
            model := tiny().train(),
            library.CachedMultipleNegativesRankingLoss(model, **{"mini_batch_size": 3} | options),
        )
        for library in (ours, theirs)
    )
    assert_alike(found, expected)


def test_same_as_uncached(tiny: Made) -> None:
    found = trained(model := tiny().eval(), ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), 1024.0)
    assert_alike(found, trained(model := tiny().eval(), ours.MultipleNegativesRankingLoss(model), 1024.0))


@not_in_old("knows its own cached losses only")
def test_inside_matryoshka_and_with_dims(tiny: Made) -> None:
    def nested(loss: Any) -> nn.Module:
        return theirs.MatryoshkaLoss(loss.model, loss, [32, 8], [1.0, 0.5])

    results = [
        trained(model := tiny().train(), nested(library.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)))
        for library in (ours, theirs)
    ]
    model = tiny().train()
    fused = ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3, dims=(32, 8), dim_weights=(1.0, 0.5))
    assert_alike(results[0], results[1])
    assert_alike(trained(model, fused), results[1])


def test_an_encoder_that_is_changed_for_the_forward_pass_only_is_refused(tiny: Made) -> None:
    """As versions 5 of MatryoshkaLoss do it."""
    module: Any = sys.modules[losses.MatryoshkaLoss.__module__]
    model = tiny()
    model.forward = module.ForwardDecorator(model.forward)  # type: ignore[method-assign]
    for loss in (ours.CachedMultipleNegativesRankingLoss(model), ours.CachedGISTEmbedLoss(model, tiny())):
        with pytest.raises(ValueError, match="MatryoshkaLoss: expected a version of sentence-transformers that asks"):
            loss(tokens(model, 3), None)


def test_without_gradients(tiny: Made) -> None:
    model = tiny().eval()
    with torch.no_grad():
        values = [
            library.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)(tokens(model, 7), None)
            for library in (ours, theirs)
        ]
    torch.testing.assert_close(*values)


@not_in_old("draws for padding too")
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_symmetric(tiny: Made) -> None:
    found, expected = (
        trained(model := tiny().train(), library.CachedMultipleNegativesSymmetricRankingLoss(model, mini_batch_size=4))
        for library in (ours, theirs)
    )
    assert_alike(found, expected)


@not_in_old("reads in its second run the mask that its first has changed")
def test_prompts_are_left_out_of_the_pooling_once(tiny: Made) -> None:
    """Pooling without the prompt writes into the mask that it is given."""
    results = []
    for library in (ours, theirs):
        model = tiny().eval()
        model[1].include_prompt = False  # type: ignore[assignment]
        columns = [column | {"prompt_length": torch.full((5,), 2)} for column in tokens(model, 5)]
        value = library.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)(columns, None)
        value.backward()
        results.append((value.detach(), gradients(model)))
    assert_alike(*results)


def test_refusals(tiny: Made) -> None:
    model = tiny()
    with pytest.raises(ValueError, match="mini_batch_size: expected a positive integer, got 0"):
        ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=0)
    with pytest.raises(ValueError, match="mini_batch_num_tokens: expected a positive integer, got -1"):
        ours.CachedMultipleNegativesRankingLoss(model, mini_batch_num_tokens=-1)
    flat = {"input_ids": torch.zeros(9, dtype=torch.int64), "offsets": torch.tensor([0, 4])}
    with pytest.raises(ValueError, match="inputs: expected padded texts"):
        ours.CachedMultipleNegativesRankingLoss(model)([flat, flat], None)
    images = tokens(model, 3)[0] | {"pixel_values": torch.zeros(5, 2)}
    with pytest.raises(ValueError, match=r"one row a text, 3, got \(5, 2\) for pixel_values"):
        ours.CachedMultipleNegativesRankingLoss(model)([images, images], None)
