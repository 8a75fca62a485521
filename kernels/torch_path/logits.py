"""Panels of base-2 logits ``log2(e) · s_ij``, the pairs that are no negatives taken out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import TILE, Panel
from .rows import Rows

CHUNK = 64
FEW_ROWS = 64

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)


@dataclass(frozen=True)
class Logits:
    """What panels of logits are formed from.

    Attributes:
        rows: the prepared rows.
        n: pairs.
        symmetric: negatives of both languages; a row is then no negative of itself.
        scale: ``log2(e) / τ``, a number, or a 0-d tensor where τ lives on the device.
    """

    rows: Rows
    n: int
    symmetric: bool
    scale: float | Tensor

    def positive(self) -> Tensor:
        """``(n,)`` base-2 logits of the pairs, float64."""
        return self.rows.similarities() * self.scale

    def form(self, left: slice, right: slice, out: Tensor) -> Tensor:
        """Write the logits of some rows against others.

        In float64 if the rows are at hand in it. Otherwise products of unit rows with cosine near 1 err by up to 6e-7;
        summed 64 columns at a time, by a third of that.

        Args:
            left: stacked rows.
            right: stacked rows.
            out: matrix to write.

        Returns:
            ``out``.
        """
        precise, rows = self.rows.precise, self.rows.stacked
        if precise is not None:
            for start in range(right.start, right.stop, TILE):
                wide = precise[start : min(start + TILE, right.stop)].t()
                first = start - right.start
                out[:, first : first + wide.shape[1]] = torch.mm(precise[left], wide).mul_(self.scale)
            return out
        tall, wide = rows[left], rows[right].t()
        alpha = 1.0 if isinstance(self.scale, Tensor) else self.scale
        for start in range(0, rows.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            torch.addmm(out, tall[:, part], wide[part], beta=int(start > 0), alpha=alpha, out=out)
        return out.mul_(self.scale) if isinstance(self.scale, Tensor) else out

    def square(self) -> tuple[Tensor, Tensor]:
        """All logits, stacked rows by themselves if symmetric, else x's rows by y's; and :meth:`positive`."""
        precise, dtype = self.rows.precise, self.rows.stacked.dtype
        if precise is not None:
            left, right = (precise, precise) if self.symmetric else precise.chunk(2)
            logits = torch.mm(left, right.t()).mul_(self.scale)
            return logits.to(dtype), logits.diagonal(self.n if self.symmetric else 0)
        size = 2 * self.n if self.symmetric else self.n
        out = self.rows.stacked.new_empty((size, size))
        return self.form(slice(0, size), slice(2 * self.n - size, 2 * self.n), out), self.positive()

    def fill(self, panel: Panel, scratch: Tensor) -> Tensor:
        """Write a panel's logits, all pairs included.

        Args:
            panel: which rows and columns.
            scratch: at least ``height · (2n - first)`` elements.

        Returns:
            ``(height, 2n - first)`` view of ``scratch``.
        """
        width = 2 * self.n - panel.first
        out = scratch[: panel.height * width].view(panel.height, width)
        return self.form(slice(panel.start, panel.stop), slice(panel.first, 2 * self.n), out)

    def positives(self, panel: Panel, entries: Tensor) -> Tensor | None:
        """The panel's positive pairs ``(i, i + n)`` as a view of length ``height``; ``None`` for y's rows."""
        if panel.start >= self.n:
            return None
        offset = panel.start + self.n - panel.first
        return entries[:, offset : offset + panel.height].diagonal()

    def exclude(self, panel: Panel, entries: Tensor, value: float) -> None:
        """Overwrite what is no negative, a row's own entry and its positive's, with ``value``."""
        if self.symmetric:
            entries[:, : panel.height].diagonal().fill_(value)
        positives = self.positives(panel, entries)
        if positives is not None:
            positives.fill_(value)


def needs_double(n: int, reduction: str) -> bool:
    """Whether logits must be formed in float64: where their rounding is not averaged away.

    That is over few negatives, and where row losses are returned one by one.

    Example:
        >>> needs_double(16, "mean"), needs_double(512, "mean"), needs_double(512, "none")
        (True, False, True)
    """
    return 2 * n <= FEW_ROWS or reduction == "none"


def base2_scale(temperature: float | Tensor) -> float | Tensor:
    """``log2(e) / τ``; NaN for a device tensor that is not positive, which is not read on the host.

    Args:
        temperature: a float, or a 0-d tensor.

    Returns:
        A float for floats and CPU tensors, else a 0-d tensor.

    Example:
        >>> base2_scale(torch.tensor(1.0)) == LOG2E
        True
    """
    if isinstance(temperature, Tensor) and temperature.device.type != "cpu":
        return torch.where(temperature > 0, LOG2E / temperature, math.nan)
    return LOG2E / float(temperature)
