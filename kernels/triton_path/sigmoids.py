"""Tiles of the sigmoid loss: each logit becomes its pair's loss and its pair's weight, and is forgotten."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .. import sigmoid
from . import stack
from .tiles import counted_pairs, logits, needs_mask, tile_at, tile_products
from .weights import round_to_tf32

INVERSE = tl.constexpr(stack.INVERSE)
LN2 = tl.constexpr(math.log(2))
# Weights are held times 2^30: those of a batch that has learnt all it can stay normal numbers.
SCALE = tl.constexpr(sigmoid.SCALE)


@triton.jit
def log1p_of_fraction(value):
    """log(1 + value) of numbers between 0 and 1, relative to itself accurate: 2 artanh(v / (2 + v)) as a series."""
    ratio = value / (2.0 + value)
    square = ratio * ratio
    # The next term is below 2e-9 of the sum.
    series = 1.0 / 13 + square * (1.0 / 15)
    series = 1.0 / 9 + square * (1.0 / 11 + square * series)
    series = 1.0 / 5 + square * (1.0 / 7 + square * series)
    return 2.0 * ratio * (1.0 + square * (1.0 / 3 + square * series))


@triton.jit
def block_sigmoids(
    packed,
    stats_ptr,
    ids_ptr,
    bias_ptr,
    scales_ptr,
    slots_ptr,
    slots_plane,
    slots_pitch,
    weights_ptr,
    weights_pitch,
    weights_plane,
    num_pairs,
    padded,
    plane,
    pitch,
    a_start,
    b_start,
    tiles_a,
    tiles_b,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of x's rows from ``a_start`` on against y's from ``b_start`` on, stacked rows of one identity left out.

    Row i's sums over the tile go to slot (tile of b) of each plane: of the losses and, with weights, of the weights
    and of the weights times logits without bias. A weight is 2^30 σ(logit) times the row's number in ``scales_ptr``.
    As stored, in TERMS numbers that add up, it is divided by both rows' norms for cosines: W b and Wᵀ a are then
    gradients of raw rows but for the projection. ``weights_ptr``: None if only losses are asked for.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, False, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    index_a, index_b = first_a + index, first_b + index
    product = tile_products(packed, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION)
    logit = logits(product, stats_ptr, plane, index_a, index_b, 1, NORMALIZE, False)
    biased = logit + tl.load(bias_ptr)
    # Either half is formed of what is below 1: nothing overflows and nothing is one minus a probability.
    fraction = tl.exp2(-tl.abs(biased))
    loss = tl.maximum(biased, 0.0) * LN2 + log1p_of_fraction(fraction)
    weight = tl.where(biased >= 0, 1.0, fraction) / (1.0 + fraction) * SCALE
    if needs_mask(ids_ptr, first_a, first_b, num_pairs, 0, padded, BLOCK):
        counted = counted_pairs(ids_ptr, first_a, first_b, num_pairs, 0, padded, BLOCK)
        loss = tl.where(counted, loss, 0.0)
        weight = tl.where(counted, weight, 0.0)
    slot = slots_ptr + b.to(tl.int64) * slots_pitch + a * BLOCK + index
    tl.store(slot, tl.sum(loss, 1))
    if weights_ptr is not None:
        weight = weight * tl.load(scales_ptr + index_a)[:, None]
        tl.store(slot + slots_plane, tl.sum(weight, 1))
        # A padding row's logit may be NaN where the bias is.
        tl.store(slot + 2 * slots_plane, tl.sum(tl.where(weight == 0, 0.0, weight * (logit * LN2)), 1))
        if NORMALIZE:
            inverse = stats_ptr + INVERSE * plane
            weight = weight * tl.load(inverse + index_a)[:, None] * tl.load(inverse + index_b)[None, :]
        if ROUND:
            weight = round_to_tf32(weight)
        target = weights_ptr + (a * BLOCK + index).to(tl.int64)[:, None] * weights_pitch + (b * BLOCK + index)[None, :]
        for term in tl.static_range(TERMS):
            rounded = weight.to(weights_ptr.dtype.element_ty)
            tl.store(target, rounded)
            if term + 1 < TERMS:
                weight -= rounded.to(tl.float32)
                target += weights_plane
