"""What the forward keeps of every row, and what follows from it: row losses, weights, the temperature's gradient.

All of it is algebra on vectors of 2n entries, in float64: that costs nothing beside the products of rows, and keeps
φ down to 1e-300, its weights and large upstream gradients apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..problem import Problem
from .schedule import padded_rows

# Planes of the saved statistics, each (2, padded rows): x's rows, y's rows.
LOSS, PEAK, TOTAL, MOMENT, INVERSE, RESIDUE, SCALE = range(7)
LN2 = math.log(2)
# The peak of no logits at all: finite, so that a difference of two of them is 0 and not NaN.
LOWEST = -3.0e38


def shape(n: int) -> tuple[int, int, int]:
    """The statistics' shape for n pairs: plane, side, row.

    >>> shape(100)
    (7, 2, 128)
    """
    return 7, 2, padded_rows(n)


def log_phi(stats: Tensor, positive: Tensor, n: int) -> Tensor:
    """z_i = lse_i - s_i,p(i) in float64 (2, n), NaN where a logit is not finite."""
    z = (stats[PEAK, :, :n] - positive[:n]) * LN2 + stats[TOTAL, :, :n].double().log()
    return torch.where(z.isfinite(), z, math.nan)


def spread(stats: Tensor, positive: Tensor, n: int) -> Tensor:
    """Σ_j P_ij s_ij - s_i,p(i) in float64 (2, n): how far the row's mean negative lies above its positive."""
    mean = stats[MOMENT, :, :n].double() / stats[TOTAL, :, :n].double()
    return (stats[PEAK, :, :n] - positive[:n] + mean) * LN2


def _softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), with full relative precision down to e^z itself."""
    return z.clamp_min(0) + z.abs().neg().exp().log1p()


def row_losses(z: Tensor, problem: Problem) -> Tensor:
    """The row losses, equation (5) or (1) of Chen et al. 2022, from z = log φ."""
    return z if problem.loss == "cz_nce" else _softplus(z)


def row_weights(stats: Tensor, upstream: Tensor, n: int, problem: Problem) -> tuple[Tensor, Tensor]:
    """∂(upstream · loss)/∂z_i as ``weights · 2^exponent``, in float64: (2, n) of size at most about 1, and a scalar.

    For infoNCE the weight is sigmoid(z), taken as exp(-softplus(-z)); trained batches have all of them tiny, so their
    common power of two is set apart.
    """
    z = stats[LOSS, :, :n].double()
    log_weight = torch.zeros_like(z) if problem.loss == "cz_nce" else -_softplus(-z) / LN2
    factor = upstream.double()
    if problem.reduction == "mean":
        factor = factor / (2 * n)
    factor = factor.reshape(2, n) if problem.reduction == "none" else factor
    size = log_weight + factor.abs().log2()
    # All-zero upstream gradients have no size; any exponent serves them.
    exponent = size.amax().floor().nan_to_num(nan=math.nan, neginf=0.0)
    return factor.sign() * torch.exp2(size - exponent), exponent


def temperature_gradient(stats: Tensor, weights: Tensor, exponent: Tensor, rate: Tensor, n: int) -> Tensor:
    """-(1/τ) Σ_i v_i (Σ_j P_ij s_ij - s_i,p(i)) in float64, v_i the weights; ``rate`` is log2(e)/τ."""
    slope = (weights * stats[MOMENT, :, :n].double()).sum()
    return -slope * torch.exp2(exponent) * rate * LN2
