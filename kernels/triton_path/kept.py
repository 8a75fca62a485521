"""Logits that the forward keeps for the backward, tile by tile, each pair of rows once.

float32 logits are kept as they are. Where weights are rounded to bfloat16, cosines are kept instead as multiples
of 1/32767 in 16 bits: that is no rounding of logits to half precision, whose steps grow with the logit to 2^-8 of it,
but one step for all of them, 2^-15 of the largest possible logit.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

STEPS = tl.constexpr(32767.0)
# Added to a smaller number, it leaves that number's nearest integer in the lowest bits, without a slow conversion.
SHIFT = tl.constexpr(1.5 * 2.0**23)
# Half a step changes an exponential by rate log(2) 2^-16 of itself: up to this log2(e)/τ by no more than an eighth of
# what rounding the weight to bfloat16 may (2^-8). Among equal cosines neither error averages out.
COARSEST_RATE = tl.constexpr(2.0**5 / math.log(2))


@triton.jit
def kept_place(first_a, first_b, padded, BLOCK: tl.constexpr, CROSS: tl.constexpr):
    """Which of the kept tiles, one column of them after the other, that of two tiles of stacked rows a <= b is.

    It depends on the rows alone: passes may cut them into other panels.
    """
    a = first_a // BLOCK
    b = first_b // BLOCK
    if CROSS:
        tiles = padded // BLOCK
        place = (b - tiles) * tiles + a
    else:
        place = b * (b + 1) // 2 + a
    return place


@triton.jit
def kept_entries(kept_ptr, place, BLOCK: tl.constexpr):
    """Pointers to the entries of a kept tile."""
    index = tl.arange(0, BLOCK)
    return kept_ptr + place.to(tl.int64) * BLOCK * BLOCK + index[:, None] * BLOCK + index[None, :]


@triton.jit
def keep_logits(kept_ptr, place, num_kept, logit, rate, BLOCK: tl.constexpr):
    """Keep a tile of logits if there is room for it; those of pairs that are left out may be anything."""
    if place < num_kept:
        if kept_ptr.dtype.element_ty == tl.int16:
            # Rounding may carry a cosine a few 2^-20 beyond 1, and half a step more would change its sign.
            steps = tl.minimum(logit * ((1.0 / rate) * STEPS), STEPS)
            kept = (steps + SHIFT).to(tl.int32, bitcast=True).to(tl.int16)
        else:
            kept = logit
        tl.store(kept_entries(kept_ptr, place, BLOCK), kept)


@triton.jit
def has_kept(kept_ptr, place, num_kept, rate):
    """Whether a tile of logits was kept, and finely enough for weights that are rounded to bfloat16."""
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
