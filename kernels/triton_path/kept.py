"""Weights from kept logits alone, in a kernel that multiplies nothing: several of its blocks share a multiprocessor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles, weights
from .pack import Rows
from .plan.config import BlockConfig
from .plan.layout import Block, Panel, length
from .tiles import COARSEST_RATE, common_rate, kept_place, needs_mask, rows_inside, stem_of, tile_at
from .weights import Factors, pair_weights, round_to_tf32, store_weights

Share = Literal["all", "some", "none"]

STEPS = tl.constexpr(tiles.STEPS.value)
# Columns of a tile that a program takes, and its warps: four programs of 64 registers a thread share a multiprocessor.
COLUMNS, NUM_WARPS = 32, 8


@triton.jit
def counted_columns(ids_ptr, first_a, first_b, columns, num_pairs, num_candidates, padded, BLOCK: tl.constexpr):
    """As :func:`.tiles.counted_pairs`, for some columns of a tile."""
    rows = tl.arange(0, BLOCK)
    if ids_ptr is not None:
        id_a, id_b = tl.load(ids_ptr + first_a + rows), tl.load(ids_ptr + first_b + columns)
        counted = (id_a[:, None] != id_b[None, :]) & (id_a >= 0)[:, None] & (id_b >= 0)[None, :]
    else:
        a, b = stem_of(first_a, padded), stem_of(first_b, padded)
        inside_a = rows < rows_inside(a, num_pairs, num_candidates, padded)
        inside_b = columns < rows_inside(b, num_pairs, num_candidates, padded)
        counted = ((a + rows)[:, None] != (b + columns)[None, :]) & inside_a[:, None] & inside_b[None, :]
    return counted


@triton.jit
def kept_weights(
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
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    TRIANGLE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    LIMITED: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
):
    """Some columns of a tile of :func:`.weights.pair_weights`; arguments as of :func:`.weights.block_weights`.

    Every tile was kept, in steps that are small enough for the temperature.
    """
    parts = BLOCK // COLUMNS
    program = tl.program_id(0)
    a, b = tile_at(program // parts, tiles_a, tiles_b, TRIANGLE, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    rows = tl.arange(0, BLOCK)
    columns = program % parts * COLUMNS + tl.arange(0, COLUMNS)
    index_a, index_b = first_a + rows, first_b + columns
    place = kept_place(first_a, first_b, block_a, block_b, tiles_before, tiles_high, BLOCK)
    kept = kept_ptr + place.to(tl.int64) * BLOCK * BLOCK
    logit = tl.load(kept + rows[:, None] * BLOCK + columns[None, :])
    if kept_ptr.dtype.element_ty == tl.int16:
        logit = logit.to(tl.float32) * (common_rate(stats_ptr, plane) / STEPS)
    row, column = tl.load(coefficient_ptr + index_a), tl.load(coefficient_ptr + index_b)
    weight = pair_weights(logit, logit, row, column, stats_ptr, plane, index_a, index_b, NORMALIZE, False, LIMITED)
    if needs_mask(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK):
        counted = counted_columns(ids_ptr, first_a, first_b, columns, num_pairs, num_candidates, padded, BLOCK)
        weight = tl.where(counted, weight, 0.0)
    if ROUND:
        weight = round_to_tf32(weight)
    mirrored = False
    if TRIANGLE:
        mirrored = a != b
    store_weights(
        weights_ptr, weights_pitch, weights_plane, a * BLOCK, b * BLOCK, rows, columns, weight, mirrored, TERMS
    )


def edge_of(found: Sequence[Block], num_kept: int, tile: int) -> int | None:
    """The stacked row where a block's columns of kept tiles end; None if each block is kept wholly or not at all."""
    for block in found:
        kept = num_kept - block.tiles_before
        if 0 < kept < block.tiles(tile):
            whole = (isqrt(8 * kept + 1) - 1) // 2 if block.square else kept // (length(block.rows) // tile)
            return block.columns[0] + whole * tile
    return None


def share_of(panel: Panel, num_kept: int, tile: int) -> Share:
    """How many of a panel's tiles are among the first ``num_kept``, counted as in :func:`.tiles.kept_place`."""
    block = panel.block
    if block is None:
        return "none"

    def place(row: int, column: int) -> int:
        a, b = (row - block.rows[0]) // tile, (column - block.columns[0]) // tile
        before = b * (b + 1) // 2 if block.square else b * (length(block.rows) // tile)
        return block.tiles_before + before + a

    last = place(panel.rows[1] - tile, panel.columns[1] - tile)
    if last < num_kept:
        return "all"
    return "none" if place(panel.rows[0], panel.columns[0]) >= num_kept else "some"


def kept_share(rows: Rows, panel: Panel, config: BlockConfig) -> Share:
    """How much of a panel's logits was kept so that it can be used whatever is known on the device alone.

    That is not known of cosines in 16 bits if the temperature is there: they may be too coarse for it.
    """
    if rows.kept is None:
        return "none"
    share = share_of(panel, rows.kept.numel() // config.block**2, config.block)
    fine = rows.kept.dtype != torch.int16 or (rows.rate is not None and rows.rate <= COARSEST_RATE.value)
    return share if fine or share == "none" else "some"


def panel_weights(rows: Rows, panel: Panel, factors: Factors, memory: Tensor, config: BlockConfig) -> Tensor:
    """As :func:`.weights.panel_weights`: from kept logits, from new ones, or by the kernel that has both ways."""
    share = kept_share(rows, panel, config)
    if share != "all":
        return weights.panel_weights(
            replace(rows, kept=None) if share == "none" else rows, panel, factors, memory, config
        )
    block = weights.panel_memory(memory, panel, config)
    columns = min(COLUMNS, config.block)
    kept_weights[(panel.tiles(config.block) * (config.block // columns),)](
        rows.stats,
        rows.ids,
        factors.coefficient,
        block,
        block.stride(1),
        block.stride(0),
        *rows.extents(panel, config),
        BLOCK=config.block,
        COLUMNS=columns,
        GROUP=config.group,
        TRIANGLE=panel.diagonal,
        NORMALIZE=rows.normalize,
        LIMITED=rows.limited,
        ROUND=config.rounds_weights,
        TERMS=config.weight_terms,
        num_warps=NUM_WARPS,
    )
    return block
