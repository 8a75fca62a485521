"""softplus, which the sigmoid losses are made of, and what every path of the sigmoid loss returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SCALE_BITS = 30
SCALE = 2.0**SCALE_BITS
"""The factor that weights and gradients are held at, so that tiny ones stay normal numbers in float32."""


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), with a small relative error at both ends.

    Example:
        >>> softplus(torch.tensor([-80.0, 0.0, 1e4]))
        tensor([1.8049e-35, 6.9315e-01, 1.0000e+04])
    """
    # Beyond the threshold torch returns z itself, which is 4e-18 off at 40 but 2e-9 off at torch's default of 20.
    return torch.nn.functional.softplus(z, threshold=40)


class Solved(NamedTuple):
    """Row losses, and the gradient of their weighted sum.

    Attributes:
        rows: ``(n,)`` float64; from a path that was asked for a share of their sum, that, ``()`` float32.
        gradients: of the rescaled rows of x and y, times τ and 2^30, in the accumulation dtype; ``None`` where not
            needed.
        exponents: ``(2n, 1)`` powers of two that raw rows were multiplied by, or ``None``.
        slope: 2^30 ∂/∂τ, 0-d float64, if requested.
        offset: 2^30 ∂/∂b, 0-d float64, if requested.
    """

    rows: Tensor
    gradients: tuple[Tensor | None, Tensor | None]
    exponents: Tensor | None
    slope: Tensor | None
    offset: Tensor | None
