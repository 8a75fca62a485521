"""GISTEmbedLoss: sentence-transformers' numbers, with guides of the same and of another vocabulary, in panels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import torch
from sentence_transformers import SentenceTransformer
from test_same_numbers import Given
from tiny_sentence_model import gradients, perturbed, save, tokens
from torch import Tensor, nn

import ctloss.integrations.sentence_transformers as ours
from ctloss.integrations.sentence_transformers import gist
from ctloss.integrations.sentence_transformers.mini_batches import own_copy
from support.integrations.installed_losses import lacking, not_in_old, skip_if, theirs

Made = Callable[[], SentenceTransformer]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A guide whose vocabulary has another order."""
    return save(tmp_path_factory.mktemp("guide"), reverse=True)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> str:
    return perturbed(tmp_path_factory.mktemp("alike"))


def result(library: Any, model: SentenceTransformer, guide: str, columns: int, **options: Any) -> tuple[Tensor, Any]:
    teacher = SentenceTransformer(guide, device="cpu").eval()
    loss = library.GISTEmbedLoss(model.eval(), teacher, temperature=0.2, **options)
    value = loss(tokens(model, 9, columns), None)
    value.backward()
    return value.detach(), gradients(model)


def assert_alike(found: tuple[Tensor, Any], expected: tuple[Tensor, Any]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    largest = max(one.abs().max().item() for one in expected[1].values())
    assert found[1].keys() == expected[1].keys()
    for name, one in expected[1].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-4, atol=2e-6 * largest)


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (3, {}),
        (2, {"margin": 0.3, "margin_strategy": "relative"}),
        (3, {"margin": 0.1, "contrast_anchors": False}),
        (2, {"margin": -0.3, "contrast_positives": False}),
    ],
)
def test_same_as_theirs(
    tiny: Made, alike: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], columns: int
) -> None:
    expected = result(theirs, tiny(), alike, columns, **options)
    assert_alike(result(ours, tiny(), alike, columns, **options), expected)
    # Panels of a single row.
    monkeypatch.setattr(gist, "LOGITS_AT_ONCE", 1)
    assert_alike(result(ours, tiny(), alike, columns, **options), expected)


def test_guide_with_another_vocabulary(tiny: Made, other: str) -> None:
    assert_alike(result(ours, tiny(), other, 3), result(theirs, tiny(), other, 3))


@not_in_old("takes the guide's embeddings for the model's in MatryoshkaLoss")
def test_inside_matryoshka(tiny: Made, alike: str) -> None:
    results = []
    for library in (ours, theirs):
        model = tiny().eval()
        loss: nn.Module = library.GISTEmbedLoss(model, SentenceTransformer(alike, device="cpu").eval())
        value = theirs.MatryoshkaLoss(model, loss, [32, 8])(tokens(model, 6), None)
        value.backward()
        results.append((value.detach(), gradients(model)))
    assert_alike(*results)


def test_a_text_that_equals_the_positive_stays_in(tiny: Made) -> None:
    """Whichever way the rounding of the guide's cosines goes."""
    generator = torch.Generator().manual_seed(0)
    anchors, documents, of_anchors, of_documents = (torch.randn(40, 32, generator=generator) for _ in range(4))
    twice = torch.arange(40) // 2
    columns, guided = [anchors, documents[twice]], [of_anchors, of_documents[twice]]
    similarities, by_guide = (
        torch.nn.functional.cosine_similarity(rows.double()[:, None], others.double()[None], dim=2)
        for rows, others in (columns, guided)
    )
    out = (by_guide > by_guide.diagonal()[:, None]) & (twice[:, None] != twice)
    logits = (similarities / 0.5).masked_fill(out, -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(40)).float()
    model = tiny()
    loss = ours.GISTEmbedLoss(model, model, 0.5, contrast_anchors=False, contrast_positives=False)
    torch.testing.assert_close(loss.compute_loss_from_embeddings(columns, guided), expected)


def test_all_negatives_left_out(tiny: Made, alike: str) -> None:
    value, found = result(ours, tiny(), alike, 2, margin=3.0)
    assert value == 0
    assert all(not one.any() for one in found.values())


def test_any_number_of_negatives(tiny: Made, alike: str) -> None:
    assert result(ours, tiny(), alike, 4)[0] > result(ours, tiny(), alike, 3)[0]


def test_refusals(tiny: Made) -> None:
    model = tiny()
    with pytest.raises(TypeError, match="guide: expected a model with a tokenizer, got Given"):
        ours.GISTEmbedLoss(model, Given())
    with pytest.raises(ValueError, match="margin_strategy: expected 'absolute' or 'relative', got 'both'"):
        ours.GISTEmbedLoss(model, model, margin_strategy="both")
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        ours.GISTEmbedLoss(model, model, temperature=0)
    with pytest.raises(ValueError, match=r"columns: expected .* got 1"):
        ours.GISTEmbedLoss(model, model)(tokens(model, 3)[:1], None)
    for margin, error in (("a", TypeError), (None, TypeError), (float("nan"), ValueError)):
        with pytest.raises(error, match="margin: expected a finite number, got"):
            ours.GISTEmbedLoss(model, model, margin=margin)
    columns = [torch.eye(4), torch.eye(4)[:3]]
    with pytest.raises(ValueError, match=r"expected two tensors of one shape \(n, d\), got \(4, 4\) and \(3, 4\)"):
        ours.GISTEmbedLoss(model, model).compute_loss_from_embeddings(columns, columns)


def test_card(tiny: Made) -> None:
    model = tiny()
    found = ours.GISTEmbedLoss(model, model).get_config_dict()
    skip_if(lacking("GISTEmbedLoss", found))
    assert list(found.items()) == list(theirs.GISTEmbedLoss(model, model).get_config_dict().items())


def test_only_tokens_are_cut_where_all_rows_are_padded() -> None:
    """What merely has as many channels as there are tokens is no row of tokens."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = own_copy({"attention_mask": mask, "input_ids": mask + 4, "pixel_values": torch.zeros(2, 3, 2, 2)})
    assert [tuple(one.shape) for one in found.values()] == [(2, 2), (2, 2), (2, 3, 2, 2)]
