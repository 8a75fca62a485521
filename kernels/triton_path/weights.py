"""From the factors a and b of every row to panels of the weights W that the gradient multiplies the rows by.

With a_i the factor of lse_i and b_i that of s⁺_i, v_i = a_i/τ_i = 2^e v'_i and q_i = b_i/τ_i = 2^e q'_i. In trained
batches all of them are tiny, so the largest power of two, 2^e, is split off, and v' and q' fit float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pack import Rows
from .plan import layout
from .plan.config import BlockConfig
from .plan.layout import Panel, length
from .tiles import (
    common_rate,
    counted_pairs,
    has_common_peak,
    has_kept,
    is_left_out,
    kept_logits,
    kept_place,
    logits,
    needs_mask,
    tile_at,
    tile_products,
)

INVERSE, RATE = tl.constexpr(layout.INVERSE), tl.constexpr(layout.RATE)
PEAK, TOTAL = tl.constexpr(layout.PEAK), tl.constexpr(layout.TOTAL)
HIGHEST = tl.constexpr(layout.HIGHEST)
LN2 = tl.constexpr(math.log(2))
WEIGH_ROWS, WEIGH_SWEEP = 256, 1024


@triton.jit
def exponent_of(value):
    """The exponent of a float64's leading bit, clamped so that its inverse can be multiplied by a rate.

    A number that is not finite has the lowest exponent: it must not make the other rows' values vanish.
    """
    # Subnormal numbers have exponent field 0, one too many.
    exponent = ((value.to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1023
    return tl.where(exponent == 1024, -1000, tl.minimum(tl.maximum(exponent, -1000), 1022))


@triton.jit
def double_power_of_two(exponent):
    """2^exponent in float64, for the exponent of a normal number."""
    return ((1023 + exponent).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def anchor_values(values_ptr, stats_ptr, index, inside, num_pairs, num_anchors, padded, plane, PER_ROW: tl.constexpr):
    """a or b over the temperature in float64, for the stacked rows ``index``; 0 for rows that are not anchors."""
    side = (index >= padded).to(tl.int32)
    position = index - side * padded
    row = side * num_pairs + position
    anchor = inside & (position < num_pairs) & (row < num_anchors)
    rate = tl.load(stats_ptr + RATE * plane + (index if PER_ROW else index * 0), mask=inside, other=0.0)
    value = tl.load(values_ptr + row, mask=anchor, other=0.0)
    # A bad temperature, which is NaN by now, makes the values of all its rows NaN.
    return tl.where(anchor, value * (rate.to(tl.float64) * tl.full((), LN2, tl.float64)), 0.0)


@triton.jit
def common_exponent(
    a_ptr, b_ptr, stats_ptr, num_pairs, num_anchors, padded, plane, SWEEP: tl.constexpr, PER_ROW: tl.constexpr
):
    """e, the largest exponent of all rows; every program that needs it sweeps all rows in the same order."""
    largest = tl.full((SWEEP,), -1000, tl.int32)
    for start in range(0, 2 * padded, SWEEP):
        index = start + tl.arange(0, SWEEP)
        inside = index < 2 * padded
        a = anchor_values(a_ptr, stats_ptr, index, inside, num_pairs, num_anchors, padded, plane, PER_ROW)
        b = anchor_values(b_ptr, stats_ptr, index, inside, num_pairs, num_anchors, padded, plane, PER_ROW)
        largest = tl.maximum(largest, tl.maximum(exponent_of(a), exponent_of(b)))
    return tl.max(largest, 0)


@triton.jit
def relative_values(
    values_ptr,
    stats_ptr,
    exponent,
    index,
    inside,
    num_pairs,
    num_anchors,
    padded,
    plane,
    PER_ROW: tl.constexpr,
):
    """v' or q' of stacked rows: a or b over the temperature and 2^e, in float32."""
    value = anchor_values(values_ptr, stats_ptr, index, inside, num_pairs, num_anchors, padded, plane, PER_ROW)
    return (value * double_power_of_two(-exponent)).to(tl.float32)


@triton.jit
def over_total(stats_ptr, weight, index, plane):
    """Weights of stacked rows over their sums of exponentials; 0 where nothing was summed."""
    total = tl.load(stats_ptr + TOTAL * plane + index)
    return tl.where(total == 0, 0.0, weight / tl.where(total == 0, 1.0, total))


@triton.jit
def weigh_rows(
    a_ptr,
    b_ptr,
    stats_ptr,
    coefficient_ptr,
    pull_ptr,
    gain_ptr,
    num_pairs,
    num_anchors,
    padded,
    plane,
    ROWS: tl.constexpr,
    SWEEP: tl.constexpr,
    PER_ROW: tl.constexpr,
):
    """Write what the gradient needs: each row's v' over its total, the sum of each pair's two q', and 2^e."""
    exponent = common_exponent(a_ptr, b_ptr, stats_ptr, num_pairs, num_anchors, padded, plane, SWEEP, PER_ROW)
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = position < padded
    pull = tl.zeros((ROWS,), tl.float32)
    for side in tl.static_range(2):
        index = tl.minimum(position, padded - 1) + side * padded
        weight = relative_values(
            a_ptr, stats_ptr, exponent, index, inside, num_pairs, num_anchors, padded, plane, PER_ROW
        )
        tl.store(coefficient_ptr + index, over_total(stats_ptr, weight, index, plane), mask=inside)
        pull += relative_values(
            b_ptr, stats_ptr, exponent, index, inside, num_pairs, num_anchors, padded, plane, PER_ROW
        )
    tl.store(pull_ptr + position, pull, mask=inside)
    if tl.program_id(0) == 0:
        tl.store(gain_ptr, double_power_of_two(exponent))


@triton.jit
def known_sums(
    a_ptr,
    lse_ptr,
    stats_ptr,
    num_pairs,
    num_anchors,
    padded,
    plane,
    ROWS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PER_ROW: tl.constexpr,
):
    """Write the peak and the total of anchors as a forward would whose sums gave ``lse``, natural and in float64.

    An anchor whose a is 0 gets those of a row without negatives, whatever its lse.
    """
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = index < 2 * padded
    side = (index >= padded).to(tl.int32)
    position = index - side * padded
    row = side * num_pairs + position
    anchor = inside & (position < num_pairs) & (row < num_anchors)
    some = tl.load(a_ptr + row, mask=anchor, other=0.0) != 0
    lse = tl.load(lse_ptr + row, mask=anchor & some, other=0.0) * tl.full((), 1 / LN2, tl.float64)
    peak = lse.to(tl.float32)
    if has_common_peak(common_rate(stats_ptr, plane), NORMALIZE, PER_ROW):
        peak = tl.zeros((ROWS,), tl.float32)
    total = tl.exp2(lse - peak.to(tl.float64)).to(tl.float32)
    tl.store(stats_ptr + PEAK * plane + index, tl.where(some, peak, HIGHEST), mask=inside)
    tl.store(stats_ptr + TOTAL * plane + index, tl.where(some, total, 0.0), mask=inside)


@triton.jit
def round_to_tf32(value):
    """Round to tf32's 10 explicit bits; tensor cores would truncate towards zero instead."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The carry would turn some NaNs into zero.
    return tl.where(value == value, rounded, value)


@triton.jit
def bfloat16_term(weight, POSITION: tl.constexpr):
    """The bfloat16 number nearest to what the terms at lower positions leave of a weight."""
    for _ in tl.static_range(POSITION):
        weight -= weight.to(tl.bfloat16).to(tl.float32)
    return weight.to(tl.bfloat16)


@triton.jit
def weighed_sum(weight, rows, TERMS: tl.constexpr, BFLOAT16: tl.constexpr, PRECISION: tl.constexpr):
    """Weights times rows, with the weights as sums of TERMS bfloat16 numbers or as the float32 numbers they are."""
    if BFLOAT16:
        # The smallest first: tensor cores round sums towards zero, by more the larger a sum is.
        total = tl.dot(bfloat16_term(weight, TERMS - 1), rows)
        for position in tl.static_range(2, TERMS + 1):
            total = tl.dot(bfloat16_term(weight, TERMS - position), rows, total)
    else:
        total = tl.dot(weight, rows.to(tl.float32), input_precision=PRECISION)
    return total


@triton.jit
def pair_weights(
    logit,
    column_logit,
    row,
    column,
    stats_ptr,
    plane,
    index_a,
    index_b,
    NORMALIZE: tl.constexpr,
    PER_ROW: tl.constexpr,
    LIMITED: tl.constexpr,
):
    """W_ij = v_i P_ij + v_j P_ji, divided by both rows' norms for cosines.

    v_i P_ij = k_i 2^(t_ij - peak_i) with k_i = v_i / total_i, the ``row`` or the ``column`` coefficient, which is 0 for
    rows that are not anchors. No logit that counts exceeds its row's peak, so nothing overflows. With LIMITED the
    pairs that a row's margin leaves out have no weight in it.
    """
    if has_common_peak(common_rate(stats_ptr, plane), NORMALIZE, PER_ROW):
        weight = tl.exp2(logit)
        if LIMITED:
            by_row = tl.where(is_left_out(logit, stats_ptr, plane, index_a, 1), 0.0, row[:, None])
            by_column = tl.where(is_left_out(logit, stats_ptr, plane, index_b, 0), 0.0, column[None, :])
            weight = weight * (by_row + by_column)
        else:
            weight = weight * (row[:, None] + column[None, :])
    else:
        of_row = tl.exp2(logit - tl.load(stats_ptr + PEAK * plane + index_a)[:, None]) * row[:, None]
        of_column = tl.exp2(column_logit - tl.load(stats_ptr + PEAK * plane + index_b)[None, :]) * column[None, :]
        if LIMITED:
            of_row = tl.where(is_left_out(logit, stats_ptr, plane, index_a, 1), 0.0, of_row)
            of_column = tl.where(is_left_out(column_logit, stats_ptr, plane, index_b, 0), 0.0, of_column)
        weight = of_row + of_column
    if NORMALIZE:
        inverse = stats_ptr + INVERSE * plane
        weight = weight * tl.load(inverse + index_a)[:, None] * tl.load(inverse + index_b)[None, :]
    return weight


@triton.jit
def store_weights(weights_ptr, pitch, plane, row, column, rows, columns, weight, mirrored, TERMS: tl.constexpr):
    """Store weights as TERMS numbers that add up to them, ``plane`` entries apart; ``mirrored``: also their mirror.

    They are those of ``rows`` from ``row`` on and ``columns`` from ``column`` on.
    """
    upper = weights_ptr + row.to(tl.int64) * pitch + column
    lower = weights_ptr + column.to(tl.int64) * pitch + row
    for term in tl.static_range(TERMS):
        rounded = weight.to(weights_ptr.dtype.element_ty)
        tl.store(upper + rows[:, None] * pitch + columns[None, :], rounded)
        if mirrored:
            tl.store(lower + columns[:, None] * pitch + rows[None, :], rounded.T)
        if term + 1 < TERMS:
            weight -= rounded.to(tl.float32)
            upper += plane
            lower += plane


@triton.jit
def block_weights(
    packed,
    stats_ptr,
    ids_ptr,
    coefficient_ptr,
    weights_ptr,
    weights_pitch,
    weights_plane,
    kept_ptr,
    num_kept,
    block_a,
    block_b,
    tiles_before,
    tiles_high,
    num_pairs,
    num_candidates,
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
    TRIANGLE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PER_ROW: tl.constexpr,
    LIMITED: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tiles of :func:`pair_weights`, 0 for pairs left out.

    Because the weights contain both norms, one block serves both sides: W b and W^T a are gradients with respect to raw
    rows, except for the projection. Every entry of the tile is written, padding included, as TERMS numbers that add up
    to it, each holding what the ones before leave. TRIANGLE: b is a, and a tile is also written as its mirror below
    the diagonal. ``kept_ptr``: as in :func:`block_lse`; logits that were kept are not formed again.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, TRIANGLE, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    index_a, index_b = first_a + index, first_b + index
    if PER_ROW:
        product = tile_products(packed, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION)
        logit = logits(product, stats_ptr, plane, index_a, index_b, 1, NORMALIZE, PER_ROW)
        column_logit = logits(product, stats_ptr, plane, index_a, index_b, 0, NORMALIZE, PER_ROW)
    else:
        rate = common_rate(stats_ptr, plane)
        place = kept_place(first_a, first_b, block_a, block_b, tiles_before, tiles_high, BLOCK)
        if kept_ptr is None or not has_kept(kept_ptr, place, num_kept, rate):
            product = tile_products(packed, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION)
            logit = logits(product, stats_ptr, plane, index_a, index_b, 1, NORMALIZE, PER_ROW)
        else:
            logit = kept_logits(kept_ptr, place, rate, BLOCK)
        column_logit = logit
    row, column = tl.load(coefficient_ptr + index_a), tl.load(coefficient_ptr + index_b)
    weight = pair_weights(
        logit, column_logit, row, column, stats_ptr, plane, index_a, index_b, NORMALIZE, PER_ROW, LIMITED
    )
    if needs_mask(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK):
        counted = counted_pairs(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK)
        weight = tl.where(counted, weight, 0.0)
    if ROUND:
        weight = round_to_tf32(weight)
    mirrored = False
    if TRIANGLE:
        mirrored = a != b
    store_weights(
        weights_ptr, weights_pitch, weights_plane, a * BLOCK, b * BLOCK, index, index, weight, mirrored, TERMS
    )


@dataclass(frozen=True)
class Factors:
    """What the gradient needs of a and b.

    Attributes:
        coefficient: a over temperature and total (stacked rows).
        pull: the b of each pair's two rows over the temperature, added (padded rows).
        gain: float64 scalar, common to all rows.
    """

    coefficient: Tensor
    pull: Tensor
    gain: Tensor


def set_sums(rows: Rows, a: Tensor, lse: Tensor) -> None:
    """Let the rows' statistics be those of anchors with this ``lse``, (rows,) float64, which no forward has summed."""
    stack = rows.stack
    known_sums[(triton.cdiv(2 * stack.padded, WEIGH_ROWS),)](
        a.contiguous(),
        lse.contiguous(),
        rows.stats,
        stack.n,
        a.shape[0],
        stack.padded,
        rows.plane,
        ROWS=WEIGH_ROWS,
        NORMALIZE=rows.normalize,
        PER_ROW=rows.per_row,
        num_warps=4,
    )


def weigh(rows: Rows, a: Tensor, b: Tensor) -> Factors:
    """The :class:`Factors` of a and b, (rows,) float64."""
    stack, device = rows.stack, rows.packed.device
    factors = Factors(
        torch.empty(stack.num_rows, dtype=torch.float32, device=device),
        torch.empty(stack.padded, dtype=torch.float32, device=device),
        torch.empty((), dtype=torch.float64, device=device),
    )
    # No candidate is an anchor.
    factors.coefficient[2 * stack.padded :].zero_()
    weigh_rows[(triton.cdiv(stack.padded, WEIGH_ROWS),)](
        a.contiguous(),
        b.contiguous(),
        rows.stats,
        factors.coefficient,
        factors.pull,
        factors.gain,
        stack.n,
        a.shape[0],
        stack.padded,
        rows.plane,
        ROWS=WEIGH_ROWS,
        SWEEP=WEIGH_SWEEP,
        PER_ROW=rows.per_row,
        num_warps=4,
    )
    return factors


def weight_memory(rows: Rows, panels: Sequence[Panel], config: BlockConfig) -> Tensor:
    """Memory for the weights of the largest panel."""
    count = config.weight_terms * max((panel.pairs for panel in panels), default=0)
    return torch.empty(count, dtype=config.weight_dtype, device=rows.packed.device)


def panel_memory(memory: Tensor, panel: Panel, config: BlockConfig) -> Tensor:
    """The front of the temporary ``memory``, where a panel's weights (terms, rows, columns) go."""
    shape = config.weight_terms, length(panel.rows), length(panel.columns)
    return memory[: config.weight_terms * panel.pairs].view(shape)


def panel_weights(rows: Rows, panel: Panel, factors: Factors, memory: Tensor, config: BlockConfig) -> Tensor:
    """A panel's weights (terms, rows, columns), written to the front of the temporary ``memory``."""
    block = panel_memory(memory, panel, config)
    block_weights[(panel.tiles(config.block),)](
        *rows.operands(config),
        factors.coefficient,
        block,
        block.stride(1),
        block.stride(0),
        *rows.extents(panel, config),
        ROUND=config.rounds_weights,
        TERMS=config.weight_terms,
        **rows.options(panel, config),
    )
    return block
