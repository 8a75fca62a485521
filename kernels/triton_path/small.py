"""Small plain batches in three kernels: products, z, gradients; and their launches.

Up to a few hundred pairs, launches cost more than what they compute. So nothing is packed, all dot products are kept
for the backward in memory that stays in the L2 cache, and each kernel does everything that needs no other program's
results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..problem import Batch, Problem
from . import layout
from .config import SmallConfig
from .gradient import norms_shared_out, projected, store_gradient
from .layout import X, product_columns, product_parts, stack_of
from .lse import close_rows, first_moment
from .pack import PACK_DEPTH, load_entries, pack_pairs, rescaled, scale_of, stacked_rows, temperature_arguments
from .tiles import add_products, common_rate, has_common_peak, logits, no_products, tile_at, whole_products
from .weights import (
    WEIGH_SWEEP,
    common_exponent,
    double_power_of_two,
    over_total,
    pair_weights,
    round_to_tf32,
    weighed_sum,
)

NUM_WARPS = 4
GROUP = 8
# Without a limit the assembler spills registers of four warps to fit more blocks on a multiprocessor than there are.
MOST_REGISTERS = 255
SCALE, LOWEST = tl.constexpr(layout.SCALE), tl.constexpr(layout.LOWEST)
LN2 = tl.constexpr(math.log(2))


@triton.jit
def store_products(products_ptr, plane, offsets, product, PARTS: tl.constexpr):
    """Store products, each as one float32 number or as two that add up to it, ``plane`` numbers apart.

    Two parts hold 48 of float64's 53 bits, and are ordinary numbers to whoever inspects the saved tensor.
    """
    part = product.to(tl.float32)
    tl.store(products_ptr + offsets, part)
    if PARTS == 2:
        # What float32 cannot hold leaves no rest.
        rest = tl.where(part - part == 0, product.to(tl.float64) - part.to(tl.float64), 0.0)
        tl.store(products_ptr + plane + offsets, rest.to(tl.float32))


@triton.jit
def load_products(products_ptr, plane, offsets, PARTS: tl.constexpr):
    """Products that :func:`store_products` stored; in float64 if there are two parts."""
    product = tl.load(products_ptr + offsets)
    if PARTS == 2:
        product = product.to(tl.float64) + tl.load(products_ptr + plane + offsets).to(tl.float64)
    return product


@triton.jit
def raw_products(
    a_rows,
    a_live,
    a_stride,
    a_scale,
    b_rows,
    b_live,
    b_stride,
    b_scale,
    width,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    RESCALE: tl.constexpr,
    MEASURE: tl.constexpr,
):
    """The dot products of some rows with others, all rescaled; with MEASURE also the size of rows' largest entries."""
    offsets = tl.arange(0, DEPTH)
    total = no_products(BLOCK, BLOCK, DEPTH, PRECISION)
    a_largest = tl.zeros((BLOCK,), tl.float32)
    b_largest = tl.zeros((BLOCK,), tl.float32)
    # Stages named here also serve the loads of float64 products, which do not use tensor cores.
    for start in tl.range(0, width, DEPTH, num_stages=STAGES):
        a = rescaled(load_entries(a_rows, start + offsets, a_live, width, a_stride), a_scale, RESCALE)
        b = rescaled(load_entries(b_rows, start + offsets, b_live, width, b_stride), b_scale, RESCALE)
        if MEASURE:
            a_largest = tl.maximum(a_largest, tl.max(tl.abs(a.to(tl.float32)), 1))
            b_largest = tl.maximum(b_largest, tl.max(tl.abs(b.to(tl.float32)), 1))
        if PRECISION == "tf32" and a.dtype == tl.float32:
            # Rounded as in the gradient, whose radial part is computed from these products.
            a = round_to_tf32(a)
            b = round_to_tf32(b)
        total = add_products(total, a, b, PRECISION)
    return whole_products(total, PRECISION), a_largest, b_largest


@triton.jit
def small_products(
    x_ptr,
    y_ptr,
    tau_ptr,
    rate,
    products_ptr,
    stats_ptr,
    similarity_ptr,
    num_pairs,
    padded,
    width,
    num_columns,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    y_anchors,
    tiles,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_DEPTH: tl.constexpr,
    CROSS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PARTS: tl.constexpr,
    RESCALE: tl.constexpr,
    TAU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The first programs find norms and positives as packing does; each of the others finds one tile of products.

    A row of ``products`` holds its products with all stacked rows or, with CROSS, with those of the other side; each
    tile is also written as its mirror. Padding has products of 0. Rows are assumed to be of ordinary size, and a tile
    with a row that is not is computed again, rescaled.
    """
    row_programs = padded // ROWS
    program = tl.program_id(0)
    if program < row_programs:
        pack_pairs(
            x_ptr, y_ptr, tau_ptr, 0, rate, 0.0, products_ptr, stats_ptr, similarity_ptr,
            num_pairs, padded, 2 * padded, width, width, stride_xr, stride_xc, stride_yr, stride_yc, y_anchors,
            ROWS, ROW_DEPTH, NORMALIZE, RESCALE, TAU, True, False,
        )  # fmt: skip
    else:
        a, b = tile_at(program - row_programs, tiles, tiles, not CROSS, GROUP)
        first_a = a * BLOCK
        first_b = b * BLOCK
        if CROSS:
            first_b += padded
        a_rows, a_live, a_stride = stacked_rows(
            x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first_a, num_pairs, padded, BLOCK
        )
        b_rows, b_live, b_stride = stacked_rows(
            x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first_b, num_pairs, padded, BLOCK
        )
        one = tl.full((BLOCK,), 1.0, tl.float32)
        product, a_largest, b_largest = raw_products(
            a_rows, a_live, a_stride, one, b_rows, b_live, b_stride, one,
            width, BLOCK, DEPTH, STAGES, PRECISION, False, RESCALE,
        )  # fmt: skip
        if RESCALE:
            a_scale, b_scale = scale_of(a_largest), scale_of(b_largest)
            if PRECISION == "double":
                # No product of float32 numbers leaves float64's range.
                product = product * a_scale.to(tl.float64)[:, None] * b_scale.to(tl.float64)[None, :]
            else:
                far = tl.max((a_scale != 1.0).to(tl.int32), 0) + tl.max((b_scale != 1.0).to(tl.int32), 0)
                if far > 0:
                    product, _, _ = raw_products(
                        a_rows, a_live, a_stride, a_scale, b_rows, b_live, b_stride, b_scale,
                        width, BLOCK, DEPTH, STAGES, PRECISION, True, False,
                    )  # fmt: skip
        index = tl.arange(0, BLOCK)
        offsets = index[:, None] * num_columns + index[None, :]
        plane = 2 * padded * num_columns
        store_products(products_ptr, plane, first_a * num_columns + b * BLOCK + offsets, product, PARTS)
        if CROSS or a != b:
            store_products(products_ptr, plane, first_b * num_columns + a * BLOCK + offsets, product.T, PARTS)


@triton.jit
def place_in_side(index, num_pairs, padded):
    """A stacked row's place in its side; −1 for padding."""
    place = tl.where(index >= padded, index - padded, index)
    return tl.where(place < num_pairs, place, -1)


@triton.jit
def differ(index_a, index_b, num_pairs, padded):
    """Which stacked rows belong to different pairs and are not padding."""
    a = place_in_side(index_a, num_pairs, padded)
    b = place_in_side(index_b, num_pairs, padded)
    return (a[:, None] != b[None, :]) & (a >= 0)[:, None] & (b >= 0)[None, :]


@triton.jit
def small_close(
    products_ptr,
    stats_ptr,
    similarity_ptr,
    z_ptr,
    positive_ptr,
    moment_ptr,
    num_pairs,
    padded,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CROSS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PARTS: tl.constexpr,
    MOMENT: tl.constexpr,
):
    """Sum the negatives of ROWS stacked rows; COLUMNS is at least the number of a row's products."""
    plane = 2 * padded
    first = tl.program_id(0) * ROWS
    index = first + tl.arange(0, ROWS)
    offsets = tl.arange(0, COLUMNS)
    inside = offsets < num_columns
    column = tl.minimum(offsets, num_columns - 1)
    other = column
    if CROSS:
        other += tl.where(first >= padded, 0, padded)
    product = load_products(products_ptr, plane * num_columns, index[:, None] * num_columns + column[None, :], PARTS)
    logit = logits(product, stats_ptr, plane, index, other, 1, NORMALIZE, False)
    counted = differ(index, other, num_pairs, padded) & inside[None, :]
    logit = tl.where(counted, logit, float("-inf"))
    peak = tl.maximum(tl.max(logit, 1), LOWEST)
    peak = tl.where(has_common_peak(common_rate(stats_ptr, plane), NORMALIZE, False), 0.0, peak)
    distance = logit - peak[:, None]
    weight = tl.exp2(distance)
    total = tl.sum(weight, 1)
    moment = total
    if MOMENT:
        moment = first_moment(distance, weight, 1)
    close_rows(
        stats_ptr, similarity_ptr, z_ptr, positive_ptr, moment_ptr, index, peak, total, moment,
        num_pairs, padded, plane, False, MOMENT,
    )  # fmt: skip


@triton.jit
def small_gradient(
    x_ptr,
    y_ptr,
    a_ptr,
    b_ptr,
    products_ptr,
    stats_ptr,
    x_gradient_ptr,
    y_gradient_ptr,
    num_pairs,
    num_anchors,
    padded,
    width,
    num_columns,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    first_row,
    column_tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SWEEP: tl.constexpr,
    CROSS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PARTS: tl.constexpr,
    RESCALE: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ROWS stacked rows and COLUMNS columns of the gradient from ``first_row`` on.

    gradient_i = gain [Σ_j W_ij u_j - pull u_p(i)], for cosines projected off u_i and divided by |row i|. The radial
    part needs all columns, so it is computed from the products and the very weights that are multiplied.
    """
    plane = 2 * padded
    exponent = common_exponent(a_ptr, b_ptr, stats_ptr, num_pairs, num_anchors, padded, plane, SWEEP, False)
    program = tl.program_id(0)
    first = first_row + program // column_tiles * ROWS
    of_y = (first >= padded).to(tl.int32)
    index = first + tl.arange(0, ROWS)
    position = index - of_y * padded
    partner = position + (1 - of_y) * padded
    columns = program % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    # One factor for all rows, which float64 holds; outside the loop it takes no registers there.
    scale = common_rate(stats_ptr, plane).to(tl.float64) * tl.full((), LN2, tl.float64) * double_power_of_two(-exponent)
    row = over_total(stats_ptr, scaled_values(a_ptr, scale, index, num_pairs, num_anchors, padded), index, plane)
    pull = scaled_values(b_ptr, scale, index, num_pairs, num_anchors, padded)
    pull += scaled_values(b_ptr, scale, partner, num_pairs, num_anchors, padded)
    # The first of the stacked rows that these are multiplied with.
    begin = 0
    if CROSS:
        begin += (1 - of_y) * padded
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    radial = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_columns, DEPTH):
        first_other = begin + start
        steps = tl.arange(0, DEPTH)
        other = first_other + steps
        offsets = index[:, None] * num_columns + (start + steps)[None, :]
        product = load_products(products_ptr, plane * num_columns, offsets, PARTS)
        logit = logits(product, stats_ptr, plane, index, other, 1, NORMALIZE, False)
        column = scaled_values(a_ptr, scale, other, num_pairs, num_anchors, padded)
        column = over_total(stats_ptr, column, other, plane)
        weights = pair_weights(logit, logit, row, column, stats_ptr, plane, index, other, NORMALIZE, False, False)
        weights = tl.where(differ(index, other, num_pairs, padded), weights, 0.0)
        if ROUND:
            weights = round_to_tf32(weights)
        if NORMALIZE:
            radial += tl.sum(weights * product.to(tl.float32), 1)
        rows, live, stride = stacked_rows(
            x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first_other, num_pairs, padded, DEPTH
        )
        entries = load_entries(rows, columns, live, width, stride)
        if RESCALE:
            entries = rescaled(entries, tl.load(stats_ptr + SCALE * plane + other), RESCALE)
        if ROUND:
            entries = round_to_tf32(entries.to(tl.float32))
        # Summed separately from the total, for the same reason as in add_products.
        total = tl.fma(weighed_sum(weights, entries, TERMS, BFLOAT16, PRECISION), 1.0, total)
    first_partner = first + (1 - 2 * of_y) * padded
    rows, live, stride = stacked_rows(
        x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first_partner, num_pairs, padded, ROWS
    )
    other_entries = load_entries(rows, columns, live, width, stride)
    gain = double_power_of_two(exponent)
    pull, inverse, factor = norms_shared_out(pull, gain, stats_ptr, plane, index, partner, ROWS, NORMALIZE)
    if NORMALIZE:
        column_of_partner = position
        if not CROSS:
            column_of_partner = partner
        product = load_products(products_ptr, plane * num_columns, index * num_columns + column_of_partner, PARTS)
        radial = (radial - pull * product.to(tl.float32)) * inverse
        other_entries = rescaled(other_entries, tl.load(stats_ptr + SCALE * plane + partner), RESCALE)
        rows, live, stride = stacked_rows(
            x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first, num_pairs, padded, ROWS
        )
        own = load_entries(rows, columns, live, width, stride)
        own = rescaled(own, tl.load(stats_ptr + SCALE * plane + index), RESCALE)
        total = projected(total, own.to(tl.float32), radial, inverse)
    total -= pull[:, None] * other_entries.to(tl.float32)
    gradient_ptr = x_gradient_ptr
    if of_y == 1:
        gradient_ptr = y_gradient_ptr
    store_gradient(gradient_ptr, total, factor, position, columns, num_pairs, width)


@triton.jit
def scaled_values(values_ptr, scale, index, num_pairs, num_anchors, padded):
    """a or b of stacked rows times their common scale, in float32; 0 for rows that are not anchors."""
    side = (index >= padded).to(tl.int32)
    position = index - side * padded
    row = side * num_pairs + position
    anchor = (position < num_pairs) & (row < num_anchors)
    return (tl.load(values_ptr + row, mask=anchor, other=0.0) * scale).to(tl.float32)


def forward(
    batch: Batch,
    saved: Tensor,
    similarity: Tensor,
    results: tuple[Tensor, Tensor, Tensor | None],
    problem: Problem,
    chosen: SmallConfig,
) -> None:
    """Fill z, the positives' logits, the moments (rows) unless None, and what :func:`backward` needs."""
    shape, where = batch.shape, stack_of(batch.shape)
    x, y = (side.to(shape.dtype) for side in batch.sides)
    columns, cross = product_columns(where, problem), problem.negatives == "cross"
    products = saved[where.saved_floats :]
    tau, _, rate, tau_kind = temperature_arguments(batch, saved)
    tiles = columns // chosen.block
    num_tiles = tiles * tiles if cross else tiles * (tiles + 1) // 2
    shared = {
        "CROSS": cross,
        "NORMALIZE": problem.normalize,
        "PARTS": product_parts(where),
        "num_warps": NUM_WARPS,
    }
    small_products[(where.padded // chosen.row_block + num_tiles,)](
        x,
        y,
        tau,
        rate,
        products,
        saved,
        similarity,
        where.n,
        where.padded,
        shape.d,
        columns,
        *x.stride(),
        *y.stride(),
        int(problem.directions == "both"),
        tiles,
        BLOCK=chosen.block,
        DEPTH=chosen.depth,
        STAGES=chosen.num_stages,
        GROUP=GROUP,
        ROWS=chosen.row_block,
        ROW_DEPTH=min(PACK_DEPTH, triton.next_power_of_2(shape.d)),
        RESCALE=chosen.rescale,
        PRECISION=chosen.products,
        TAU=tau_kind,
        **shared,
    )
    z, positive, moment = results
    small_close[(problem.num_directions * where.padded // chosen.row_block,)](
        products,
        saved,
        similarity,
        z,
        positive,
        z if moment is None else moment,
        where.n,
        where.padded,
        columns,
        ROWS=chosen.row_block,
        COLUMNS=triton.next_power_of_2(columns),
        MOMENT=moment is not None,
        **shared,
    )


def backward(
    batch: Batch,
    saved: Tensor,
    a: Tensor,
    b: Tensor,
    gradients: Sequence[Tensor | None],
    problem: Problem,
    chosen: SmallConfig,
) -> None:
    """Fill the gradients that are not None."""
    shape, where = batch.shape, stack_of(batch.shape)
    x, y = (side.to(shape.dtype) for side in batch.sides)
    # The kernel writes both sides in the dtype that it multiplies.
    filled = [None if gradient is None else gradient.to(shape.dtype) for gradient in gradients]
    some = next((gradient for gradient in filled if gradient is not None), None)
    if some is None:
        return
    x_gradient, y_gradient = (some if gradient is None else gradient for gradient in filled)
    num_rows = where.padded * sum(gradient is not None for gradient in filled)
    column_tiles = triton.cdiv(shape.d, chosen.gradient_columns)
    small_gradient[(num_rows // chosen.gradient_rows * column_tiles,)](
        x,
        y,
        a.contiguous(),
        b.contiguous(),
        saved[where.saved_floats :],
        saved,
        x_gradient,
        y_gradient,
        where.n,
        a.shape[0],
        where.padded,
        shape.d,
        product_columns(where, problem),
        *x.stride(),
        *y.stride(),
        where.padded if filled[X] is None else 0,
        column_tiles,
        ROWS=chosen.gradient_rows,
        COLUMNS=chosen.gradient_columns,
        DEPTH=chosen.gradient_depth,
        SWEEP=WEIGH_SWEEP,
        CROSS=problem.negatives == "cross",
        NORMALIZE=problem.normalize,
        PARTS=product_parts(where),
        RESCALE=chosen.rescale,
        ROUND=chosen.rounds_weights,
        TERMS=chosen.weight_terms,
        BFLOAT16=chosen.weight_dtype == torch.bfloat16,
        PRECISION=chosen.weight_products,
        num_warps=chosen.gradient_warps,
        maxnreg=MOST_REGISTERS if chosen.gradient_warps == NUM_WARPS else None,
        num_stages=chosen.gradient_stages,
    )
    for gradient, own in zip(gradients, filled, strict=True):
        if gradient is not None and own is not None and own is not gradient:
            gradient.copy_(own)
