"""What every objective is built on: a formula applied to all rows of a checked contrast."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..contrast import Contrast
from ..kernels.sigmoid import softplus
from .options import checked

__all__ = ["row_losses", "softplus"]


def row_losses(c: Contrast, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply a formula in z and s⁺ to all rows, in float64; rows without negatives have loss 0 and gradient 0.

    Args:
        c: from ``ctloss.contrast``.
        formula: takes z and s⁺, float64 and finite unless a row has a NaN; returns one loss per row.

    Returns:
        ``(rows,)`` losses in the dtype of z.

    Raises:
        TypeError: for something other than a contrast.
        ValueError: for one without exactly one z per row, as with ``dims``.

    Example:
        >>> import torch
        >>> row_losses(Contrast(torch.tensor([1.0, -torch.inf]), torch.zeros(2)), lambda z, positive: 2 * z + 1)
        tensor([3., 0.])
    """
    c = checked(c)
    empty = c.z == -math.inf
    z, positive = (rows.double().masked_fill(empty, 0.0) for rows in c)
    return formula(z, positive).masked_fill(empty, 0.0).to(c.z.dtype)
