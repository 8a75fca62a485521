"""What block kernels begin with: the order tiles are visited in, a tile of products, the pairs that count."""

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
def no_products(BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """What products of BLOCK_A rows with BLOCK_B rows, DEPTH columns at a time, are added to."""
    if PRECISION == "double":
        # Term by term: float64 products of tiles do not compile for every device.
        total = tl.zeros((BLOCK_A, BLOCK_B, DEPTH), tl.float64)
    else:
        total = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    return total


@triton.jit
def add_products(total, a, b, PRECISION: tl.constexpr):
    """Add the products of some columns, which are summed apart: tensor cores round a chain's sums towards zero."""
    if PRECISION == "double":
        total += a.to(tl.float64)[:, None, :] * b.to(tl.float64)[None, :, :]
    else:
        # Written as a sum, the compiler would fold it into one long chain.
        total = tl.fma(tl.dot(a, b.T, input_precision=PRECISION), 1.0, total)
    return total


@triton.jit
def whole_products(total, PRECISION: tl.constexpr):
    """The dot products, float64 for "double", once all columns were added."""
    if PRECISION == "double":
        total = tl.sum(total, 2)
    return total


@triton.jit
def tile_products(
    packed,
    columns,
    pitch,
    first_a,
    first_b,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The dot products of BLOCK_A packed rows from ``first_a`` on with BLOCK_B from ``first_b`` on.

    With PARTS = 2 also with the BLOCK_B rows after those, for which the former are loaded once; else zeros.
    ``packed`` and ``columns`` are descriptors of the packed rows in tiles of BLOCK_A x DEPTH and of BLOCK_B x DEPTH:
    on Hopper they are copied without passing through registers.
    """
    left = no_products(BLOCK_A, BLOCK_B, DEPTH, PRECISION)
    right = left
    for start in range(0, pitch, DEPTH):
        rows = packed.load([first_a, start])
        left = add_products(left, rows, columns.load([first_b, start]), PRECISION)
        if PARTS == 2:
            right = add_products(right, rows, columns.load([first_b + BLOCK_B, start]), PRECISION)
    return whole_products(left, PRECISION), whole_products(right, PRECISION)


@triton.jit
def begin_parts(
    packed,
    halved,
    pitch,
    first_a,
    first_b,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    HALVES: tl.constexpr,
):
    """The products of both halves of a tile where one loop forms them; else nothing yet."""
    begun = None
    if HALVES == "together":
        begun = tile_products(packed, halved, pitch, first_a, first_b, BLOCK, BLOCK // 2, DEPTH, PRECISION, 2)
    return begun


@triton.jit
def needs_mask(first_a, first_b, num_rows, padded, BLOCK: tl.constexpr):
    """Positions within their sides of a tile's first rows, and whether any of its pairs is left out."""
    position_a = tl.where(first_a >= padded, first_a - padded, first_a)
    position_b = tl.where(first_b >= padded, first_b - padded, first_b)
    edge = (position_a + BLOCK > num_rows) | (position_b + BLOCK > num_rows)
    return position_a, position_b, edge | (position_a == position_b)


@triton.jit
def kept_pairs(positions_a, positions_b, num_rows):
    """The pairs of two positions that differ, neither of them padding."""
    differ = positions_a[:, None] != positions_b[None, :]
    return differ & (positions_a < num_rows)[:, None] & (positions_b < num_rows)[None, :]
