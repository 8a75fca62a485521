"""The stacked rows that the kernels work on: where those of each side lie, and what is kept of every row.

x's rows come first, then y's, then all candidates' one after the other; x, y and the candidates are each padded to
whole tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..problem import Batch, Shape
from . import config

X, Y, CANDIDATES = range(3)

# Planes of what is kept, each a float32 number a stacked row. FACTOR + RESIDUE is what a cosine's logit takes of its
# two rows: sqrt(log2(e)/τ)/|row| of both or, where each row has a temperature, log2(e)/τ/|row| of the row compared and
# 1/|row| = INVERSE + REST of the other. Logits above LIMIT, in units of log 2, are left out by the margin.
PLANES = 10
SCALE, INVERSE, REST, FACTOR, RESIDUE, RATE, LIMIT, PEAK, TOTAL, MOMENT = range(PLANES)
# Peaks of rows without logits: before any is seen, and for good. Finite, so that a difference of two is not NaN.
LOWEST, HIGHEST = -3.0e38, 3.0e38

Span = tuple[int, int]


@dataclass(frozen=True)
class Stack:
    """Where the stacked rows of n pairs and m candidates lie.

    Attributes:
        n: pairs.
        candidates: rows of each candidate side.
        padded: rows of x, and of y, with their padding.
        padding: what sides, and what is wanted of them, are padded to a multiple of.
        num_rows: all rows, padding included.
        width: columns of the packed rows.
    """

    n: int
    candidates: tuple[int, ...]
    padded: int
    padding: int
    num_rows: int
    width: int

    @property
    def m(self) -> int:
        """Candidates of all sides."""
        return sum(self.candidates)

    def candidate_spans(self) -> list[Span]:
        """The rows of each candidate side, which no padding parts."""
        lasts = [2 * self.padded + last for last in accumulate(self.candidates)]
        return [(last - count, last) for count, last in zip(self.candidates, lasts, strict=True)]

    def span(self, side: int) -> Span:
        """The rows of x, of y or of all candidates, padding included."""
        if side == CANDIDATES:
            return 2 * self.padded, self.num_rows
        return side * self.padded, (side + 1) * self.padded

    def side(self, row: int) -> int:
        """X, Y or CANDIDATES: which of them a stacked row is one of."""
        return min(row // self.padded, CANDIDATES)

    @property
    def saved_floats(self) -> int:
        """How many float32 numbers are kept of all rows."""
        return PLANES * self.num_rows


def stack_of(shape: Shape) -> Stack:
    """Where the rows of such a call lie; tiles, and with them padding, are half as large in small batches.

    >>> stack_of(Shape(300, 100)).num_rows, stack_of(Shape(1100, 100, (5, 6))).num_rows
    (640, 2432)
    """
    padding = config.ROW_PADDING if shape.n >= config.MANY_PAIRS else config.SMALL_PADDING
    padded = _up_to(shape.n, padding)
    num_rows = 2 * padded + _up_to(sum(shape.candidates), padding)
    return Stack(shape.n, shape.candidates, padded, padding, num_rows, _up_to(shape.d, config.WIDTH_PADDING))


def _up_to(count: int, padding: int) -> int:
    return -(-count // padding) * padding


def wanted_spans(needs: Sequence[bool], stack: Stack) -> list[Span]:
    """The stacked rows of the sides whose gradients are needed, those of candidates in whole tiles."""
    found = [stack.span(side) for side in (X, Y) if needs[side]]
    candidates = 2 * stack.padded
    for (first, last), need in zip(stack.candidate_spans(), needs[CANDIDATES:], strict=True):
        if need and first < last:
            start = first // stack.padding * stack.padding
            if found and candidates <= found[-1][0] and start <= found[-1][1]:
                start = found.pop()[0]
            found.append((start, _up_to(last, stack.padding)))
    return found


def table(saved: Tensor, stack: Stack) -> Tensor:
    """What is kept of every row, (planes, stacked rows); the rest of ``saved`` are logits or products."""
    return saved[: stack.saved_floats].view(PLANES, stack.num_rows)


def identities(batch: Batch, stack: Stack) -> Tensor | None:
    """A 32-bit number for every stacked row, equal where ids are and −1 for padding; None if no ids are given.

    Ids are numbered in their order, which takes no look at them from the host. Candidates without ids get numbers that
    no other row has.
    """
    if not batch.shape.masked:
        return None
    device = batch.x.device
    own = torch.arange(stack.n, device=device) if batch.ids is None else batch.ids
    of_candidates = batch.candidate_ids or (None,) * len(batch.candidates)
    given = [own, *(ids for ids in of_candidates if ids is not None)]
    ordered, order = torch.cat(given).sort()
    steps = torch.zeros_like(ordered, dtype=torch.int32)
    steps[1:] = ordered[1:] != ordered[:-1]
    numbers = torch.empty_like(steps)
    numbers[order] = steps.cumsum(0, dtype=torch.int32)
    parts = list(numbers.split([len(ids) for ids in given]))
    found = torch.full((stack.num_rows,), -1, dtype=torch.int32, device=device)
    pair_numbers = parts.pop(0)
    for side in (X, Y):
        first, _ = stack.span(side)
        found[first : first + stack.n] = pair_numbers
    unused = numbers.numel()
    for (first, last), ids in zip(stack.candidate_spans(), of_candidates, strict=True):
        if ids is None:
            found[first:last] = torch.arange(unused, unused + last - first, dtype=torch.int32, device=device)
            unused += last - first
        else:
            found[first:last] = parts.pop(0)
    return found
