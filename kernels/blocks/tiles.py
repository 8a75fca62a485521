"""What every block kernel begins with: the order tiles are visited in, and one tile of a product of raw rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_at(program, tiles_m, tiles_n, TRIANGLE: tl.constexpr, GROUP: tl.constexpr):
    """The tile (a, b) a program computes.

    The whole ``tiles_m x tiles_n`` rectangle, or with TRIANGLE the tiles a <= b of a square, folded without a gap onto
    a rectangle half as high: row i of the fold holds row i of the triangle and, in what is left, row T - 1 - i
    (T - i when T is odd). Either way GROUP rows of the rectangle are swept together so that their operands meet in L2.
    """
    if TRIANGLE:
        odd = tiles_m % 2
        height = (tiles_m + 1) // 2
        width = tiles_m + 1 - odd
    else:
        odd = 0
        height = tiles_m
        width = tiles_n
    group = program // (GROUP * width)
    first = group * GROUP
    size = tl.minimum(height - first, GROUP)
    rest = program - group * GROUP * width
    i = first + rest % size
    j = rest // size
    if TRIANGLE:
        upper = j >= i + 1 - odd
        a = tl.where(upper, i, tiles_m - 1 - i + odd)
        b = tl.where(upper, j - 1 + odd, tiles_m - 1 - j)
    else:
        a = i
        b = j
    return a, b


@triton.jit
def load_rows(rows_ptr, columns, width, stride, EVEN: tl.constexpr):
    """Columns of some rows, zero past the rows' end."""
    pointers = rows_ptr[:, None] + columns.to(tl.int64)[None, :] * stride
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=(columns < width)[None, :], other=0.0)


@triton.jit
def sum_products(
    rows_a,
    rows_b,
    scale_a,
    scale_b,
    width,
    stride_a,
    stride_b,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    SCALED: tl.constexpr,
    PROMOTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sum over columns of the products of two sets of rows, DEPTH columns at a time, in float32.

    PROMOTE: every DEPTH columns are summed apart first, which keeps long chains of float32 additions short.
    """
    product = tl.zeros((rows_a.shape[0], rows_b.shape[0]), tl.float32)
    offsets = tl.arange(0, DEPTH)
    for start in range(0, width, DEPTH):
        a = load_rows(rows_a, start + offsets, width, stride_a, EVEN)
        b = load_rows(rows_b, start + offsets, width, stride_b, EVEN)
        if SCALED:
            a = (a.to(tl.float32) * scale_a[:, None]).to(a.dtype)
            b = (b.to(tl.float32) * scale_b[:, None]).to(b.dtype)
        if PROMOTE:
            # Written as a sum, the compiler would fold it into one long chain.
            product = tl.fma(tl.dot(a, b.T, input_precision=PRECISION), 1.0, product)
        else:
            product = tl.dot(a, b.T, product, input_precision=PRECISION)
    return product


@triton.jit
def tile_product(
    a_ptr,
    b_ptr,
    scale_a_ptr,
    scale_b_ptr,
    rescaled_ptr,
    index_a,
    index_b,
    num_a,
    num_b,
    width,
    stride_ar,
    stride_ac,
    stride_br,
    stride_bc,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    RESCALE: tl.constexpr,
    PROMOTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The float32 dot products of raw rows of a with raw rows of b; an index past the end stands for the last row.

    RESCALE: when some row of the call lies far from 1 (a flag on the device), rows are multiplied by their powers of
    two on the way. That takes the operands through registers, so the usual case keeps a loop of its own.
    """
    rows_a = a_ptr + tl.minimum(index_a, num_a - 1).to(tl.int64) * stride_ar
    rows_b = b_ptr + tl.minimum(index_b, num_b - 1).to(tl.int64) * stride_br
    if RESCALE:
        scale_a = tl.load(scale_a_ptr + index_a)
        scale_b = tl.load(scale_b_ptr + index_b)
        if tl.load(rescaled_ptr) != 0:
            product = sum_products(
                rows_a, rows_b, scale_a, scale_b, width, stride_ac, stride_bc, DEPTH, EVEN, True, PROMOTE, PRECISION
            )
        else:
            product = sum_products(
                rows_a, rows_b, 1.0, 1.0, width, stride_ac, stride_bc, DEPTH, EVEN, False, PROMOTE, PRECISION
            )
    else:
        product = sum_products(
            rows_a, rows_b, 1.0, 1.0, width, stride_ac, stride_bc, DEPTH, EVEN, False, PROMOTE, PRECISION
        )
    return product
