"""A tile of rows against rows in the kernels: its products, logits, the pairs that count, and what is kept of them."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .plan import layout

INVERSE, FACTOR = tl.constexpr(layout.INVERSE), tl.constexpr(layout.FACTOR)
RATE, LIMIT = tl.constexpr(layout.RATE), tl.constexpr(layout.LIMIT)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# Up to this log2(e)/τ the logits of cosines lie within ±40, and 0 can be every row's peak.
COMMON_PEAK_RATE = tl.constexpr(40.0)
# Cosines kept in 16 bits are multiples of 1/32767.
STEPS = tl.constexpr(32767.0)
# Added to a smaller number, this leaves its nearest integer in the lowest bits, without a slow conversion.
SHIFT = tl.constexpr(1.5 * 2.0**23)
# Half a step changes an exponential by rate log(2) 2^-16 of itself. Up to this log2(e)/τ that is at most an eighth of
# the error of rounding the weight to bfloat16 (2^-8). Among equal cosines neither error averages out.
COARSEST_RATE = tl.constexpr(2.0**5 / math.log(2))


@triton.jit
def tile_at(program, tiles_m, tiles_n, TRIANGLE: tl.constexpr, GROUP: tl.constexpr):
    """The tile (a, b) that a program computes.

    Programs cover the whole ``tiles_m x tiles_n`` rectangle or, with TRIANGLE, the tiles a <= b of a square, folded
    without a gap onto a rectangle half as high: row i of the fold holds row i of the triangle and, in the space left,
    row T - 1 - i (T - i when T is odd). GROUP rows of the rectangle are swept together, so that they share L2.
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
    """The zero that products of BLOCK_A rows with BLOCK_B rows, DEPTH columns at a time, are added to."""
    if PRECISION == "double":
        # Term by term, because float64 products of tiles do not compile for every device.
        total = tl.zeros((BLOCK_A, BLOCK_B, DEPTH), tl.float64)
    else:
        total = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    return total


@triton.jit
def add_products(total, a, b, PRECISION: tl.constexpr):
    """Add the products of some columns, summed separately: tensor cores round the sums of a long chain towards zero."""
    if PRECISION == "double":
        total += a.to(tl.float64)[:, None, :] * b.to(tl.float64)[None, :, :]
    else:
        # The compiler would fold a plain sum into one long chain.
        total = tl.fma(tl.dot(a, b.T, input_precision=PRECISION), 1.0, total)
    return total


@triton.jit
def whole_products(total, PRECISION: tl.constexpr):
    """The dot products once all columns are added; float64 for "double"."""
    if PRECISION == "double":
        total = tl.sum(total, 2)
    return total


@triton.jit
def tile_products(packed, pitch, first_a, first_b, BLOCK: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """The dot products of BLOCK packed rows from ``first_a`` on with those from ``first_b`` on.

    ``packed`` is a descriptor of the packed rows in tiles of BLOCK x DEPTH, which Hopper copies without registers.
    """
    total = no_products(BLOCK, BLOCK, DEPTH, PRECISION)
    for start in range(0, pitch, DEPTH):
        total = add_products(total, packed.load([first_a, start]), packed.load([first_b, start]), PRECISION)
    return whole_products(total, PRECISION)


@triton.jit
def multiply_add(x, y, z):
    """x y + z, rounded once."""
    if INTERPRETED:
        # The interpreter's tl.fma rounds the product too.
        return (x.to(tl.float64) * y.to(tl.float64) + z).to(tl.float32)
    return tl.fma(x, y, z)


@triton.jit
def along(values, axis: tl.constexpr):
    """One number for each row (axis 1) or each column (axis 0), shaped to broadcast over a tile."""
    return values[:, None] if axis == 1 else values[None, :]


@triton.jit
def logits(
    product,
    stats_ptr,
    plane,
    index_a,
    index_b,
    axis: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PER_ROW: tl.constexpr,
):
    """Dot products as logits in units of log 2, of the anchors a (axis 1) or, with PER_ROW, of the columns b (axis 0).

    At small τ every rounding on the way to a cosine weighs 1/τ in the logit. So each row's factor comes in two parts,
    and the error of the first product is kept. What remains is one rounding of the logit, which is small where the
    logit is small, and no error at all for rows of zeros.
    """
    if NORMALIZE:
        row_factor = stats_ptr + FACTOR * plane + index_a
        column_factor = stats_ptr + FACTOR * plane + index_b
        if PER_ROW:
            if axis == 1:
                column_factor = stats_ptr + INVERSE * plane + index_b
            else:
                row_factor = stats_ptr + INVERSE * plane + index_a
        row, row_residue = along(tl.load(row_factor), 1), along(tl.load(row_factor + plane), 1)
        column, column_residue = along(tl.load(column_factor), 0), along(tl.load(column_factor + plane), 0)
        if product.dtype == tl.float64:
            logit = product * (row.to(tl.float64) + row_residue) * (column.to(tl.float64) + column_residue)
        else:
            part = product * row
            residue = multiply_add(product, row_residue, multiply_add(product, row, -part))
            logit = multiply_add(part, column, multiply_add(part, column_residue, residue * column))
    elif PER_ROW:
        logit = product * along(tl.load(stats_ptr + RATE * plane + (index_a if axis == 1 else index_b)), axis)
    else:
        logit = product * common_rate(stats_ptr, plane)
    return logit.to(tl.float32)


@triton.jit
def common_rate(stats_ptr, plane):
    """log2(e)/τ of a temperature that all rows share."""
    return tl.load(stats_ptr + RATE * plane)


@triton.jit
def has_common_peak(rate, NORMALIZE: tl.constexpr, PER_ROW: tl.constexpr):
    """Whether 0 can be every row's peak."""
    common = False
    if NORMALIZE and not PER_ROW:
        common = rate <= COMMON_PEAK_RATE
    return common


@triton.jit
def is_left_out(logit, stats_ptr, plane, index, axis: tl.constexpr):
    """Which logits exceed the margin of their rows ``index``."""
    return logit > along(tl.load(stats_ptr + LIMIT * plane + index), axis)


@triton.jit
def stem_of(first, padded):
    """A tile's first row within its side; x and y share numbers, candidates keep theirs."""
    return tl.where((first >= padded) & (first < 2 * padded), first - padded, first)


@triton.jit
def rows_inside(stem, num_pairs, num_candidates, padded):
    """The number of rows from a tile's first row on that are not padding; may exceed the tile."""
    return tl.where(stem >= padded, 2 * padded + num_candidates, num_pairs) - stem


@triton.jit
def needs_mask(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK: tl.constexpr):
    """Whether any pair of a tile is left out whatever its logit."""
    if ids_ptr is not None:
        masked = True
    else:
        a, b = stem_of(first_a, padded), stem_of(first_b, padded)
        inside_a = rows_inside(a, num_pairs, num_candidates, padded)
        inside_b = rows_inside(b, num_pairs, num_candidates, padded)
        masked = (inside_a < BLOCK) | (inside_b < BLOCK) | (a == b)
    return masked


@triton.jit
def counted_pairs(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK: tl.constexpr):
    """The pairs of a tile with different identities, neither of them padding, whose id is −1.

    Without ids a row's place is its identity; comparing whole tiles then takes fewer registers than loading identities.
    """
    index = tl.arange(0, BLOCK)
    if ids_ptr is not None:
        id_a, id_b = tl.load(ids_ptr + first_a + index), tl.load(ids_ptr + first_b + index)
        counted = (id_a[:, None] != id_b[None, :]) & (id_a >= 0)[:, None] & (id_b >= 0)[None, :]
    else:
        a, b = stem_of(first_a, padded), stem_of(first_b, padded)
        inside_a = index < rows_inside(a, num_pairs, num_candidates, padded)
        inside_b = index < rows_inside(b, num_pairs, num_candidates, padded)
        counted = ((index[:, None] != index[None, :]) | (a != b)) & inside_a[:, None] & inside_b[None, :]
    return counted


@triton.jit
def kept_place(first_a, first_b, block_a, block_b, tiles_before, tiles_high, BLOCK: tl.constexpr):
    """The index of a tile among the kept ones, which are numbered column by column within each block.

    The block begins at ``block_a`` and ``block_b`` and is ``tiles_high`` tiles high, 0 for the upper half of a square.
    The index depends on the rows only, so the two passes may cut them into different panels.
    """
    a = (first_a - block_a) // BLOCK
    b = (first_b - block_b) // BLOCK
    return tiles_before + tl.where(tiles_high == 0, b * (b + 1) // 2, b * tiles_high) + a


@triton.jit
def kept_entries(kept_ptr, place, BLOCK: tl.constexpr):
    """Pointers to the entries of a kept tile."""
    index = tl.arange(0, BLOCK)
    return kept_ptr + place.to(tl.int64) * BLOCK * BLOCK + index[:, None] * BLOCK + index[None, :]


@triton.jit
def keep_logits(kept_ptr, place, num_kept, logit, rate, BLOCK: tl.constexpr):
    """Keep a tile of logits if there is room for it; logits of pairs that are left out may be anything.

    float32 logits are kept as they are. Where weights are rounded to bfloat16, cosines are kept in 16 bits. Unlike
    half precision, whose steps grow with the logit to 2^-8 of it, that has the same step for all of them, 2^-15 of the
    largest possible logit.
    """
    if place < num_kept:
        if kept_ptr.dtype.element_ty == tl.int16:
            # Rounding may carry a cosine a few 2^-20 beyond 1, where half a step more would change its sign.
            steps = tl.minimum(logit * ((1.0 / rate) * STEPS), STEPS)
            kept = (steps + SHIFT).to(tl.int32, bitcast=True).to(tl.int16)
        else:
            kept = logit
        tl.store(kept_entries(kept_ptr, place, BLOCK), kept)


@triton.jit
def has_kept(kept_ptr, place, num_kept, rate):
    """Whether a tile of logits was kept, with small enough steps for weights that are rounded to bfloat16."""
    kept = place < num_kept
    if kept_ptr.dtype.element_ty == tl.int16:
        kept = kept & (rate <= COARSEST_RATE)
    return kept


@triton.jit
def kept_logits(kept_ptr, place, rate, BLOCK: tl.constexpr):
    """The logits of a kept tile."""
    logit = tl.load(kept_entries(kept_ptr, place, BLOCK))
    if kept_ptr.dtype.element_ty == tl.int16:
        logit = logit.to(tl.float32) * (rate / STEPS)
    return logit
