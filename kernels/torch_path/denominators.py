"""Sums over the negatives of every anchor, from panels of logits: ``lse_i = log Σ_j exp(s_ij)`` in base 2.

The optimistic pass takes exponentials as they are, shifted by one constant per row: it needs no maximum, its sums
simply add up, and the gradient can reuse its panels of exponentials. It is right if and only if every sum is a normal
number, which a single read of their range tells. Otherwise, and wherever reading back would stall a device, the running
pass tracks every row's own maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, Panel
from .logits import EXCLUDED, LN2, Logits

NORMAL_BITS = {torch.float32: 124, torch.float64: 1000}
WINDOW = 100.0
# Entries in a whole number of cache lines, for any dtype.
LINE = 64


@dataclass
class Denominators:
    """The sums of all anchors.

    Attributes:
        lse: ``(rows,)`` float64, base-2 log-sum-exp over the negatives; −inf for a row without any.
        total: ``(rows,)`` sums of the plain exponentials of logits less ``shift``; ``None`` after the running pass.
        shift: what was subtracted from the base-2 logits before exponentials were taken: a number, or one per anchor.
        mean: ``(rows,)`` Σ_j P_ij s_ij in natural units, if requested.
        largest: ``(rows,)`` the largest share of a negative in its row's sum, if requested.
        kept: the panels: exponentials after the optimistic pass, logits after the running one; ``None`` if not kept.
    """

    lse: Tensor
    total: Tensor | None
    shift: float | Tensor
    mean: Tensor | None
    largest: Tensor | None
    kept: list[Tensor] | None


def optimistic_shift(scale: float | Tensor, normalize: bool) -> float | Tensor:
    """The shift that keeps exponentials of cosines below 2^100; 0 if none is needed.

    Args:
        scale: base-2 logits per unit of similarity, a number or one per anchor.
        normalize: whether similarities are cosines.

    Returns:
        The shift, in the form of the scale.

    Example:
        >>> optimistic_shift(20.0, True)
        0.0
        >>> optimistic_shift(144.0, True)
        44.0
    """
    if isinstance(scale, Tensor):
        return (scale - WINDOW).clamp_min(0.0) if normalize else torch.zeros_like(scale)
    return max(0.0, scale - WINDOW) if normalize else 0.0


def is_normal(statistics: Tensor) -> bool:
    """Whether every entry lies well inside its dtype's normal numbers; reads back two values."""
    least, most = torch.aminmax(statistics)
    bits = NORMAL_BITS[statistics.dtype]
    return least.item() >= 2.0**-bits and most.item() <= 2.0**bits


def optimistic(
    logits: Logits, layout: Layout, shift: float | Tensor, *, keep: bool, moment: bool, shares: bool
) -> Denominators | None:
    """Sum plain exponentials, panel by panel; ``None`` if a sum left the range of normal numbers."""
    panels = _Scratch(logits, layout, keep)
    sums = OptimisticSums(logits.rows.stacked, layout, shift, moment=moment, shares=shares)
    for panel in layout.panels:
        sums.add(logits.fill(panel, panels.next(panel)), panel)
    return sums.result(panels.kept)


def running(logits: Logits, layout: Layout, *, keep: bool, moment: bool) -> Denominators:
    """Sum exponentials relative to every row's running maximum."""
    panels = _Scratch(logits, layout, keep)
    sums = RunningSums(logits.rows.stacked, layout, moment=moment)
    for panel in layout.panels:
        sums.add(logits.fill(panel, panels.next(panel)), panel)
    return sums.result(panels.kept)


class OptimisticSums:
    """The sums of the optimistic pass; panels are added one at a time.

    Args:
        like: a tensor of the dtype and device to sum in.
        layout: the panels to come.
        shift: what is subtracted from logits.
        moment: sum the logits too, each times its exponential.
        shares: find every anchor's largest term.
        second: scratch for a panel, if it exists already.
    """

    def __init__(
        self,
        like: Tensor,
        layout: Layout,
        shift: float | Tensor,
        *,
        moment: bool,
        shares: bool,
        second: Tensor | None = None,
    ) -> None:
        self.shift = shift
        self.total = like.new_zeros(layout.num_anchors)
        self.sums = torch.zeros_like(self.total) if moment else None
        self.largest = torch.zeros_like(self.total) if shares else None
        self.second = like.new_empty(layout.largest) if moment and second is None else second

    def add(self, entries: Tensor, panel: Panel) -> None:
        """Add a panel's logits, which become exponentials."""
        unshifted = None
        if self.sums is not None and self.second is not None:
            unshifted = self.second[: entries.numel()].view(entries.shape).copy_(entries)
        subtract_shift(entries, self.shift, panel).exp2_()
        add_sums(self.total, entries, panel)
        if self.sums is not None and unshifted is not None:
            add_sums(self.sums, unshifted.mul_(entries), panel)
        if self.largest is not None:
            raise_to_largest(self.largest, entries, panel)

    def result(self, kept: list[Tensor] | None) -> Denominators | None:
        """The sums of all panels; ``None`` if one left the range of normal numbers."""
        if not is_normal(self.total):
            return None
        wide = self.total.double()
        return Denominators(
            lse=torch.log2(wide).add_(self.shift),
            total=self.total,
            shift=self.shift,
            mean=None if self.sums is None else (self.sums / wide).mul_(LN2),
            largest=None if self.largest is None else self.largest / self.total,
            kept=kept,
        )


class RunningSums:
    """The sums of the running pass; arguments as for :class:`OptimisticSums`."""

    def __init__(self, like: Tensor, layout: Layout, *, moment: bool, second: Tensor | None = None) -> None:
        self.total = like.new_zeros(layout.num_anchors)
        self.sums = torch.zeros_like(self.total) if moment else None
        self.maximum = torch.full_like(self.total, EXCLUDED)
        self.second = like.new_empty(layout.largest) if second is None else second

    def add(self, entries: Tensor, panel: Panel) -> None:
        """Add a panel's logits, which stay as they are."""
        total, maximum, sums = self.total, self.maximum, self.sums
        for part, rows, dim in served(entries, panel):
            former = maximum[rows].clone()
            maximum[rows] = torch.maximum(former, part.amax(dim))
            second = self.second[: part.numel()].view(part.shape)
            exponentials = torch.sub(part, maximum[rows].unsqueeze(dim), out=second).exp2_()
            # If all are excluded, the maximum is that of an excluded pair, and their exponentials would be 1.
            exponentials.masked_fill_(part == EXCLUDED, 0.0)
            shrink = torch.exp2(former - maximum[rows])
            total[rows] = total[rows] * shrink + exponentials.sum(dim)
            if sums is not None:
                sums[rows] = sums[rows] * shrink + exponentials.mul_(part).sum(dim)

    def result(self, kept: list[Tensor] | None) -> Denominators:
        """The sums of all panels."""
        total, wide = self.total, self.total.double()
        return Denominators(
            lse=torch.where(total == 0, -torch.inf, torch.log2(wide) + self.maximum),
            total=None,
            shift=0.0,
            mean=None if self.sums is None else torch.where(total == 0, 0.0, (self.sums / wide).mul_(LN2)),
            largest=1 / total,
            kept=kept,
        )


def served(entries: Tensor, panel: Panel) -> list[tuple[Tensor, slice, int]]:
    """The anchors that a panel serves: its entries, the stacked rows, and the dimension along which negatives run.

    A panel serves its own rows and, with its transposed entries, the anchors among its columns.
    """
    parts = [(entries, slice(panel.start, panel.stop), 1)]
    if panel.mirror > panel.outside:
        inside = slice(panel.outside - panel.first, panel.mirror - panel.first)
        parts.append((entries[:, inside], slice(panel.outside, panel.mirror), 0))
    return parts


def add_sums(total: Tensor, entries: Tensor, panel: Panel) -> None:
    """Add a panel's entries to the sums of the anchors that it serves."""
    for part, rows, dim in served(entries, panel):
        total[rows] += part.sum(dim)


def raise_to_largest(largest: Tensor, entries: Tensor, panel: Panel) -> None:
    """Raise the largest entry of every anchor that a panel serves."""
    for part, rows, dim in served(entries, panel):
        largest[rows] = torch.maximum(largest[rows], part.amax(dim))


def subtract_shift(entries: Tensor, shift: float | Tensor, panel: Panel) -> Tensor:
    """A panel's logits less the shift, in place."""
    if isinstance(shift, Tensor):
        return entries.sub_(shift[panel.start : panel.stop, None])
    return entries.sub_(shift) if shift else entries


class _Scratch:
    """Memory for one panel at a time or, if panels are kept, for all of them.

    It is a single tensor: an allocator returns many small ones to the system and takes them back page by page, which
    costs as much as a tenth of the products. Each panel begins where a tensor of its own would, because libraries round
    differently by where in a cache line their operands begin, and a panel formed again has to be the same bit for bit.
    """

    def __init__(self, logits: Logits, layout: Layout, keep: bool) -> None:
        size = layout.entries + LINE * len(layout.panels) if keep else layout.largest
        self.memory = logits.rows.stacked.new_empty(size)
        self.kept: list[Tensor] | None = [] if keep else None
        self.used = 0

    def next(self, panel: Panel) -> Tensor:
        """Memory for the next panel's logits."""
        if self.kept is None:
            return self.memory
        size = panel.height * panel.width
        self.kept.append(self.memory[self.used : self.used + size])
        self.used += -(-size // LINE) * LINE
        return self.kept[-1]
