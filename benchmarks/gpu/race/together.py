"""A candidate: tiles whose two halves share one loop over the columns, so that two blocks fit a multiprocessor.

Both halves' products are formed together, and take turns in what follows. Held to half of a multiprocessor's registers,
two blocks run next to each other, and one's loads and epilogue hide behind the other's products. It is raced once, and
then moves to the kernels or goes.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.gpu.race.changes import Changes
from ctloss.kernels.triton_path import gradient, kept, lse, tiles, weights
from ctloss.kernels.triton_path.kept import counted_columns
from ctloss.kernels.triton_path.lse import store_own_peak, store_slot
from ctloss.kernels.triton_path.pack import Rows
from ctloss.kernels.triton_path.plan import layout
from ctloss.kernels.triton_path.plan.config import BlockConfig
from ctloss.kernels.triton_path.plan.layout import Panel, length
from ctloss.kernels.triton_path.tiles import (
    add_products,
    common_rate,
    has_common_peak,
    kept_place,
    logits,
    needs_mask,
    no_products,
    tile_at,
)
from ctloss.kernels.triton_path.weights import Factors, pair_weights, round_to_tf32, store_weights

LOWEST = tl.constexpr(layout.LOWEST)
STEPS, SHIFT = tl.constexpr(tiles.STEPS.value), tl.constexpr(tiles.SHIFT.value)
# Registers of a thread where two blocks of 8 warps share the 65,536 of a multiprocessor.
REGISTERS = 128


@triton.jit
def both_products(  # type: ignore[no-untyped-def]
    packed, halved, pitch, first_a, first_b, BLOCK: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr
):
    """The products of BLOCK rows with as many others, the first half and the second; the former are loaded once."""
    HALF: tl.constexpr = BLOCK // 2
    left = no_products(BLOCK, HALF, DEPTH, PRECISION)
    right = no_products(BLOCK, HALF, DEPTH, PRECISION)
    for start in range(0, pitch, DEPTH):
        rows = packed.load([first_a, start])
        left = add_products(left, rows, halved.load([first_b, start]), PRECISION)
        right = add_products(right, rows, halved.load([first_b + HALF, start]), PRECISION)
    return left, right


@triton.jit
def lse_together(  # type: ignore[no-untyped-def]
    packed,
    halved,
    stats_ptr,
    row_slots,
    column_slots,
    row_plane,
    column_plane,
    row_pitch,
    column_pitch,
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
    MIRRORED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What ``lse.block_lse`` computes, without ids, margins, temperatures of rows, and moments."""
    HALF: tl.constexpr = BLOCK // 2
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, TRIANGLE, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    rate = common_rate(stats_ptr, plane)
    common = has_common_peak(rate, NORMALIZE, False)
    row_slot = row_slots + b.to(tl.int64) * row_pitch + a * BLOCK + index
    mirrored = MIRRORED
    if TRIANGLE:
        mirrored = a != b
    masked = needs_mask(None, first_a, first_b, num_pairs, num_candidates, padded, BLOCK)
    products = both_products(packed, halved, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION)
    total = tl.zeros((BLOCK,), tl.float32)
    peak = tl.where(common, total, LOWEST)
    for half in tl.static_range(2):
        columns = half * HALF + tl.arange(0, HALF)
        logit = logits(products[half], stats_ptr, plane, first_a + index, first_b + columns, 1, NORMALIZE, False)
        if masked:
            counted = counted_columns(None, first_a, first_b, columns, num_pairs, num_candidates, padded, BLOCK)
            logit = tl.where(counted, logit, float("-inf"))
        if kept_ptr is not None:
            place = kept_place(first_a, first_b, block_a, block_b, tiles_before, tiles_high, BLOCK)
            if place < num_kept:
                entries = kept_ptr + place.to(tl.int64) * BLOCK * BLOCK + index[:, None] * BLOCK + columns[None, :]
                if kept_ptr.dtype.element_ty == tl.int16:
                    steps = tl.minimum(logit * ((1.0 / rate) * STEPS), STEPS)
                    tl.store(entries, (steps + SHIFT).to(tl.int32, bitcast=True).to(tl.int16))
                else:
                    tl.store(entries, logit)
        column_index = b * BLOCK + columns
        column_slot = column_slots + a.to(tl.int64) * column_pitch
        if common:
            weight = tl.exp2(logit)
            total += tl.sum(weight, 1)
            if mirrored:
                zero = tl.zeros((HALF,), tl.float32)
                store_slot(column_slot, column_plane, zero, logit, weight, column_index, 0, False)
        else:
            higher = tl.maximum(peak, tl.max(logit, 1))
            total = tl.exp2(peak - higher) * total + tl.sum(tl.exp2(logit - higher[:, None]), 1)
            peak = higher
            if mirrored:
                store_own_peak(column_slot, column_plane, logit, column_index, 0, False)
    tl.store(row_slot, peak)
    tl.store(row_slot + row_plane, total)


@triton.jit
def weights_together(  # type: ignore[no-untyped-def]
    packed,
    halved,
    stats_ptr,
    coefficient_ptr,
    weights_ptr,
    weights_pitch,
    weights_plane,
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
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What ``weights.block_weights`` computes where no logit was kept, with the same omissions."""
    HALF: tl.constexpr = BLOCK // 2
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, TRIANGLE, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    masked = needs_mask(None, first_a, first_b, num_pairs, num_candidates, padded, BLOCK)
    products = both_products(packed, halved, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION)
    for half in tl.static_range(2):
        columns = half * HALF + tl.arange(0, HALF)
        index_a, index_b = first_a + index, first_b + columns
        logit = logits(products[half], stats_ptr, plane, index_a, index_b, 1, NORMALIZE, False)
        row, column = tl.load(coefficient_ptr + index_a), tl.load(coefficient_ptr + index_b)
        weight = pair_weights(logit, logit, row, column, stats_ptr, plane, index_a, index_b, NORMALIZE, False, False)
        if masked:
            counted = counted_columns(None, first_a, first_b, columns, num_pairs, num_candidates, padded, BLOCK)
            weight = tl.where(counted, weight, 0.0)
        if ROUND:
            weight = round_to_tf32(weight)
        mirrored = False
        if TRIANGLE:
            mirrored = a != b
        store_weights(
            weights_ptr, weights_pitch, weights_plane, a * BLOCK, b * BLOCK, index, columns, weight, mirrored, TERMS
        )


def _takes(rows: Rows, config: BlockConfig) -> bool:
    return rows.ids is None and not rows.per_row and not rows.limited and config.products != "double"


def _operands(rows: Rows, config: BlockConfig) -> tuple[object, ...]:
    halved = TensorDescriptor.from_tensor(rows.packed, [config.block // 2, config.depth])
    return TensorDescriptor.from_tensor(rows.packed, [config.block, config.depth]), halved, rows.stats


def _options(rows: Rows, panel: Panel, config: BlockConfig) -> dict[str, Any]:
    options = rows.options(panel, config)
    del options["PER_ROW"], options["LIMITED"]
    return options | {"maxnreg": REGISTERS}


def changes() -> Changes:
    """The candidate in the place of the kernels of logits, and of weights where no tile of the panel was kept."""
    shipped_lse, shipped_weights = lse.panel_lse, kept.panel_weights

    def panel_lse(rows: Rows, panel: Panel, memory: Tensor, planes: int, config: BlockConfig) -> list[Tensor]:
        if planes != 2 or not _takes(rows, config):
            return shipped_lse(rows, panel, memory, planes, config)
        num_a, num_b = length(panel.rows), length(panel.columns)
        tiles_a, tiles_b = num_a // config.block, num_b // config.block
        row_slots = memory[: planes * tiles_b * num_a].view(planes, tiles_b, num_a)
        column_slots = row_slots
        if panel.serves_columns:
            column_slots = memory[row_slots.numel() :][: planes * tiles_a * num_b].view(planes, tiles_a, num_b)
        lse_together[(panel.tiles(config.block),)](
            *_operands(rows, config),
            row_slots,
            column_slots,
            row_slots.stride(0),
            column_slots.stride(0),
            num_a,
            num_b,
            *rows.extents(panel, config),
            MIRRORED=panel.serves_columns,
            **_options(rows, panel, config),
        )
        return [row_slots, column_slots] if panel.serves_columns else [row_slots]

    def panel_weights(rows: Rows, panel: Panel, factors: Factors, memory: Tensor, config: BlockConfig) -> Tensor:
        if not _takes(rows, config) or kept.kept_share(rows, panel, config) != "none":
            return shipped_weights(rows, panel, factors, memory, config)
        block = weights.panel_memory(memory, panel, config)
        weights_together[(panel.tiles(config.block),)](
            *_operands(rows, config),
            factors.coefficient,
            block,
            block.stride(1),
            block.stride(0),
            *rows.extents(panel, config)[6:],
            ROUND=config.rounds_weights,
            TERMS=config.weight_terms,
            **_options(rows, panel, config),
        )
        return block

    return (lse, "panel_lse", panel_lse), (gradient, "panel_weights", panel_weights)
