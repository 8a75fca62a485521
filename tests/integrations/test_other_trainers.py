"""The calls of the page on other trainers, beside the steps that these take, in their shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import ctloss
from support.integrations.drop_ins import rows, same_numbers

pytestmark = pytest.mark.numeric
N, PASSAGES, D, TAU = 9, 4, 7, 0.05


def embeddings(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rows(N, D, dtype=dtype), rows(N * PASSAGES, D, dtype=dtype, seed=1)


def ours(queries: Tensor, passages: Tensor, *, unit: bool) -> Tensor:
    positives, *hard = passages.view(N, PASSAGES, D).unbind(1)
    return ctloss.info_nce(
        queries, positives, candidates=hard, negatives="cross", directions="x", temperature=TAU, normalize=unit
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("unit", [True, False])
def test_scores_of_all_passages(unit: bool, dtype: torch.dtype) -> None:
    """FlagEmbedding and tevatron: the target of query i is column i times the passages a query has."""

    def theirs(queries: Tensor, passages: Tensor) -> Tensor:
        if unit:
            queries, passages = normalize(queries, dim=-1), normalize(passages, dim=-1)
        scores = queries @ passages.T / TAU
        return cross_entropy(scores, torch.arange(N) * (len(passages) // len(queries)))

    same_numbers(lambda q, p: ours(q, p, unit=unit), theirs, *embeddings(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_of_a_query_s_own_passages(dtype: torch.dtype) -> None:
    """FlagEmbedding without in-batch negatives and NeMo AutoModel: the target is column 0 of n times passages."""

    def scores(queries: Tensor, passages: Tensor) -> Tensor:
        return (queries[:, None] * passages.view(N, PASSAGES, D)).sum(-1) / TAU

    def mine(queries: Tensor, passages: Tensor) -> Tensor:
        found = scores(queries, passages)
        own = ctloss.Contrast(found[:, 1:].logsumexp(1) - found[:, 0], found[:, 0])
        return ctloss.objectives.epsilon_nce(own, 1.0).mean()

    def theirs(queries: Tensor, passages: Tensor) -> Tensor:
        return cross_entropy(scores(queries, passages), torch.zeros(N, dtype=torch.int64))

    same_numbers(mine, theirs, *embeddings(dtype))


@pytest.mark.parametrize("directions", ["x", "y", "both"])
def test_passages_of_one_document_are_no_negatives(directions: str) -> None:
    """NeMo AutoModel: masked scores, queries to documents, documents to queries, or the mean of both."""
    document = torch.tensor([0, 1, 2, 0, 3, 4, 1, 5, 6])
    x, y = rows(N, D), rows(N, D, seed=1)

    def mine(queries: Tensor, positives: Tensor) -> Tensor:
        sides = (positives, queries) if directions == "y" else (queries, positives)
        one_way = "both" if directions == "both" else "x"
        return ctloss.info_nce(*sides, negatives="cross", directions=one_way, ids=document, temperature=TAU)

    def theirs(queries: Tensor, positives: Tensor) -> Tensor:
        alike = (document[:, None] == document) & ~torch.eye(N, dtype=torch.bool)
        scores = normalize(queries, dim=-1) @ normalize(positives, dim=-1).T / TAU
        scores = scores.masked_fill(alike, -torch.inf)
        ways = {"x": [scores], "y": [scores.T], "both": [scores, scores.T]}[directions]
        return torch.stack([cross_entropy(one, torch.arange(N)) for one in ways]).mean()

    same_numbers(mine, theirs, x, y)
