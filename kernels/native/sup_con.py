"""The supervised contrastive loss in one call of the compiled kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from ..torch_path.layout import FEW_ROWS
from ..torch_path.logits import LOG2E
from . import library
from .engine import DTYPES


class Solved(NamedTuple):
    """The loss, and its gradient without the mean's divisor.

    Attributes:
        loss: the mean or the sum, ``()`` float32; or ``(n,)`` float64 row losses.
        gradient: ``(n, d)`` float32 of the rescaled rows, times τ and 2^30; ``None`` if not needed.
        exponents: ``(n, 1)`` powers of two that raw rows were multiplied by, or ``None``.
        slope: τ ∂/∂τ, 0-d float64; ``None`` if not needed.
        paired: how many rows have a positive.
    """

    loss: Tensor
    gradient: Tensor | None
    exponents: Tensor | None
    slope: Tensor | None
    paired: int


def fits(n: int, problem: Problem) -> bool:
    """Whether what is kept of all pairs fits the workspace: exponentials, and logits if they are of one class.

    Example:
        >>> fits(1024, Problem()), fits(1 << 16, Problem())
        (True, False)
    """
    return 12 * n * n <= problem.workspace


def solve(
    x: Tensor,
    labels: Tensor,
    temperature: float,
    problem: Problem,
    *,
    needs: tuple[bool, bool],
    weights: Tensor | None = None,
    exponents: Tensor | None = None,
) -> Solved | None:
    """The loss of rows with labels and the gradient of Σ_i weights_i · L_i.

    Args:
        x: ``(n, d)`` rows in float32, bfloat16 or float16.
        labels: ``(n,)`` int64.
        temperature: τ.
        problem: ``normalize`` and ``reduction``.
        needs: whether to form the gradient of x and of the temperature.
        weights: ``(n,)``, less than 2 in size; ``None`` stands for ones.
        exponents: where to write the rows' powers of two.

    Returns:
        The :class:`Solved`, or ``None`` for a batch that must go another way.

    Example:
        >>> solve(torch.eye(2), torch.tensor([5, 5]), 0.5, Problem(), needs=(False, False)).loss
        tensor(0.)
    """
    n, d = x.shape
    by_row = problem.reduction == "none"
    # Copies must live as long as their addresses are used.
    if weights is not None:
        weights = library.readable(weights.to(torch.float64))
    x, labels = library.readable_rows(x), library.readable(labels)
    gradient = torch.empty((n, d), dtype=torch.float32, device="cpu") if needs[0] else None
    slope = torch.empty((), dtype=torch.float64, device="cpu") if needs[1] else None
    size, kind = ((n,), torch.float64) if by_row else ((), torch.float32)
    loss = torch.empty(size, dtype=kind, device="cpu")
    address = loss.data_ptr()
    assert library.kernels is not None
    code = library.kernels.classes(
        n,
        d,
        problem.normalize,
        by_row or n <= FEW_ROWS,
        LOG2E / temperature,
        0 if weights is None else weights.data_ptr(),
        problem.reduction == "mean",
        address if by_row else 0,
        0 if by_row else address,
        0 if slope is None else slope.data_ptr(),
        0 if exponents is None else exponents.data_ptr(),
        torch.get_num_threads(),
        x.data_ptr(),
        x.stride(0),
        DTYPES[x.dtype],
        0 if gradient is None else gradient.data_ptr(),
        labels.data_ptr(),
    )
    if code < 0:
        return None
    if code & 1 and exponents is None and gradient is not None:
        # Rows were rescaled, which is rare: ask again, this time for their powers of two.
        exponents = torch.empty((n, 1), dtype=torch.float32, device="cpu")
        return solve(x, labels, temperature, problem, needs=needs, weights=weights, exponents=exponents)
    return Solved(loss, gradient, exponents, slope, code >> 1)
