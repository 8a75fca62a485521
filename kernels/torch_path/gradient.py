"""The gradient of ``Σ_i a_i lse_i − b_i s⁺_i`` from panels of weights.

With P the softmax over each anchor's negatives and u the (unit) rows, a pair (i, j) has the weight
``W_ij = a_i P_ij + a_j P_ji``, the second term where j is an anchor that meets i, and

    dL/du_i ∝ Σ_j W_ij u_j − (b_i + b_p(i)) u_p(i).

Each row of W nearly sums to the positive's weight, so in a collapsed batch almost the whole sum cancels and only its
rounding stays. Rows that lie close together are therefore centred: ``W Z = W (Z − 1 cᵀ) + (W 1) cᵀ`` with c their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .denominators import subtract_shift
from .layout import Layout, Panel
from .logits import CHUNK, Logits
from .rows import Rows, within

FACTOR_BITS = 60
SCRATCH_ENTRIES = 1 << 17
"""Scratch used next to a panel while its weights are formed: small enough for a cache."""


@dataclass
class Weights:
    """What turns logits into weights, for all stacked rows; 0 for those that are not anchors.

    Attributes:
        weight: ``(m,)`` the anchors' ``a``.
        per_sum: ``(m,)`` ``a`` over the sums of exponentials under ``shift``; ``None`` to work from ``lse``.
        shift: as in the sums.
        lse: ``(m,)`` base-2 log-sum-exps, finite.
    """

    weight: Tensor
    per_sum: Tensor | None
    shift: float | Tensor
    lse: Tensor

    def factors(self) -> Tensor | None:
        """``per_sum``, if rows times it are as far from over- and underflow as the rows' exponentials are."""
        if self.per_sum is None:
            return None
        size = self.per_sum.abs()
        return self.per_sum if within(torch.where(size == 0, 1.0, size), 2.0**-FACTOR_BITS, 2.0**FACTOR_BITS) else None

    def apply(self, panel: Panel, entries: Tensor, scratch: Tensor) -> Tensor:
        """Turn a panel of exponentials (with ``per_sum``) or of logits into weights, in place.

        Args:
            panel: which rows and columns.
            entries: exponentials, or logits, excluded pairs far below all others.
            scratch: at least one row's elements; as many rows as fit are worked on at a time.

        Returns:
            ``entries``.
        """
        # These columns are anchors that the panel serves too.
        both = panel.mirror - panel.first if panel.both_ways else 0
        step = max(1, scratch.numel() // panel.width)
        for start in range(0, panel.height, step):
            part = entries[start : start + step]
            rows = slice(panel.start + start, panel.start + start + len(part))
            if both:
                self._weigh_both(part[:, :both], rows, slice(panel.first, panel.mirror), scratch)
            if both < panel.width:
                self._weigh(part[:, both:], rows)
        return entries

    def _weigh_both(self, part: Tensor, rows: slice, columns: slice, scratch: Tensor) -> None:
        other = scratch[: part.numel()].view(part.shape)
        if self.per_sum is not None:
            part.mul_(torch.add(self.per_sum[rows, None], self.per_sum[columns], out=other))
            return
        torch.sub(part, self.lse[columns], out=other).exp2_().mul_(self.weight[columns])
        self._weigh(part, rows).add_(other)

    def _weigh(self, part: Tensor, rows: slice) -> Tensor:
        if self.per_sum is not None:
            return part.mul_(self.per_sum[rows, None])
        return part.sub_(self.lse[rows, None]).exp2_().mul_(self.weight[rows, None])


@dataclass
class Run:
    """Adjacent stacked rows whose gradient is wanted, and the sums that become it."""

    start: int
    stop: int
    gradient: Tensor


def runs(rows: Rows, sizes: list[int], needs: tuple[bool, ...]) -> list[Run]:
    """The runs of the sides that need a gradient, their sums zero.

    Args:
        rows: the stacked rows.
        sizes: rows of each side.
        needs: which sides need a gradient.

    Returns:
        The runs, in the order of the stack.
    """
    bounds: list[list[int]] = []
    offset = 0
    for size, need in zip(sizes, needs, strict=True):
        if need and bounds and bounds[-1][1] == offset:
            bounds[-1][1] += size
        elif need:
            bounds.append([offset, offset + size])
        offset += size
    width = rows.stacked.shape[1]
    return [Run(start, stop, rows.stacked.new_zeros((stop - start, width))) for start, stop in bounds]


def accumulate(
    wanted: list[Run], logits: Logits, layout: Layout, weights: Weights, pull: Tensor | None, kept: list[Tensor] | None
) -> None:
    """Add ``W Z`` and the positives' pull to the wanted runs, in the scale of the weights.

    Args:
        wanted: runs of stacked rows, modified.
        logits: what panels are formed from.
        layout: the panels.
        weights: what turns panels into weights.
        pull: ``(n,)`` the ``b`` of each pair, summed over its anchors; ``None`` to leave the positives out.
        kept: panels from the forward, consumed; ``None`` forms them again.
    """
    n, rows = logits.n, logits.rows.stacked
    centre = logits.rows.centre()
    centred = rows if centre is None else rows - centre
    sums = None if centre is None else rows.new_zeros(layout.count)
    widest = max((panel.width for panel in layout.panels), default=1)
    scratch = rows.new_empty(max(widest, min(SCRATCH_ENTRIES, layout.largest)))
    again = rows.new_empty(layout.largest) if kept is None else None
    by_rows = None if all(panel.both_ways for panel in layout.panels) else weights.factors()
    for index, panel in enumerate(layout.panels):
        if not any(touches(run, panel) for run in wanted):
            continue
        if again is None:
            assert kept is not None
            entries = kept[index].view(panel.height, panel.width)
        else:
            entries = logits.fill(panel, again)
            if weights.per_sum is not None:
                subtract_shift(entries, weights.shift, panel).exp2_()
        factors = None
        if by_rows is not None and not panel.both_ways:
            factors = by_rows[panel.start : panel.stop]
        else:
            weights.apply(panel, entries, scratch)
        add_products(wanted, sums, entries, centred, panel, factors)
    for run in wanted:
        if pull is not None:
            add_pull(run, sums, pull, centred, n)
        if sums is not None and centre is not None:
            run.gradient.addcmul_(sums[run.start : run.stop, None], centre)


def add_pull(run: Run, sums: Tensor | None, pull: Tensor, rows: Tensor, n: int) -> None:
    """Add ``−pull_i u_p(i)`` to a run, and its coefficients to the weights' sums.

    Args:
        run: modified.
        sums: ``(m,)``, modified; ``None`` if they are not wanted.
        pull: ``(n,)``, one per pair.
        rows: the stacked rows.
        n: pairs.
    """
    for side in range(2):
        # The positives of one side are the rows of the other.
        first, last = max(run.start, side * n), min(run.stop, (side + 1) * n)
        if first < last:
            other = slice(first + (1 - 2 * side) * n, last + (1 - 2 * side) * n)
            coefficient = pull[first - side * n : last - side * n]
            run.gradient[first - run.start : last - run.start].addcmul_(coefficient.unsqueeze(1), rows[other], value=-1)
            if sums is not None:
                sums[first:last] -= coefficient


def touches(run: Run, panel: Panel) -> bool:
    """Whether a panel contributes to a run: with its rows, or with columns outside its own square."""
    of_rows = run.start < panel.stop and panel.start < run.stop
    return of_rows or (run.start < panel.last and panel.outside < run.stop)


def add_products(
    wanted: list[Run],
    sums: Tensor | None,
    entries: Tensor,
    rows: Tensor,
    panel: Panel,
    factors: Tensor | None = None,
) -> None:
    """Add a panel of weights times rows to the runs that it touches, and its own sums to the weights' sums.

    For runs in a wider dtype than the weights, 64 terms are multiplied at a time and added up in the runs' dtype.

    Args:
        wanted: runs of stacked rows, modified.
        sums: ``(m,)`` sums of all weights of a row, modified; ``None`` if they are not wanted.
        entries: the panel's weights.
        rows: the stacked rows, centred or not.
        panel: which rows and columns.
        factors: ``(height,)`` what the entries' rows have yet to be multiplied by; ``None`` if nothing.
    """
    source = rows[panel.start : panel.stop]
    if factors is not None:
        source = source * factors.unsqueeze(1)
    for run in wanted:
        if run.start < panel.stop and panel.start < run.stop:
            own = run.gradient[panel.start - run.start : panel.stop - run.start]
            others = rows[panel.first : panel.last]
            if factors is None:
                _add_product(own, entries, others)
            else:
                own.addcmul_(torch.mm(entries, others), factors.unsqueeze(1))
            if sums is not None:
                of_rows = entries.sum(1)
                sums[panel.start : panel.stop] += of_rows if factors is None else of_rows.mul_(factors)
        first, last = max(run.start, panel.outside), min(run.stop, panel.last)
        if first < last:
            mirrored = entries[:, first - panel.first : last - panel.first]
            _add_product(run.gradient[first - run.start : last - run.start], mirrored.t(), source)
            if sums is not None:
                sums[first:last] += mirrored.sum(0) if factors is None else torch.mv(mirrored.t(), factors)


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
        return
    for start in range(0, left.shape[1], CHUNK):
        out += torch.mm(left[:, start : start + CHUNK], right[start : start + CHUNK])
