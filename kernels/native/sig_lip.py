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
from .engine import DTYPES, KEPT_WEIGHTS


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
    ids = None if batch.ids is None else (batch.ids, batch.ids)
    found = _call(batch.x, batch.y, True, batch.temperature, float(bias), ids, problem, weights, needs, share)
    if found is not None:
        return found
    solved = torch_path.solve(batch, bias, problem, weights=weights, needs=needs)
    return solved if share is None else solved._replace(rows=(solved.rows.sum() * share).float())


def oppose(
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    bias: float | Tensor,
    ids: tuple[Tensor, Tensor] | None,
    problem: Problem,
    *,
    weights: Tensor | None = None,
    needs: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> Solved:
    """Row losses of x over another rank's y, of which no row is a partner, and their gradient.

    Args:
        x: ``(n, d)``, n at least 1.
        y: ``(m, d)``, m at least 1.
        temperature: τ, a number or a 0-d tensor.
        bias: b, the same.
        ids: ``(n,)`` of x and ``(m,)`` of y; equal ones are left out.
        problem: ``normalize``, ``workspace``, and whether single rows are returned.
        weights: ``(n,)`` as for :func:`solve`.
        needs: as for :func:`solve`.

    Returns:
        The :class:`Solved`, with exponents ``(n + m, 1)``; from the torch path for rows or losses that are not finite,
        and where the weights of all pairs take more memory than may be kept.

    Example:
        >>> eye = torch.eye(3)
        >>> oppose(eye[:2], eye[2:], 1.0, 0.0, None, Problem()).rows
        tensor([0.6931, 0.6931], dtype=torch.float64)
    """
    found = None
    fits = 4 * len(x) * len(y) <= min(KEPT_WEIGHTS, problem.workspace) or not any(needs[:2])
    if fits and x.dtype in DTYPES and y.dtype in DTYPES:
        found = _call(x, y, False, temperature, float(bias), ids, problem, weights, needs, None)
    if found is not None:
        return found
    return torch_path.oppose(x, y, temperature, bias, ids, problem, weights=weights, needs=needs)


def _call(
    x: Tensor,
    y: Tensor,
    paired: bool,
    temperature: float | Tensor,
    bias: float,
    ids: tuple[Tensor, Tensor] | None,
    problem: Problem,
    weights: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
    share: float | None,
    exponents: Tensor | None = None,
) -> Solved | None:
    """``None`` if the kernels decline."""
    n, m, d = len(x), len(y), x.shape[1]
    # Copies must live as long as their addresses are used.
    if weights is not None:
        weights = library.readable(weights.to(torch.float64))
    if ids is not None:
        ids = library.readable(ids[0]), library.readable(ids[1])
    x, y = library.readable_rows(x), library.readable_rows(y)
    need_x, need_y, need_slope, need_offset = needs
    grad_x = torch.empty((n, d), dtype=torch.float32, device="cpu") if need_x else None
    grad_y = torch.empty((m, d), dtype=torch.float32, device="cpu") if need_y else None
    slope = torch.empty((), dtype=torch.float64, device="cpu") if need_slope else None
    offset = torch.empty((), dtype=torch.float64, device="cpu") if need_offset else None
    size, kind = ((n,), torch.float64) if share is None else ((), torch.float32)
    losses = torch.empty(size, dtype=kind, device="cpu")
    address = losses.data_ptr()
    assert library.kernels is not None
    code = library.kernels.sigmoid(
        paired,
        n,
        m,
        d,
        problem.normalize,
        problem.reduction == "none" or 2 * min(n, m) <= FEW_ROWS,
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
        0 if ids is None else ids[0].data_ptr(),
        0 if ids is None else ids[1].data_ptr(),
    )
    if code < 0:
        return None
    if code and exponents is None and (need_x or need_y):
        # Rows were rescaled, which is rare: ask again, this time for their powers of two.
        exponents = torch.empty((n + m, 1), dtype=torch.float32, device="cpu")
        return _call(x, y, paired, temperature, bias, ids, problem, weights, needs, share, exponents)
    return Solved(losses, (grad_x, grad_y), exponents, slope, offset)
