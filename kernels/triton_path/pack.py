"""The first pass over the embeddings: norms, the positives' similarities, and all sides packed as one matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..problem import Batch, Problem
from .plan import layout
from .plan.config import BlockConfig
from .plan.layout import CANDIDATES, Panel, Stack, length, table

PACK_DEPTH = 512

SCALE, INVERSE, REST = tl.constexpr(layout.SCALE), tl.constexpr(layout.INVERSE), tl.constexpr(layout.REST)
FACTOR, RESIDUE = tl.constexpr(layout.FACTOR), tl.constexpr(layout.RESIDUE)
RATE, LIMIT = tl.constexpr(layout.RATE), tl.constexpr(layout.LIMIT)
PEAK, TOTAL, MOMENT = tl.constexpr(layout.PEAK), tl.constexpr(layout.TOTAL), tl.constexpr(layout.MOMENT)
LOWEST, HIGHEST = tl.constexpr(layout.LOWEST), tl.constexpr(layout.HIGHEST)
LOG2_E = tl.constexpr(1 / math.log(2))
# Squares and products of entries within 2^±30 are far from float32's ends, whatever the width.
ORDINARY = tl.constexpr(30)


@triton.jit
def read_rates(tau_ptr, tau_stride, rate, first, live, ROWS: tl.constexpr, TAU: tl.constexpr):
    """log2(e)/τ of some anchors in float32; τ is a "number" or, on the device, a "scalar" or one for each row, "rows".

    A bad value on the device cannot be refused on the host, so it becomes NaN.
    """
    if TAU == "number":
        rates = tl.full((ROWS,), rate, tl.float32)
    else:
        if TAU == "scalar":
            tau = tl.zeros((ROWS,), tl.float64) + tl.load(tau_ptr).to(tl.float64)
        else:
            index = first + tl.arange(0, ROWS)
            tau = tl.load(tau_ptr + index.to(tl.int64) * tau_stride, mask=live, other=1.0).to(tl.float64)
        rates = tl.where(tau > 0, tl.full((), LOG2_E, tl.float64) / tau, float("nan")).to(tl.float32)
    return rates


@triton.jit
def load_entries(rows, columns, live, width, stride):
    """Columns of some rows, zero outside."""
    mask = live[:, None] & (columns < width)[None, :]
    return tl.load(rows[:, None] + columns.to(tl.int64)[None, :] * stride, mask=mask, other=0.0)


@triton.jit
def stacked_rows(
    x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first, num_pairs, padded, ROWS: tl.constexpr
):
    """Pointers to ROWS stacked rows of one side from ``first`` on, which are no padding, and the column stride."""
    of_y = first >= padded
    position = tl.where(of_y, first - padded, first) + tl.arange(0, ROWS)
    inside = tl.minimum(position, num_pairs - 1).to(tl.int64)
    rows = tl.where(of_y, y_ptr + inside * stride_yr, x_ptr + inside * stride_xr)
    return rows, position < num_pairs, tl.where(of_y, stride_yc, stride_xc)


@triton.jit
def rescaled(entries, scale, RESCALE: tl.constexpr):
    """Entries times their rows' powers of two, exactly."""
    if RESCALE:
        entries = (entries.to(tl.float32) * scale[:, None]).to(entries.dtype)
    return entries


@triton.jit
def binary_exponent(value):
    """The exponent of a float32's leading bit, clamped to normal numbers whose inverse is normal too."""
    # Subnormal numbers have exponent field 0, one too many.
    exponent = ((value.to(tl.int32, bitcast=True) >> 23) & 255) - 127
    return tl.minimum(tl.maximum(exponent, -126), 126)


@triton.jit
def power_of_two(exponent):
    """2^exponent in float32, for the exponent of a normal number."""
    return ((127 + exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_of(largest):
    """The exact power of two that a row is multiplied by, from the size of its largest entry: 1 for ordinary rows."""
    exponent = binary_exponent(largest)
    far = (tl.abs(exponent) > ORDINARY) & (largest > 0)
    return tl.where(far, power_of_two(-exponent), 1.0)


@triton.jit
def row_scale(rows, live, width, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """:func:`scale_of` for some rows."""
    offsets = tl.arange(0, DEPTH)
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, DEPTH):
        entries = load_entries(rows, start + offsets, live, width, stride).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(entries), 1))
    return scale_of(largest)


@triton.jit
def inverse_norm(square):
    """1/|row|, or 0 for a row of zeros, so that its cosines and its gradient are 0."""
    return tl.where(square != 0, 1.0 / tl.sqrt(square), 0.0)


@triton.jit
def store_row(
    stats_ptr, plane, index, stored, scale, inverse, rate, limit, anchor, NORMALIZE: tl.constexpr, TAU: tl.constexpr
):
    """Write the statistics of rows, where ``stored``, before any logit is seen; ``inverse`` and ``rate`` are float64.

    A row's factor in a cosine's logit is stored as two float32 parts. Rows that are not anchors have no temperature of
    their own.
    """
    zero = tl.zeros_like(scale)
    exact, whole = tl.zeros_like(inverse), inverse
    if TAU == "rows":
        rate = tl.where(anchor, rate, 0.0)
    if NORMALIZE:
        exact = inverse * (rate if TAU == "rows" else tl.sqrt(rate))
    else:
        whole = tl.zeros_like(inverse)
    factor, own = exact.to(tl.float32), whole.to(tl.float32)
    target = stats_ptr + index
    tl.store(target + SCALE * plane, scale, mask=stored)
    tl.store(target + INVERSE * plane, own, mask=stored)
    tl.store(target + REST * plane, (whole - own).to(tl.float32), mask=stored)
    tl.store(target + FACTOR * plane, factor, mask=stored)
    tl.store(target + RESIDUE * plane, (exact - factor).to(tl.float32), mask=stored)
    tl.store(target + RATE * plane, rate.to(tl.float32), mask=stored)
    tl.store(target + LIMIT * plane, zero + limit.to(tl.float32), mask=stored)
    tl.store(target + PEAK * plane, zero + tl.where(anchor, LOWEST, HIGHEST), mask=stored)
    tl.store(target + TOTAL * plane, zero, mask=stored)
    tl.store(target + MOMENT * plane, zero, mask=stored)


@triton.jit
def store_packed(packed_ptr, entries, index, columns, pitch, stored):
    """Write some columns of rows to the packed matrix."""
    target = packed_ptr + index.to(tl.int64)[:, None] * pitch + columns[None, :]
    tl.store(target, entries.to(packed_ptr.dtype.element_ty), mask=stored[:, None] & (columns < pitch)[None, :])


@triton.jit
def pack_pairs(
    x_ptr,
    y_ptr,
    tau_ptr,
    tau_stride,
    rate,
    margin,
    packed_ptr,
    stats_ptr,
    similarity_ptr,
    num_pairs,
    padded,
    plane,
    width,
    pitch,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    y_anchors,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    TAU: tl.constexpr,
    FRESH: tl.constexpr,
    PACK: tl.constexpr,
):
    """One pass over the rows of ROWS pairs of x and y; also the first part of a small batch's first kernel.

    FRESH: fill their statistics, and the positives' similarities in float64. Otherwise use the powers of two that a
    fresh pass left. PACK: copy the rows into the packed matrix, rescaled, with zeros for padding.
    """
    first = tl.program_id(0) * ROWS
    index = first + tl.arange(0, ROWS)
    live = index < num_pairs
    position = tl.minimum(index, num_pairs - 1).to(tl.int64)
    x_rows = x_ptr + position * stride_xr
    y_rows = y_ptr + position * stride_yr
    x_scale = tl.full((ROWS,), 1.0, tl.float32)
    y_scale = tl.full((ROWS,), 1.0, tl.float32)
    if RESCALE:
        if FRESH:
            x_scale = row_scale(x_rows, live, width, stride_xc, ROWS, DEPTH)
            y_scale = row_scale(y_rows, live, width, stride_yc, ROWS, DEPTH)
        else:
            x_scale = tl.load(stats_ptr + SCALE * plane + index)
            y_scale = tl.load(stats_ptr + SCALE * plane + padded + index)
    x_square = tl.zeros((ROWS,), tl.float64)
    y_square = tl.zeros((ROWS,), tl.float64)
    dot = tl.zeros((ROWS,), tl.float64)
    offsets = tl.arange(0, DEPTH)
    for start in range(0, pitch, DEPTH):
        columns = start + offsets
        x = rescaled(load_entries(x_rows, columns, live, width, stride_xc), x_scale, RESCALE)
        y = rescaled(load_entries(y_rows, columns, live, width, stride_yc), y_scale, RESCALE)
        if PACK:
            store_packed(packed_ptr, x, index, columns, pitch, index >= 0)
            store_packed(packed_ptr, y, padded + index, columns, pitch, index >= 0)
        if FRESH:
            x_wide = x.to(tl.float64)
            y_wide = y.to(tl.float64)
            dot += tl.sum(x_wide * y_wide, 1)
            if NORMALIZE:
                x_square += tl.sum(x_wide * x_wide, 1)
                y_square += tl.sum(y_wide * y_wide, 1)
    if FRESH:
        x_inverse = inverse_norm(x_square)
        y_inverse = inverse_norm(y_square)
        if NORMALIZE:
            dot = dot * x_inverse * y_inverse
        tl.store(similarity_ptr + index, dot)
        x_rate = read_rates(tau_ptr, tau_stride, rate, first, live, ROWS, TAU).to(tl.float64)
        y_live = live & (y_anchors > 0)
        y_rate = read_rates(tau_ptr, tau_stride, rate, num_pairs + first, y_live, ROWS, TAU).to(tl.float64)
        limit = dot + margin
        everywhere = index >= 0
        store_row(
            stats_ptr, plane, index, everywhere, x_scale, x_inverse, x_rate, limit * x_rate, everywhere, NORMALIZE, TAU
        )
        store_row(
            stats_ptr, plane, padded + index, everywhere, y_scale, y_inverse, y_rate, limit * y_rate,
            everywhere & (y_anchors > 0), NORMALIZE, TAU,
        )  # fmt: skip


@triton.jit
def pack_candidates(
    rows_ptr,
    tau_ptr,
    rate,
    packed_ptr,
    stats_ptr,
    first,
    num_rows,
    num_stored,
    plane,
    width,
    pitch,
    stride_r,
    stride_c,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    TAU: tl.constexpr,
    FRESH: tl.constexpr,
):
    """Pack the rows of one candidate side at stacked row ``first``, and the padding after them up to ``num_stored``."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, stored = index < num_rows, index < num_stored
    rows = rows_ptr + tl.minimum(index, num_rows - 1).to(tl.int64) * stride_r
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if RESCALE:
        if FRESH:
            scale = row_scale(rows, live, width, stride_c, ROWS, DEPTH)
        else:
            scale = tl.load(stats_ptr + SCALE * plane + first + index, mask=stored, other=1.0)
    square = tl.zeros((ROWS,), tl.float64)
    offsets = tl.arange(0, DEPTH)
    for start in range(0, pitch, DEPTH):
        columns = start + offsets
        entries = rescaled(load_entries(rows, columns, live, width, stride_c), scale, RESCALE)
        store_packed(packed_ptr, entries, first + index, columns, pitch, stored)
        if FRESH:
            wide = entries.to(tl.float64)
            square += tl.sum(wide * wide, 1)
    if FRESH:
        shared = tl.zeros((ROWS,), tl.float32)
        if TAU != "rows":
            shared = read_rates(tau_ptr, 0, rate, 0, live, ROWS, TAU)
        shared = shared.to(tl.float64)
        store_row(
            stats_ptr, plane, first + index, stored, scale, inverse_norm(square), shared, shared * 0.0, index < 0,
            NORMALIZE, TAU,
        )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The embeddings as the kernels see them.

    Attributes:
        packed: all rows stacked, contiguous, rescaled by powers of two.
        stats: the statistics of each row, see :mod:`.layout`.
        ids: the identity of each row, or None.
        kept: tiles of logits, one after the other, or None.
        stack: where the rows lie.
        normalize: cosines rather than dot products.
        per_row: each anchor has its own temperature.
        limited: a margin leaves out some pairs.
        rate: log2(e)/τ if the host knows it.
    """

    packed: Tensor
    stats: Tensor
    ids: Tensor | None
    kept: Tensor | None
    stack: Stack
    normalize: bool
    per_row: bool
    limited: bool
    rate: float | None = None

    @property
    def plane(self) -> int:
        """From one plane of the statistics to the next; more than there are rows in a part of a larger stack."""
        return self.stats.stride(0)

    def operands(self, config: BlockConfig) -> tuple[object, ...]:
        """The first arguments of a kernel that works on tiles: the rows, their statistics and identities."""
        return TensorDescriptor.from_tensor(self.packed, [config.block, config.depth]), self.stats, self.ids

    def extents(self, panel: Panel, config: BlockConfig) -> tuple[Any, ...]:
        """Further arguments of such a kernel: which kept tiles are the panel's, sizes, and the panel's place."""
        stack, block = self.stack, panel.block
        kept: tuple[Any, ...] = None, 0, 0, 0, 0, 0
        if self.kept is not None and block is not None:
            tiles_high = 0 if block.square else length(block.rows) // config.block
            num_kept = self.kept.numel() // config.block**2
            kept = self.kept, num_kept, block.rows[0], block.columns[0], block.tiles_before, tiles_high
        place = panel.rows[0], panel.columns[0]
        tiles = length(panel.rows) // config.block, length(panel.columns) // config.block
        return *kept, stack.n, stack.m, stack.padded, self.plane, stack.width, *place, *tiles

    def keeps_some_of(self, panel: Panel, config: BlockConfig) -> bool:
        """Whether logits of a panel are kept, if only of its first tile."""
        _, num_kept, block_a, block_b, tiles_before, tiles_high, *_ = self.extents(panel, config)
        a, b = (panel.rows[0] - block_a) // config.block, (panel.columns[0] - block_b) // config.block
        # As in kept_place of .tiles.
        return tiles_before + (b * tiles_high if tiles_high else b * (b + 1) // 2) + a < num_kept

    def options(self, panel: Panel, config: BlockConfig) -> dict[str, object]:
        """The compile-time arguments of such a kernel."""
        return {
            "BLOCK": config.block,
            "DEPTH": config.depth,
            "GROUP": config.group,
            "TRIANGLE": panel.diagonal,
            "NORMALIZE": self.normalize,
            "PER_ROW": self.per_row,
            "LIMITED": self.limited,
            "PRECISION": config.products,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
        }


def temperature_arguments(batch: Batch, placeholder: Tensor) -> tuple[Tensor, int, float, str]:
    """The arguments of a kernel that reads the temperature: τ on the device, its stride, log2(e)/τ, and its kind."""
    tau = batch.temperature
    if not isinstance(tau, Tensor):
        return placeholder, 0, LOG2_E.value / tau, "number"
    return (tau, 0, 0.0, "scalar") if tau.dim() == 0 else (tau, tau.stride(0), 0.0, "rows")


def pack(
    batch: Batch,
    saved: Tensor,
    ids: Tensor | None,
    similarity: Tensor | None,
    stack: Stack,
    problem: Problem,
    config: BlockConfig,
) -> Rows:
    """Stack all sides' rows, rescaled by the powers of two in ``saved``.

    With ``similarity`` (padded rows, float64) the rows' statistics are found first, and ``saved`` and ``similarity``
    are filled. ``saved`` has the statistics at its front, and kept logits after them.
    """
    packed = torch.empty((stack.num_rows, stack.width), dtype=batch.shape.dtype, device=batch.x.device)
    rows = pack_into(packed, table(saved, stack), batch, ids, similarity, stack, problem, config)
    rest = saved[stack.saved_floats :]
    return replace(rows, kept=rest.view(config.kept_dtype)) if rest.numel() else rows


def pack_into(
    packed: Tensor,
    stats: Tensor,
    batch: Batch,
    ids: Tensor | None,
    similarity: Tensor | None,
    stack: Stack,
    problem: Problem,
    config: BlockConfig,
) -> Rows:
    """As :func:`pack`, into a packed matrix and a table that may be parts of larger ones."""
    shape, plane = batch.shape, stats.stride(0)
    tau, tau_stride, rate, tau_kind = temperature_arguments(batch, stats)
    shared = {
        "ROWS": config.row_block,
        "DEPTH": min(PACK_DEPTH, triton.next_power_of_2(stack.width)),
        "NORMALIZE": problem.normalize,
        "RESCALE": config.rescale,
        "TAU": tau_kind,
        "FRESH": similarity is not None,
        "num_warps": 4,
    }
    pack_pairs[(stack.padded // config.row_block,)](
        batch.x,
        batch.y,
        tau,
        tau_stride,
        rate,
        float(problem.margin or 0.0),
        packed,
        stats,
        stats if similarity is None else similarity,
        stack.n,
        stack.padded,
        plane,
        shape.d,
        stack.width,
        *batch.x.stride(),
        *batch.y.stride(),
        int(problem.directions == "both"),
        PACK=True,
        **shared,
    )
    first, last = stack.span(CANDIDATES)
    sides = [side for side in batch.candidates if side.shape[0]]
    for position, side in enumerate(sides):
        count = side.shape[0]
        stored = last - first if position + 1 == len(sides) else count
        pack_candidates[(triton.cdiv(stored, config.row_block),)](
            side,
            tau,
            rate,
            packed,
            stats,
            first,
            count,
            stored,
            plane,
            shape.d,
            stack.width,
            *side.stride(),
            **shared,
        )
        first += count
    limited = problem.margin is not None
    known = rate if tau_kind == "number" else None
    return Rows(packed, stats, ids, None, stack, problem.normalize, shape.per_row, limited, known)
