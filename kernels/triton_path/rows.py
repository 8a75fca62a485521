"""The packed rows and what is computed row by row: launches of the kernels that no block of pairs is involved in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..problem import Problem
from . import stats
from .config import BlockConfig, FlashConfig
from .finish import finish_gradient
from .fold import fold_slots
from .pack import pack_rows
from .schedule import padded_rows, padded_width
from .upstream import weigh_rows

LOG2_E = 1 / math.log(2)
PACK_DEPTH = 512
FOLD_ROWS, FOLD_SLOTS = 32, 16
WEIGH_ROWS, WEIGH_SWEEP = 256, 1024


@dataclass(frozen=True)
class Rows:
    """The embeddings as the kernels see them: both sides' rows stacked.

    Attributes:
        packed: x's rows and then y's (2 · padded rows, padded width), contiguous, rescaled by powers of two.
        stats: see :mod:`.stats`.
        kept: tiles of logits, one after the other, or None.
        rate: float32 scalar, log2(e)/τ.
        n: rows of a side.
        d: columns.
        normalize: cosines rather than dot products.
        cross: negatives of the other side alone.
    """

    packed: Tensor
    stats: Tensor
    kept: Tensor | None
    rate: Tensor
    n: int
    d: int
    normalize: bool
    cross: bool

    @property
    def padded(self) -> int:
        return padded_rows(self.n)


@dataclass(frozen=True)
class Pull:
    """What the gradient needs of the rows' weights.

    Attributes:
        coefficient: weight over total (2, padded rows).
        pull: the weights of each pair, added (padded rows).
        gain: float64 scalar, common to all rows.
        slope: shares of the temperature's gradient, or None.
    """

    coefficient: Tensor
    pull: Tensor
    gain: Tensor
    slope: Tensor | None


def temperature_arguments(temperature: float | Tensor, placeholder: Tensor) -> tuple[Tensor, float]:
    """What a kernel that reads the temperature is given: τ on the device, or the rate log2(e)/τ as a number."""
    if isinstance(temperature, Tensor):
        return temperature, 0.0
    return placeholder, LOG2_E / temperature


def empty_slope(temperature: float | Tensor, programs: int, device: torch.device) -> Tensor:
    """Where so many programs write their shares of the temperature's gradient: in float64, to be added up.

    A single share is all of it, and is written as the float32 number that a float32 temperature's gradient will be.
    """
    whole = programs == 1 and isinstance(temperature, Tensor) and temperature.dtype == torch.float32
    return torch.empty(programs, dtype=torch.float32 if whole else torch.float64, device=device)


def pack(
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    saved: Tensor,
    positive: Tensor | None,
    problem: Problem,
    config: BlockConfig,
) -> Rows:
    """Stack both sides' rows, rescaled as ``saved`` says.

    With ``positive`` (padded rows, float64) what it says is found first, and both are filled. What ``saved`` holds
    beyond the statistics are kept logits.
    """
    n, d = x.shape
    width = padded_width(d)
    packed = torch.empty((2 * padded_rows(n), width), dtype=x.dtype, device=x.device)
    rate = torch.empty((), dtype=torch.float32, device=x.device)
    pack_rows[(padded_rows(n) // config.row_block,)](
        x,
        y,
        *temperature_arguments(temperature, rate),
        packed,
        rate,
        saved,
        rate if positive is None else positive,
        n,
        padded_rows(n),
        d,
        width,
        *x.stride(),
        *y.stride(),
        ROWS=config.row_block,
        DEPTH=min(PACK_DEPTH, triton.next_power_of_2(width)),
        NORMALIZE=problem.normalize,
        RESCALE=config.rescale,
        TENSOR=isinstance(temperature, Tensor),
        FRESH=positive is not None,
        num_warps=4,
    )
    shape = stats.shape(n)
    table, rest = saved[: math.prod(shape)].view(shape), saved[math.prod(shape) :]
    kept = rest.view(config.kept_dtype) if rest.numel() else None
    return Rows(packed, table, kept, rate, n, d, problem.normalize, problem.negatives == "cross")


def fold(rows: Rows, slots: Tensor, start: int, close: tuple[Tensor, Tensor, bool] | None) -> None:
    """Fold slots (planes, tiles, rows) into the statistics of the stacked rows from ``start`` on.

    ``close``, for rows that no other slots follow: the positives' logits, the row losses to fill, whether of infoNCE.
    """
    planes, num_slots, num_rows = slots.shape
    positive, losses, info = close or (rows.stats, rows.stats, False)
    fold_slots[(num_rows // FOLD_ROWS,)](
        slots,
        slots.stride(0),
        num_rows,
        num_slots,
        rows.stats,
        positive,
        losses,
        rows.n,
        rows.padded,
        start,
        ROWS=FOLD_ROWS,
        SLOTS=FOLD_SLOTS,
        FOLD_MOMENT=planes == 3,
        CLOSE=close is not None,
        INFO=info,
        num_warps=4,
    )


def weigh(rows: Rows, upstream: Tensor, info: bool, mean: bool, temperature: float | Tensor | None) -> Pull:
    """Turn upstream gradients, one or (2n,) of them, into weights of rows, and ``temperature``'s if it is given."""
    device = rows.packed.device
    programs = triton.cdiv(rows.padded, WEIGH_ROWS)
    single, double = torch.float32, torch.float64
    result = Pull(
        torch.empty((2, rows.padded), dtype=single, device=device),
        torch.empty(rows.padded, dtype=single, device=device),
        torch.empty((), dtype=double, device=device),
        None if temperature is None else empty_slope(temperature, programs, device),
    )
    weigh_rows[(programs,)](
        rows.stats,
        upstream.contiguous(),
        rows.rate,
        result.coefficient,
        result.pull,
        result.gain,
        result.gain if result.slope is None else result.slope,
        rows.n,
        rows.padded,
        2 * rows.n if mean else 1,
        ROWS=WEIGH_ROWS,
        SWEEP=WEIGH_SWEEP,
        PER_ROW=upstream.dim() == 1,
        INFO=info,
        SLOPE=temperature is not None,
        num_warps=4,
    )
    return result


def finish(
    sums: Tensor, rows: Rows, start: int, weighed: Pull, gradients: dict[int, Tensor], config: BlockConfig | FlashConfig
) -> None:
    """Turn sums (planes to be added, rows, columns) of the stacked rows from ``start`` on into gradients (n, d)."""
    some = next(iter(gradients.values()))
    finish_gradient[(sums.shape[1] // config.row_block,)](
        sums,
        sums.stride(0),
        sums.shape[0],
        rows.packed,
        rows.stats[stats.SCALE],
        rows.stats[stats.INVERSE],
        weighed.pull,
        weighed.gain,
        gradients.get(0, some),
        gradients.get(1, some),
        start,
        rows.n,
        rows.padded,
        rows.d,
        rows.packed.shape[1],
        ROWS=config.row_block,
        DEPTH=min(PACK_DEPTH, triton.next_power_of_2(rows.packed.shape[1])),
        NORMALIZE=rows.normalize,
        num_warps=4,
    )
