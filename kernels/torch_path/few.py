"""The shortest path, for batches so small that calls into PyTorch cost more than arithmetic.

Everything up to the weights is formed in float64, whose range holds every exponential of a cosine over τ: no maximum,
no rescaling and no second look at what came out. Only the product that forms the gradient goes back to the accumulation
dtype. A batch that is out of the ordinary (a row of zeros, norms beyond 2^-60 … 2^29, base-2 logits beyond 500) is left
to the other passes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from .denominators import SCALE
from .logits import LN2
from .rows import accumulation_dtype, remove_radial, within
from .square import excluded, sums, weigh

# Divided by a tensor in one call; a Python number would take two.
_SCALE = torch.tensor(SCALE, dtype=torch.float64, device="cpu")
# The gradient's size is a row's weight over its norm: beyond these a tiny weight's would be subnormal, or too large.
LEAST_NORM, LARGEST_NORM = 2.0**-60, 2.0**29
# Base-2 logits whose exponentials, and the quotients of two of them, are normal float64 numbers.
LARGEST_LOGIT = 500.0


class Solved(NamedTuple):
    """Row losses, and gradients of their sum times ``2nτ · 2^30``, in the accumulation dtype."""

    rows: Tensor
    grad_x: Tensor | None
    grad_y: Tensor | None
    slope: Tensor | None


def solve(
    x: Tensor, y: Tensor, scale: float | Tensor, problem: Problem, *, need_x: bool, need_y: bool, need_temperature: bool
) -> Solved | None:
    """Row losses and gradients of a small batch on the CPU.

    Args:
        x: ``(n, d)``.
        y: ``(n, d)``.
        scale: ``log2(e) / τ``, a number on the CPU.
        problem: the loss call's options; the reduction is a mean or a sum.
        need_x: form the gradient of x.
        need_y: form the gradient of y.
        need_temperature: form the gradient of the temperature.

    Returns:
        What was asked for, or ``None`` for a batch that must go another way.

    Example:
        >>> problem = Problem("cz_nce", "cross", True, "mean", "highest", 1 << 28)
        >>> eye = torch.eye(2)
        >>> solve(eye, eye, 1.0, problem, need_x=False, need_y=False, need_temperature=False).rows / LN2
        tensor([-1., -1., -1., -1.])
    """
    n, info, symmetric = x.shape[0], problem.loss == "info_nce", problem.negatives == "both"
    dtype = accumulation_dtype(x.dtype)
    units = torch.cat((x, y)).double()
    norms = None
    if problem.normalize:
        norms = torch.linalg.vector_norm(units, dim=1, keepdim=True)
        if scale > LARGEST_LOGIT or not within(norms, LEAST_NORM, LARGEST_NORM):
            return None
        units.div_(norms)
    left, right = (units, units) if symmetric else (units[:n], units[n:])
    logits = torch.mm(left, right.t()).mul_(scale)
    if norms is None and not within(logits, -LARGEST_LOGIT, LARGEST_LOGIT):
        return None
    pairs = logits.diagonal(n if symmetric else 0)
    positive = torch.exp2(pairs)
    weights = torch.exp2(logits)
    excluded(weights, n).zero_()
    # Both directions of a pair have one positive: a row of totals a direction.
    total = sums(weights, n).view(2, n)
    phi = (total / positive).view(-1)
    rows = (torch.log1p(phi) if info else torch.log(phi)).to(dtype)
    if not (need_x or need_y or need_temperature):
        return Solved(rows, None, None, None)
    per_sum = torch.div(_SCALE, total + positive if info else total)
    of_pairs = (per_sum * total).sum(0) if info else None
    slope = None
    if need_temperature:
        moment = sums(logits * weights, n).view(2, n)
        pull = pairs * (2 * SCALE if of_pairs is None else of_pairs)
        slope = (pull.sum() - (per_sum * moment).sum()).mul_(LN2).to(dtype)
    if not (need_x or need_y):
        return Solved(rows, None, None, slope)
    weights, units = weigh(weights, n, per_sum.view(-1), of_pairs).to(dtype), units.to(dtype)
    if symmetric and need_x and need_y and norms is not None:
        # Both sides at once, parted by the division.
        both = remove_radial(torch.mm(weights, units), units)
        lengths = norms.to(dtype)
        return Solved(rows, both[:n] / lengths[:n], both[n:] / lengths[n:], slope)
    lengths_x, lengths_y = (None, None) if norms is None else (norms[:n], norms[n:])
    x, y = units[:n], units[n:]
    grad_x = grad_y = None
    if need_x:
        top, columns = (weights[:n], units) if symmetric else (weights, y)
        grad_x = _gradient(top, columns, x, lengths_x)
    if need_y:
        bottom, columns = (weights[n:], units) if symmetric else (weights.t(), x)
        grad_y = _gradient(bottom, columns, y, lengths_y)
    return Solved(rows, grad_x, grad_y, slope)


def _gradient(weights: Tensor, columns: Tensor, units: Tensor, norms: Tensor | None) -> Tensor:
    gradient = torch.mm(weights, columns)
    return gradient if norms is None else remove_radial(gradient, units).div_(norms)
