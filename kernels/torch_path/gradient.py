"""The gradient from panels of weights: ``W = wP + (wP)ᵀ`` times the rows, the positive's term an entry of W.

Chen et al. 2022 (arXiv 2202.13083), eqs. (1) and (4), differentiated: with u the (unit) rows,
``dL/du_i ∝ Σ_j W_ij u_j − (w_i + w_p(i)) u_p(i)``. A row's own entry of W is zero and its positive's holds
``−(w_i + w_p(i))``, so that one product forms the whole sum.

W's rows nearly sum to zero, so in a collapsed batch almost all of the product cancels, and its rounding with it stays.
The rows are therefore centred: ``W Z = W (Z − 1 cᵀ) + (W 1) cᵀ`` with c their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .denominators import EXCLUDED, add_sums
from .layout import Layout, Panel
from .logits import Logits

SCRATCH_ENTRIES = 1 << 17
"""What lies beside a panel while its weights are formed: small enough for a cache."""


def panel_weights(
    logits: Logits,
    panel: Panel,
    entries: Tensor,
    scratch: Tensor,
    weight: Tensor,
    *,
    per_sum: Tensor | None,
    lse: Tensor | None,
) -> Tensor:
    """Turn a panel of exponentials (``per_sum`` given) or of logits into weights, in place.

    Args:
        logits: where the panel came from.
        panel: its rows and columns.
        entries: exponentials, or logits, excluded pairs far below all others.
        scratch: a row's elements or more: so many rows are worked on at a time.
        weight: ``(2n,)`` row weights, of either sign.
        per_sum: ``(2n,)`` row weights over the sums of exponentials.
        lse: ``(2n,)`` base-2 log-sum-exps, read if ``per_sum`` is not given.

    Returns:
        ``entries``.
    """
    columns = slice(panel.first, None)
    step = scratch.numel() // entries.shape[1]
    for start in range(0, panel.height, step):
        part = entries[start : start + step]
        rows = slice(panel.start + start, panel.start + start + len(part))
        other = scratch[: part.numel()].view(part.shape)
        if per_sum is not None:
            part.mul_(torch.add(per_sum[rows, None], per_sum[columns], out=other))
        else:
            assert lse is not None
            torch.sub(part, lse[columns], out=other).exp2_().mul_(weight[columns])
            part.sub_(lse[rows, None]).exp2_().mul_(weight[rows, None]).add_(other)
    positives = logits.positives(panel, entries)
    if positives is not None:
        n = logits.n
        own, mirrored = weight[panel.start : panel.stop], weight[n + panel.start : n + panel.stop]
        torch.add(own, mirrored, out=positives).neg_()
    return entries


def accumulate(
    logits: Logits,
    layout: Layout,
    weight: Tensor,
    *,
    per_sum: Tensor | None,
    lse: Tensor | None,
    shift: float,
    kept: list[Tensor] | None,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """``W Z`` for x's rows and for y's, in the scale of ``weight`` and before normalisation is undone.

    Args:
        logits: where panels come from.
        layout: which panels.
        weight: ``(2n,)`` row weights.
        per_sum: ``(2n,)`` weights over sums of exponentials under ``shift``; ``None`` to work from ``lse`` instead.
        lse: ``(2n,)`` base-2 log-sum-exps.
        shift: constant subtracted from the logits before their exponentials; used with ``per_sum``.
        kept: panels from the forward, consumed; ``None`` forms them again.
        need_x: form the gradient of x's rows.
        need_y: form the gradient of y's rows.

    Returns:
        Two ``(n, d)`` tensors, ``None`` where not needed.
    """
    n, rows = logits.n, logits.rows.stacked
    grad_x = rows.new_zeros((n, rows.shape[1])) if need_x else None
    grad_y = rows.new_zeros((n, rows.shape[1])) if need_y else None
    centre = logits.rows.centre()
    centred = rows - centre
    sums = torch.zeros_like(weight)
    width = 2 * n if layout.symmetric else n
    scratch = rows.new_empty(max(width, min(SCRATCH_ENTRIES, layout.height * width)))
    again = rows.new_empty(layout.height * width) if kept is None else None
    for index, panel in enumerate(layout.panels()):
        if again is None:
            assert kept is not None
            entries = kept[index].view(panel.height, -1)
            kept[index] = rows.new_empty(0)
        else:
            entries = logits.fill(panel, again)
            if per_sum is not None:
                if shift:
                    entries.sub_(shift)
                entries.exp2_()
            logits.exclude(panel, entries, 0.0 if per_sum is not None else EXCLUDED)
        panel_weights(logits, panel, entries, scratch, weight, per_sum=per_sum, lse=lse)
        add_sums(sums, entries, panel)
        _add_products(grad_x, grad_y, entries, centred, panel, n)
    for gradient, own_sums in zip((grad_x, grad_y), sums.chunk(2), strict=True):
        if gradient is not None:
            gradient.addcmul_(own_sums.unsqueeze(1), centre)
    return grad_x, grad_y


def _add_products(
    grad_x: Tensor | None, grad_y: Tensor | None, entries: Tensor, rows: Tensor, panel: Panel, n: int
) -> None:
    own, base = (grad_x, 0) if panel.start < n else (grad_y, n)
    if own is not None:
        own[panel.start - base : panel.stop - base].addmm_(entries, rows[panel.first :])
    source = rows[panel.start : panel.stop]
    for target, begin, end in ((grad_x, 0, n), (grad_y, n, 2 * n)):
        low = max(begin, panel.mirror)
        if target is not None and low < end:
            mirrored = entries[:, low - panel.first : end - panel.first]
            target[low - begin : end - begin].addmm_(mirrored.t(), source)
