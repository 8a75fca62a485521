"""What every block kernel begins with: the order tiles are visited in, and one tile of a product of packed rows."""

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
def tile_product(
    packed,
    columns,
    pitch,
    first_a,
    first_b,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The dot products of BLOCK_A packed rows from ``first_a`` on with BLOCK_B from ``first_b`` on.

    They are float64 for "double". ``packed`` and ``columns`` are descriptors of the packed rows in tiles of
    BLOCK_A x DEPTH and of BLOCK_B x DEPTH: on Hopper they are copied without passing through registers.

    In float32 every DEPTH columns are summed apart first: tensor cores round each addition of a chain towards zero.
    """
    if PRECISION == "double":
        # Term by term: float64 products of tiles do not compile for every device.
        terms = tl.zeros((BLOCK_A, BLOCK_B, DEPTH), tl.float64)
        for start in range(0, pitch, DEPTH):
            a = packed.load([first_a, start]).to(tl.float64)
            b = columns.load([first_b, start]).to(tl.float64)
            terms += a[:, None, :] * b[None, :, :]
        product = tl.sum(terms, 2)
    else:
        product = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
        for start in range(0, pitch, DEPTH):
            part = tl.dot(packed.load([first_a, start]), columns.load([first_b, start]).T, input_precision=PRECISION)
            # Written as a sum, the compiler would fold it into one long chain.
            product = tl.fma(part, 1.0, product)
    return product


@triton.jit
def product_halves(
    packed,
    columns,
    pitch,
    first_a,
    first_b,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Two tiles side by side, BLOCK_B columns each, for which the rows are loaded once."""
    left = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    right = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    for start in range(0, pitch, DEPTH):
        rows = packed.load([first_a, start])
        part = tl.dot(rows, columns.load([first_b, start]).T, input_precision=PRECISION)
        left = tl.fma(part, 1.0, left)
        part = tl.dot(rows, columns.load([first_b + BLOCK_B, start]).T, input_precision=PRECISION)
        right = tl.fma(part, 1.0, right)
    return left, right


@triton.jit
def needs_mask(first_a, first_b, num_rows, padded, BLOCK: tl.constexpr):
    """Positions within their sides of a tile's first rows, and whether any of its pairs is left out."""
    position_a = tl.where(first_a >= padded, first_a - padded, first_a)
    position_b = tl.where(first_b >= padded, first_b - padded, first_b)
    edge = (position_a + BLOCK > num_rows) | (position_b + BLOCK > num_rows)
    return position_a, position_b, edge | (position_a == position_b)


@triton.jit
def kept_pairs(position_a, position_b, num_rows, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr):
    """The pairs of two positions that differ, neither of them padding."""
    a = position_a + tl.arange(0, BLOCK_A)
    b = position_b + tl.arange(0, BLOCK_B)
    return (a[:, None] != b[None, :]) & (a < num_rows)[:, None] & (b < num_rows)[None, :]
