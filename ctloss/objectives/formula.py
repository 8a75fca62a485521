"""What every objective is made with: a formula applied to all rows, and what its options may be."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..contrast import Contrast


def row_losses(c: Contrast, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply a formula in z and s⁺ to all rows: in float64, and 0 for rows without negatives, whose gradient is 0 too.

    Args:
        c: from ``ctloss.contrast``.
        formula: takes z and s⁺, float64 and finite unless a row has a NaN; returns a loss for each row.

    Returns:
        ``(rows,)`` losses in the dtype of z.

    Example:
        >>> row_losses(Contrast(torch.tensor([1.0, -torch.inf]), torch.zeros(2)), lambda z, positive: 2 * z + 1)
        tensor([3., 0.])
    """
    empty = c.z == -math.inf
    z, positive = (rows.double().masked_fill(empty, 0.0) for rows in c)
    return formula(z, positive).masked_fill(empty, 0.0).to(c.z.dtype)


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), relative to itself accurate at both ends.

    Example:
        >>> softplus(torch.tensor([-80.0, 0.0, 1e4]))
        tensor([1.8049e-35, 6.9315e-01, 1.0000e+04])
    """
    # PyTorch's own threshold of 20 would be 2e-9 off above it.
    return torch.nn.functional.softplus(z, threshold=40)


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Refuse an option's value.

    Raises:
        ValueError: naming the option, what is wanted and what was given, unless ``holds``.

    Example:
        >>> require(True, "gamma", 2.0, "a positive number")
    """
    if not holds:
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def per_row(values: float | Tensor, rows: int) -> float | Tensor:
    """A number as it is; a tensor of one element or one a row in float64, one of a pair's repeated for its other row.

    Raises:
        ValueError: for a tensor of another length.

    Example:
        >>> per_row(torch.tensor([1.0, 2.0]), 4)
        tensor([1., 2., 1., 2.], dtype=torch.float64)
    """
    if not isinstance(values, Tensor):
        return values
    given = values.double()
    if given.dim() == 1 and 2 * given.shape[0] == rows:
        given = given.repeat(2)
    wanted = f"one element, one for each of {rows} rows, or half as many"
    require(given.numel() in (1, rows), "tensor", tuple(values.shape), wanted)
    return given


def log_of(count: int | Tensor, c: Contrast) -> Tensor:
    """The logarithm of the number of a row's negatives, on the device of ``c``, in float64.

    Example:
        >>> log_of(1, Contrast(torch.zeros(2), torch.zeros(2)))
        tensor(0., dtype=torch.float64)
    """
    return torch.as_tensor(per_row(count, len(c.z)), dtype=torch.float64, device=c.z.device).log()
