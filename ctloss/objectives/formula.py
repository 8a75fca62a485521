"""What every objective is made with: a formula applied to all rows of a contrast that has been checked."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..contrast import Contrast
from ..kernels.sigmoid import softplus
from .options import checked

__all__ = ["row_losses", "softplus"]


def row_losses(c: Contrast, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply a formula in z and s⁺ to all rows: in float64, and 0 for rows without negatives, whose gradient is 0 too.

    Args:
        c: from ``ctloss.contrast``.
        formula: takes z and s⁺, float64 and finite unless a row has a NaN; returns a loss for each row.

    Returns:
        ``(rows,)`` losses in the dtype of z.

    Raises:
        TypeError: for something other than a contrast.
        ValueError: for one that has not one z a row, as with ``dims``.

    Example:
        >>> import torch
        >>> row_losses(Contrast(torch.tensor([1.0, -torch.inf]), torch.zeros(2)), lambda z, positive: 2 * z + 1)
        tensor([3., 0.])
    """
    c = checked(c)
    empty = c.z == -math.inf
    z, positive = (rows.double().masked_fill(empty, 0.0) for rows in c)
    return formula(z, positive).masked_fill(empty, 0.0).to(c.z.dtype)
