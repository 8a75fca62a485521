"""The first kernel of a small batch: all dot products of raw rows, and what there is to know of each row."""

from __future__ import annotations

import triton
import triton.language as tl

from .pack import load_entries, read_rate, rescaled, scale_of, stacked_rows, sweep_pairs
from .small_kept import store_products
from .tiles import add_products, no_products, tile_at, whole_products
from .weights import round_to_tf32


@triton.jit
def raw_products(
    a_rows,
    a_live,
    a_stride,
    a_scale,
    b_rows,
    b_live,
    b_stride,
    b_scale,
    width,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    RESCALE: tl.constexpr,
    MEASURE: tl.constexpr,
):
    """The dot products of some rows with others, each rescaled; with MEASURE also the rows' largest entries' sizes."""
    offsets = tl.arange(0, DEPTH)
    total = no_products(BLOCK, BLOCK, DEPTH, PRECISION)
    a_largest = tl.zeros((BLOCK,), tl.float32)
    b_largest = tl.zeros((BLOCK,), tl.float32)
    # Named here, stages serve the loads of float64 products too, which no tensor core waits for.
    for start in tl.range(0, width, DEPTH, num_stages=STAGES):
        a = rescaled(load_entries(a_rows, start + offsets, a_live, width, a_stride), a_scale, RESCALE)
        b = rescaled(load_entries(b_rows, start + offsets, b_live, width, b_stride), b_scale, RESCALE)
        if MEASURE:
            a_largest = tl.maximum(a_largest, tl.max(tl.abs(a.to(tl.float32)), 1))
            b_largest = tl.maximum(b_largest, tl.max(tl.abs(b.to(tl.float32)), 1))
        if PRECISION == "tf32" and a.dtype == tl.float32:
            # As the gradient rounds them: its radial part is taken from these products.
            a = round_to_tf32(a)
            b = round_to_tf32(b)
        total = add_products(total, a, b, PRECISION)
    return whole_products(total, PRECISION), a_largest, b_largest


@triton.jit
def small_products(
    x_ptr,
    y_ptr,
    tau_ptr,
    rate,
    products_ptr,
    stats_ptr,
    positive_ptr,
    num_rows,
    padded,
    width,
    num_columns,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    tiles,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_DEPTH: tl.constexpr,
    CROSS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PARTS: tl.constexpr,
    RESCALE: tl.constexpr,
    TENSOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The first programs find norms and positives as packing does, each of the others one tile of products.

    A row of ``products`` holds its products with all stacked rows or, with CROSS, with those of the other side; a tile
    is written a second time as its mirror. Padding has products of 0. Rows are taken for ordinary ones, and a tile in
    which any is far from 1 is computed a second time, rescaled.
    """
    row_programs = padded // ROWS
    program = tl.program_id(0)
    if program < row_programs:
        sweep_pairs(
            program,
            x_ptr,
            y_ptr,
            read_rate(tau_ptr, rate, TENSOR),
            products_ptr,
            stats_ptr,
            positive_ptr,
            num_rows,
            padded,
            width,
            width,
            stride_xr,
            stride_xc,
            stride_yr,
            stride_yc,
            ROWS,
            ROW_DEPTH,
            NORMALIZE,
            RESCALE,
            True,
            False,
        )
    else:
        a, b = tile_at(program - row_programs, tiles, tiles, not CROSS, GROUP)
        first_a = a * BLOCK
        first_b = b * BLOCK
        if CROSS:
            first_b += padded
        a_rows, a_live, a_stride = stacked_rows(
            x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first_a, num_rows, padded, BLOCK
        )
        b_rows, b_live, b_stride = stacked_rows(
            x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first_b, num_rows, padded, BLOCK
        )
        one = tl.full((BLOCK,), 1.0, tl.float32)
        product, a_largest, b_largest = raw_products(
            a_rows,
            a_live,
            a_stride,
            one,
            b_rows,
            b_live,
            b_stride,
            one,
            width,
            BLOCK,
            DEPTH,
            STAGES,
            PRECISION,
            False,
            RESCALE,
        )
        if RESCALE:
            a_scale, b_scale = scale_of(a_largest), scale_of(b_largest)
            if PRECISION == "double":
                # No product of float32 numbers leaves float64's range.
                product = product * a_scale.to(tl.float64)[:, None] * b_scale.to(tl.float64)[None, :]
            else:
                far = tl.max((a_scale != 1.0).to(tl.int32), 0) + tl.max((b_scale != 1.0).to(tl.int32), 0)
                if far > 0:
                    product, _, _ = raw_products(
                        a_rows,
                        a_live,
                        a_stride,
                        a_scale,
                        b_rows,
                        b_live,
                        b_stride,
                        b_scale,
                        width,
                        BLOCK,
                        DEPTH,
                        STAGES,
                        PRECISION,
                        True,
                        False,
                    )
        index = tl.arange(0, BLOCK)
        offsets = index[:, None] * num_columns + index[None, :]
        plane = 2 * padded * num_columns
        store_products(products_ptr, plane, first_a * num_columns + b * BLOCK + offsets, product, PARTS)
        if CROSS or a != b:
            store_products(products_ptr, plane, first_b * num_columns + a * BLOCK + offsets, product.T, PARTS)
