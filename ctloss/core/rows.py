"""From the rows' z to a loss: values, derivatives, reductions. The kernels only know z."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.problem import Problem
from ..kernels.sigmoid import softplus


def values(problem: Problem, z: Tensor, *, filled: bool = False) -> Tensor:
    """Row losses from ``z_i = lse_i − s⁺_i``: z for CZ-NCE, softplus(z) for infoNCE; equations (5) and (1) of
    Chen et al. 2022 (arXiv 2202.13083). A row without negatives, whose z is −inf, has loss 0.

    ``filled`` says that every row is known to have a negative.

    Example:
        >>> values(Problem(loss="info_nce"), torch.tensor([0.0, -torch.inf]))
        tensor([0.6931, 0.0000])
    """
    if problem.loss == "info_nce":
        return softplus(z)
    losses = z if filled else torch.where(z == -torch.inf, 0.0, z)
    if problem.form == "ratio":
        # φ/sg(φ), equation (6): the ratio of a number to itself; NaN where that is undefined.
        losses = losses - losses.detach() + (z != -torch.inf).to(z.dtype)
    return losses


def derivatives(problem: Problem, z: Tensor, *, filled: bool = False) -> float | Tensor:
    """``∂ value / ∂ z`` of every row: 1, or sigmoid(z) for infoNCE; 0 for a row without negatives, NaN where z is.

    ``z`` is float64, and ``filled`` as for :func:`values`. If all rows have the same derivative, it may be one number.

    Example:
        >>> derivatives(Problem(loss="cz_nce"), torch.tensor([3.0, -torch.inf]))
        tensor([1., 0.])
    """
    if problem.loss == "info_nce":
        return torch.sigmoid(z)
    if filled:
        return 1.0
    return (z > -torch.inf).to(z.dtype) + torch.where(torch.isnan(z), z, 0.0)


def shares(problem: Problem, num_rows: int, weights: Tensor | None) -> float | Tensor:
    """The factors of the row losses in their sum.

    Returns:
        A number for all rows, or ``(rows,)`` float64: weights over their sum for a mean. With ``dim_weights`` they are
        multiplied by each width's weight, ``(K, 1)`` or ``(K, rows)``.

    Example:
        >>> shares(Problem(reduction="mean"), 4, None)
        0.25
    """
    share: float | Tensor
    if weights is None:
        share = 1.0 / num_rows if problem.reduction == "mean" else 1.0
    else:
        share = weights.double()
        if problem.reduction == "mean":
            share = share / _sum(share)
    if problem.dim_weights is not None:
        share = torch.tensor(problem.dim_weights, dtype=torch.float64).unsqueeze(1) * share
    return share


def _sum(weights: Tensor) -> Tensor:
    """The divisor of a weighted mean; 1 if all weights are 0, so that their mean is 0."""
    total = weights.sum()
    return torch.where(total == 0, 1.0, total)


def over_widths(problem: Problem, losses: Tensor) -> Tensor:
    """The sum over ``dims`` of row losses ``(K, rows)`` times the widths' weights; without ``dims``, these as they are.

    Example:
        >>> over_widths(Problem(dims=(2, 1), dim_weights=(1.0, 0.5)), torch.tensor([[1.0], [4.0]]))
        tensor([3.])
    """
    if problem.dims is None:
        return losses
    if problem.dim_weights is None:
        return losses.sum(0)
    return (losses * losses.new_tensor(problem.dim_weights).unsqueeze(1)).sum(0)


def reduce(problem: Problem, losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean or sum of the row losses times their weights, if any; or the row losses themselves.

    Example:
        >>> reduce(Problem(reduction="mean"), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
        tensor(1.7500)
    """
    if weights is not None:
        losses = losses * weights
    if problem.reduction == "sum":
        return losses.sum()
    if problem.reduction == "mean":
        return losses.mean() if weights is None else losses.sum() / _sum(weights)
    return losses


def power_of_two(weights: Tensor) -> Tensor:
    """The divisor that brings the largest weight between 1 and 2, whatever the upstream gradient's scale.

    Example:
        >>> power_of_two(torch.tensor([0.1, -5.0]))
        tensor(4.)
    """
    largest = torch.cat((weights.abs(), weights.new_zeros(1))).amax()
    ordinary = (largest > 0) & torch.isfinite(largest)
    return torch.exp2(torch.floor(torch.log2(torch.where(ordinary, largest, 1.0))))
