"""A square of all logits or weights: 2n stacked rows by themselves, or with n rows x by y, read both ways.

One strided view reaches every excluded pair and another every positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .denominators import SCALE


def excluded(entries: Tensor, n: int) -> Tensor:
    """Every pair that is no negative, a view: ``(i, i)`` and ``(i, p(i))`` of a square of 2n rows, else the diagonal.

    Example:
        >>> excluded(torch.zeros(4, 4), 2).fill_(1).numel()
        8
    """
    if entries.shape[0] == n:
        return entries.diagonal()
    return entries.as_strided((2, n, 2), (2 * n * n, 2 * n + 1, n))


def positives(entries: Tensor, n: int) -> Tensor:
    """Every positive pair, x's first, as a view: ``(2, n)`` of a square of 2n rows, else the diagonal.

    Example:
        >>> positives(torch.arange(16).view(4, 4), 2)
        tensor([[ 2,  7],
                [ 8, 13]])
    """
    if entries.shape[0] == n:
        return entries.diagonal()
    return entries.as_strided((2, n), (n * (2 * n - 1), 2 * n + 1), n)


def sums(entries: Tensor, n: int) -> Tensor:
    """Sums over every row's negatives, ``(2n,)``.

    Example:
        >>> sums(torch.eye(2), 2)
        tensor([1., 1., 1., 1.])
    """
    return torch.cat((entries.sum(1), entries.sum(0))) if entries.shape[0] == n else entries.sum(1)


def weigh(entries: Tensor, n: int, per_sum: Tensor, of_pairs: Tensor | None) -> Tensor:
    """Turn exponentials into the weights W of the gradient, the positives' among them, in place.

    Args:
        entries: exponentials, 0 where excluded.
        n: pairs.
        per_sum: ``(2n,)`` weights over sums.
        of_pairs: ``(n,)`` weights of both directions of a pair, added; ``None`` where every row weighs ``2^30``.

    Returns:
        ``entries``.

    Example:
        >>> weigh(torch.zeros(2, 2), 2, torch.ones(4), torch.ones(2))
        tensor([[-1.,  0.],
                [ 0., -1.]])
    """
    beside, above = (per_sum[:n], per_sum[n:]) if entries.shape[0] == n else (per_sum, per_sum)
    entries.mul_(beside.unsqueeze(1) + above)
    if of_pairs is None:
        positives(entries, n).fill_(-2 * SCALE)
    else:
        positives(entries, n).copy_(of_pairs.neg())
    return entries
