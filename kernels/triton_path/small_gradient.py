"""The gradient of small plain batches in one kernel, and its launch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..problem import Batch, Problem
from .gradient import norms_shared_out, projected, store_gradient
from .pack import load_entries, rescaled, stacked_rows
from .plan import layout
from .plan.config import SmallConfig
from .plan.layout import X, product_columns, product_parts, stack_of
from .small import NUM_WARPS, differ, keeps_exponentials, load_products
from .tiles import INTERPRETED, common_rate, logits
from .weights import (
    WEIGH_SWEEP,
    common_exponent,
    double_power_of_two,
    over_total,
    pair_weights,
    round_to_tf32,
    weighed_sum,
)

# Without a limit the assembler spills registers of four warps to fit more blocks on a multiprocessor than there are.
MOST_REGISTERS = 255
SCALE, INVERSE = tl.constexpr(layout.SCALE), tl.constexpr(layout.INVERSE)
MOMENT_PLANE = tl.constexpr(layout.MOMENT)
# Below every exponential whose row's peak is 0.
SMALLEST = tl.constexpr(2.0**-60)
LN2 = tl.constexpr(math.log(2))


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
    EXPONENTIALS: tl.constexpr,
):
    """ROWS stacked rows and COLUMNS columns of the gradient from ``first_row`` on.

    gradient_i = gain [Σ_j W_ij u_j - pull u_p(i)], for cosines projected off u_i and divided by |row i|. The radial
    part needs all columns, so it is computed from the products and the very weights that are multiplied. With
    EXPONENTIALS those of the logits were kept instead of the products, which their logarithms give back.
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
    own_inverse = tl.full((ROWS,), 1.0, tl.float32)
    if EXPONENTIALS:
        own_inverse = tl.load(stats_ptr + INVERSE * plane + index)
    for start in range(0, num_columns, DEPTH):
        first_other = begin + start
        steps = tl.arange(0, DEPTH)
        other = first_other + steps
        offsets = index[:, None] * num_columns + (start + steps)[None, :]
        product = load_products(products_ptr, plane * num_columns, offsets, PARTS)
        if not EXPONENTIALS:
            logit = logits(product, stats_ptr, plane, index, other, 1, NORMALIZE, False)
        column = scaled_values(a_ptr, scale, other, num_pairs, num_anchors, padded)
        column = over_total(stats_ptr, column, other, plane)
        if EXPONENTIALS:
            # W_ij = E_ij (k_i + k_j) / (|i| |j|), and 0 where E_ij is.
            shares = product * (row[:, None] + column[None, :])
            inverse = tl.load(stats_ptr + INVERSE * plane + other)
            weights = shares * own_inverse[:, None] * inverse[None, :]
            # A product over both norms is its logit over the rate.
            radial += tl.sum(shares * quick_log2(tl.maximum(product, SMALLEST)), 1)
        else:
            weights = pair_weights(logit, logit, row, column, stats_ptr, plane, index, other, NORMALIZE, False, False)
            weights = tl.where(differ(index, other, num_pairs, padded), weights, 0.0)
        if ROUND:
            weights = round_to_tf32(weights)
        if NORMALIZE and not EXPONENTIALS:
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
        if EXPONENTIALS:
            radial = radial / common_rate(stats_ptr, plane)
            product = tl.load(stats_ptr + MOMENT_PLANE * plane + index)
        else:
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
def quick_log2(value):
    """log2 by NVIDIA's slow unit, as exp2 is; the library's takes a dozen instructions more."""
    if INTERPRETED:
        return tl.log2(value)
    return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [value], tl.float32, is_pure=True, pack=1)


@triton.jit
def scaled_values(values_ptr, scale, index, num_pairs, num_anchors, padded):
    """a or b of stacked rows times their common scale, in float32; 0 for rows that are not anchors."""
    side = (index >= padded).to(tl.int32)
    position = index - side * padded
    row = side * num_pairs + position
    anchor = (position < num_pairs) & (row < num_anchors)
    return (tl.load(values_ptr + row, mask=anchor, other=0.0) * scale).to(tl.float32)


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
        EXPONENTIALS=keeps_exponentials(batch, problem, chosen),
        num_warps=chosen.gradient_warps,
        maxnreg=MOST_REGISTERS if chosen.gradient_warps == NUM_WARPS else None,
        num_stages=chosen.gradient_stages,
    )
    for gradient, own in zip(gradients, filled, strict=True):
        if gradient is not None and own is not None and own is not gradient:
            gradient.copy_(own)
