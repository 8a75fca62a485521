"""Every choice of the arguments gives sentence-transformers' value and gradient, on the same embeddings."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import torch
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor, nn

import ctloss.integrations.sentence_transformers as ours
from ctloss.integrations.sentence_transformers.settings import SYMMETRIC
from support.integrations.installed_losses import theirs

pytestmark = pytest.mark.numeric

WIDTH = 12
OTHERS = ("query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = [("query_to_doc", *some) for number in range(4) for some in combinations(OTHERS, number)]
SOFTMAXES = [(directions, "joint") for directions in DIRECTIONS] + [
    (("query_to_doc",), "per_direction"),
    (SYMMETRIC[::-1], "per_direction"),
]
HARDNESS = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


class Given(nn.Module):
    """Returns the embeddings that it is given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["rows"]}

    def get_embedding_dimension(self) -> int:
        return WIDTH

    # As versions 5 call it.
    get_sentence_embedding_dimension = get_embedding_dimension


def embeddings(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    return [torch.randn(rows, WIDTH, generator=generator, dtype=dtype) for _ in range(columns)]


def value_and_gradient(
    loss: nn.Module, columns: list[Tensor], labels: Tensor | None = None
) -> tuple[Tensor, list[Any]]:
    leaves = [column.clone().requires_grad_() for column in columns]
    value = loss([{"rows": leaf} for leaf in leaves], labels)
    value.backward()
    return value.detach(), [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def assert_same(name: str, columns: list[Tensor], wrap: Any = lambda loss: loss, **options: Any) -> None:
    found, expected = (
        value_and_gradient(wrap(getattr(library, name)(Given(), **options)), columns) for library in (ours, theirs)
    )
    # float64 throughout: some hundred additions of numbers of at most a hundred, rounded to 1e-16 each.
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize(("directions", "partition"), SOFTMAXES)
def test_every_softmax(directions: tuple[str, ...], partition: str, hardness: str | None) -> None:
    options: dict[str, Any] = {"directions": directions, "partition_mode": partition}
    if hardness is not None:
        options |= {"hardness_mode": hardness, "hardness_strength": 3.0}
    # A single pair has no negatives but its own.
    for rows, negatives, similarity, scale in ((6, 0, cos_sim, 20.0), (6, 3, dot_score, 0.6), (1, 1, cos_sim, 20.0)):
        columns = embeddings(rows, 2 + negatives)
        assert_same("MultipleNegativesRankingLoss", columns, similarity_fct=similarity, scale=scale, **options)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("negatives", [0, 2])
def test_symmetric(negatives: int) -> None:
    assert_same("MultipleNegativesSymmetricRankingLoss", embeddings(5, 2 + negatives), scale=7.0)


@pytest.mark.parametrize(
    ("directions", "partition", "hardness"),
    [
        (("query_to_doc",), "joint", None),
        (("query_to_doc",), "joint", "in_batch_negatives"),
        (SYMMETRIC, "per_direction", "hard_negatives"),
        (DIRECTIONS[-1], "joint", None),
        (DIRECTIONS[-1], "joint", "hard_negatives"),
        (DIRECTIONS[-1], "joint", "all_negatives"),
    ],
)
def test_inside_matryoshka_and_with_dims(directions: tuple[str, ...], partition: str, hardness: str | None) -> None:
    options: dict[str, Any] = {"directions": directions, "partition_mode": partition}
    if hardness is not None:
        options |= {"hardness_mode": hardness, "hardness_strength": 3.0}
    nested = {"matryoshka_dims": [WIDTH, 5, 2], "matryoshka_weights": [1.0, 0.5, 0.25]}

    def wrapped(loss: Any) -> nn.Module:
        return theirs.MatryoshkaLoss(loss.model, loss, **nested)

    columns = embeddings(5, 4)
    assert_same("MultipleNegativesRankingLoss", columns, wrapped, **options)
    fused = ours.MultipleNegativesRankingLoss(Given(), dims=[WIDTH, 5, 2], dim_weights=[1.0, 0.5, 0.25], **options)
    expected = value_and_gradient(wrapped(theirs.MultipleNegativesRankingLoss(Given(), **options)), columns)
    torch.testing.assert_close(value_and_gradient(fused, columns), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_solved_pairs_keep_their_gradient(dtype: torch.dtype) -> None:
    """Theirs subtracts from 1 a probability that has rounded to 1; in float64 it has not yet."""
    queries, scale = torch.eye(8, WIDTH, dtype=torch.float64), 25.0
    columns = [queries.to(dtype), (queries + 0.05 * embeddings(8, 1)[0]).to(dtype)]
    truth = value_and_gradient(
        theirs.MultipleNegativesRankingLoss(Given(), scale=scale), [column.double() for column in columns]
    )[1][0]
    errors = []
    for library in (ours, theirs):
        found = value_and_gradient(library.MultipleNegativesRankingLoss(Given(), scale=scale), columns)[1][0]
        errors.append(((found - truth).norm() / truth.norm()).item())
    # A gradient in bfloat16 is rounded to 1/256.
    assert errors[0] < 8e-3
    assert errors[1] > 0.2


def test_no_attribute_is_frozen() -> None:
    loss = ours.MultipleNegativesRankingLoss(Given())
    loss.scale, loss.similarity_fct = 0.5, dot_score
    other = theirs.MultipleNegativesRankingLoss(Given(), scale=0.5, similarity_fct=dot_score)
    columns = embeddings(5, 3)
    torch.testing.assert_close(value_and_gradient(loss, columns), value_and_gradient(other, columns))


def test_labels_are_ignored_as_by_theirs() -> None:
    columns, labels = embeddings(5, 2), torch.zeros(5, dtype=torch.int64)
    found, expected = (
        value_and_gradient(library.MultipleNegativesRankingLoss(Given()), columns, labels) for library in (ours, theirs)
    )
    torch.testing.assert_close(found, expected)
