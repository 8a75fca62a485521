"""The sigmoid loss in one call of the compiled kernels: losses and weights of all pairs in one pass, then the gradient.

The weights of all pairs are kept from one to the other, so this path is for batches whose weights take little memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Batch, Problem
from ..sigmoid import Solved
from ..torch_path import sig_lip as torch_path
from ..torch_path.layout import FEW_ROWS
from . import library
from .engine import DTYPES


def solve(
    batch: Batch,
    bias: float | Tensor,
    problem: Problem,
    *,
    weights: Tensor | None = None,
    needs: tuple[bool, bool, bool, bool] = (False, False, False, False),
    share: float | None = None,
) -> Solved:
    """Row losses and the gradient of Σ_i weights_i · rows_i; see the torch path's ``solve``.

    Args:
        batch: x, y, temperature, and ids; pairs with equal ids are left out.
        bias: b.
        problem: ``normalize``, and whether single rows are returned.
        weights: ``(n,)``, less than 2 in size; ``None`` stands for ones.
        needs: whether to form the gradient of x, y, the temperature, the bias.
        share: return the sum of the row losses times this number instead of the row losses.

    Returns:
        The :class:`Solved`; from the torch path for a batch with rows or losses that are not finite.

    Example:
        >>> eye = torch.eye(2)
        >>> solve(Batch(eye, eye, temperature=1.0), -1.0, Problem(), share=1.0).rows
        tensor(2.0128)
    """
    found = _call(batch, float(bias), problem, weights, needs, share, None)
    if found is not None:
        return found
    solved = torch_path.solve(batch, bias, problem, weights=weights, needs=needs)
    return solved if share is None else solved._replace(rows=(solved.rows.sum() * share).float())


def _call(
    batch: Batch,
    bias: float,
    problem: Problem,
    weights: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
    share: float | None,
    exponents: Tensor | None,
) -> Solved | None:
    """``None`` if the kernels decline."""
    x, y, _, temperature, ids, _ = batch
    n, d = x.shape
    # Copies must live as long as their addresses are used.
    if weights is not None:
        weights = library.readable(weights.to(torch.float64))
    if ids is not None:
        ids = library.readable(ids)
    x, y = library.readable_rows(x), library.readable_rows(y)
    need_x, need_y, need_slope, need_offset = needs
    grad_x = torch.empty((n, d), dtype=torch.float32, device="cpu") if need_x else None
    grad_y = torch.empty((n, d), dtype=torch.float32, device="cpu") if need_y else None
    slope = torch.empty((), dtype=torch.float64, device="cpu") if need_slope else None
    offset = torch.empty((), dtype=torch.float64, device="cpu") if need_offset else None
    size, kind = ((n,), torch.float64) if share is None else ((), torch.float32)
    losses = torch.empty(size, dtype=kind, device="cpu")
    address = losses.data_ptr()
    assert library.kernels is not None
    code = library.kernels.sigmoid(
        n,
        d,
        problem.normalize,
        problem.reduction == "none" or 2 * n <= FEW_ROWS,
        1 / float(temperature),
        bias,
        0 if weights is None else weights.data_ptr(),
        address if share is None else 0,
        0 if share is None else address,
        0.0 if share is None else share,
        0 if slope is None else slope.data_ptr(),
        0 if offset is None else offset.data_ptr(),
        0 if exponents is None else exponents.data_ptr(),
        torch.get_num_threads(),
        x.data_ptr(),
        x.stride(0),
        DTYPES[x.dtype],
        0 if grad_x is None else grad_x.data_ptr(),
        y.data_ptr(),
        y.stride(0),
        DTYPES[y.dtype],
        0 if grad_y is None else grad_y.data_ptr(),
        0 if ids is None else ids.data_ptr(),
    )
    if code < 0:
        return None
    if code and exponents is None and (need_x or need_y):
        # Rows were rescaled, which is rare: ask again, this time for their powers of two.
        exponents = torch.empty((2 * n, 1), dtype=torch.float32, device="cpu")
        return _call(batch, bias, problem, weights, needs, share, exponents)
    return Solved(losses, (grad_x, grad_y), exponents, slope, offset)
