"""Blocks of the weights W that the gradient multiplies the embeddings by."""

from __future__ import annotations

import triton
import triton.language as tl

from .kept import has_kept, kept_logits, kept_place
from .lse import has_common_peak, part_logits
from .tiles import begin_parts, kept_pairs, needs_mask, tile_at


@triton.jit
def round_to_tf32(value):
    """Round to tf32's 10 explicit bits, which tensor cores would otherwise cut off towards zero."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The carry would turn some NaNs into zeros.
    return tl.where(value == value, rounded, value)


@triton.jit
def bfloat16_term(weight, POSITION: tl.constexpr):
    """The bfloat16 number nearest to what those at lower positions leave of a weight."""
    for _ in tl.static_range(POSITION):
        weight -= weight.to(tl.bfloat16).to(tl.float32)
    return weight.to(tl.bfloat16)


@triton.jit
def weighed_sum(weight, rows, TERMS: tl.constexpr, BFLOAT16: tl.constexpr, PRECISION: tl.constexpr):
    """Weights times rows, the weights as sums of TERMS bfloat16 numbers or as the float32 numbers that they are."""
    if BFLOAT16:
        # The smallest first: tensor cores round sums towards zero, which large ones feel at every step.
        total = tl.dot(bfloat16_term(weight, TERMS - 1), rows)
        for position in tl.static_range(2, TERMS + 1):
            total = tl.dot(bfloat16_term(weight, TERMS - position), rows, total)
    else:
        total = tl.dot(weight, rows.to(tl.float32), input_precision=PRECISION)
    return total


@triton.jit
def pair_weights(logit, row, column, peak_ptr, inverse_ptr, rate, index_a, index_b, NORMALIZE: tl.constexpr):
    """W_ij = v_i P_ij + v_j P_ji, divided by both rows' norms for cosines.

    v_i P_ij = k_i 2^(t_ij - peak_i), k_i = v_i / total_i being the ``row`` coefficient or the ``column`` one. Nothing
    exceeds its row's peak, so nothing overflows.
    """
    if has_common_peak(rate, NORMALIZE):
        weight = tl.exp2(logit) * (row[:, None] + column[None, :])
    else:
        by_row = tl.exp2(logit - tl.load(peak_ptr + index_a)[:, None]) * row[:, None]
        by_column = tl.exp2(logit - tl.load(peak_ptr + index_b)[None, :]) * column[None, :]
        weight = by_row + by_column
    if NORMALIZE:
        weight = weight * tl.load(inverse_ptr + index_a)[:, None] * tl.load(inverse_ptr + index_b)[None, :]
    return weight


@triton.jit
def block_weights(
    packed,
    halved,
    factor_ptr,
    residue_ptr,
    rate_ptr,
    coefficient_ptr,
    peak_ptr,
    inverse_ptr,
    weights_ptr,
    weights_pitch,
    weights_plane,
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
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    HALVES: tl.constexpr,
    CROSS: tl.constexpr,
):
    """Tiles of :func:`pair_weights`, 0 for pairs left out.

    With both norms in it one block serves both sides: W b and W^T a are gradients with respect to raw rows, but for
    the projection. Every entry of the tile is written, the padding too, as TERMS numbers that add up to it, each what
    the ones before leave. TRIANGLE: b is a, and a tile is written a second time as its mirror below the diagonal.
    HALVES and ``kept_ptr``: as in the kernel of the logits, which are not formed again where they were kept.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, TRIANGLE, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    rate = tl.load(rate_ptr)
    PARTS: tl.constexpr = 1 if HALVES == "none" else 2
    WIDTH: tl.constexpr = BLOCK // PARTS
    place = kept_place(first_a, first_b, padded, BLOCK, CROSS)
    begun = begin_parts(packed, halved, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION, HALVES)
    for part in tl.static_range(PARTS):
        begin = part * WIDTH
        columns = begin + tl.arange(0, WIDTH)
        if kept_ptr is None or not has_kept(kept_ptr, place, num_kept, rate):
            logit = part_logits(
                begun, packed, halved, factor_ptr, residue_ptr, rate, pitch, first_a, first_b, part,
                BLOCK, DEPTH, NORMALIZE, PRECISION, HALVES,
            )  # fmt: skip
        else:
            logit = kept_logits(kept_ptr, place, rate, BLOCK)
        row, column = tl.load(coefficient_ptr + first_a + index), tl.load(coefficient_ptr + first_b + columns)
        weight = pair_weights(
            logit, row, column, peak_ptr, inverse_ptr, rate, first_a + index, first_b + columns, NORMALIZE
        )
        position_a, position_b, masked = needs_mask(first_a, first_b, num_rows, padded, BLOCK)
        if masked:
            counted = kept_pairs(position_a + index, position_b + columns, num_rows)
            weight = tl.where(counted, weight, 0.0)
        if ROUND:
            weight = round_to_tf32(weight)
        upper = weights_ptr + (a * BLOCK).to(tl.int64) * weights_pitch + b * BLOCK
        lower = weights_ptr + (b * BLOCK + begin).to(tl.int64) * weights_pitch + a * BLOCK
        for term in tl.static_range(TERMS):
            rounded = weight.to(weights_ptr.dtype.element_ty)
            tl.store(upper + index[:, None] * weights_pitch + columns[None, :], rounded)
            if TRIANGLE and a != b:
                mirrored = tl.arange(0, WIDTH)[:, None] * weights_pitch + index[None, :]
                tl.store(lower + mirrored, rounded.T)
            if term + 1 < TERMS:
                weight -= rounded.to(tl.float32)
                upper += weights_plane
                lower += weights_plane
