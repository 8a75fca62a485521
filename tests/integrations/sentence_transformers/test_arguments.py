"""What the losses take beyond sentence-transformers', and what they refuse."""

from __future__ import annotations

import inspect
import re
from functools import partial
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import torch
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim
from test_same_numbers import WIDTH, Given, embeddings, value_and_gradient
from torch import Tensor

import ctloss
import ctloss.integrations.sentence_transformers as ours
from ctloss.integrations.sentence_transformers import installed
from support.integrations.installed_losses import lacking, losses, skip_if

pytestmark = pytest.mark.numeric

GTE = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


@pytest.mark.parametrize(
    "name",
    [
        "MultipleNegativesRankingLoss",
        "MultipleNegativesSymmetricRankingLoss",
        "CachedMultipleNegativesRankingLoss",
        "CachedMultipleNegativesSymmetricRankingLoss",
        "GISTEmbedLoss",
        "CachedGISTEmbedLoss",
    ],
)
def test_arguments_of_theirs_come_first_in_their_order(name: str) -> None:
    # Before this argument came, those after it had another place.
    skip_if(lacking(name, ["mini_batch_num_tokens"] if "Cached" in name else []))
    found, expected = (
        [(one.name, one.default) for one in inspect.signature(getattr(library, name).__init__).parameters.values()]
        for library in (ours, losses)
    )
    # Deprecated classes hide their own signature behind a wrapper.
    expected = expected if len(expected) > 3 else found
    assert found[: len(expected)] == expected


def value(columns: list[Tensor], labels: Tensor | None = None, **options: Any) -> float:
    return ours.MultipleNegativesRankingLoss(Given(), **options).compute_loss_from_embeddings(columns, labels).item()


def logits(columns: list[Tensor], scale: float = 20.0) -> Tensor:
    queries, *documents = columns
    return scale * cos_sim(queries, torch.cat(documents))


@pytest.mark.parametrize("directions", [("query_to_doc",), GTE])
def test_cz_nce_leaves_the_positive_out(directions: Any) -> None:
    columns = embeddings(6, 3)
    matrices = [logits(columns)]
    if directions == GTE:
        own = torch.eye(6, dtype=torch.bool)
        matrices.append(20 * cos_sim(columns[0], columns[0]))
        matrices.append(20 * cos_sim(columns[0], columns[1]).T)
        matrices.append((20 * cos_sim(columns[1], torch.cat(columns[1:]))).masked_fill(own.repeat(1, 2), -torch.inf))
    positive = 20 * torch.nn.functional.cosine_similarity(*columns[:2])
    for matrix in matrices:
        matrix.diagonal().fill_(-torch.inf)
    expected = (torch.logsumexp(torch.cat(matrices, 1), 1) - positive).mean()
    found = ours.CZNCELoss(Given(), directions=directions).compute_loss_from_embeddings(columns).item()
    assert found == pytest.approx(expected.item(), rel=1e-12)
    assert value(columns, directions=directions, objective="cz_nce") == found


def test_an_objective_of_ones_own() -> None:
    columns = embeddings(6, 3)
    focal = partial(ctloss.objectives.focal_nce, gamma=2.0)
    z = ctloss.contrast(
        columns[0], columns[1], temperature=1 / 20, candidates=columns[2], negatives="cross", directions="x"
    )
    assert value(columns, objective=focal) == pytest.approx(focal(z).mean().item(), rel=1e-12)
    config = ours.MultipleNegativesRankingLoss(Given(), objective=focal).get_config_dict()
    assert config["objective"] == "focal_nce(gamma=2.0)"


def test_labels_as_ids_leave_out_pairs_of_one_thing() -> None:
    columns, labels = embeddings(6, 2), torch.tensor([0, 1, 0, 2, 3, 1])
    masked = logits(columns)
    masked[(labels[:, None] == labels) & ~torch.eye(6, dtype=torch.bool)] = -torch.inf
    expected = torch.nn.functional.cross_entropy(masked, torch.arange(6)).item()
    assert value(columns, labels, labels_are_ids=True) == pytest.approx(expected, rel=1e-12)
    for wrong, message in (
        (None, "got none"),
        (labels.double(), "got torch.float64"),
        (labels[:4], "got 4 for 6 rows"),
    ):
        with pytest.raises(ValueError, match=f"labels: expected integers, .*{message}"):
            value(columns, wrong, labels_are_ids=True)


def test_a_margin_takes_the_model_as_its_own_guide() -> None:
    columns = embeddings(6, 3)
    similarities = cos_sim(columns[0], torch.cat(columns[1:]))
    out = similarities > similarities.diagonal()[:, None] + 0.1
    expected = torch.nn.functional.cross_entropy((20 * similarities).masked_fill(out, -torch.inf), torch.arange(6))
    assert out.any()
    assert value(columns, margin=0.1) == pytest.approx(expected.item(), rel=1e-12)


def test_sup_con() -> None:
    first, second = embeddings(6, 2)
    labels = torch.tensor([0, 1, 0, 2, 2, 1])
    found = ours.SupConLoss(Given(), scale=10.0).compute_loss_from_embeddings([first, second], labels)
    expected = ctloss.sup_con(torch.cat([first, second]), labels.repeat(2), temperature=0.1)
    torch.testing.assert_close(found, expected)
    batch = [{"rows": first}]
    assert ours.SupConLoss(Given(), similarity_fct=dot_score)(batch, labels).item() > 0
    with pytest.raises(ValueError, match="classes of the texts, in a column named label, got none"):
        ours.SupConLoss(Given())(batch, None)
    with pytest.raises(ValueError, match="scale: expected a positive number, got 0"):
        ours.SupConLoss(Given(), scale=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity_fct": euclidean_sim}, "similarity_fct: expected cos_sim or dot_score .* got euclidean_sim"),
        ({"similarity_fct": torch.nn.CosineSimilarity()}, "similarity_fct: expected cos_sim or dot_score"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        ({"scale": float("nan")}, "scale: expected a positive number, got nan"),
        ({"directions": ()}, "directions: expected 'query_to_doc' among them"),
        ({"directions": ("query_to_doc", "up")}, "directions: expected one of .* got 'up'"),
        ({"partition_mode": "none"}, "partition_mode: expected one of 'joint', 'per_direction', got 'none'"),
        ({"directions": GTE, "partition_mode": "per_direction"}, "partition_mode: expected 'joint' with directions"),
        ({"hardness_mode": "hard"}, "hardness_mode: expected one of"),
        ({"hardness_strength": -1.0}, "hardness_strength: expected a finite number of at least 0"),
        ({"objective": "clip"}, "objective: expected one of 'info_nce', 'cz_nce', got 'clip'"),
        ({"dims": (WIDTH + 1, 4)}, f"dims: expected widths of at most the model's {WIDTH} columns"),
        ({"dims": (4,), "similarity_fct": dot_score}, "dims: expected cos_sim with nested widths"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.MultipleNegativesRankingLoss(Given(), **options)


@pytest.mark.parametrize("options", [{"dims": 8}, {"dims": ("8",)}, {"dims": (8, 4), "dim_weights": "12"}])
def test_widths_and_their_weights_are_several_numbers(options: dict[str, Any]) -> None:
    *_, (name, given) = options.items()
    with pytest.raises(TypeError, match=f"{name}: expected None or several numbers, got {re.escape(repr(given))}"):
        ours.MultipleNegativesRankingLoss(Given(), **options)


def test_refused_calls() -> None:
    columns = embeddings(4, 3)
    with pytest.raises(ValueError, match=r"columns: expected .* got 1; add the positives' column"):
        value(columns[:1])
    with pytest.raises(ValueError, match="hardness_mode: expected None or 'all_negatives' with hard negatives and ids"):
        value(columns, margin=0.1, hardness_mode="hard_negatives", hardness_strength=1.0)
    with pytest.raises(TypeError, match="scale: expected a positive number, got str"):
        value(columns, scale="20")
    with pytest.raises(TypeError, match="objective: expected none for CZNCELoss"):
        ours.CZNCELoss(Given(), objective="info_nce")


def test_a_mode_without_strength_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match="hardness_mode='hard_negatives' changes nothing"):
        ours.MultipleNegativesRankingLoss(Given(), hardness_mode="hard_negatives")


def test_embeddings_are_not_modified() -> None:
    columns = embeddings(5, 4)
    copies = [column.clone() for column in columns]
    value_and_gradient(
        ours.MultipleNegativesRankingLoss(
            Given(), directions=GTE, hardness_mode="hard_negatives", hardness_strength=2.0
        ),
        columns,
    )
    assert all(torch.equal(*pair) for pair in zip(columns, copies, strict=True))


def test_other_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "version", lambda name: "3.4.1")
    with pytest.raises(ImportError, match=r"expected sentence-transformers 5 or later, got 3\.4\.1; pip install"):
        installed.require_sentence_transformers()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "version", missing)
    with pytest.raises(ModuleNotFoundError, match="got an environment without it; pip install"):
        installed.require_sentence_transformers()
