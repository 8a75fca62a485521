"""The first pass over the embeddings: norms, the positives' similarities, all sides packed as one matrix."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from . import stack

SCALE, INVERSE, REST = tl.constexpr(stack.SCALE), tl.constexpr(stack.INVERSE), tl.constexpr(stack.REST)
FACTOR, RESIDUE = tl.constexpr(stack.FACTOR), tl.constexpr(stack.RESIDUE)
RATE, LIMIT = tl.constexpr(stack.RATE), tl.constexpr(stack.LIMIT)
PEAK, TOTAL, MOMENT = tl.constexpr(stack.PEAK), tl.constexpr(stack.TOTAL), tl.constexpr(stack.MOMENT)
LOWEST, HIGHEST = tl.constexpr(stack.LOWEST), tl.constexpr(stack.HIGHEST)
LOG2_E = tl.constexpr(1 / math.log(2))
# Squares and products of entries within 2^±30 are far from float32's ends, whatever the width.
ORDINARY = tl.constexpr(30)


@triton.jit
def read_rates(tau_ptr, tau_stride, rate, first, live, ROWS: tl.constexpr, TAU: tl.constexpr):
    """log2(e)/τ of some anchors in float32, τ a "number", or on the device: a "scalar" or one for each of the "rows".

    A value that cannot be read on the host cannot be refused there: it shows as NaN.
    """
    if TAU == "number":
        rates = tl.full((ROWS,), rate, tl.float32)
    else:
        if TAU == "scalar":
            tau = tl.zeros((ROWS,), tl.float64) + tl.load(tau_ptr).to(tl.float64)
        else:
            index = first + tl.arange(0, ROWS)
            tau = tl.load(tau_ptr + index.to(tl.int64) * tau_stride, mask=live, other=1.0).to(tl.float64)
        rates = tl.where(tau > 0, tl.full((), LOG2_E, tl.float64) / tau, float("nan")).to(tl.float32)
    return rates


@triton.jit
def load_entries(rows, columns, live, width, stride):
    """Columns of some rows, zero outside."""
    mask = live[:, None] & (columns < width)[None, :]
    return tl.load(rows[:, None] + columns.to(tl.int64)[None, :] * stride, mask=mask, other=0.0)


@triton.jit
def stacked_rows(
    x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first, num_pairs, padded, ROWS: tl.constexpr
):
    """Where ROWS stacked rows from ``first`` on lie, all of one side: pointers, which are no padding, column stride."""
    of_y = first >= padded
    position = tl.where(of_y, first - padded, first) + tl.arange(0, ROWS)
    inside = tl.minimum(position, num_pairs - 1).to(tl.int64)
    rows = tl.where(of_y, y_ptr + inside * stride_yr, x_ptr + inside * stride_xr)
    return rows, position < num_pairs, tl.where(of_y, stride_yc, stride_xc)


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
def store_row(
    stats_ptr, plane, index, stored, scale, inverse, rate, limit, anchor, NORMALIZE: tl.constexpr, TAU: tl.constexpr
):
    """What is kept of rows before any logit is seen, where ``stored``; ``inverse`` and ``rate`` in float64.

    What a cosine's logit takes of the row is kept in two float32 parts. Rows that are no anchors have no temperature of
    their own.
    """
    zero = tl.zeros_like(scale)
    exact, whole = tl.zeros_like(inverse), inverse
    if TAU == "rows":
        rate = tl.where(anchor, rate, 0.0)
    if NORMALIZE:
        exact = inverse * (rate if TAU == "rows" else tl.sqrt(rate))
    else:
        whole = tl.zeros_like(inverse)
    factor, own = exact.to(tl.float32), whole.to(tl.float32)
    target = stats_ptr + index
    tl.store(target + SCALE * plane, scale, mask=stored)
    tl.store(target + INVERSE * plane, own, mask=stored)
    tl.store(target + REST * plane, (whole - own).to(tl.float32), mask=stored)
    tl.store(target + FACTOR * plane, factor, mask=stored)
    tl.store(target + RESIDUE * plane, (exact - factor).to(tl.float32), mask=stored)
    tl.store(target + RATE * plane, rate.to(tl.float32), mask=stored)
    tl.store(target + LIMIT * plane, zero + limit.to(tl.float32), mask=stored)
    tl.store(target + PEAK * plane, zero + tl.where(anchor, LOWEST, HIGHEST), mask=stored)
    tl.store(target + TOTAL * plane, zero, mask=stored)
    tl.store(target + MOMENT * plane, zero, mask=stored)


@triton.jit
def sweep_pairs(
    program,
    x_ptr,
    y_ptr,
    tau_ptr,
    tau_stride,
    rate,
    margin,
    packed_ptr,
    stats_ptr,
    similarity_ptr,
    num_pairs,
    padded,
    plane,
    width,
    pitch,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    y_anchors,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    TAU: tl.constexpr,
    FRESH: tl.constexpr,
    PACK: tl.constexpr,
):
    """One pass over the ``program``-th ROWS pairs.

    FRESH: fill what is kept of them, and the positives' similarities in float64. Otherwise the powers of two are those
    that a fresh pass left. PACK: copy the rows into the packed matrix, rescaled, with zeros for padding.
    """
    first = program * ROWS
    index = first + tl.arange(0, ROWS)
    live = index < num_pairs
    position = tl.minimum(index, num_pairs - 1).to(tl.int64)
    x_rows = x_ptr + position * stride_xr
    y_rows = y_ptr + position * stride_yr
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
            store_packed(packed_ptr, x, index, columns, pitch, index >= 0)
            store_packed(packed_ptr, y, padded + index, columns, pitch, index >= 0)
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
        tl.store(similarity_ptr + index, dot)
        x_rate = read_rates(tau_ptr, tau_stride, rate, first, live, ROWS, TAU).to(tl.float64)
        y_live = live & (y_anchors > 0)
        y_rate = read_rates(tau_ptr, tau_stride, rate, num_pairs + first, y_live, ROWS, TAU).to(tl.float64)
        limit = dot + margin
        everywhere = index >= 0
        store_row(
            stats_ptr, plane, index, everywhere, x_scale, x_inverse, x_rate, limit * x_rate, everywhere, NORMALIZE, TAU
        )
        store_row(
            stats_ptr, plane, padded + index, everywhere, y_scale, y_inverse, y_rate, limit * y_rate,
            everywhere & (y_anchors > 0), NORMALIZE, TAU,
        )  # fmt: skip


@triton.jit
def store_packed(packed_ptr, entries, index, columns, pitch, stored):
    """Some columns of rows, in the packed matrix."""
    target = packed_ptr + index.to(tl.int64)[:, None] * pitch + columns[None, :]
    tl.store(target, entries.to(packed_ptr.dtype.element_ty), mask=stored[:, None] & (columns < pitch)[None, :])


@triton.jit
def pack_pairs(
    x_ptr,
    y_ptr,
    tau_ptr,
    tau_stride,
    rate,
    margin,
    packed_ptr,
    stats_ptr,
    similarity_ptr,
    num_pairs,
    padded,
    plane,
    width,
    pitch,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    y_anchors,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    TAU: tl.constexpr,
    FRESH: tl.constexpr,
):
    """Pack the rows of x and y, with FRESH after finding what there is to know of them."""
    sweep_pairs(
        tl.program_id(0), x_ptr, y_ptr, tau_ptr, tau_stride, rate, margin, packed_ptr, stats_ptr, similarity_ptr,
        num_pairs, padded, plane, width, pitch, stride_xr, stride_xc, stride_yr, stride_yc, y_anchors,
        ROWS, DEPTH, NORMALIZE, RESCALE, TAU, FRESH, True,
    )  # fmt: skip


@triton.jit
def pack_candidates(
    rows_ptr,
    tau_ptr,
    rate,
    packed_ptr,
    stats_ptr,
    first,
    num_rows,
    num_stored,
    plane,
    width,
    pitch,
    stride_r,
    stride_c,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    TAU: tl.constexpr,
    FRESH: tl.constexpr,
):
    """Pack the rows of one candidate side at stacked row ``first``, and with them the padding up to ``num_stored``."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, stored = index < num_rows, index < num_stored
    rows = rows_ptr + tl.minimum(index, num_rows - 1).to(tl.int64) * stride_r
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if RESCALE:
        if FRESH:
            scale = row_scale(rows, live, width, stride_c, ROWS, DEPTH)
        else:
            scale = tl.load(stats_ptr + SCALE * plane + first + index, mask=stored, other=1.0)
    square = tl.zeros((ROWS,), tl.float64)
    offsets = tl.arange(0, DEPTH)
    for start in range(0, pitch, DEPTH):
        columns = start + offsets
        entries = rescaled(load_entries(rows, columns, live, width, stride_c), scale, RESCALE)
        store_packed(packed_ptr, entries, first + index, columns, pitch, stored)
        if FRESH:
            wide = entries.to(tl.float64)
            square += tl.sum(wide * wide, 1)
    if FRESH:
        shared = tl.zeros((ROWS,), tl.float32)
        if TAU != "rows":
            shared = read_rates(tau_ptr, 0, rate, 0, live, ROWS, TAU)
        shared = shared.to(tl.float64)
        store_row(
            stats_ptr, plane, first + index, stored, scale, inverse_norm(square), shared, shared * 0.0, index < 0,
            NORMALIZE, TAU,
        )  # fmt: skip
