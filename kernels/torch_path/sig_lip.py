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
    few = 2 * n <= FEW_ROWS
    ids = None if batch.ids is None else (batch.ids, batch.ids)
    with ExactProducts(batch.x.device.type):
        rows = prepare(batch.sides[:2], problem.normalize, torch.float64 if few else batch.shape.dtype)
        solved = _solve(rows, n, batch.temperature, bias, ids, problem, weights, needs, paired=True)
    return _narrowed(solved, batch.shape.dtype)


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
    """Row losses of x over another rank's y, of which no row is a partner: Σ_j softplus(s_ij); and their gradient.

    Args:
        x: ``(n, d)``, n at least 1.
        y: ``(m, d)``, m at least 1.
        temperature: τ, a number, or a 0-d tensor where it lives on the device.
        bias: b, the same.
        ids: ``(n,)`` of x and ``(m,)`` of y; equal ones are left out.
        problem: only ``normalize`` and ``workspace`` matter.
        weights: ``(n,)`` as for :func:`solve`.
        needs: as for :func:`solve`.

    Returns:
        The :class:`Solved`; its exponents are ``(n + m, 1)``.

    Example:
        >>> eye = torch.eye(3)
        >>> oppose(eye[:2], eye[2:], 1.0, 0.0, None, Problem()).rows
        tensor([0.6931, 0.6931], dtype=torch.float64)
    """
    n, m, d = *map(len, (x, y)), x.shape[1]
    dtype = torch.promote_types(x.dtype, y.dtype)
    # Over few rows of either side rounding hardly averages out; but both sides are then held in float64.
    most = max(SCRATCH_ENTRIES, problem.workspace // 8 - 4 * (n + m) * d)
    few = 2 * min(n, m) <= FEW_ROWS and (n + m) * d <= most
    with ExactProducts(x.device.type):
        # Without pairs, both sides are further rows.
        rows = prepare([x[:0], y[:0], x, y], problem.normalize, torch.float64 if few else dtype)
        solved = _solve(rows, n, temperature, bias, ids, problem, weights, needs, paired=False)
    return _narrowed(solved, dtype)


def _narrowed(solved: Solved, dtype: torch.dtype) -> Solved:
    """Gradients in the accumulation dtype, where a few rows' are float64."""
    accumulated = accumulation_dtype(dtype)
    grad_x, grad_y = (None if one is None else one.to(accumulated) for one in solved.gradients)
    return solved._replace(gradients=(grad_x, grad_y))


def _solve(
    rows: Rows,
    n: int,
    tau: float | Tensor,
    bias: float | Tensor,
    ids: tuple[Tensor, Tensor] | None,
    problem: Problem,
    weights: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
    *,
    paired: bool,
) -> Solved:
    """The first n stacked rows against the others; if paired, those at the same place are partners."""
    need_x, need_y, need_slope, need_offset = needs
    x, y = rows.stacked[:n], rows.stacked[n:]
    m = len(y)
    inverse = 1 / tau if not isinstance(tau, Tensor) else torch.where(tau > 0, 1 / tau.double(), torch.nan)
    losses, pull = rows.positive.new_zeros(n), None
    if paired:
        positive = rows.positive * inverse + bias
        losses = softplus(-positive)
        pull = torch.exp(-softplus(positive)).mul_(-SCALE).to(x.dtype)
    grad_x = torch.empty_like(x) if need_x else None
    grad_y = torch.zeros_like(y) if need_y else None
    slope, offset = (rows.positive.new_zeros(()) if need else None for need in (need_slope, need_offset))
    height = _height(n, m, x.shape[1], x.dtype, problem)
    panel = x.new_empty(height * m)
    step = max(1, SCRATCH_ENTRIES // m)
    scratch = x.new_empty(min(step, height) * m)
    unit = x.new_full((), 1 / SCALE)
    tame = _tame(inverse, bias, problem)
    for start in range(0, n, height):
        stop = min(start + height, n)
        entries = panel[: (stop - start) * m].view(-1, m)
        products(x[start:stop], y, inverse, entries)
        for first in range(start, stop, step):
            here = slice(first, min(first + step, stop))
            part = entries[here.start - start : here.stop - start]
            other = scratch[: part.numel()].view(part.shape)
            part.add_(bias)
            left_out = None if ids is None else ids[0][here, None] == ids[1]
            tamed = tame or _stays_tame(part)
            partners = first if paired else None
            _to_weights(part, other, losses[here], partners, left_out, unit if any(needs) else None, tame=tamed)
            if any(needs):
                if pull is not None:
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
        rows.project(grad_y, slice(n, n + m))
    return Solved(losses, (grad_x, grad_y), rows.exponents, None if slope is None else slope * inverse**2, offset)


def _height(n: int, m: int, d: int, dtype: torch.dtype, problem: Problem) -> int:
    """Rows of a panel: what fits the workspace next to two copies of the rows, but at least the shortest."""
    spare = problem.workspace // dtype.itemsize - 2 * (n + m) * d - SCRATCH_ENTRIES
    return min(n, max(SHORTEST, min(TALLEST, spare // m)))


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
    partners: int | None,
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
        partners: the column of the first row's partner; ``None`` if no row is one.
        left_out: pairs that do not count, or ``None``.
        unit: 2^-30, 0-d; ``None`` if no weights are wanted.
        tame: exponentials of the logits, plus 1, are finite.
    """
    if tame:
        part.exp_()
        _clear(part, partners, left_out)
        losses += torch.log1p(part, out=other).sum(1)
        if unit is not None:
            part.div_(torch.add(unit, part, alpha=1 / SCALE, out=other))
        return
    other.copy_(softplus(part))
    _clear(other, partners, left_out)
    losses += other.sum(1)
    if unit is not None:
        part.sigmoid_().mul_(SCALE)
        _clear(part, partners, left_out)


def _clear(entries: Tensor, partners: int | None, left_out: Tensor | None) -> None:
    if left_out is not None:
        entries.masked_fill_(left_out, 0.0)
    if partners is not None:
        entries.diagonal(partners).zero_()
