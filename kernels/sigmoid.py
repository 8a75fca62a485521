"""What every path of the sigmoid loss returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SCALE = 2.0**30
"""What weights and gradients are held times, so that tiny ones stay normal numbers in float32."""


@dataclass(frozen=True)
class Solved:
    """Row losses, and the gradient of their weighted sum.

    Attributes:
        rows: ``(n,)`` float64.
        gradients: of x and y before rows were rescaled and over τ, times 2^30, in the accumulation dtype; ``None``
            where not needed.
        exponents: ``(2n, 1)`` powers of two that raw rows were multiplied by, or ``None``.
        slope: 2^30 ∂/∂τ, 0-d float64, if asked for.
        offset: 2^30 ∂/∂b, 0-d float64, if asked for.
    """

    rows: Tensor
    gradients: tuple[Tensor | None, Tensor | None]
    exponents: Tensor | None
    slope: Tensor | None
    offset: Tensor | None
