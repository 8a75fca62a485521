"""The second kernel of a small batch: the row losses, from whole rows of products."""

from __future__ import annotations

import triton
import triton.language as tl

from . import stats
from .fold import close_rows
from .lse import first_moment, has_common_peak, logits
from .pack import read_rate
from .small_kept import load_products
from .tiles import kept_pairs

PEAK, TOTAL = tl.constexpr(stats.PEAK), tl.constexpr(stats.TOTAL)
FACTOR, RESIDUE = tl.constexpr(stats.FACTOR), tl.constexpr(stats.RESIDUE)
LOWEST = tl.constexpr(stats.LOWEST)


@triton.jit
def small_close(
    products_ptr,
    tau_ptr,
    rate,
    stats_ptr,
    positive_ptr,
    losses_ptr,
    num_rows,
    padded,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CROSS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PARTS: tl.constexpr,
    TENSOR: tl.constexpr,
    MOMENT: tl.constexpr,
    INFO: tl.constexpr,
):
    """Sum the negatives of ROWS stacked rows, COLUMNS being at least all products of a row."""
    plane = 2 * padded
    chosen = read_rate(tau_ptr, rate, TENSOR)
    first = tl.program_id(0) * ROWS
    index = first + tl.arange(0, ROWS)
    offsets = tl.arange(0, COLUMNS)
    inside = offsets < num_columns
    column = tl.minimum(offsets, num_columns - 1)
    other = column
    if CROSS:
        other += tl.where(first >= padded, 0, padded)
    product = load_products(products_ptr, plane * num_columns, index[:, None] * num_columns + column[None, :], PARTS)
    factors = stats_ptr + FACTOR * plane
    logit = logits(product, factors, stats_ptr + RESIDUE * plane, chosen, index, other, NORMALIZE)
    kept = kept_pairs(index % padded, other % padded, num_rows) & inside[None, :]
    logit = tl.where(kept, logit, float("-inf"))
    peak = tl.maximum(tl.max(logit, 1), LOWEST)
    peak = tl.where(has_common_peak(chosen, NORMALIZE), 0.0, peak)
    distance = logit - peak[:, None]
    weight = tl.exp2(distance)
    total = tl.sum(weight, 1)
    moment = total
    if MOMENT:
        moment = first_moment(distance, weight, 1)
    tl.store(stats_ptr + PEAK * plane + index, peak)
    tl.store(stats_ptr + TOTAL * plane + index, total)
    close_rows(stats_ptr, positive_ptr, losses_ptr, index, peak, total, moment, num_rows, padded, MOMENT, INFO)
