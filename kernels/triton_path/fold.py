"""From slots to row statistics, and from those to row losses."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from . import stats

WEIGHT, EXPONENT = tl.constexpr(stats.WEIGHT), tl.constexpr(stats.EXPONENT)
PEAK = tl.constexpr(stats.PEAK)
TOTAL, MOMENT = tl.constexpr(stats.TOTAL), tl.constexpr(stats.MOMENT)
LOWEST = tl.constexpr(stats.LOWEST)
LN2 = tl.constexpr(math.log(2))


@triton.jit
def softplus(z):
    """log(1 + e^z) in float64, with full relative precision down to e^z itself."""
    small = tl.exp(-tl.abs(z))
    more = 1.0 + small
    # What 1 + small lost is divided out again.
    log1p = tl.where(more == 1.0, small, tl.log(more) * (small / tl.where(more == 1.0, 1.0, more - 1.0)))
    return tl.where(z > 0, z, 0.0) + tl.where(z == z, log1p, z)


@triton.jit
def close_rows(
    stats_ptr,
    positive_ptr,
    losses_ptr,
    index,
    peak,
    total,
    moment,
    num_rows,
    padded,
    MOMENT_TOO: tl.constexpr,
    INFO: tl.constexpr,
):
    """Row losses, and what the backward needs, of stacked rows all of whose negatives were summed.

    z = lse - positive, NaN where a logit is not finite; row losses are equation (5) or, with INFO, equation (1) of Chen
    et al. 2022; their derivatives with respect to z, 1 or sigmoid(z), go into two planes, and the moment becomes
    Σ_j P_ij s_ij - s_i,p(i). That is in float64, which costs nothing here and keeps φ down to 1e-300.
    """
    plane = 2 * padded
    side = (index >= padded).to(tl.int32)
    position = index - side * padded
    live = position < num_rows
    ln2 = tl.full((), LN2, tl.float64)
    excess = peak.to(tl.float64) - tl.load(positive_ptr + position)
    z = excess * ln2 + tl.log(total.to(tl.float64))
    z = tl.where((z - z) == 0, z, float("nan"))
    size = z - z
    loss = z
    if INFO:
        # sigmoid(z) as exp(-softplus(-z)), which is never flushed to 0.
        size = -softplus(-z) / ln2
        loss = softplus(z)
    exponent = tl.floor(size)
    # The padding is part of an output, which must be a function of the inputs.
    tl.store(stats_ptr + WEIGHT * plane + index, tl.where(live, tl.exp2(size - exponent), 0.0).to(tl.float32))
    tl.store(stats_ptr + EXPONENT * plane + index, tl.where(live, exponent, 0.0).to(tl.float32))
    if MOMENT_TOO:
        mean = moment.to(tl.float64) / total.to(tl.float64)
        moment = ((excess + mean) * ln2).to(tl.float32)
        tl.store(stats_ptr + MOMENT * plane + index, tl.where(live, moment, 0.0))
    tl.store(losses_ptr + side * num_rows + position, loss.to(tl.float32), mask=live)


@triton.jit
def fold_slots(
    slots_ptr,
    slots_plane,
    pitch,
    num_slots,
    stats_ptr,
    positive_ptr,
    losses_ptr,
    num_rows,
    padded,
    start,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    FOLD_MOMENT: tl.constexpr,
    CLOSE: tl.constexpr,
    INFO: tl.constexpr,
):
    """Fold the slots of stacked rows from ``start`` on into their running (peak, sum, first moment).

    CLOSE: these were the rows' last slots.
    """
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    index = start + local
    plane = 2 * padded
    peak = tl.load(stats_ptr + PEAK * plane + index)
    total = tl.load(stats_ptr + TOTAL * plane + index)
    moment = tl.load(stats_ptr + MOMENT * plane + index)
    for first in range(0, num_slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        source = slots_ptr + slot.to(tl.int64)[:, None] * pitch + local[None, :]
        mask = (slot < num_slots)[:, None]
        slot_peak = tl.load(source, mask=mask, other=LOWEST)
        slot_total = tl.load(source + slots_plane, mask=mask, other=0.0)
        higher = tl.maximum(peak, tl.max(slot_peak, 0))
        old = tl.exp2(peak - higher)
        new = tl.exp2(slot_peak - higher[None, :])
        if FOLD_MOMENT:
            slot_moment = tl.load(source + 2 * slots_plane, mask=mask, other=0.0)
            # Moments are taken about the peak, so moving it by h adds h times the sum.
            moved = new * (slot_moment + (slot_peak - higher[None, :]) * slot_total)
            moment = old * (moment + (peak - higher) * total) + tl.sum(moved, 0)
        total = old * total + tl.sum(new * slot_total, 0)
        peak = higher
    tl.store(stats_ptr + PEAK * plane + index, peak)
    tl.store(stats_ptr + TOTAL * plane + index, total)
    if CLOSE:
        close_rows(stats_ptr, positive_ptr, losses_ptr, index, peak, total, moment, num_rows, padded, FOLD_MOMENT, INFO)
    elif FOLD_MOMENT:
        tl.store(stats_ptr + MOMENT * plane + index, moment)
