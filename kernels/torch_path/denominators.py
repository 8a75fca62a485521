"""Row losses from panels of logits: ``z_i = lse(negatives) − s_i,p(i)`` and what the gradient needs of it.

The optimistic pass takes exponentials as they are, shifted by one constant: no maximum, sums that simply add up, and
panels of exponentials that the gradient can reuse. It is right exactly if everything it divides by or returns is a
normal number, which one reading of their range tells. Otherwise, and wherever reading back would stall a device, the
running pass keeps every row's own maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, Panel
from .logits import LN2, Logits

SCALE_BITS = 30
"""Weights and gradients are held times 2^30, so that infoNCE's of φ = 1e-36 stay normal numbers in float32."""
SCALE = 2.0**SCALE_BITS

NORMAL_BITS = {torch.float32: 124, torch.float64: 1000}
WINDOW = 100.0

EXCLUDED = -(2.0**125)
"""The logit of a pair that is no negative: below all others, and finite, so that its exponential times it is zero. A
row that has met no negative yet may have it for its maximum; the first negative multiplies such a sum by zero."""


@dataclass
class Denominators:
    """The statistics of all 2n rows; vectors of length 2n in the accumulation dtype.

    Attributes:
        z: log φ, in natural units.
        rows: the row losses.
        lse: base-2 log-sum-exp over the negatives, after the running pass.
        weight: ``2^30 · w_i``.
        per_sum: ``weight / Σ_j e_ij`` for exponentials ``e_ij`` under ``shift``; ``None`` after the running pass.
        shift: the constant subtracted from base-2 logits before exponentials were taken.
        tilt: ``Σ_j P_ij s_ij − s_i,p(i)``, if asked for.
        kept: the panels: exponentials after the optimistic pass, logits after the running one; ``None`` if not kept.
    """

    z: Tensor
    rows: Tensor
    lse: Tensor | None
    weight: Tensor
    per_sum: Tensor | None
    shift: float
    tilt: Tensor | None
    kept: list[Tensor] | None


def optimistic_shift(scale: float | Tensor, normalize: bool) -> float | None:
    """The constant that keeps exponentials of cosines below 2^100; ``None`` where the optimistic pass is not taken.

    Args:
        scale: base-2 logits per unit of similarity; a tensor is not read.
        normalize: whether similarities are cosines.

    Returns:
        The shift, 0 if none is needed.

    Example:
        >>> optimistic_shift(20.0, True)
        0.0
        >>> optimistic_shift(144.0, True)
        44.0
    """
    if isinstance(scale, Tensor):
        return None
    return max(0.0, scale - WINDOW) if normalize else 0.0


def is_normal(statistics: Tensor) -> bool:
    """Whether every entry lies well inside its dtype's normal numbers; reads back two values."""
    least, most = torch.aminmax(statistics)
    bits = NORMAL_BITS[statistics.dtype]
    return least.item() >= 2.0**-bits and most.item() <= 2.0**bits


def optimistic(
    logits: Logits, layout: Layout, loss: str, shift: float, *, keep: bool, tilt: bool
) -> Denominators | None:
    """Sum plain exponentials, panel by panel; ``None`` if they left the range of normal numbers."""
    count, panels = 2 * layout.n, _Scratch(logits, layout, keep)
    statistics = logits.rows.stacked.new_zeros((4, count))
    positive, total, phi, per_sum = statistics.unbind()
    moment = torch.zeros_like(total) if tilt else None
    for panel in layout.panels():
        entries = logits.fill(panel, panels.next())
        unshifted = panels.second(entries).copy_(entries) if tilt else None
        if shift:
            entries.sub_(shift)
        logits.exclude(panel, entries.exp2_(), 0.0)
        add_sums(total, entries, panel)
        if moment is not None and unshifted is not None:
            unshifted.mul_(entries)
            add_sums(moment, unshifted, panel)
    both_ways = logits.positive().repeat(2)
    positive.copy_(torch.exp2(both_ways - shift))
    torch.div(total, positive, out=phi)
    per_sum.copy_(total + positive if loss == "info_nce" else total).reciprocal_().mul_(SCALE)
    if not is_normal(statistics):
        return None
    z = torch.log(phi)
    return Denominators(
        z=z,
        rows=torch.log1p(phi) if loss == "info_nce" else z,
        lse=None,
        weight=per_sum * total,
        per_sum=per_sum,
        shift=shift,
        tilt=None if moment is None else moment.div_(total).sub_(both_ways).mul_(LN2),
        kept=panels.kept,
    )


def running(logits: Logits, layout: Layout, loss: str, *, keep: bool, tilt: bool) -> Denominators:
    """Sum exponentials relative to every row's running maximum."""
    count, panels = 2 * layout.n, _Scratch(logits, layout, keep)
    total = logits.rows.stacked.new_zeros(count)
    moment = torch.zeros_like(total) if tilt else None
    maximum = torch.full_like(total, EXCLUDED)
    for panel in layout.panels():
        entries = logits.fill(panel, panels.next())
        logits.exclude(panel, entries, EXCLUDED)
        mirrored = entries[:, panel.mirror - panel.first :]
        for part, rows, dim in (
            (entries, slice(panel.start, panel.stop), 1),
            (mirrored, slice(panel.mirror, count), 0),
        ):
            if part.shape[1] == 0:
                continue
            former = maximum[rows].clone()
            maximum[rows] = torch.maximum(former, part.amax(dim))
            exponentials = torch.sub(part, maximum[rows].unsqueeze(dim), out=panels.second(part)).exp2_()
            shrink = torch.exp2(former - maximum[rows])
            total[rows] = total[rows] * shrink + exponentials.sum(dim)
            if moment is not None:
                exponentials.mul_(part)
                moment[rows] = moment[rows] * shrink + exponentials.sum(dim)
    both_ways = logits.positive().repeat(2)
    lse = torch.log2(total).double() + maximum.double()
    z = (lse - both_ways) * LN2
    info = loss == "info_nce"
    weight = torch.exp(SCALE_BITS * LN2 - softplus(-z)) if info else torch.full_like(z, SCALE)
    return Denominators(
        z=z.to(total.dtype),
        rows=(softplus(z) if info else z).to(total.dtype),
        lse=lse.to(total.dtype),
        # A row whose z is NaN has no weight either.
        weight=(weight + 0 * z).to(total.dtype),
        per_sum=None,
        shift=0.0,
        tilt=None if moment is None else moment.div_(total).sub_(both_ways).mul_(LN2),
        kept=panels.kept,
    )


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), relative to itself accurate at both ends."""
    return torch.nn.functional.softplus(z, threshold=40)


def add_sums(total: Tensor, entries: Tensor, panel: Panel) -> None:
    """Add a panel's row sums, and its column sums where it stands for its mirror image."""
    total[panel.start : panel.stop] += entries.sum(1)
    offset = panel.mirror - panel.first
    if offset < entries.shape[1]:
        total[panel.mirror :] += entries[:, offset:].sum(0)


class _Scratch:
    """Memory for one panel at a time, or for each its own if panels are kept."""

    def __init__(self, logits: Logits, layout: Layout, keep: bool) -> None:
        self.rows = logits.rows.stacked
        self.sizes = iter([panel.height * (2 * layout.n - panel.first) for panel in layout.panels()])
        self.kept: list[Tensor] | None = [] if keep else None
        self.largest = layout.height * (2 * layout.n if layout.symmetric else layout.n)
        self.first: Tensor | None = None
        self.other: Tensor | None = None

    def next(self) -> Tensor:
        """Memory for the next panel's logits."""
        if self.kept is not None:
            self.kept.append(self.rows.new_empty(next(self.sizes)))
            return self.kept[-1]
        if self.first is None:
            self.first = self.rows.new_empty(self.largest)
        return self.first

    def second(self, like: Tensor) -> Tensor:
        """Scratch of a panel's shape, beside its logits."""
        if self.other is None:
            self.other = self.rows.new_empty(self.largest)
        return self.other[: like.numel()].view(like.shape)
