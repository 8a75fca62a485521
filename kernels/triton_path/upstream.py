"""From upstream gradients to the weights of the rows and the temperature's gradient.

A row's weight is v_i = ∂(upstream · loss)/∂z_i = gain_0 v'_i 2^(e_i - e), a float32 v'_i with its own power of two:
trained batches have all weights of infoNCE tiny, so the largest power, 2^e, is set apart with what is common to all.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from . import stats
from .pack import binary_exponent, power_of_two

WEIGHT, EXPONENT = tl.constexpr(stats.WEIGHT), tl.constexpr(stats.EXPONENT)
TOTAL, MOMENT = tl.constexpr(stats.TOTAL), tl.constexpr(stats.MOMENT)
LOWEST = tl.constexpr(stats.LOWEST)
LN2 = tl.constexpr(math.log(2))


@triton.jit
def row_weights(stats_ptr, upstream_ptr, index, num_rows, padded, PER_ROW: tl.constexpr):
    """v' and e of stacked rows in float32, 0 and far below all others for padding."""
    side = (index >= padded).to(tl.int32)
    position = index - side * padded
    weight = tl.load(stats_ptr + WEIGHT * 2 * padded + index)
    exponent = tl.load(stats_ptr + EXPONENT * 2 * padded + index)
    if PER_ROW:
        upstream = tl.load(upstream_ptr + side * num_rows + position, mask=position < num_rows, other=0.0)
        upstream = upstream.to(tl.float32)
        power = binary_exponent(upstream)
        weight = weight * (upstream * power_of_two(-power))
        exponent += power.to(tl.float32)
    return weight, tl.where(weight == 0, LOWEST, exponent)


@triton.jit
def common_exponent(
    stats_ptr, upstream_ptr, num_rows, padded, SWEEP: tl.constexpr, PER_ROW: tl.constexpr, INFO: tl.constexpr
):
    """e, the largest of all rows; every program that asks sweeps all rows in the same order."""
    common = tl.full((), 0.0, tl.float32)
    if PER_ROW or INFO:
        largest = tl.full((SWEEP,), LOWEST, tl.float32)
        for start in range(0, 2 * padded, SWEEP):
            index = tl.minimum(start + tl.arange(0, SWEEP), 2 * padded - 1)
            _, exponent = row_weights(stats_ptr, upstream_ptr, index, num_rows, padded, PER_ROW)
            largest = tl.maximum(largest, exponent)
        common = tl.max(largest, 0)
    return common


@triton.jit
def relative_weights(stats_ptr, upstream_ptr, exponent, index, num_rows, padded, PER_ROW: tl.constexpr):
    """v'_i 2^(e_i - e) of stacked rows."""
    weight, own_exponent = row_weights(stats_ptr, upstream_ptr, index, num_rows, padded, PER_ROW)
    return weight * tl.exp2(own_exponent - exponent)


@triton.jit
def over_total(stats_ptr, weight, index, padded):
    """Weights of stacked rows over their sums of exponentials."""
    total = tl.load(stats_ptr + TOTAL * 2 * padded + index)
    # Padding has summed nothing.
    return weight / tl.where(total == 0, 1.0, total)


@triton.jit
def common_gain(upstream_ptr, rate, exponent, count, PER_ROW: tl.constexpr):
    """What all rows' gradients have in common, 2^e log(2) rate / count and an upstream gradient of all, in float64."""
    gain = tl.exp2(exponent.to(tl.float64)) * rate.to(tl.float64) * tl.full((), LN2, tl.float64) / count
    if not PER_ROW:
        gain = gain * tl.load(upstream_ptr).to(tl.float64)
    return gain


@triton.jit
def slope_share(
    stats_ptr, upstream_ptr, exponent, gain, start, num_rows, padded, ROWS: tl.constexpr, PER_ROW: tl.constexpr
):
    """The share of ROWS stacked rows in the temperature's gradient, -(1/τ) Σ_i v_i (Σ_j P_ij s_ij - s_i,p(i))."""
    index = start + tl.arange(0, ROWS)
    inside = index < 2 * padded
    index = tl.minimum(index, 2 * padded - 1)
    weight = relative_weights(stats_ptr, upstream_ptr, exponent, index, num_rows, padded, PER_ROW)
    moment = tl.load(stats_ptr + MOMENT * 2 * padded + index)
    return -gain * tl.sum(tl.where(inside, weight.to(tl.float64) * moment, 0.0), 0)


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
    """Write what the gradient needs of every row's weight.

    That is weight over total (0 for padding), the two weights of each pair added, what is common to all rows, and with
    SLOPE this program's share of the temperature's gradient. ``count`` divides upstream.
    """
    exponent = common_exponent(stats_ptr, upstream_ptr, num_rows, padded, SWEEP, PER_ROW, INFO)
    first = tl.program_id(0) * ROWS
    index = first + tl.arange(0, ROWS)
    inside = index < padded
    index = tl.minimum(index, padded - 1)
    x_weight = relative_weights(stats_ptr, upstream_ptr, exponent, index, num_rows, padded, PER_ROW)
    y_weight = relative_weights(stats_ptr, upstream_ptr, exponent, padded + index, num_rows, padded, PER_ROW)
    tl.store(coefficient_ptr + index, over_total(stats_ptr, x_weight, index, padded), mask=inside)
    y_coefficient = over_total(stats_ptr, y_weight, padded + index, padded)
    tl.store(coefficient_ptr + padded + index, y_coefficient, mask=inside)
    tl.store(pull_ptr + index, x_weight + y_weight, mask=inside)
    gain = common_gain(upstream_ptr, tl.load(rate_ptr), exponent, count, PER_ROW)
    if tl.program_id(0) == 0:
        tl.store(gain_ptr, gain)
    if SLOPE:
        share = slope_share(stats_ptr, upstream_ptr, exponent, gain, 2 * first, num_rows, padded, 2 * ROWS, PER_ROW)
        tl.store(slope_ptr + tl.program_id(0), share)
