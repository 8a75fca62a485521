"""The forward: log-sum-exp of blocks of logits along rows and columns, from one pass over their products.

Logits are carried in units of log 2, t = s log2(e). For each of its rows and each of its columns, a tile writes a peak,
the sum of 2^(t - peak) and (for the temperature's gradient) the sum of 2^(t - peak) (t - peak) into a slot that no
other tile writes. The slots are then folded in a fixed order, so that results repeat bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..problem import Problem
from .pack import Rows
from .plan import layout
from .plan.config import BlockConfig
from .plan.layout import Panel, Span, X, Y, length
from .tiles import (
    common_rate,
    counted_pairs,
    has_common_peak,
    is_left_out,
    keep_logits,
    kept_place,
    logits,
    needs_mask,
    tile_at,
    tile_products,
)

RATE, PEAK = tl.constexpr(layout.RATE), tl.constexpr(layout.PEAK)
TOTAL, MOMENT_PLANE = tl.constexpr(layout.TOTAL), tl.constexpr(layout.MOMENT)
LOWEST, HIGHEST = tl.constexpr(layout.LOWEST), tl.constexpr(layout.HIGHEST)
LN2 = tl.constexpr(math.log(2))
FOLD_ROWS, FOLD_SLOTS = 32, 16


@triton.jit
def first_moment(distance, weight, axis: tl.constexpr):
    """Σ weight distance along an axis, the weight being 2^distance."""
    # A weight of 0 has distance -inf; their product must be 0.
    return tl.sum(tl.where(weight > 0, weight * distance, 0.0), axis)


@triton.jit
def store_slot(slots_ptr, plane, peak, distance, weight, index, axis: tl.constexpr, MOMENT: tl.constexpr):
    """Write a tile's peak, sum and first moment along an axis to one slot."""
    tl.store(slots_ptr + index, peak)
    tl.store(slots_ptr + plane + index, tl.sum(weight, axis))
    if MOMENT:
        tl.store(slots_ptr + 2 * plane + index, first_moment(distance, weight, axis))


@triton.jit
def store_own_peak(slots_ptr, plane, logit, index, axis: tl.constexpr, MOMENT: tl.constexpr):
    """Write the slot of logits whose peak is their own maximum."""
    peak = tl.maximum(tl.max(logit, axis), LOWEST)
    distance = logit - (peak[:, None] if axis == 1 else peak[None, :])
    store_slot(slots_ptr, plane, peak, distance, tl.exp2(distance), index, axis, MOMENT)


@triton.jit
def block_lse(
    packed,
    stats_ptr,
    ids_ptr,
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
    PER_ROW: tl.constexpr,
    LIMITED: tl.constexpr,
    MOMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of the stacked rows from ``a_start`` on against those from ``b_start`` on.

    Row i's share goes to slot (tile of j) of ``row_slots`` and, if MIRRORED, column j's to slot (tile of i) of
    ``column_slots``. TRIANGLE: b is a and both slot arrays are the same; a tile below the diagonal mirrors one above
    it, whose column sums are its row sums. ``kept_ptr``, unless None: where tiles of logits are kept for the backward,
    as many as there is room for.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, TRIANGLE, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    index_a, index_b = first_a + index, first_b + index
    rate = common_rate(stats_ptr, plane)
    row_slot = row_slots + b.to(tl.int64) * row_pitch
    column_slot = column_slots + a.to(tl.int64) * column_pitch
    row_index = a * BLOCK + index
    column_index = b * BLOCK + index
    mirrored = MIRRORED
    if TRIANGLE:
        mirrored = a != b
    product = tile_products(packed, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION)
    logit = logits(product, stats_ptr, plane, index_a, index_b, 1, NORMALIZE, PER_ROW)
    masked = needs_mask(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK)
    if masked:
        counted = counted_pairs(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK)
        logit = tl.where(counted, logit, float("-inf"))
    if kept_ptr is not None:
        place = kept_place(first_a, first_b, block_a, block_b, tiles_before, tiles_high, BLOCK)
        keep_logits(kept_ptr, place, num_kept, logit, rate, BLOCK)
    if has_common_peak(rate, NORMALIZE, PER_ROW):
        weight = tl.exp2(logit)
        peak = tl.zeros((BLOCK,), tl.float32)
        row_weight = weight
        if LIMITED:
            row_weight = tl.where(is_left_out(logit, stats_ptr, plane, index_a, 1), 0.0, weight)
        store_slot(row_slot, row_plane, peak, logit, row_weight, row_index, 1, MOMENT)
        if mirrored:
            column_weight = weight
            if LIMITED:
                column_weight = tl.where(is_left_out(logit, stats_ptr, plane, index_b, 0), 0.0, weight)
            store_slot(column_slot, column_plane, peak, logit, column_weight, column_index, 0, MOMENT)
    else:
        row_logit = logit
        if LIMITED:
            row_logit = tl.where(is_left_out(logit, stats_ptr, plane, index_a, 1), float("-inf"), logit)
        store_own_peak(row_slot, row_plane, row_logit, row_index, 1, MOMENT)
        if mirrored:
            column_logit = logit
            if PER_ROW:
                column_logit = logits(product, stats_ptr, plane, index_a, index_b, 0, NORMALIZE, PER_ROW)
                if masked:
                    counted = counted_pairs(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK)
                    column_logit = tl.where(counted, column_logit, float("-inf"))
            if LIMITED:
                left_out = is_left_out(column_logit, stats_ptr, plane, index_b, 0)
                column_logit = tl.where(left_out, float("-inf"), column_logit)
            store_own_peak(column_slot, column_plane, column_logit, column_index, 0, MOMENT)


@triton.jit
def close_rows(
    stats_ptr,
    similarity_ptr,
    z_ptr,
    positive_ptr,
    moment_ptr,
    index,
    peak,
    total,
    moment,
    num_pairs,
    padded,
    plane,
    PER_ROW: tl.constexpr,
    MOMENT: tl.constexpr,
):
    """z, the positives' logits and with MOMENT Σ_j P_ij s_ij - s_i,p(i) of anchors whose negatives are all summed.

    In float64, which costs nothing here. z = lse - positive is NaN where a logit is not finite, and -inf for a row
    without negatives, whose peak is set so that all its weights are 0. ``z_ptr`` has room for the anchors, no padding.
    """
    side = (index >= padded).to(tl.int32)
    position = index - side * padded
    live = position < num_pairs
    target = side * num_pairs + position
    ln2 = tl.full((), LN2, tl.float64)
    rate = tl.load(stats_ptr + RATE * plane + (index if PER_ROW else index * 0)).to(tl.float64)
    positive = tl.load(similarity_ptr + position) * rate
    excess = peak.to(tl.float64) - positive
    none = total == 0
    sum_of_all = tl.where(none, 1.0, total).to(tl.float64)
    z = excess * ln2 + tl.log(sum_of_all)
    z = tl.where((z - z) == 0, tl.where(none, float("-inf"), z), float("nan"))
    tl.store(stats_ptr + PEAK * plane + index, tl.where(none, HIGHEST, peak))
    tl.store(stats_ptr + TOTAL * plane + index, total)
    tl.store(z_ptr + target, z, mask=live)
    tl.store(positive_ptr + target, positive * ln2, mask=live)
    if MOMENT:
        of_row = (excess + moment.to(tl.float64) / sum_of_all) * ln2
        tl.store(moment_ptr + target, tl.where(none, of_row - of_row, of_row), mask=live)


@triton.jit
def fold_slots(
    slots_ptr,
    slots_plane,
    pitch,
    num_slots,
    stats_ptr,
    similarity_ptr,
    z_ptr,
    positive_ptr,
    moment_ptr,
    num_pairs,
    padded,
    plane,
    start,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    PER_ROW: tl.constexpr,
    MOMENT: tl.constexpr,
    CLOSE: tl.constexpr,
):
    """Fold the slots of stacked rows from ``start`` on into their running (peak, sum, first moment).

    CLOSE: these are the rows' last slots.
    """
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    index = start + local
    peak = tl.load(stats_ptr + PEAK * plane + index)
    total = tl.load(stats_ptr + TOTAL * plane + index)
    moment = tl.load(stats_ptr + MOMENT_PLANE * plane + index)
    for first in range(0, num_slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        source = slots_ptr + slot.to(tl.int64)[:, None] * pitch + local[None, :]
        mask = (slot < num_slots)[:, None]
        slot_peak = tl.load(source, mask=mask, other=LOWEST)
        slot_total = tl.load(source + slots_plane, mask=mask, other=0.0)
        higher = tl.maximum(peak, tl.max(slot_peak, 0))
        old = tl.exp2(peak - higher)
        new = tl.exp2(slot_peak - higher[None, :])
        if MOMENT:
            slot_moment = tl.load(source + 2 * slots_plane, mask=mask, other=0.0)
            # Moments are taken about the peak, so moving it by h adds h times the sum.
            moved = new * (slot_moment + (slot_peak - higher[None, :]) * slot_total)
            moment = old * (moment + (peak - higher) * total) + tl.sum(moved, 0)
        total = old * total + tl.sum(new * slot_total, 0)
        peak = higher
    if CLOSE:
        close_rows(
            stats_ptr, similarity_ptr, z_ptr, positive_ptr, moment_ptr, index, peak, total, moment,
            num_pairs, padded, plane, PER_ROW, MOMENT,
        )  # fmt: skip
    else:
        tl.store(stats_ptr + PEAK * plane + index, peak)
        tl.store(stats_ptr + TOTAL * plane + index, total)
        if MOMENT:
            tl.store(stats_ptr + MOMENT_PLANE * plane + index, moment)


def forward(
    rows: Rows, similarity: Tensor, results: tuple[Tensor, Tensor, Tensor | None], problem: Problem, config: BlockConfig
) -> None:
    """Sum all rows' negatives; fill z, the positives' logits and, unless None, the moments (rows) with float64."""
    stack = rows.stack
    planes = 2 if results[2] is None else 3
    workspace = problem.workspace - (0 if rows.kept is None else rows.kept.nbytes)
    size = layout.forward_panel(stack, config.block, planes, workspace)
    panels = list(layout.panels(layout.blocks(stack, problem, config.block), size, stack))
    if not panels:
        # Nothing to compare with.
        close(rows, similarity, results, problem)
        return
    slots = slot_memory(rows, panels, planes, config)
    left = Counter(span for panel in panels for span in served(panel))
    for panel in panels:
        for span, filled in zip(served(panel), panel_lse(rows, panel, slots, planes, config), strict=True):
            left[span] -= 1
            fold(rows, filled, span[0], similarity, results, left[span] == 0)


def close(rows: Rows, similarity: Tensor, results: tuple[Tensor, Tensor, Tensor | None], problem: Problem) -> None:
    """Fill the results of all anchors from what was folded into their statistics."""
    planes = 2 if results[2] is None else 3
    last = rows.stack.span(Y if problem.directions == "both" else X)[1]
    fold(rows, similarity.new_empty((planes, 0, last), dtype=torch.float32), 0, similarity, results, True)


def slot_memory(rows: Rows, panels: Sequence[Panel], planes: int, config: BlockConfig) -> Tensor:
    """Memory for the slots of the largest panel."""
    most = max((planes * panel.pairs // config.block * len(served(panel)) for panel in panels), default=0)
    return torch.empty(most, dtype=torch.float32, device=rows.packed.device)


def served(panel: Panel) -> list[Span]:
    """The rows that a panel's logits belong to."""
    return [panel.rows, panel.columns] if panel.serves_columns else [panel.rows]


def panel_lse(rows: Rows, panel: Panel, memory: Tensor, planes: int, config: BlockConfig) -> list[Tensor]:
    """The slots (planes, tiles, rows) of the rows that the panel serves, in the temporary ``memory``."""
    num_a, num_b = length(panel.rows), length(panel.columns)
    tiles_a, tiles_b = num_a // config.block, num_b // config.block
    row_slots = memory[: planes * tiles_b * num_a].view(planes, tiles_b, num_a)
    column_slots = row_slots
    if panel.serves_columns:
        column_slots = memory[row_slots.numel() :][: planes * tiles_a * num_b].view(planes, tiles_a, num_b)
    if config.specialised:
        from .hopper.lse import launch

        kept, *extents = rows.extents(panel, config)
        launch(
            rows.packed,
            rows.stats[layout.FACTOR],
            rows.stats[layout.RATE],
            rows.ids,
            row_slots,
            column_slots,
            kept,
            tuple(extents),
            triangle=panel.diagonal,
            mirrored=panel.serves_columns or panel.diagonal,
            normalize=rows.normalize,
            moment=planes == 3,
        )
        return [row_slots, column_slots] if panel.serves_columns else [row_slots]
    block_lse[(panel.tiles(config.block),)](
        *rows.operands(config),
        row_slots,
        column_slots,
        row_slots.stride(0),
        column_slots.stride(0),
        num_a,
        num_b,
        *rows.extents(panel, config),
        MIRRORED=panel.serves_columns,
        MOMENT=planes == 3,
        **rows.options(panel, config),
    )
    return [row_slots, column_slots] if panel.serves_columns else [row_slots]


def fold(
    rows: Rows,
    slots: Tensor,
    start: int,
    similarity: Tensor,
    results: tuple[Tensor, Tensor, Tensor | None],
    close: bool,
) -> None:
    """Fold slots (planes, tiles, rows) into the statistics of the stacked rows from ``start`` on.

    ``close``: no other slots follow for these rows, so fill their results.
    """
    planes, num_slots, num_rows = slots.shape
    z, positive, moment = results
    fold_slots[(num_rows // FOLD_ROWS,)](
        slots,
        slots.stride(0),
        num_rows,
        num_slots,
        rows.stats,
        similarity,
        z,
        positive,
        z if moment is None else moment,
        rows.stack.n,
        rows.stack.padded,
        rows.plane,
        start,
        ROWS=FOLD_ROWS,
        SLOTS=FOLD_SLOTS,
        PER_ROW=rows.per_row,
        MOMENT=planes == 3,
        CLOSE=close,
        num_warps=4,
    )
