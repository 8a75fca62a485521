"""Rows of unit length by plain operations, for what is computed outside the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.torch_path.rows import row_exponents


def unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norms in float64, differentiable any number of times.

    They may have any floating dtype and scale; a zero row stays zero and receives no gradient.

    Example:
        >>> unit_rows(torch.tensor([[3e200, 4e200], [0.0, 0.0]], dtype=torch.float64))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    wide = rows.double()
    exponents = row_exponents(wide.detach())
    half = torch.trunc(exponents * 0.5)
    near_one = wide * torch.exp2(half) * torch.exp2(exponents - half)
    zero = (near_one.detach() == 0).all(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(near_one.masked_fill(zero, 1.0), dim=1, keepdim=True)
    return (near_one / norms).masked_fill(zero, 0.0)
