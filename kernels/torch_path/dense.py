"""All logits at once, square: the short path for small batches, where calls into PyTorch cost more than arithmetic.

The formulas are the optimistic pass's and the panels' gradient, written for few calls: one product forms the logits,
one or two readings back guard the range, and the positive's term of the gradient is an entry of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .denominators import SCALE, Denominators, is_normal
from .logits import LN2, Logits
from .rows import remove_radial
from .square import excluded, sums, weigh

# Divided by a tensor in one call; a Python number would take two.
_SCALE = torch.tensor(SCALE, device="cpu")


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
        The statistics and both gradients times ``2nτ · 2^30``, or ``None`` if a statistic left the normal numbers.
    """
    n, info = logits.n, loss == "info_nce"
    entries, pairs = logits.square()
    unshifted = entries.clone() if tilt else None
    if shift:
        entries.sub_(shift)
    excluded(entries.exp2_(), n).zero_()
    # Both directions of a pair have one positive: a row of totals a direction.
    total = sums(entries, n).view(2, n)
    positive = torch.exp2(pairs - shift if shift else pairs)
    phi = total / positive
    per_sum = torch.div(_SCALE, (total + positive).to(total.dtype) if info else total)
    if not _in_range(total, phi, per_sum, info=info, cosines=logits.rows.norms is not None):
        return None
    # A loss of its own memory: a view could not be changed in place by who receives it.
    phi = phi.view(-1)
    z = torch.log(phi).to(total.dtype)
    rows = torch.log1p(phi).to(total.dtype) if info else z
    weight = per_sum * total
    of_pairs = weight.sum(0) if info else None
    moment = None
    if unshifted is not None:
        moment = sums(unshifted.mul_(entries), n).view(2, n).div_(total).sub_(pairs).mul_(LN2).view(-1)
    per_sum, weight = per_sum.view(-1), weight.view(-1)
    found = Denominators(z, rows, None, weight, per_sum, shift, moment, None)
    if not (need_x or need_y):
        return found, None, None
    weigh(entries, n, per_sum, of_pairs)
    return found, *_gradients(entries, logits, need_x, need_y)


def _in_range(total: Tensor, phi: Tensor, per_sum: Tensor, *, info: bool, cosines: bool) -> bool:
    """Whether exponentials stayed normal numbers, in as few readings as tell it.

    Weights over sums bound the sums where nothing else is in them; φ, in float64, is in danger only without cosines.
    """
    return is_normal(per_sum) and (not info or is_normal(total)) and (cosines or is_normal(phi))


def _gradients(weights: Tensor, logits: Logits, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
    n, rows, norms = logits.n, logits.rows.stacked, logits.rows.norms
    centre = logits.rows.centre()
    centred = rows - centre
    if logits.symmetric and need_x and need_y and norms is not None:
        # Both sides at once, parted by the division.
        both = torch.mm(weights, centred).addcmul_(weights.sum(1, keepdim=True), centre)
        remove_radial(both, rows)
        return both[:n] / norms[:n], both[n:] / norms[n:]
    x, y = centred.chunk(2)
    top, columns = (weights[:n], centred) if logits.symmetric else (weights, y)
    bottom, others = (weights[n:], centred) if logits.symmetric else (weights.t(), x)
    grad_x = torch.mm(top, columns).addcmul_(top.sum(1, keepdim=True), centre) if need_x else None
    grad_y = torch.mm(bottom, others).addcmul_(bottom.sum(1, keepdim=True), centre) if need_y else None
    logits.rows.project(grad_x, grad_y)
    return grad_x, grad_y
