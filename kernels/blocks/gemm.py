"""Products of a block of weights with the rows it weighs, added to a float32 gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import tile_at


@triton.jit
def weigh(
    weights_ptr,
    rows_ptr,
    scale_ptr,
    columns,
    num_rows,
    width,
    pitch,
    stride_r,
    stride_c,
    index,
    BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SCALED: tl.constexpr,
    PROMOTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum over rows of W[index, row] row[columns], or with TRANSPOSED of W[row, index] row[columns]."""
    total = tl.zeros((index.shape[0], BLOCK_N), tl.float32)
    steps = tl.arange(0, DEPTH)
    for start in range(0, num_rows, DEPTH):
        inner = start + steps
        if TRANSPOSED:
            weight = tl.load(weights_ptr + inner.to(tl.int64)[:, None] * pitch + index[None, :]).T
        else:
            weight = tl.load(weights_ptr + index.to(tl.int64)[:, None] * pitch + inner[None, :])
        # Past the end the weights are 0 and a finite row must stand beside them: the last one, again.
        kept = tl.minimum(inner, num_rows - 1)
        pointers = rows_ptr + kept.to(tl.int64)[:, None] * stride_r + columns.to(tl.int64)[None, :] * stride_c
        rows = tl.load(pointers) if EVEN else tl.load(pointers, mask=(columns < width)[None, :], other=0.0)
        if SCALED:
            rows = (rows.to(tl.float32) * tl.load(scale_ptr + inner)[:, None]).to(rows.dtype)
        rows = rows.to(weight.dtype)
        if PROMOTE:
            total = tl.fma(tl.dot(weight, rows, input_precision=PRECISION), 1.0, total)
        else:
            total = tl.dot(weight, rows, total, input_precision=PRECISION)
    return total


@triton.jit
def add_weighed(
    weights_ptr,
    rows_ptr,
    scale_ptr,
    rescaled_ptr,
    out_ptr,
    num_out,
    num_rows,
    width,
    pitch,
    stride_r,
    stride_c,
    out_pitch,
    tiles_m,
    tiles_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    RESCALE: tl.constexpr,
    PROMOTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out += W rows (or W^T rows), a float32 accumulator tile that this program alone touches."""
    m, n = tile_at(tl.program_id(0), tiles_m, tiles_n, False, GROUP)
    index = m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    if RESCALE:
        if tl.load(rescaled_ptr) != 0:
            total = weigh(
                weights_ptr,
                rows_ptr,
                scale_ptr,
                columns,
                num_rows,
                width,
                pitch,
                stride_r,
                stride_c,
                index,
                BLOCK_N,
                DEPTH,
                EVEN,
                TRANSPOSED,
                True,
                PROMOTE,
                PRECISION,
            )
        else:
            total = weigh(
                weights_ptr,
                rows_ptr,
                scale_ptr,
                columns,
                num_rows,
                width,
                pitch,
                stride_r,
                stride_c,
                index,
                BLOCK_N,
                DEPTH,
                EVEN,
                TRANSPOSED,
                False,
                PROMOTE,
                PRECISION,
            )
    else:
        total = weigh(
            weights_ptr,
            rows_ptr,
            scale_ptr,
            columns,
            num_rows,
            width,
            pitch,
            stride_r,
            stride_c,
            index,
            BLOCK_N,
            DEPTH,
            EVEN,
            TRANSPOSED,
            False,
            PROMOTE,
            PRECISION,
        )
    target = out_ptr + index.to(tl.int64)[:, None] * out_pitch + columns[None, :]
    mask = (index < num_out)[:, None] & (columns < width)[None, :]
    tl.store(target, tl.load(target, mask=mask, other=0.0) + total, mask=mask)
