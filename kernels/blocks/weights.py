"""Blocks of the weights W that the gradient multiplies the embeddings by."""

from __future__ import annotations

import triton
import triton.language as tl

from .lse import logits
from .tiles import tile_at, tile_product


@triton.jit
def round_to_tf32(value):
    """Round to tf32's 10 explicit bits, which tensor cores would otherwise cut off towards zero."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The carry would turn some NaNs into zeros.
    return tl.where(value == value, rounded, value)


@triton.jit
def block_weights(
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
    a_coefficient,
    b_coefficient,
    a_peak,
    b_peak,
    weights_ptr,
    pitch,
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
    EVEN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    ROUND: tl.constexpr,
    PROMOTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W_ij = v_i P_ij + v_j P_ji, divided by both rows' norms for cosines; 0 for excluded pairs and past the ends.

    v_i P_ij = k_i 2^(t_ij - peak_i) with k_i = v_i / total_i. Nothing exceeds its row's peak, so nothing overflows.
    With both norms in it one block serves both sides: W b and W^T a are gradients with respect to raw rows, but for
    the projection. Every entry of the tile is written, the padding too.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, False, GROUP)
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
    by_row = tl.exp2(logit - tl.load(a_peak + index_a)[:, None]) * tl.load(a_coefficient + index_a)[:, None]
    by_column = tl.exp2(logit - tl.load(b_peak + index_b)[None, :]) * tl.load(b_coefficient + index_b)[None, :]
    weight = by_row + by_column
    if NORMALIZE:
        weight = weight * tl.load(a_inverse + index_a)[:, None] * tl.load(b_inverse + index_b)[None, :]
    offset = (a - b) * BLOCK + excluded
    edge = (a * BLOCK + BLOCK > num_a) | (b * BLOCK + BLOCK > num_b)
    if edge | ((offset > -BLOCK) & (offset < BLOCK)):
        kept = (index_a + excluded)[:, None] != index_b[None, :]
        kept = kept & (index_a < num_a)[:, None] & (index_b < num_b)[None, :]
        weight = tl.where(kept, weight, 0.0)
    if ROUND:
        weight = round_to_tf32(weight)
    target = weights_ptr + index_a.to(tl.int64)[:, None] * pitch + index_b[None, :]
    tl.store(target, weight.to(weights_ptr.dtype.element_ty))
