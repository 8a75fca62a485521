"""Small plain batches in three kernels: products, z, gradients (in ``small_gradient``); and their launches.

Up to a few hundred pairs, launches cost more than what they compute. So nothing is packed, all dot products, or what
becomes of them, are kept for the backward in memory that stays in the L2 cache, and each kernel does everything that
needs no other program's results. Where a device allows it, the second kernel is launched while the first one runs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..problem import Batch, Problem
from .lse import close_rows, first_moment
from .pack import (
    LOG2_E,
    PACK_DEPTH,
    load_entries,
    pack_pairs,
    rescaled,
    scale_of,
    stacked_rows,
    temperature_arguments,
)
from .plan import layout
from .plan.config import SmallConfig
from .plan.layout import product_columns, product_parts, stack_of
from .tiles import (
    COMMON_PEAK_RATE,
    INTERPRETED,
    add_products,
    common_rate,
    has_common_peak,
    logits,
    no_products,
    tile_at,
    whole_products,
)
from .weights import round_to_tf32

NUM_WARPS = 4
GROUP = 8
LOWEST, MOMENT_PLANE = tl.constexpr(layout.LOWEST), tl.constexpr(layout.MOMENT)
# From this log2(e)/τ on a cosine is found from its exponential to about 2^-23: both functions together miss a logit by
# up to 6e-7.
LEAST_RATE = 4.0


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
    OVERLAP: tl.constexpr,
):
    """The first programs find norms and positives as packing does; each of the others finds one tile of products.

    A row of ``products`` holds its products with all stacked rows or, with CROSS, with those of the other side; each
    tile is also written as its mirror. Padding has products of 0. Rows are assumed to be of ordinary size, and a tile
    with a row that is not is computed again, rescaled.
    """
    if OVERLAP:
        # The next kernel may be launched: it waits for the end of this one before it reads anything.
        gdc_launch_dependents()
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
    EXPONENTIALS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Sum the negatives of ROWS stacked rows; COLUMNS is at least the number of a row's products.

    With EXPONENTIALS those of the logits take the products' place, 0 for pairs left out, whose peak is 0; each row's
    product with its partner goes to the moments' plane of the statistics.
    """
    if OVERLAP:
        gdc_wait()
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
    if EXPONENTIALS:
        partner = tl.where(index >= padded, index - padded, index + padded)
        with_partner = tl.sum(tl.where(inside[None, :] & (other[None, :] == partner[:, None]), product, 0.0), 1)
        tl.store(stats_ptr + MOMENT_PLANE * plane + index, with_partner)
        # A program's rows are its own, and a thread stores where it loaded.
        tl.store(products_ptr + index[:, None] * num_columns + column[None, :], weight, mask=inside[None, :])
    total = tl.sum(weight, 1)
    moment = total
    if MOMENT:
        moment = first_moment(distance, weight, 1)
    close_rows(
        stats_ptr, similarity_ptr, z_ptr, positive_ptr, moment_ptr, index, peak, total, moment,
        num_pairs, padded, plane, False, MOMENT,
    )  # fmt: skip


def keeps_exponentials(batch: Batch, problem: Problem, chosen: SmallConfig) -> bool:
    """Whether exponentials take the products' place once the negatives are summed.

    That takes rows that are all anchors with 0 for a peak, as far as the host knows, and logits so large that the
    gradient can find cosines from their exponentials.
    """
    tau = batch.temperature
    # The radial part would not contain the rounding of weights.
    if not chosen.exponentials or chosen.rounds_weights or isinstance(tau, Tensor):
        return False
    if not problem.normalize or problem.directions != "both":
        return False
    return product_parts(stack_of(batch.shape)) == 1 and LEAST_RATE <= LOG2_E.value / tau <= COMMON_PEAK_RATE.value


def forward(
    batch: Batch,
    saved: Tensor,
    similarity: Tensor,
    results: tuple[Tensor, Tensor, Tensor | None],
    problem: Problem,
    chosen: SmallConfig,
    gradient: bool,
) -> None:
    """Fill z, the positives' logits, the moments (rows) unless None and, for a gradient, what it needs."""
    shape, where = batch.shape, stack_of(batch.shape)
    x, y = (side.to(shape.dtype) for side in batch.sides)
    columns, cross = product_columns(where, problem), problem.negatives == "cross"
    products = saved[where.saved_floats :]
    tau, _, rate, tau_kind = temperature_arguments(batch, saved)
    overlap = chosen.overlap and not INTERPRETED.value
    tiles = columns // chosen.block
    num_tiles = tiles * tiles if cross else tiles * (tiles + 1) // 2
    shared = {
        "CROSS": cross,
        "NORMALIZE": problem.normalize,
        "PARTS": product_parts(where),
        "OVERLAP": overlap,
        "num_warps": NUM_WARPS,
    }
    # Other launchers, the interpreter's among them, do not know this option.
    overlapping = {"launch_pdl": True} if overlap else {}
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
        EXPONENTIALS=gradient and keeps_exponentials(batch, problem, chosen),
        **shared,
        **overlapping,
    )
