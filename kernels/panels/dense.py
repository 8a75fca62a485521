"""All logits at once, square: the short path for small batches, where calls into PyTorch cost more than arithmetic.

The formulas are the optimistic pass's and the panels' gradient, written for few calls: one product forms the logits,
one strided view reaches every excluded pair and another every positive, one reading back guards the range, and the
positive's term of the gradient is an entry of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .denominators import SCALE_BITS, Denominators, is_normal
from .logits import LN2, Logits

SCALE = 2.0**SCALE_BITS


def solve(
    logits: Logits, loss: str, shift: float, *, tilt: bool, need_x: bool, need_y: bool
) -> tuple[Denominators, Tensor | None, Tensor | None] | None:
    """Row losses and gradients of a batch whose logits fit one small square.

    Args:
        logits: what the logits are formed from.
        loss: ``"cz_nce"`` or ``"info_nce"``.
        shift: constant subtracted from base-2 logits before their exponentials.
        tilt: form ``Σ_j P_ij s_ij − s_i,p(i)``.
        need_x: form the gradient of x's rows.
        need_y: form the gradient of y's rows.

    Returns:
        The statistics and both gradients as :func:`gradient.accumulate` gives them, or ``None`` if a statistic left the
        normal numbers.
    """
    n, rows = logits.n, logits.rows.stacked
    size = 2 * n if logits.symmetric else n
    entries = logits.form(slice(0, size), slice(2 * n - size, 2 * n), rows.new_empty((size, size)))
    unshifted = entries.clone() if tilt else None
    if shift:
        entries.sub_(shift)
    _excluded(entries.exp2_(), n).zero_()
    statistics = rows.new_empty((4, 2 * n))
    positive, total, phi, per_sum = statistics.unbind()
    pairs = logits.positive
    positive.view(2, n).copy_(torch.exp2(pairs - shift if shift else pairs))
    _sums(entries, total, n)
    torch.div(total, positive, out=phi)
    if loss == "info_nce":
        torch.add(total, positive, out=per_sum).reciprocal_().mul_(SCALE)
    else:
        torch.reciprocal(total, out=per_sum).mul_(SCALE)
    if not is_normal(statistics):
        return None
    z = torch.log(phi)
    weight = per_sum * total
    moment = None
    if unshifted is not None:
        moment = torch.empty_like(total)
        _sums(unshifted.mul_(entries), moment, n)
        moment.div_(total).sub_(pairs.repeat(2)).mul_(LN2)
    rows_loss = torch.log1p(phi) if loss == "info_nce" else z
    found = Denominators(z, rows_loss, torch.log2(total).add_(shift), weight, per_sum, shift, moment, None)
    if not (need_x or need_y):
        return found, None, None
    if logits.symmetric:
        entries.mul_(per_sum.unsqueeze(1) + per_sum)
    else:
        entries.mul_(per_sum[:n].unsqueeze(1) + per_sum[n:])
    _positives(entries, n).copy_(weight.view(2, n).sum(0).neg_())
    if logits.symmetric:
        grad_x = entries[:n] @ rows if need_x else None
        grad_y = entries[n:] @ rows if need_y else None
    else:
        grad_x = entries @ rows[n:] if need_x else None
        grad_y = entries.t() @ rows[:n] if need_y else None
    return found, grad_x, grad_y


def _excluded(entries: Tensor, n: int) -> Tensor:
    """Every pair that is no negative: ``(i, i)`` and ``(i, p(i))`` of a square of 2n rows, else the diagonal."""
    if len(entries) == n:
        return entries.diagonal()
    return entries.as_strided((2, n, 2), (2 * n * n, 2 * n + 1, n))


def _positives(entries: Tensor, n: int) -> Tensor:
    """Every positive pair, x's first: ``(2, n)`` of a square of 2n rows, else the diagonal."""
    if len(entries) == n:
        return entries.diagonal()
    return entries.as_strided((2, n), (n * (2 * n - 1), 2 * n + 1), n)


def _sums(entries: Tensor, out: Tensor, n: int) -> None:
    if len(entries) == n:
        torch.sum(entries, 1, out=out[:n])
        torch.sum(entries, 0, out=out[n:])
    else:
        torch.sum(entries, 1, out=out)
