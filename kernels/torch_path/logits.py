"""Panels of base-2 logits ``log2(e) · s_ij``, without the pairs that are not negatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch
from .layout import TILE, Panel
from .rows import Rows

CHUNK = 64
# Columns of a panel that are formed at a time.
BREADTH = 512

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)

EXCLUDED = -(2.0**125)
"""The logit of a pair that is not a negative: below all others, and finite, so that its exponential times it is zero. A
row may have it as its maximum until its first negative, which multiplies the sum up to then by zero."""


class Logits(NamedTuple):
    """What panels of logits are formed from.

    Attributes:
        rows: the prepared rows.
        n: pairs.
        scale: ``log2(e) / τ``: a number; a 0-d tensor where τ lives on the device; or ``(rows,)`` float64, one per
            anchor.
        ids: the ids of runs of stacked rows, all anchors in the first; ``None`` if a row's place in its side is its id,
            ``()`` if no row has any.
        limits: ``(rows,)`` logits above which a negative is left out; ``None`` if none is.
    """

    rows: Rows
    n: int
    scale: float | Tensor
    ids: tuple[tuple[slice, Tensor], ...] | None
    limits: Tensor | None

    def positive(self, num_directions: int) -> Tensor:
        """``(rows,)`` base-2 logits of the positives, float64."""
        similarities = self.rows.positive.repeat(num_directions) if num_directions > 1 else self.rows.positive
        return similarities * self.scale

    def form(self, left: slice, right: slice, out: Tensor) -> Tensor:
        """Write the logits of some anchors against other rows.

        In float64 if the rows are available in it, else like :func:`products`.

        Args:
            left: stacked rows.
            right: stacked rows.
            out: matrix to write.

        Returns:
            ``out``.
        """
        precise, rows = self.rows.precise, self.rows.stacked
        scale = self.scale
        if isinstance(scale, Tensor) and scale.dim():
            scale = scale[left, None]
        if precise is not None:
            for start in range(right.start, right.stop, TILE):
                wide = precise[start : min(start + TILE, right.stop)].t()
                first = start - right.start
                out[:, first : first + wide.shape[1]] = torch.mm(precise[left], wide).mul_(scale)
            return out
        return products(rows[left], rows[right], scale, out)

    def fill(self, panel: Panel, scratch: Tensor) -> Tensor:
        """Write a panel's logits, with :data:`EXCLUDED` where a pair is not a negative.

        Args:
            panel: which anchors and columns.
            scratch: at least ``height · width`` elements.

        Returns:
            ``(height, width)`` view of ``scratch``.
        """
        out = scratch[: panel.height * panel.width].view(panel.height, panel.width)
        return self.exclude(panel, self.form(slice(panel.start, panel.stop), slice(panel.first, panel.last), out))

    def exclude(self, panel: Panel, out: Tensor) -> Tensor:
        """Write :data:`EXCLUDED` over a panel's logits where a pair is not a negative.

        Args:
            panel: which anchors and columns.
            out: its logits, modified in place.

        Returns:
            ``out``.
        """
        if self.limits is not None:
            out.masked_fill_(out > self.limits[panel.start : panel.stop, None], EXCLUDED)
        if self.ids is not None:
            self._exclude_ids(panel, out)
        else:
            self._exclude_places(panel, out)
        return out

    def _exclude_places(self, panel: Panel, entries: Tensor) -> None:
        """Exclude an anchor and its positive: the rows at its place in either side."""
        place = panel.start % self.n
        for column in (place, self.n + place):
            if panel.first <= column and column + panel.height <= panel.last:
                offset = column - panel.first
                entries[:, offset : offset + panel.height].diagonal().fill_(EXCLUDED)

    def _exclude_ids(self, panel: Panel, entries: Tensor) -> None:
        if not self.ids:
            return
        anchors = self.ids[0][1][panel.start : panel.stop, None]
        for run, ids in self.ids:
            first, last = max(run.start, panel.first), min(run.stop, panel.last)
            if first < last:
                same = anchors == ids[first - run.start : last - run.start]
                entries[:, first - panel.first : last - panel.first].masked_fill_(same, EXCLUDED)


def products(left: Tensor, right: Tensor, scale: float | Tensor, out: Tensor) -> Tensor:
    """Write all products of rows times a scale.

    Summed in one go, products of unit rows with cosine near 1 err by up to 6e-7; in chunks of 64 columns, by a third.

    Args:
        left: ``(m, d)``.
        right: ``(n, d)``.
        scale: a number, or a tensor that broadcasts over ``(m, n)``.
        out: ``(m, n)`` to write.

    Returns:
        ``out``.

    Example:
        >>> products(torch.eye(2), torch.eye(2), 2.0, torch.empty(2, 2))
        tensor([[2., 0.],
                [0., 2.]])
    """
    wide, alpha = right.t(), 1.0 if isinstance(scale, Tensor) else scale
    for first in range(0, out.shape[1], BREADTH):
        # The tile stays in a cache while chunks are added to it.
        tile, across = out[:, first : first + BREADTH], wide[:, first : first + BREADTH]
        for start in range(0, left.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            torch.addmm(tile, left[:, part], across[part], beta=int(start > 0), alpha=alpha, out=tile)
    return out.mul_(scale) if isinstance(scale, Tensor) else out


def gather_ids(batch: Batch) -> tuple[tuple[slice, Tensor], ...] | None:
    """The ids of the stacked rows that have any: x's and y's, then those of candidates; ``None`` for the plain rule.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> gather_ids(Batch(x, x, ids=torch.tensor([7, 8])))
        ((slice(0, 4, None), tensor([7, 8, 7, 8])),)
    """
    if not batch.shape.masked:
        return None
    n = batch.x.shape[0]
    own = torch.arange(n, device=batch.x.device) if batch.ids is None else batch.ids
    runs = [(slice(0, 2 * n), own.repeat(2))]
    offset = 2 * n
    for side, ids in zip(batch.candidates, batch.candidate_ids, strict=False):
        if ids is not None:
            runs.append((slice(offset, offset + side.shape[0]), ids))
        offset += side.shape[0]
    return tuple(runs)


def base2_scale(temperature: float | Tensor) -> float | Tensor:
    """``log2(e) / τ``; NaN for an entry of a tensor that is not positive.

    Args:
        temperature: a float, a 0-d tensor, or one per anchor.

    Returns:
        A float for floats and 0-d CPU tensors, else a tensor, float64.

    Example:
        >>> base2_scale(torch.tensor(1.0)) == LOG2E
        True
    """
    if isinstance(temperature, Tensor) and (temperature.dim() or temperature.device.type != "cpu"):
        wide = temperature.double()
        return torch.where(wide > 0, LOG2E / wide, math.nan)
    return LOG2E / float(temperature)
