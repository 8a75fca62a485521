"""CachedGISTEmbedLoss: the numbers of sentence-transformers with any option, and those of the uncached loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from test_cached_losses import assert_alike, trained
from test_same_numbers import Given
from tiny_sentence_model import gradients, perturbed, save, tokens
from torch import Tensor, nn

import ctloss.integrations.sentence_transformers as ours
from support.integrations.installed_losses import IS_OLD, lacking, not_in_old, skip_if, theirs

pytestmark = pytest.mark.numeric

Made = Callable[[], SentenceTransformer]
NAME = "CachedGISTEmbedLoss"
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.05, 0.3]),
    "mini_batch_size": st.integers(1, 9),
    # Versions 5 subtract a share of a negative cosine with its sign.
    "margin_strategy": st.sampled_from(["absolute"] if IS_OLD else ["absolute", "relative"]),
    "margin": st.sampled_from([-0.4, 0.0, 0.15, 3.0]),
    "contrast_anchors": st.booleans(),
    "contrast_positives": st.booleans(),
    "mini_batch_num_tokens": st.none() | st.integers(1, 60),
}
OPTIONS = st.fixed_dictionaries({name: choice for name, choice in CHOICES.items() if not lacking(NAME, [name])})


@pytest.fixture(scope="module")
def guides(folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the model's vocabulary, and one whose words are numbered in another order."""
    return {
        "alike": perturbed(tmp_path_factory.mktemp("alike")),
        "other": save(tmp_path_factory.mktemp("other"), reverse=True),
    }


def loaded(folder: str) -> SentenceTransformer:
    return SentenceTransformer(folder, device="cpu").eval()


@pytest.fixture(scope="module")
def doubled(folder: str, guides: dict[str, str]) -> dict[str, SentenceTransformer]:
    """The model and its guides in float64."""
    return {name: loaded(place).double() for name, place in {"model": folder, **guides}.items()}


@given(rows=st.integers(1, 7), columns=st.integers(2, 4), of=st.sampled_from(["alike", "other"]), options=OPTIONS)
def test_same_as_theirs_in_float64(
    doubled: dict[str, SentenceTransformer], rows: int, columns: int, of: str, options: dict[str, Any]
) -> None:
    results = []
    for library in (ours, theirs):
        model = doubled["model"]
        model.zero_grad()
        value = library.CachedGISTEmbedLoss(model, doubled[of], **options)(tokens(model, rows, columns), None)
        (value * 3.0).backward()
        results.append((value.detach(), gradients(model)))
    (found, slopes), (expected, expected_slopes) = results
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    largest = max(one.abs().max().item() for one in expected_slopes.values())
    assert slopes.keys() == expected_slopes.keys()
    for name, one in expected_slopes.items():
        torch.testing.assert_close(slopes[name], one, rtol=1e-9, atol=1e-12 + 1e-11 * largest)


@not_in_old("draws for padding too")
@pytest.mark.parametrize("options", [{"mini_batch_size": 3}, {"mini_batch_num_tokens": 20}, {"mini_batch_size": 100}])
def test_same_as_theirs_with_dropout(tiny: Made, guides: dict[str, str], options: dict[str, Any]) -> None:
    """The guide draws nothing, so the model's draws are theirs: each mini-batch in turn, and the same again."""
    found, expected = (
        trained(
            model := tiny().train(),
            library.CachedGISTEmbedLoss(model, loaded(guides["alike"]), temperature=0.2, **options),
        )
        for library in (ours, theirs)
    )
    assert_alike(found, expected)


@pytest.mark.parametrize("of", ["alike", "other"])
def test_same_as_uncached(tiny: Made, guides: dict[str, str], of: str) -> None:
    options = {"temperature": 0.2, "margin": 0.1}
    found = trained(
        model := tiny().eval(),
        ours.CachedGISTEmbedLoss(model, loaded(guides[of]), mini_batch_size=2, **options),
        1024.0,
    )
    model = tiny().eval()
    assert_alike(found, trained(model, ours.GISTEmbedLoss(model, loaded(guides[of]), **options), 1024.0))


@not_in_old("knows its own cached losses only")
def test_inside_matryoshka(tiny: Made, guides: dict[str, str]) -> None:
    def nested(loss: Any) -> nn.Module:
        return theirs.MatryoshkaLoss(loss.model, loss, [32, 8], [1.0, 0.5])

    results = [
        trained(
            model := tiny().train(),
            nested(library.CachedGISTEmbedLoss(model, loaded(guides["alike"]), temperature=0.2, mini_batch_size=3)),
        )
        for library in (ours, theirs)
    ]
    assert_alike(*results)


def test_without_gradients(tiny: Made, guides: dict[str, str]) -> None:
    model, guide = tiny().eval(), loaded(guides["alike"])
    with torch.no_grad():
        values = [
            library.CachedGISTEmbedLoss(model, guide, mini_batch_size=3)(tokens(model, 7), None)
            for library in (ours, theirs)
        ]
    torch.testing.assert_close(*values)


def test_the_guide_runs_once_over_mini_batches_and_learns_nothing(tiny: Made, guides: dict[str, str]) -> None:
    model, guide = tiny(), loaded(guides["other"])
    seen: dict[str, list[int]] = {"model": [], "guide": []}
    for name, one in (("model", model), ("guide", guide)):
        one.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(len(given[0]["input_ids"])))
    columns = tokens(model, 7)
    before = [{key: one.clone() for key, one in column.items() if isinstance(one, Tensor)} for column in columns]
    ours.CachedGISTEmbedLoss(model, guide, mini_batch_size=3)(columns, None).backward()
    assert seen == {"model": [3, 3, 1] * 4, "guide": [3, 3, 1] * 2}
    assert not gradients(guide)
    for column, copy in zip(columns, before, strict=True):
        assert all(torch.equal(column[key], one) for key, one in copy.items())
        assert "sentence_embedding" not in column


def test_prompts_are_left_out_of_the_pooling_once(tiny: Made, guides: dict[str, str]) -> None:
    """Pooling without the prompt writes into the mask that it is given; the guide reads the prompt all the same."""
    results = []
    for name in (NAME, "GISTEmbedLoss"):
        model = tiny().eval()
        model[1].include_prompt = False  # type: ignore[assignment]
        # Of different lengths, so that no version copies the columns into one batch.
        columns = [
            column | {"prompt_length": torch.full((5,), length)}
            for column, length in zip(tokens(model, 5), (1, 2), strict=True)
        ]
        options = {"mini_batch_size": 2} if name == NAME else {}
        guide = loaded(guides["alike"])
        value = getattr(ours, name)(model, guide, temperature=0.2, **options)(columns, None)
        value.backward()
        results.append((value.detach(), gradients(model)))
    assert_alike(*results)


def test_card(tiny: Made, guides: dict[str, str]) -> None:
    model, guide = tiny(), loaded(guides["alike"])
    options: dict[str, Any] = {"temperature": 0.1, "mini_batch_size": 8, "margin_strategy": "relative"}
    found = ours.CachedGISTEmbedLoss(model, guide, **options)
    skip_if(lacking(NAME, found.get_config_dict()))
    expected = theirs.CachedGISTEmbedLoss(model, guide, **options)
    assert list(found.get_config_dict().items()) == list(expected.get_config_dict().items())
    assert "eprint={2402.16829}" in found.citation
    assert "eprint={2101.06983}" in found.citation


def test_refusals(tiny: Made) -> None:
    model = tiny()
    with pytest.raises(TypeError, match="guide: expected a model with a tokenizer, got Given"):
        ours.CachedGISTEmbedLoss(model, Given())
    with pytest.raises(ValueError, match="margin_strategy: expected 'absolute' or 'relative', got 'both'"):
        ours.CachedGISTEmbedLoss(model, model, margin_strategy="both")
    with pytest.raises(ValueError, match="mini_batch_size: expected a positive integer, got 0"):
        ours.CachedGISTEmbedLoss(model, model, mini_batch_size=0)
    with pytest.raises(ValueError, match="mini_batch_num_tokens: expected a positive integer, got -1"):
        ours.CachedGISTEmbedLoss(model, model, mini_batch_num_tokens=-1)
    loss = ours.CachedGISTEmbedLoss(model, model)
    with pytest.raises(ValueError, match=r"columns: expected .* got 1"):
        loss(tokens(model, 3)[:1], None)
    flat = {"input_ids": torch.zeros(9, dtype=torch.int64), "offsets": torch.tensor([0, 4])}
    with pytest.raises(ValueError, match=r"inputs: expected padded texts, .* use GISTEmbedLoss"):
        loss([flat, flat], None)
    images = tokens(model, 3)[0] | {"pixel_values": torch.zeros(5, 2)}
    with pytest.raises(ValueError, match=r"one row a text, 3, got \(5, 2\) for pixel_values; .* use GISTEmbedLoss"):
        loss([images, images], None)
    rows = torch.ones(2, 3)
    with pytest.raises(ValueError, match="guided: expected the guide's embeddings of 2 columns, got 1"):
        loss.calculate_loss([[rows], [rows]], [[rows]])
    loss.mini_batch_size = 0
    with pytest.raises(ValueError, match="mini_batch_size: expected a positive integer, got 0"):
        loss(tokens(model, 3), None)
