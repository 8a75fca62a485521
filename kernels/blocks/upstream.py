"""From upstream gradients to the weights of the rows and the temperature's gradient."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from . import stats
from .fold import softplus

LOSS, TOTAL = tl.constexpr(stats.LOSS), tl.constexpr(stats.TOTAL)
MOMENT = tl.constexpr(stats.MOMENT)
LN2 = tl.constexpr(math.log(2))


@triton.jit
def row_weights(
    stats_ptr, upstream_ptr, factor, index, num_rows, padded, live, PER_ROW: tl.constexpr, INFO: tl.constexpr
):
    """Sign and binary logarithm of ∂(upstream · loss)/∂z for stacked rows, in float64."""
    side = (index >= padded).to(tl.int32)
    if PER_ROW:
        upstream = tl.load(upstream_ptr + side * num_rows + index - side * padded, mask=live, other=0.0)
    else:
        upstream = tl.load(upstream_ptr + tl.zeros_like(index))
    scaled = upstream.to(tl.float64) * factor
    size = tl.log2(tl.abs(scaled))
    if INFO:
        # sigmoid(z) as exp(-softplus(-z)), which is never flushed to 0.
        z = tl.load(stats_ptr + LOSS * 2 * padded + index, mask=live, other=0.0).to(tl.float64)
        size -= softplus(-z) / tl.full((), LN2, tl.float64)
    sign = tl.where(scaled > 0, 1.0, tl.where(scaled < 0, -1.0, 0.0 * scaled))
    return sign, tl.where(live, size, float("-inf"))


@triton.jit
def weigh_rows(
    stats_ptr,
    upstream_ptr,
    rate_ptr,
    coefficient_ptr,
    pull_ptr,
    gain_ptr,
    slope_ptr,
    num_rows,
    padded,
    count,
    ROWS: tl.constexpr,
    SWEEP: tl.constexpr,
    PER_ROW: tl.constexpr,
    INFO: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """Write what the gradient needs of every row's weight v_i = ∂(upstream · loss)/∂z_i = weight · 2^exponent.

    That is weight / total (0 for padding), the two weights of each pair added, the factor 2^exponent rate log(2) that
    is common to all rows, and with SLOPE this program's share of -(1/τ) Σ_i v_i (Σ_j P_ij s_ij - s_i,p(i)). Trained
    batches have all weights of infoNCE tiny, so their common power of two is set apart. ``count`` divides upstream.
    """
    factor = tl.full((), 1.0, tl.float64) / count
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = index < num_rows
    x_sign, x_size = row_weights(stats_ptr, upstream_ptr, factor, index, num_rows, padded, live, PER_ROW, INFO)
    y_sign, y_size = row_weights(stats_ptr, upstream_ptr, factor, index + padded, num_rows, padded, live, PER_ROW, INFO)
    largest = tl.maximum(x_size, y_size)
    undefined = (x_size != x_size) | (y_size != y_size)
    if PER_ROW or INFO:
        # Every program sweeps all rows, in the same order, for the same exponent.
        largest = tl.full((SWEEP,), float("-inf"), tl.float64)
        undefined = tl.zeros((SWEEP,), tl.int1)
        for start in range(0, 2 * padded, SWEEP):
            stacked = start + tl.arange(0, SWEEP)
            position = tl.where(stacked >= padded, stacked - padded, stacked)
            _, size = row_weights(
                stats_ptr, upstream_ptr, factor, stacked, num_rows, padded, position < num_rows, PER_ROW, INFO
            )
            largest = tl.where(size > largest, size, largest)
            undefined = undefined | (size != size)
    exponent = tl.floor(tl.max(largest, 0))
    # All-zero upstream gradients have no size; any exponent serves them.
    exponent = tl.where(exponent == float("-inf"), 0.0, exponent)
    exponent = tl.where(tl.max(undefined.to(tl.int32), 0) != 0, float("nan"), exponent)
    x_weight = tl.where(live, x_sign * tl.exp2(x_size - exponent), 0.0)
    y_weight = tl.where(live, y_sign * tl.exp2(y_size - exponent), 0.0)
    x_total = tl.load(stats_ptr + TOTAL * 2 * padded + index, mask=live, other=1.0).to(tl.float64)
    y_total = tl.load(stats_ptr + TOTAL * 2 * padded + padded + index, mask=live, other=1.0).to(tl.float64)
    inside = index < padded
    tl.store(coefficient_ptr + index, (x_weight / x_total).to(tl.float32), mask=inside)
    tl.store(coefficient_ptr + padded + index, (y_weight / y_total).to(tl.float32), mask=inside)
    tl.store(pull_ptr + index, (x_weight + y_weight).to(tl.float32), mask=inside)
    gain = tl.exp2(exponent) * tl.load(rate_ptr).to(tl.float64) * tl.full((), LN2, tl.float64)
    if tl.program_id(0) == 0:
        tl.store(gain_ptr, gain)
    if SLOPE:
        x_moment = tl.load(stats_ptr + MOMENT * 2 * padded + index, mask=live, other=0.0).to(tl.float64)
        y_moment = tl.load(stats_ptr + MOMENT * 2 * padded + padded + index, mask=live, other=0.0).to(tl.float64)
        share = tl.sum(x_weight * x_moment + y_weight * y_moment, 0)
        tl.store(slope_ptr + tl.program_id(0), -share * gain)
