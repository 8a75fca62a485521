"""Log-sum-exp of a block's logits along its rows and along its columns, in one pass over the products.

Logits are carried in units of log 2, t = s log2(e). Every tile writes, for each of its rows and each of its columns,
a peak, the sum of 2^(t - peak) and (for the temperature's gradient) the sum of 2^(t - peak) (t - peak) into a slot
that no other tile writes; the slots are then folded in a fixed order, so that results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import stats
from .kept import keep_logits, kept_place
from .tiles import begin_parts, kept_pairs, needs_mask, tile_at, tile_products

LOWEST = tl.constexpr(stats.LOWEST)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# Up to this log2(e)/τ cosines' logits lie within ±40, and 0 serves every row as its peak.
COMMON_PEAK_RATE = tl.constexpr(40.0)


@triton.jit
def multiply_add(x, y, z):
    """x y + z, rounded once."""
    if INTERPRETED:
        # The interpreter's tl.fma rounds the product too.
        return (x.to(tl.float64) * y.to(tl.float64) + z).to(tl.float32)
    return tl.fma(x, y, z)


@triton.jit
def logits(product, factor_ptr, residue_ptr, rate, index_a, index_b, NORMALIZE: tl.constexpr):
    """Dot products to logits in units of log 2.

    At small τ every rounding on the way to a cosine would weigh 1/τ in logits near it. So each row's share of them,
    sqrt(log2(e)/τ)/|row|, comes in two parts and the first product's error is kept: what is left is one rounding
    of the logit, which is small where the logit is, and none at all for rows of zeros.
    """
    if NORMALIZE:
        row = tl.load(factor_ptr + index_a)[:, None]
        column = tl.load(factor_ptr + index_b)[None, :]
        row_residue = tl.load(residue_ptr + index_a)[:, None]
        column_residue = tl.load(residue_ptr + index_b)[None, :]
        if product.dtype == tl.float64:
            logit = product * (row.to(tl.float64) + row_residue) * (column.to(tl.float64) + column_residue)
        else:
            part = product * row
            residue = multiply_add(product, row_residue, multiply_add(product, row, -part))
            logit = multiply_add(part, column, multiply_add(part, column_residue, residue * column))
    else:
        logit = product * rate
    return logit.to(tl.float32)


@triton.jit
def part_logits(
    begun,
    packed,
    halved,
    factor_ptr,
    residue_ptr,
    rate,
    pitch,
    first_a,
    first_b,
    part: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    HALVES: tl.constexpr,
):
    """The logits of a whole tile or, with HALVES, of its left half (part 0) or its right one (part 1)."""
    WIDTH: tl.constexpr = BLOCK if HALVES == "none" else BLOCK // 2
    begin = part * WIDTH
    if HALVES == "none":
        product, _ = tile_products(packed, packed, pitch, first_a, first_b, BLOCK, WIDTH, DEPTH, PRECISION, 1)
    elif HALVES == "together":
        product = begun[part]
    else:
        product, _ = tile_products(packed, halved, pitch, first_a, first_b + begin, BLOCK, WIDTH, DEPTH, PRECISION, 1)
    rows, columns = tl.arange(0, BLOCK), begin + tl.arange(0, WIDTH)
    return logits(product, factor_ptr, residue_ptr, rate, first_a + rows, first_b + columns, NORMALIZE)


@triton.jit
def has_common_peak(rate, NORMALIZE: tl.constexpr):
    """Whether 0 serves every row as its peak."""
    common = False
    if NORMALIZE:
        common = rate <= COMMON_PEAK_RATE
    return common


@triton.jit
def first_moment(distance, weight, axis: tl.constexpr):
    """Σ weight distance along an axis, the weight being 2^distance."""
    # A weight of 0 has distance -inf; their product is meant to be 0.
    return tl.sum(tl.where(weight > 0, weight * distance, 0.0), axis)


@triton.jit
def store_slot(slots_ptr, plane, logit, index, axis: tl.constexpr, MOMENT: tl.constexpr):
    """Maximum, sum and first moment of a tile along an axis, into one slot."""
    peak = tl.maximum(tl.max(logit, axis), LOWEST)
    distance = logit - (peak[:, None] if axis == 1 else peak[None, :])
    weight = tl.exp2(distance)
    tl.store(slots_ptr + index, peak)
    store_sums(slots_ptr, plane, distance, weight, index, axis, MOMENT)


@triton.jit
def store_sums(slots_ptr, plane, distance, weight, index, axis: tl.constexpr, MOMENT: tl.constexpr):
    """Sum and first moment of a tile along an axis."""
    tl.store(slots_ptr + plane + index, tl.sum(weight, axis))
    if MOMENT:
        tl.store(slots_ptr + 2 * plane + index, first_moment(distance, weight, axis))


@triton.jit
def fold_columns(logit, peak, total, moment, slots_ptr, plane, index, common, twice, MOMENT: tl.constexpr):
    """Fold some columns of a tile into its rows' (peak, sum, first moment), and store the columns' own."""
    if common:
        weight = tl.exp2(logit)
        total += tl.sum(weight, 1)
        if MOMENT:
            moment += first_moment(logit, weight, 1)
        if twice:
            tl.store(slots_ptr + index, tl.zeros(index.shape, tl.float32))
            store_sums(slots_ptr, plane, logit, weight, index, 0, MOMENT)
    else:
        higher = tl.maximum(peak, tl.max(logit, 1))
        distance = logit - higher[:, None]
        weight = tl.exp2(distance)
        old = tl.exp2(peak - higher)
        if MOMENT:
            moment = old * (moment + (peak - higher) * total)
            moment += first_moment(distance, weight, 1)
        total = old * total + tl.sum(weight, 1)
        peak = higher
        if twice:
            store_slot(slots_ptr, plane, logit, index, 0, MOMENT)
    return peak, total, moment


@triton.jit
def block_lse(
    packed,
    halved,
    factor_ptr,
    residue_ptr,
    rate_ptr,
    row_slots,
    column_slots,
    row_plane,
    column_plane,
    row_pitch,
    column_pitch,
    kept_ptr,
    num_kept,
    num_rows,
    padded,
    pitch,
    a_start,
    b_start,
    tiles_a,
    tiles_b,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    TRIANGLE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    MOMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    HALVES: tl.constexpr,
    CROSS: tl.constexpr,
):
    """One tile of the stacked rows from ``a_start`` on against those from ``b_start`` on, equal positions left out.

    Row i's share goes to slot (tile of j) of ``row_slots``, column j's to slot (tile of i) of ``column_slots``.
    TRIANGLE: b is a and both slot arrays are one; a tile below the diagonal is the mirror of one above it, whose
    column sums are its row sums. HALVES: the tile's left and right half take turns in the registers, out of one loop
    over the embeddings' columns ("together") or of one each ("apart"); ``halved`` describes tiles half as high.
    ``kept_ptr``, unless None: where whole tiles of logits are kept for the backward, as many as there is room for.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, TRIANGLE, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    rate = tl.load(rate_ptr)
    row_slot = row_slots + b.to(tl.int64) * row_pitch
    column_slot = column_slots + a.to(tl.int64) * column_pitch
    row_index = a * BLOCK + index
    column_index = b * BLOCK + index
    twice = True
    if TRIANGLE:
        twice = a != b
    common = has_common_peak(rate, NORMALIZE)
    begun = begin_parts(packed, halved, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION, HALVES)
    if HALVES == "none":
        logit = part_logits(
            begun, packed, halved, factor_ptr, residue_ptr, rate, pitch, first_a, first_b, 0,
            BLOCK, DEPTH, NORMALIZE, PRECISION, HALVES,
        )  # fmt: skip
        position_a, position_b, masked = needs_mask(first_a, first_b, num_rows, padded, BLOCK)
        if masked:
            logit = tl.where(kept_pairs(position_a + index, position_b + index, num_rows), logit, float("-inf"))
        if kept_ptr is not None:
            keep_logits(kept_ptr, kept_place(first_a, first_b, padded, BLOCK, CROSS), num_kept, logit, rate, BLOCK)
        if common:
            weight = tl.exp2(logit)
            tl.store(row_slot + row_index, tl.zeros((BLOCK,), tl.float32))
            store_sums(row_slot, row_plane, logit, weight, row_index, 1, MOMENT)
            if twice:
                tl.store(column_slot + column_index, tl.zeros((BLOCK,), tl.float32))
                store_sums(column_slot, column_plane, logit, weight, column_index, 0, MOMENT)
        else:
            store_slot(row_slot, row_plane, logit, row_index, 1, MOMENT)
            if twice:
                store_slot(column_slot, column_plane, logit, column_index, 0, MOMENT)
    else:
        HALF: tl.constexpr = BLOCK // 2
        total = tl.zeros((BLOCK,), tl.float32)
        moment = total
        peak = tl.where(common, total, LOWEST)
        for half in tl.static_range(2):
            begin = half * HALF
            logit = part_logits(
                begun, packed, halved, factor_ptr, residue_ptr, rate, pitch, first_a, first_b, half,
                BLOCK, DEPTH, NORMALIZE, PRECISION, HALVES,
            )  # fmt: skip
            columns = begin + tl.arange(0, HALF)
            position_a, position_b, masked = needs_mask(first_a, first_b, num_rows, padded, BLOCK)
            if masked:
                kept = kept_pairs(position_a + index, position_b + columns, num_rows)
                logit = tl.where(kept, logit, float("-inf"))
            peak, total, moment = fold_columns(
                logit, peak, total, moment, column_slot, column_plane, b * BLOCK + columns, common, twice, MOMENT
            )
        tl.store(row_slot + row_index, peak)
        tl.store(row_slot + row_plane + row_index, total)
        if MOMENT:
            tl.store(row_slot + 2 * row_plane + row_index, moment)
