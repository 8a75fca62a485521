"""Log-sum-exp of a block's logits along its rows and along its columns, in one pass over the products.

Logits are carried in units of log 2, t = s log2(e). Every tile writes, for each of its rows and each of its columns,
its maximum, the sum of 2^(t - maximum) and (for the temperature's gradient) the sum of 2^(t - maximum) (t - maximum)
into a slot that no other tile writes; the slots are then folded in a fixed order, so that results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import stats
from .tiles import tile_at, tile_product

LOWEST = tl.constexpr(stats.LOWEST)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def multiply_add(x, y, z):
    """x y + z, rounded once."""
    if INTERPRETED:
        # The interpreter's tl.fma rounds the product too.
        return (x.to(tl.float64) * y.to(tl.float64) + z).to(tl.float32)
    return tl.fma(x, y, z)


@triton.jit
def logits(product, a_inverse, b_inverse, a_residue, b_residue, rate_ptr, index_a, index_b, NORMALIZE: tl.constexpr):
    """Dot products to logits in units of log 2, less their ceiling: rate (cos - 1) for cosines, rate dot else.

    At small τ the roundings of a cosine near 1, of its two factors and of its product, would each weigh 1/τ. So inverse
    norms come in two parts, the first product's error is kept, and 1 is subtracted inside a fused multiply-add.
    """
    rate = tl.load(rate_ptr)
    if NORMALIZE:
        row = tl.load(a_inverse + index_a)[:, None]
        column = tl.load(b_inverse + index_b)[None, :]
        part = product * row
        residue = multiply_add(product, tl.load(a_residue + index_a)[:, None], multiply_add(product, row, -part))
        below = multiply_add(part, column, -1.0)
        below = multiply_add(part, tl.load(b_residue + index_b)[None, :], below)
        return multiply_add(residue, column, below) * rate
    return product * rate


@triton.jit
def store_slot(slots_ptr, plane, logit, index, axis: tl.constexpr, mask, MOMENT: tl.constexpr):
    """Maximum, sum and first moment of a tile along an axis, into one slot."""
    peak = tl.maximum(tl.max(logit, axis), LOWEST)
    distance = logit - (peak[:, None] if axis == 1 else peak[None, :])
    weight = tl.exp2(distance)
    tl.store(slots_ptr + index, peak, mask=mask)
    tl.store(slots_ptr + plane + index, tl.sum(weight, axis), mask=mask)
    if MOMENT:
        # A weight of 0 has distance -inf; their product is meant to be 0.
        moment = tl.sum(tl.where(weight > 0, weight * distance, 0.0), axis)
        tl.store(slots_ptr + 2 * plane + index, moment, mask=mask)


@triton.jit
def block_lse(
    a_ptr,
    b_ptr,
    a_inverse,
    b_inverse,
    a_residue,
    b_residue,
    a_scale,
    b_scale,
    rescaled_ptr,
    rate_ptr,
    row_slots,
    column_slots,
    row_plane,
    column_plane,
    row_pitch,
    column_pitch,
    num_a,
    num_b,
    width,
    stride_ar,
    stride_ac,
    stride_br,
    stride_bc,
    excluded,
    tiles_a,
    tiles_b,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    TRIANGLE: tl.constexpr,
    EVEN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    MOMENT: tl.constexpr,
    PROMOTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of rows a against rows b, the pairs with j - i == excluded left out.

    Row i's share goes to slot (tile of j) of ``row_slots``, column j's to slot (tile of i) of ``column_slots``.
    TRIANGLE: b is a and both slot arrays are one; a tile below the diagonal is the mirror of one above it, whose
    column sums are its row sums.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, TRIANGLE, GROUP)
    index_a = a * BLOCK + tl.arange(0, BLOCK)
    index_b = b * BLOCK + tl.arange(0, BLOCK)
    product = tile_product(
        a_ptr,
        b_ptr,
        a_scale,
        b_scale,
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
        DEPTH,
        EVEN,
        RESCALE,
        PROMOTE,
        PRECISION,
    )
    logit = logits(product, a_inverse, b_inverse, a_residue, b_residue, rate_ptr, index_a, index_b, NORMALIZE)
    offset = (a - b) * BLOCK + excluded
    edge = (a * BLOCK + BLOCK > num_a) | (b * BLOCK + BLOCK > num_b)
    if edge | ((offset > -BLOCK) & (offset < BLOCK)):
        kept = (index_a + excluded)[:, None] != index_b[None, :]
        kept = kept & (index_a < num_a)[:, None] & (index_b < num_b)[None, :]
        logit = tl.where(kept, logit, float("-inf"))
    store_slot(row_slots + b.to(tl.int64) * row_pitch, row_plane, logit, index_a, 1, index_a < num_a, MOMENT)
    mask = index_b < num_b
    if TRIANGLE:
        mask = mask & (a != b)
    store_slot(column_slots + a.to(tl.int64) * column_pitch, column_plane, logit, index_b, 0, mask, MOMENT)


@triton.jit
def fold_slots(
    slots_ptr,
    slots_plane,
    pitch,
    num_slots,
    peak_ptr,
    total_ptr,
    moment_ptr,
    num_rows,
    BLOCK: tl.constexpr,
    MOMENT: tl.constexpr,
):
    """Fold the slots of each row, in order, into the row's running (maximum, sum, first moment)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < num_rows
    peak = tl.load(peak_ptr + index, mask=mask, other=LOWEST)
    total = tl.load(total_ptr + index, mask=mask, other=0.0)
    if MOMENT:
        moment = tl.load(moment_ptr + index, mask=mask, other=0.0)
    source = slots_ptr + index
    for _ in range(num_slots):
        slot_peak = tl.load(source, mask=mask, other=LOWEST)
        slot_total = tl.load(source + slots_plane, mask=mask, other=0.0)
        higher = tl.maximum(peak, slot_peak)
        old = tl.exp2(peak - higher)
        new = tl.exp2(slot_peak - higher)
        if MOMENT:
            slot_moment = tl.load(source + 2 * slots_plane, mask=mask, other=0.0)
            # Moments are taken about the maximum, so moving it by h adds h times the sum.
            moment = old * (moment + (peak - higher) * total) + new * (slot_moment + (slot_peak - higher) * slot_total)
        total = old * total + new * slot_total
        peak = higher
        source += pitch
    tl.store(peak_ptr + index, peak, mask=mask)
    tl.store(total_ptr + index, total, mask=mask)
    if MOMENT:
        tl.store(moment_ptr + index, moment, mask=mask)
