"""The first pass over the embeddings: norms, the positives' logits, both sides packed as one matrix."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from . import stats

PEAK, TOTAL, MOMENT = tl.constexpr(stats.PEAK), tl.constexpr(stats.TOTAL), tl.constexpr(stats.MOMENT)
INVERSE, SCALE = tl.constexpr(stats.INVERSE), tl.constexpr(stats.SCALE)
FACTOR, RESIDUE = tl.constexpr(stats.FACTOR), tl.constexpr(stats.RESIDUE)
LOWEST = tl.constexpr(stats.LOWEST)
LOG2_E = tl.constexpr(1 / math.log(2))
# Squares and products of entries within 2^±30 are far from float32's ends, whatever the width.
ORDINARY = tl.constexpr(30)


@triton.jit
def read_rate(tau_ptr, rate, TENSOR: tl.constexpr):
    """log2(e)/τ in float32; TENSOR: τ lies on the device."""
    if TENSOR:
        # A value that cannot be read on the host cannot be refused there: it shows as NaN.
        tau = tl.load(tau_ptr).to(tl.float64)
        exact = tl.full((), LOG2_E, tl.float64) / tau
        chosen = tl.where(tau > 0, exact, float("nan")).to(tl.float32)
    else:
        chosen = tl.full((), rate, tl.float32)
    return chosen


@triton.jit
def load_entries(rows, columns, live, width, stride):
    """Columns of some rows, zero outside."""
    mask = live[:, None] & (columns < width)[None, :]
    return tl.load(rows[:, None] + columns.to(tl.int64)[None, :] * stride, mask=mask, other=0.0)


@triton.jit
def stacked_rows(x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first, num_rows, padded, ROWS: tl.constexpr):
    """Where ROWS stacked rows from ``first`` on lie, all of one side: pointers, which are no padding, column stride."""
    of_y = first >= padded
    position = tl.where(of_y, first - padded, first) + tl.arange(0, ROWS)
    inside = tl.minimum(position, num_rows - 1).to(tl.int64)
    rows = tl.where(of_y, y_ptr + inside * stride_yr, x_ptr + inside * stride_xr)
    return rows, position < num_rows, tl.where(of_y, stride_yc, stride_xc)


@triton.jit
def rescaled(entries, scale, RESCALE: tl.constexpr):
    """Entries of rows times their rows' powers of two, exactly."""
    if RESCALE:
        entries = (entries.to(tl.float32) * scale[:, None]).to(entries.dtype)
    return entries


@triton.jit
def binary_exponent(value):
    """The exponent of a float32's leading bit, within those of normal numbers whose inverse is normal too."""
    # Subnormal numbers have exponent field 0, one more than they deserve.
    exponent = ((value.to(tl.int32, bitcast=True) >> 23) & 255) - 127
    return tl.minimum(tl.maximum(exponent, -126), 126)


@triton.jit
def power_of_two(exponent):
    """2^exponent in float32, of a normal number's exponent."""
    return ((127 + exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_of(largest):
    """The exact power of two a row is multiplied by, from its largest entry's size: 1 for ordinary rows."""
    exponent = binary_exponent(largest)
    far = (tl.abs(exponent) > ORDINARY) & (largest > 0)
    return tl.where(far, power_of_two(-exponent), 1.0)


@triton.jit
def row_scale(rows, live, width, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """:func:`scale_of` some rows."""
    offsets = tl.arange(0, DEPTH)
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, DEPTH):
        entries = load_entries(rows, start + offsets, live, width, stride).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(entries), 1))
    return scale_of(largest)


@triton.jit
def inverse_norm(square):
    """1/|row|, and 0 for a row of zeros, which makes its cosines and its gradient 0."""
    return tl.where(square != 0, 1.0 / tl.sqrt(square), 0.0)


@triton.jit
def store_side(stats_ptr, plane, index, scale, inverse, rate, NORMALIZE: tl.constexpr):
    """A side's statistics before any logit is seen; what a cosine's logit takes of the row in two float32 parts."""
    tl.store(stats_ptr + PEAK * plane + index, tl.zeros_like(scale) + LOWEST)
    tl.store(stats_ptr + TOTAL * plane + index, tl.zeros_like(scale))
    tl.store(stats_ptr + MOMENT * plane + index, tl.zeros_like(scale))
    exact = tl.zeros_like(inverse)
    if NORMALIZE:
        exact = tl.sqrt(rate) * inverse
    factor = exact.to(tl.float32)
    tl.store(stats_ptr + SCALE * plane + index, scale)
    tl.store(stats_ptr + INVERSE * plane + index, inverse.to(tl.float32))
    tl.store(stats_ptr + FACTOR * plane + index, factor)
    tl.store(stats_ptr + RESIDUE * plane + index, (exact - factor).to(tl.float32))


@triton.jit
def sweep_pairs(
    program,
    x_ptr,
    y_ptr,
    rate,
    packed_ptr,
    stats_ptr,
    positive_ptr,
    num_rows,
    padded,
    width,
    pitch,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    FRESH: tl.constexpr,
    PACK: tl.constexpr,
):
    """One pass over the ``program``-th ROWS pairs.

    FRESH: fill the statistics and the positives' logits, in units of log 2, in float64. Otherwise the powers of two
    are those that a fresh pass left. PACK: copy the rows into the packed matrix, rescaled, with zeros for padding.
    """
    index = program * ROWS + tl.arange(0, ROWS)
    live = index < num_rows
    position = tl.minimum(index, num_rows - 1).to(tl.int64)
    x_rows = x_ptr + position * stride_xr
    y_rows = y_ptr + position * stride_yr
    plane = 2 * padded
    x_scale = tl.full((ROWS,), 1.0, tl.float32)
    y_scale = tl.full((ROWS,), 1.0, tl.float32)
    if RESCALE:
        if FRESH:
            x_scale = row_scale(x_rows, live, width, stride_xc, ROWS, DEPTH)
            y_scale = row_scale(y_rows, live, width, stride_yc, ROWS, DEPTH)
        else:
            x_scale = tl.load(stats_ptr + SCALE * plane + index)
            y_scale = tl.load(stats_ptr + SCALE * plane + padded + index)
    x_square = tl.zeros((ROWS,), tl.float64)
    y_square = tl.zeros((ROWS,), tl.float64)
    dot = tl.zeros((ROWS,), tl.float64)
    offsets = tl.arange(0, DEPTH)
    for start in range(0, pitch, DEPTH):
        columns = start + offsets
        x = rescaled(load_entries(x_rows, columns, live, width, stride_xc), x_scale, RESCALE)
        y = rescaled(load_entries(y_rows, columns, live, width, stride_yc), y_scale, RESCALE)
        if PACK:
            x_target = packed_ptr + index.to(tl.int64)[:, None] * pitch
            y_target = packed_ptr + (index + padded).to(tl.int64)[:, None] * pitch
            tl.store(x_target + columns[None, :], x, mask=(columns < pitch)[None, :])
            tl.store(y_target + columns[None, :], y, mask=(columns < pitch)[None, :])
        if FRESH:
            x_wide = x.to(tl.float64)
            y_wide = y.to(tl.float64)
            dot += tl.sum(x_wide * y_wide, 1)
            if NORMALIZE:
                x_square += tl.sum(x_wide * x_wide, 1)
                y_square += tl.sum(y_wide * y_wide, 1)
    if FRESH:
        x_inverse = inverse_norm(x_square)
        y_inverse = inverse_norm(y_square)
        if NORMALIZE:
            dot = dot * x_inverse * y_inverse
        wide_rate = rate.to(tl.float64)
        tl.store(positive_ptr + index, dot * wide_rate)
        store_side(stats_ptr, plane, index, x_scale, x_inverse, wide_rate, NORMALIZE)
        store_side(stats_ptr, plane, padded + index, y_scale, y_inverse, wide_rate, NORMALIZE)


@triton.jit
def pack_rows(
    x_ptr,
    y_ptr,
    tau_ptr,
    rate,
    packed_ptr,
    rate_ptr,
    stats_ptr,
    positive_ptr,
    num_rows,
    padded,
    width,
    pitch,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    TENSOR: tl.constexpr,
    FRESH: tl.constexpr,
):
    """Pack both sides' rows, with FRESH after finding what there is to know of them; and write log2(e)/τ."""
    chosen = read_rate(tau_ptr, rate, TENSOR)
    if tl.program_id(0) == 0:
        tl.store(rate_ptr, chosen)
    sweep_pairs(
        tl.program_id(0),
        x_ptr,
        y_ptr,
        chosen,
        packed_ptr,
        stats_ptr,
        positive_ptr,
        num_rows,
        padded,
        width,
        pitch,
        stride_xr,
        stride_xc,
        stride_yr,
        stride_yc,
        ROWS,
        DEPTH,
        NORMALIZE,
        RESCALE,
        FRESH,
        True,
    )
