"""The batch's rows as the products need them: stacked, in the accumulation dtype, and of unit length if normalised.

A row is divided by its norm in the accumulation dtype, so half-precision rows are never rounded after normalising.
Squares of entries beyond 2^±60 leave float32's range, so a row whose largest entry lies outside 2^±30 is first
multiplied by an exact power of two, and its gradient later by the same power.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_EXPONENT = 30
BLOCK_ENTRIES = 1 << 16
# How much centring must take off the squares of unit rows to pay; halving them reduces errors by a factor of √2 only.
GAIN = 0.5


class Rows(NamedTuple):
    """All sides' rows stacked, ``Z = [x; y; candidates]``, what undoes their scaling, and the positives' similarities.

    Attributes:
        stacked: ``(m, d)`` in the accumulation dtype; unit or zero rows if normalised.
        precise: the same in float64, if logits are formed in float64 and the accumulation dtype is narrower.
        positive: ``(n,)`` similarities of the pairs, float64.
        norms: ``(m, 1)`` lengths of the rescaled rows, infinite for a zero row; ``None`` if not normalised.
        exponents: ``(m, 1)`` powers of two that the raw rows were multiplied by; ``None`` if none was.
    """

    stacked: Tensor
    precise: Tensor | None
    positive: Tensor
    norms: Tensor | None
    exponents: Tensor | None

    def centre(self) -> Tensor | None:
        """The mean row, if rows relative to it are shorter on average; ``None`` where that is known not to pay.

        Rows must be of similar length: subtracting a centre would lengthen a zero row.
        """
        mean = self.stacked.mean(0)
        if self.norms is not None and self.exponents is None:
            # The squared distances of unit rows from their mean average to 1 − |mean|².
            # Off the CPU, reading back would stall the device.
            return mean if mean.device.type != "cpu" or mean.square().sum().item() > GAIN else None
        least, most = torch.aminmax(torch.linalg.vector_norm(self.stacked, dim=1))
        return mean.mul_(2 * least > most)

    def project(self, gradient: Tensor, rows: slice) -> Tensor:
        """Carry some unit rows' gradient through the normalisation, in place: ``(g − ⟨g, u⟩ u) / |row|``."""
        if self.norms is None:
            return gradient
        return remove_radial(gradient, self.stacked[rows]).div_(self.norms[rows])


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower.

    Example:
        >>> accumulation_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def prepare(sides: Sequence[Tensor], normalize: bool, dtype: torch.dtype, *, precise: bool = False) -> Rows:
    """Stack the rows of all sides, normalise them if requested, and multiply the pairs of the first two.

    Everything is done in float64, some ten thousand entries of a side at a time, because errors do not average out
    here: a norm's error shifts a whole row of logits, and a positive's is weighed against the whole sum of negatives.

    On the CPU one read of the norms' range tells whether any row needs rescaling. Elsewhere nothing is read back, and
    every row is rescaled, mostly by the power 0. A row with a NaN or an infinity becomes a row of NaN.

    Args:
        sides: x and y, ``(n, d)``, then any candidates, ``(m, d)`` each.
        normalize: divide each row by its norm.
        dtype: what all sides promote to; decides the accumulation dtype.
        precise: keep the rows in float64 too.

    Returns:
        The :class:`Rows`.

    Example:
        >>> rows = prepare([torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])], True, torch.float32)
        >>> rows.stacked
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    n, d = sides[0].shape
    dtype = accumulation_dtype(dtype)
    precise = precise and dtype != torch.float64
    count = sum(side.shape[0] for side in sides)
    block = max(1, BLOCK_ENTRIES // d)
    if count <= 2 * block:
        rows, norms, exponents = _prepare_block(sides, normalize)
        return Rows(
            rows.to(dtype),
            rows if precise else None,
            torch.linalg.vecdot(rows[:n], rows[n : 2 * n]),
            None if norms is None else norms.to(dtype),
            None if exponents is None else exponents.to(dtype),
        )
    device = sides[0].device
    stacked = torch.empty((count, d), dtype=dtype, device=device)
    widened = torch.empty((count, d), dtype=torch.float64, device=device) if precise else None
    positive = torch.empty(n, dtype=torch.float64, device=device)
    norms = torch.empty((count, 1), dtype=dtype, device=device) if normalize else None
    exponents = None
    memory = torch.empty((2 * block, d), dtype=torch.float64, device=device)
    for parts, places in blocks(sides, block):
        rows, block_norms, block_exponents = _prepare_block(parts, normalize, memory)
        if len(parts) == 2:
            torch.linalg.vecdot(*rows.chunk(2), out=positive[places[0]])
        if block_exponents is not None and exponents is None:
            exponents = torch.zeros((count, 1), dtype=dtype, device=device)
        first = 0
        for place in places:
            here = slice(first, first + place.stop - place.start)
            first = here.stop
            stacked[place] = rows[here]
            if widened is not None:
                widened[place] = rows[here]
            if norms is not None and block_norms is not None:
                norms[place] = block_norms[here]
            if exponents is not None and block_exponents is not None:
                exponents[place] = block_exponents[here]
    return Rows(stacked, widened, positive, norms, exponents)


def blocks(sides: Sequence[Tensor], block: int) -> Iterator[tuple[list[Tensor], list[slice]]]:
    """Runs of pairs of x and y, then of each candidate side: their rows, and their places in the stack."""
    n = sides[0].shape[0]
    for start in range(0, n, block):
        stop = min(start + block, n)
        yield [sides[0][start:stop], sides[1][start:stop]], [slice(start, stop), slice(n + start, n + stop)]
    offset = 2 * n
    for side in sides[2:]:
        for start in range(0, side.shape[0], block):
            part = side[start : start + block]
            yield [part], [slice(offset + start, offset + start + part.shape[0])]
        offset += side.shape[0]


def _prepare_block(
    sides: Sequence[Tensor], normalize: bool, memory: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Stacked rows (in the given memory, if any), norms and exponents, all float64."""
    if memory is None:
        rows = torch.cat(tuple(sides)).double()
    else:
        rows = memory[: sum(side.shape[0] for side in sides)]
        for part, side in zip(rows.split([side.shape[0] for side in sides]), sides, strict=True):
            part.copy_(side)
    on_cpu = rows.device.type == "cpu"
    norms = exponents = None
    if normalize:
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        # With norms between these, row_exponents leaves every row's largest entry as it is.
        least, most = math.sqrt(rows.shape[1]) * 2.0 ** (1 - LARGEST_EXPONENT), 2.0 ** (LARGEST_EXPONENT - 1)
        if not (on_cpu and within(norms, least, most)):
            exponents = row_exponents(rows)
            times_power_of_two(rows, exponents)
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            norms.masked_fill_(norms == 0, math.inf)
        rows.mul_(norms.reciprocal())
    elif not (on_cpu and within(rows, -sys.float_info.max, sys.float_info.max)):
        rows.add_(_largest(rows).mul_(0))
    return rows, norms, exponents


def unit_rows(rows: Tensor, normalize: bool) -> Tensor:
    """Some raw rows in float64, of unit length if normalised, as :func:`prepare` forms them.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0]]), True)
        tensor([[0.6000, 0.8000]], dtype=torch.float64)
    """
    return _prepare_block([rows], normalize)[0]


def within(tensor: Tensor, low: float, high: float) -> bool:
    """Whether every entry lies between two numbers; reads back two values, and is false where one is NaN.

    Example:
        >>> within(torch.tensor([1.0, 2.0]), 0.5, 2.0), within(torch.tensor([1.0, math.nan]), 0.5, 2.0)
        (True, False)
    """
    least, most = torch.aminmax(tensor)
    return least.item() >= low and most.item() <= high


def row_exponents(rows: Tensor) -> Tensor:
    """The powers of two that rescale raw rows.

    Args:
        rows: ``(n, d)`` raw rows, in the dtype to work in.

    Returns:
        ``(n, 1)`` whole numbers; NaN for a row that is not finite.

    Example:
        >>> row_exponents(torch.tensor([[1.0, 2.0], [2.0**-40, 0.0]])).flatten()
        tensor([ 0., 39.])
    """
    largest = _largest(rows)
    exponents = torch.frexp(largest).exponent.to(largest.dtype)
    ordinary = (exponents.abs() <= LARGEST_EXPONENT) | (largest == 0)
    exponents = torch.where(ordinary, 0.0, -exponents)
    return torch.where(torch.isfinite(largest), exponents, math.nan)


def times_power_of_two(tensor: Tensor, exponents: Tensor | float) -> Tensor:
    """``tensor · 2^exponents`` in place, exact wherever the result is a normal number.

    The power is applied in two halves, because 2^150, say, is not a float32 although multiplying by it may give one.

    Args:
        tensor: modified in place.
        exponents: whole numbers, a tensor that broadcasts or one number.

    Returns:
        ``tensor``.

    Example:
        >>> times_power_of_two(torch.tensor([2.0**-140]), 140)
        tensor([1.])
    """
    if isinstance(exponents, Tensor):
        half = torch.trunc(exponents * 0.5)
        return tensor.mul_(torch.exp2(half)).mul_(torch.exp2(exponents - half))
    half_number = int(exponents) // 2
    return tensor.mul_(2.0**half_number).mul_(2.0 ** (exponents - half_number))


def remove_radial(gradient: Tensor, units: Tensor) -> Tensor:
    """``g − ⟨g, u⟩ u`` row by row, in place; the coefficient is computed from the very accumulator it is removed from.

    Together with the division by the row's norm this is the derivative of ``u = row / |row|``.

    Args:
        gradient: ``(n, d)`` with respect to unit rows, modified in place.
        units: ``(n, d)`` unit rows.

    Returns:
        ``gradient``.

    Example:
        >>> remove_radial(torch.tensor([[5.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0., 1.]])
    """
    step = max(1, BLOCK_ENTRIES // gradient.shape[1])
    for start in range(0, gradient.shape[0], step):
        part, own = gradient[start : start + step], units[start : start + step]
        part.addcmul_(own, torch.linalg.vecdot(part, own).unsqueeze(1), value=-1)
    return gradient


def _largest(rows: Tensor) -> Tensor:
    least, most = torch.aminmax(rows, dim=-1, keepdim=True)
    return torch.maximum(most, -least)
