"""Per-row quantities of the raw embeddings: powers of two, inverse norms, the positives' logits."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_rows

# Squares and products of entries within 2^±30 are far from float32's ends, whatever the width.
ORDINARY = tl.constexpr(30)


@triton.jit
def row_norms(
    rows_ptr,
    scale_ptr,
    inverse_ptr,
    residue_ptr,
    num_rows,
    padded_rows,
    width,
    stride_r,
    stride_c,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    RESCALE: tl.constexpr,
):
    """The exact power of two a row is multiplied by (1 for ordinary rows), and 1/|row| after it, in two float32 parts.

    A row of zeros has inverse 0, which makes its cosines and its gradient 0; so have the rows that pad the vector.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = index < num_rows
    rows = rows_ptr + tl.minimum(index, num_rows - 1).to(tl.int64) * stride_r
    offsets = tl.arange(0, DEPTH)
    scale = tl.full((BLOCK,), 1.0, tl.float32)
    if RESCALE:
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, DEPTH):
            entries = load_rows(rows, start + offsets, width, stride_c, False).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(entries), 1))
        # Subnormal numbers have exponent field 0, one more than they deserve; 2^126 is the largest power used anyway.
        exponent = ((largest.to(tl.int32, bitcast=True) >> 23) & 255) - 127
        exponent = tl.minimum(tl.maximum(exponent, -126), 126)
        far = (tl.abs(exponent) > ORDINARY) & (largest > 0)
        scale = tl.where(far, ((127 - exponent) << 23).to(tl.float32, bitcast=True), scale)
    square = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, width, DEPTH):
        entries = load_rows(rows, start + offsets, width, stride_c, False).to(tl.float32) * scale[:, None]
        entries = entries.to(tl.float64)
        square += tl.sum(entries * entries, 1)
    exact = tl.where(live & (square != 0), 1.0 / tl.sqrt(square), 0.0)
    inverse = exact.to(tl.float32)
    tl.store(scale_ptr + index, scale, mask=index < padded_rows)
    tl.store(inverse_ptr + index, inverse, mask=index < padded_rows)
    tl.store(residue_ptr + index, (exact - inverse).to(tl.float32), mask=index < padded_rows)


@triton.jit
def positive_logits(
    x_ptr,
    y_ptr,
    x_inverse,
    y_inverse,
    x_residue,
    y_residue,
    x_scale,
    y_scale,
    rate_ptr,
    positive_ptr,
    num_rows,
    width,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Each pair's logit in units of log 2, less its ceiling, all in float64."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = index < num_rows
    row = tl.minimum(index, num_rows - 1).to(tl.int64)
    offsets = tl.arange(0, DEPTH)
    dot = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, width, DEPTH):
        x = load_rows(x_ptr + row * stride_xr, start + offsets, width, stride_xc, False).to(tl.float64)
        y = load_rows(y_ptr + row * stride_yr, start + offsets, width, stride_yc, False).to(tl.float64)
        dot += tl.sum(x * y, 1)
    rate = tl.load(rate_ptr).to(tl.float64)
    if NORMALIZE:
        x_factor = tl.load(x_inverse + index).to(tl.float64) + tl.load(x_residue + index).to(tl.float64)
        y_factor = tl.load(y_inverse + index).to(tl.float64) + tl.load(y_residue + index).to(tl.float64)
        x_factor *= tl.load(x_scale + index).to(tl.float64)
        y_factor *= tl.load(y_scale + index).to(tl.float64)
        dot = dot * x_factor * y_factor - 1.0
    tl.store(positive_ptr + index, dot * rate, mask=live)
