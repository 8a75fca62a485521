"""What alignment buys, as numbers: retrieval by cosine, and how close unrelated vectors lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def centred(vectors: Tensor) -> Tensor:
    """Returns the vectors less their mean: what is left once a language's common direction is taken out."""
    return vectors - vectors.mean(dim=0)


def nearest(
    queries: Tensor, candidates: Tensor, *, removed: Sequence[set[int]] | None = None, rows: int = 1024
) -> Tensor:
    """Returns for each query the index of the candidate of the largest cosine, (m,) int64; the first of equals.

    Args:
        queries: (m, d).
        candidates: (k, d).
        removed: the candidates that each query leaves out; never all of them.
        rows: queries compared at a time, which bounds the memory.

    Example:
        >>> nearest(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([1])
        >>> nearest(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), removed=[{1}])
        tensor([0])
    """
    unit = functional.normalize(candidates.float(), dim=1)
    found = []
    for start in range(0, len(queries), rows):
        cosines = functional.normalize(queries[start : start + rows].float(), dim=1) @ unit.T
        for row, left_out in zip(cosines, (removed or ())[start : start + rows], strict=False):
            row[list(left_out)] = -torch.inf
        found.append(cosines.argmax(dim=1))
    return torch.cat(found)


def retrieval_accuracy(
    queries: Tensor,
    candidates: Tensor,
    gold: Sequence[set[int]] | None = None,
    removed: Sequence[set[int]] | None = None,
) -> float:
    """Share of the queries whose nearest candidate is a right one.

    Args:
        queries: (m, d).
        candidates: (k, d).
        gold: the right candidates of each query; without it row i of both is a pair.
        removed: the candidates that each query leaves out.

    Example:
        >>> x = torch.eye(3)
        >>> retrieval_accuracy(x, x), round(retrieval_accuracy(x, x, [{0}, {2}, {1, 2}]), 4)
        (1.0, 0.6667)
    """
    found = nearest(queries, candidates, removed=removed).tolist()
    right = [index == i if gold is None else index in gold[i] for i, index in enumerate(found)]
    return sum(right) / len(right)


def random_pair_cosine(x: Tensor, y: Tensor) -> float:
    """Mean cosine of x's rows with y's rows of another index, over all n (n - 1) of them.

    Near 0 the vectors use their whole space; near 1 they crowd in a cone. Computed from the sums of the unit rows, so
    exactly and without the n × n cosines.

    Args:
        x, y: (n, d), n ≥ 2; row i of y translates row i of x.

    Example:
        >>> round(random_pair_cosine(torch.eye(2), torch.ones(2, 2)), 4)
        0.7071
    """
    x, y = (functional.normalize(side.double(), dim=1) for side in (x, y))
    n = len(x)
    return float((x.sum(dim=0) @ y.sum(dim=0) - (x * y).sum()) / (n * (n - 1)))
