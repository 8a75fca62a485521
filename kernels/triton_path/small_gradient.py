"""The third kernel of a small batch: gradients, from the products that the forward kept."""

from __future__ import annotations

import triton
import triton.language as tl

from . import stats
from .finish import norms_shared_out, projected, store_gradient
from .lse import logits
from .pack import load_entries, read_rate, rescaled, stacked_rows
from .small_kept import load_products
from .tiles import kept_pairs
from .upstream import common_exponent, common_gain, over_total, relative_weights, slope_share
from .weights import pair_weights, round_to_tf32, weighed_sum

PEAK, INVERSE = tl.constexpr(stats.PEAK), tl.constexpr(stats.INVERSE)
FACTOR, RESIDUE = tl.constexpr(stats.FACTOR), tl.constexpr(stats.RESIDUE)
SCALE = tl.constexpr(stats.SCALE)


@triton.jit
def small_gradient(
    x_ptr,
    y_ptr,
    tau_ptr,
    rate,
    products_ptr,
    stats_ptr,
    upstream_ptr,
    x_gradient_ptr,
    y_gradient_ptr,
    slope_ptr,
    num_rows,
    padded,
    width,
    num_columns,
    stride_xr,
    stride_xc,
    stride_yr,
    stride_yc,
    count,
    first_row,
    tiles,
    column_tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SWEEP: tl.constexpr,
    CROSS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PARTS: tl.constexpr,
    RESCALE: tl.constexpr,
    TENSOR: tl.constexpr,
    PER_ROW: tl.constexpr,
    INFO: tl.constexpr,
    SLOPE: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ROWS stacked rows and COLUMNS columns of the gradient from ``first_row`` on; with SLOPE a last program τ's.

    gradient_i = gain [Σ_j W_ij u_j - (v_i + v_p(i)) u_p(i)], for cosines projected off u_i and divided by |row i|. The
    radial part, which takes all columns, is taken from the products and from the very weights that are multiplied.
    """
    plane = 2 * padded
    chosen = read_rate(tau_ptr, rate, TENSOR)
    exponent = common_exponent(stats_ptr, upstream_ptr, num_rows, padded, SWEEP, PER_ROW, INFO)
    program = tl.program_id(0)
    if SLOPE and program == tiles:
        gain = common_gain(upstream_ptr, chosen, exponent, count, PER_ROW)
        slope = tl.full((), 0.0, tl.float64)
        for start in range(0, plane, SWEEP):
            slope += slope_share(stats_ptr, upstream_ptr, exponent, gain, start, num_rows, padded, SWEEP, PER_ROW)
        tl.store(slope_ptr, slope.to(slope_ptr.dtype.element_ty))
    else:
        first = first_row + program // column_tiles * ROWS
        of_y = (first >= padded).to(tl.int32)
        index = first + tl.arange(0, ROWS)
        position = index - of_y * padded
        partner = position + (1 - of_y) * padded
        columns = program % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
        weight = relative_weights(stats_ptr, upstream_ptr, exponent, index, num_rows, padded, PER_ROW)
        coefficient = over_total(stats_ptr, weight, index, padded)
        pull = weight + relative_weights(stats_ptr, upstream_ptr, exponent, partner, num_rows, padded, PER_ROW)
        # Stacked rows that these are multiplied with begin here.
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
            logit = logits(
                product, stats_ptr + FACTOR * plane, stats_ptr + RESIDUE * plane, chosen, index, other, NORMALIZE
            )
            other_weight = relative_weights(stats_ptr, upstream_ptr, exponent, other, num_rows, padded, PER_ROW)
            weights = pair_weights(
                logit,
                coefficient,
                over_total(stats_ptr, other_weight, other, padded),
                stats_ptr + PEAK * plane,
                stats_ptr + INVERSE * plane,
                chosen,
                index,
                other,
                NORMALIZE,
            )
            other_position = tl.where(first_other >= padded, other - padded, other)
            weights = tl.where(kept_pairs(position, other_position, num_rows), weights, 0.0)
            if ROUND:
                weights = round_to_tf32(weights)
            if NORMALIZE:
                radial += tl.sum(weights * product.to(tl.float32), 1)
            rows, live, stride = stacked_rows(
                x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first_other, num_rows, padded, DEPTH
            )
            entries = load_entries(rows, columns, live, width, stride)
            if RESCALE:
                entries = rescaled(entries, tl.load(stats_ptr + SCALE * plane + other), RESCALE)
            if ROUND:
                entries = round_to_tf32(entries.to(tl.float32))
            # Apart from the total, for the reason that logits' products are.
            total = tl.fma(weighed_sum(weights, entries, TERMS, BFLOAT16, PRECISION), 1.0, total)
        rows, live, stride = stacked_rows(
            x_ptr,
            y_ptr,
            stride_xr,
            stride_xc,
            stride_yr,
            stride_yc,
            first + (1 - 2 * of_y) * padded,
            num_rows,
            padded,
            ROWS,
        )
        other_entries = load_entries(rows, columns, live, width, stride)
        gain = common_gain(upstream_ptr, chosen, exponent, count, PER_ROW)
        scales, inverses = stats_ptr + SCALE * plane, stats_ptr + INVERSE * plane
        pull, inverse, factor = norms_shared_out(pull, gain, scales, inverses, index, partner, ROWS, NORMALIZE)
        if NORMALIZE:
            column_of_partner = position
            if not CROSS:
                column_of_partner = partner
            product = load_products(products_ptr, plane * num_columns, index * num_columns + column_of_partner, PARTS)
            radial = (radial - pull * product.to(tl.float32)) * inverse
            other_entries = rescaled(other_entries, tl.load(scales + partner), RESCALE)
            rows, live, stride = stacked_rows(
                x_ptr, y_ptr, stride_xr, stride_xc, stride_yr, stride_yc, first, num_rows, padded, ROWS
            )
            own = rescaled(load_entries(rows, columns, live, width, stride), tl.load(scales + index), RESCALE)
            total = projected(total, own.to(tl.float32), radial, inverse)
        total -= pull[:, None] * other_entries.to(tl.float32)
        gradient_ptr = x_gradient_ptr
        if of_y == 1:
            gradient_ptr = y_gradient_ptr
        store_gradient(gradient_ptr, total, factor, position, columns, num_rows, width)
