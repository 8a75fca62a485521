"""The sigmoid loss of all pairs of rows, panel by panel: value and gradient from one pass over the logits.

Zhai et al. 2023 (arXiv 2303.15343): the loss of row i of x is softplus(−s_ii) + Σ_j≠i softplus(s_ij) with
s = sim/τ + b. With e = exp(s) a pair's loss is log1p(e), and its derivative, its weight in the gradient, is
e / (1 + e); the positive's weight is −σ(−s_ii), from a logit formed in float64. So a panel of logits becomes losses,
then weights W, then its shares of ``W y`` and ``Wᵀ x``, and is overwritten by the next. Weights are held times 2^30, so
that even the tiny ones of a fully trained batch stay normal numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Batch, Problem
from ..sigmoid import SCALE, Solved, softplus
from .gradient import SCRATCH_ENTRIES
from .layout import FEW_ROWS, SHORTEST, TALLEST
from .logits import products
from .products import ExactProducts
from .rows import Rows, accumulation_dtype, prepare

LARGEST_LOGIT = 80.0
"""exp of this, plus 1, is a float32."""


def solve(
    batch: Batch,
    bias: float | Tensor,
    problem: Problem,
    *,
    weights: Tensor | None = None,
    needs: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> Solved:
    """Row losses and the gradient of Σ_i weights_i · rows_i.

    Args:
        batch: x, y, temperature, and ids; pairs with equal ids are left out.
        bias: b, a number, or a 0-d tensor where it lives on the device.
        problem: only ``normalize`` and ``workspace`` matter.
        weights: ``(n,)`` in the accumulation dtype, at most 1 in size; ``None`` stands for ones.
        needs: whether to form the gradient of x, y, the temperature, the bias.

    Returns:
        The :class:`Solved`.

    Example:
        >>> eye = torch.eye(2)
        >>> solve(Batch(eye, eye, temperature=1.0), -1.0, Problem()).rows
        tensor([1.0064, 1.0064], dtype=torch.float64)
    """
    n = batch.x.shape[0]
    accumulated = accumulation_dtype(batch.shape.dtype)
    few = 2 * n <= FEW_ROWS
    with ExactProducts(batch.x.device.type):
        rows = prepare(batch.sides[:2], problem.normalize, torch.float64 if few else batch.shape.dtype)
        solved = _solve(batch, bias, problem, rows, weights, needs)
    if not few:
        return solved
    gradients = tuple(None if gradient is None else gradient.to(accumulated) for gradient in solved.gradients)
    return Solved(solved.rows, gradients, solved.exponents, solved.slope, solved.offset)  # type: ignore[arg-type]


def _solve(
    batch: Batch,
    bias: float | Tensor,
    problem: Problem,
    rows: Rows,
    weights: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> Solved:
    need_x, need_y, need_slope, need_offset = needs
    n = batch.x.shape[0]
    x, y = rows.stacked[:n], rows.stacked[n : 2 * n]
    tau = batch.temperature
    inverse = 1 / tau if not isinstance(tau, Tensor) else torch.where(tau > 0, 1 / tau.double(), torch.nan)
    positive = rows.positive * inverse + bias
    losses = softplus(-positive)
    pull = torch.exp(-softplus(positive)).mul_(-SCALE).to(x.dtype)
    grad_x = torch.empty_like(x) if need_x else None
    grad_y = torch.zeros_like(y) if need_y else None
    slope, offset = (rows.positive.new_zeros(()) if need else None for need in (need_slope, need_offset))
    height = _height(n, x.shape[1], x.dtype, problem)
    panel = x.new_empty(height * n)
    step = max(1, SCRATCH_ENTRIES // n)
    scratch = x.new_empty(min(step, height) * n)
    unit = x.new_full((), 1 / SCALE)
    tame = _tame(inverse, bias, problem)
    for start in range(0, n, height):
        stop = min(start + height, n)
        entries = panel[: (stop - start) * n].view(-1, n)
        products(x[start:stop], y, inverse, entries)
        for first in range(start, stop, step):
            here = slice(first, min(first + step, stop))
            part = entries[here.start - start : here.stop - start]
            other = scratch[: part.numel()].view(part.shape)
            part.add_(bias)
            left_out = None if batch.ids is None else batch.ids[here, None] == batch.ids
            tamed = tame or _stays_tame(part)
            _to_weights(part, other, losses[here], first, left_out, unit if any(needs) else None, tame=tamed)
            if any(needs):
                part.diagonal(first).copy_(pull[here])
                if weights is not None:
                    part.mul_(weights[here, None])
                if offset is not None:
                    offset += part.sum(1).sum(dtype=torch.float64)
        if grad_x is not None or slope is not None:
            product = torch.mm(entries, y, out=None if grad_x is None else grad_x[start:stop])
            if slope is not None:
                slope -= torch.linalg.vecdot(product, x[start:stop]).sum(dtype=torch.float64)
        if grad_y is not None:
            grad_y.addmm_(entries.t(), x[start:stop])
    if grad_x is not None:
        rows.project(grad_x, slice(0, n))
    if grad_y is not None:
        rows.project(grad_y, slice(n, 2 * n))
    return Solved(losses, (grad_x, grad_y), rows.exponents, None if slope is None else slope * inverse**2, offset)


def _height(n: int, d: int, dtype: torch.dtype, problem: Problem) -> int:
    """Rows of a panel: what fits the workspace next to two copies of the rows, but at least the shortest."""
    spare = problem.workspace // dtype.itemsize - 4 * n * d - SCRATCH_ENTRIES
    return min(n, max(SHORTEST, min(TALLEST, spare // n)))


def _tame(inverse: float | Tensor, bias: float | Tensor, problem: Problem) -> bool:
    """Whether no logit can leave the range of exponentials, without reading tensors."""
    known = problem.normalize and not isinstance(inverse, Tensor) and not isinstance(bias, Tensor)
    return known and float(inverse) + float(bias) <= LARGEST_LOGIT


def _stays_tame(logits: Tensor) -> bool:
    """Whether no logit has left that range: read on the CPU only, elsewhere it would stall the device."""
    return logits.device.type == "cpu" and bool(logits.amax().item() <= LARGEST_LOGIT)


def _to_weights(
    part: Tensor,
    other: Tensor,
    losses: Tensor,
    first: int,
    left_out: Tensor | None,
    unit: Tensor | None,
    *,
    tame: bool,
) -> None:
    """Add some rows' losses over other rows and turn their logits into weights times 2^30, in place; 0 for positives.

    Args:
        part: logits.
        other: scratch of the same shape.
        losses: ``(rows,)``, added to.
        first: the first row's position, which is its positive's column.
        left_out: pairs that do not count, or ``None``.
        unit: 2^-30, 0-d; ``None`` if no weights are wanted.
        tame: exponentials of the logits, plus 1, are finite.
    """
    if tame:
        part.exp_()
        _clear(part, first, left_out)
        losses += torch.log1p(part, out=other).sum(1)
        if unit is not None:
            part.div_(torch.add(unit, part, alpha=1 / SCALE, out=other))
        return
    other.copy_(softplus(part))
    _clear(other, first, left_out)
    losses += other.sum(1)
    if unit is not None:
        part.sigmoid_().mul_(SCALE)
        _clear(part, first, left_out)


def _clear(entries: Tensor, first: int, left_out: Tensor | None) -> None:
    if left_out is not None:
        entries.masked_fill_(left_out, 0.0)
    entries.diagonal(first).zero_()
