"""Small plain batches: all logits at once, square, because calls into PyTorch cost more there than arithmetic.

The formulas are those of the panels, written for few calls. Negatives of both sides make a square of all 2n stacked
rows; those of the other side make one of x's rows against y's, which is read both ways. One strided view covers every
pair that is left out and another every positive, whose term of the gradient is an entry of the weights.

For few rows everything up to the weights is in float64, whose range holds every exponential of a cosine over τ; only
the product that forms the gradient uses the accumulation dtype. More rows use the accumulation dtype throughout. A
batch out of the ordinary is left to the panels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch
from .denominators import is_normal, optimistic_shift
from .layout import Layout
from .logits import LN2, Logits
from .rows import Rows, accumulation_dtype, prepare, remove_radial, within

# The gradient is about a row's weight over its norm: beyond these it would be subnormal for tiny weights, or too large.
LEAST_NORM, LARGEST_NORM = 2.0**-60, 2.0**29
# Base-2 logits whose exponentials, and the quotients of two of them, are normal float64 numbers.
LARGEST_LOGIT = 500.0


class Square(NamedTuple):
    """A batch whose logits were formed at once.

    Attributes:
        rows: the stacked rows.
        entries: exponentials of the logits less the shift; 0 where a pair is not a negative.
        total: ``(2n,)`` their sums over each row's negatives.
        lse: ``(2n,)`` float64, base-2.
        mean: ``(2n,)`` Σ_j P_ij s_ij in natural units, if requested.
        centred: whether the gradient's product uses rows relative to their mean.
    """

    rows: Rows
    entries: Tensor
    total: Tensor
    lse: Tensor
    mean: Tensor | None
    centred: bool


def solve(batch: Batch, normalize: bool, plan: Layout, scale: float, *, moment: bool) -> Square | None:
    """Sums over the negatives of a small plain batch, or ``None`` for one that must go another way.

    Args:
        batch: x, y and τ only.
        normalize: cosines rather than dot products.
        plan: few or dense.
        scale: ``log2(e) / τ``.
        moment: also find the means of the logits.

    Returns:
        The :class:`Square`.

    Example:
        >>> from ..problem import Problem
        >>> from .layout import layout
        >>> batch = Batch(torch.eye(2), torch.eye(2))
        >>> plan = layout(batch.shape, Problem(negatives="cross"))
        >>> solve(batch, True, plan, 1.0, moment=False).lse
        tensor([0., 0., 0., 0.], dtype=torch.float64)
    """
    n, symmetric = plan.n, plan.panels[0].own
    shift: float | Tensor = 0.0
    if plan.few:
        units = torch.cat((batch.x, batch.y)).double()
        norms = None
        if normalize:
            norms = torch.linalg.vector_norm(units, dim=1, keepdim=True)
            if scale > LARGEST_LOGIT or not within(norms, LEAST_NORM, LARGEST_NORM):
                return None
            units.div_(norms)
        similarities = torch.mm(units, units.t()) if symmetric else torch.mm(units[:n], units[n:].t())
        entries = similarities * scale
        if norms is None and not within(entries, -LARGEST_LOGIT, LARGEST_LOGIT):
            return None
        dtype = accumulation_dtype(batch.shape.dtype)
        positive = similarities.diagonal(n if symmetric else 0)
        rows = Rows(units.to(dtype), None, positive, None if norms is None else norms.to(dtype), None)
    else:
        rows = prepare(batch.sides, normalize, batch.shape.dtype)
        shift = optimistic_shift(scale, normalize)
        if shift and rows.exponents is not None:
            return None
        size = 2 * n if symmetric else n
        entries = rows.stacked.new_empty((size, size))
        Logits(rows, n, scale, None, None).form(slice(0, size), slice(2 * n - size, 2 * n), entries)
    unshifted = entries.clone() if moment else None
    if shift:
        entries.sub_(shift)
    excluded(entries.exp2_(), n).zero_()
    total = sums(entries, n)
    if not plan.few and not is_normal(total):
        return None
    lse = torch.log2(total) if plan.few else torch.log2(total.double()).add_(shift)
    mean = None
    if unshifted is not None:
        mean = sums(unshifted.mul_(entries), n).div_(total).mul_(LN2)
    return Square(rows, entries, total, lse, mean, centred=not plan.few)


def gradients(
    square: Square, a: float | Tensor, b: float | Tensor, n: int, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of x's and y's rows, in the scale of ``a`` and ``b``.

    Args:
        square: from :func:`solve`; not modified.
        a: ``(2n,)`` in the dtype of the square's entries, or a number for all rows.
        b: ``(2n,)`` the same; may be ``a``.
        n: pairs.
        needs: which of x and y need a gradient.

    Returns:
        ``(n, d)`` in the accumulation dtype, ``None`` where not needed.
    """
    rows = square.rows
    weights = weigh(square.entries, n, a / square.total, b).to(rows.stacked.dtype)
    symmetric = weights.shape[0] > n
    units, centre = rows.stacked, None
    if square.centred:
        centre = rows.centre()
        units = units if centre is None else units - centre
    if symmetric and all(needs) and rows.norms is not None:
        # Both sides at once, split after the division.
        both = torch.mm(weights, units)
        if centre is not None:
            both.addcmul_(weights.sum(1, keepdim=True), centre)
        remove_radial(both, rows.stacked).div_(rows.norms)
        return [both[:n], both[n:]]
    found: list[Tensor | None] = []
    for side, need in enumerate(needs):
        own = slice(side * n, (side + 1) * n)
        if not need:
            found.append(None)
            continue
        if symmetric:
            part, columns = weights[own], units
        else:
            part, columns = (weights.t(), units[:n]) if side else (weights, units[n:])
        gradient = torch.mm(part, columns)
        if centre is not None:
            gradient.addcmul_(part.sum(1, keepdim=True), centre)
        found.append(rows.project(gradient, own))
    return found


def excluded(entries: Tensor, n: int) -> Tensor:
    """A view of the pairs that are no negatives: all ``(i, i)`` and ``(i, p(i))`` of 2n rows, else the diagonal.

    Example:
        >>> excluded(torch.zeros(4, 4), 2).fill_(1).numel()
        8
    """
    if entries.shape[0] == n:
        return entries.diagonal()
    return entries.as_strided((2, n, 2), (2 * n * n, 2 * n + 1, n))


def positives(entries: Tensor, n: int) -> Tensor:
    """A view of the positive pairs, x's first: ``(2, n)`` of a square of 2n rows, else the diagonal.

    Example:
        >>> positives(torch.arange(16).view(4, 4), 2)
        tensor([[ 2,  7],
                [ 8, 13]])
    """
    if entries.shape[0] == n:
        return entries.diagonal()
    return entries.as_strided((2, n), (n * (2 * n - 1), 2 * n + 1), n)


def sums(entries: Tensor, n: int) -> Tensor:
    """Sums over every row's negatives, ``(2n,)``.

    Example:
        >>> sums(torch.eye(2), 2)
        tensor([1., 1., 1., 1.])
    """
    return torch.cat((entries.sum(1), entries.sum(0))) if entries.shape[0] == n else entries.sum(1)


def largest(entries: Tensor, n: int) -> Tensor:
    """The largest entry among every row's negatives, ``(2n,)``.

    Example:
        >>> largest(torch.eye(2), 2)
        tensor([1., 1., 1., 1.])
    """
    return torch.cat((entries.amax(1), entries.amax(0))) if entries.shape[0] == n else entries.amax(1)


def weigh(entries: Tensor, n: int, per_sum: Tensor, b: float | Tensor) -> Tensor:
    """The weights W of the gradient, from exponentials; the positives are included.

    Args:
        entries: exponentials, 0 where excluded.
        n: pairs.
        per_sum: ``(2n,)`` weights over sums.
        b: ``(2n,)`` weights of the positives, or a number for all.

    Returns:
        A new tensor.

    Example:
        >>> weigh(torch.zeros(2, 2), 2, torch.ones(4), 1.0)
        tensor([[-2.,  0.],
                [ 0., -2.]])
    """
    across, above = (per_sum[:n], per_sum[n:]) if entries.shape[0] == n else (per_sum, per_sum)
    weights = torch.add(across.unsqueeze(1), above).mul_(entries)
    if isinstance(b, Tensor):
        positives(weights, n).copy_(torch.add(b[:n], b[n:]).neg_())
    else:
        positives(weights, n).fill_(-2 * b)
    return weights
