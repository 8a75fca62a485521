"""Gradients of narrow embeddings with the weights kept in registers: no memory that grows with the pairs.

A program owns some rows. It sweeps the rows that they are multiplied with, forms a tile of logits and from it the
weights, multiplies those by the tile that the logits came of, and adds the products to sums that it alone holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..problem import Problem
from . import schedule, stats
from .config import FlashConfig
from .lse import logits
from .rows import Pull, Rows, finish
from .tiles import add_products, kept_pairs, needs_mask
from .weights import pair_weights, round_to_tf32, weighed_sum


@triton.jit
def flash_gradient(
    packed,
    factor_ptr,
    residue_ptr,
    rate_ptr,
    coefficient_ptr,
    peak_ptr,
    inverse_ptr,
    sums_ptr,
    sums_plane,
    num_rows,
    padded,
    first_row,
    row_tiles,
    num_columns,
    sweep,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    CROSS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRODUCTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Σ_j W_ij u_j of BLOCK stacked rows over ``sweep`` of the rows j that they meet, W as in the panels.

    Rows have PARTS times DEPTH columns. Share s of the sums of stacked rows from ``first_row`` on goes to plane s.
    """
    program = tl.program_id(0)
    local = program % row_tiles * BLOCK
    first_a = first_row + local
    share = program // row_tiles
    # Stacked rows that these are multiplied with begin here.
    begin = 0
    if CROSS:
        begin += tl.where(first_a >= padded, 0, padded)
    index = tl.arange(0, BLOCK)
    rate = tl.load(rate_ptr)
    row = tl.load(coefficient_ptr + first_a + index)
    own = packed.load([first_a, 0])
    total = tl.zeros((BLOCK, DEPTH), tl.float32)
    if PARTS == 2:
        more_own = packed.load([first_a, DEPTH])
        more_total = tl.zeros((BLOCK, DEPTH), tl.float32)
    for start in range(share * sweep, tl.minimum((share + 1) * sweep, num_columns), BLOCK):
        first_b = begin + start
        other = packed.load([first_b, 0])
        product = tl.dot(own, other.T, input_precision=PRODUCTS)
        if PARTS == 2:
            more_other = packed.load([first_b, DEPTH])
            product = add_products(product, more_own, more_other, PRODUCTS)
        index_a, index_b = first_a + index, first_b + index
        logit = logits(product, factor_ptr, residue_ptr, rate, index_a, index_b, NORMALIZE)
        column = tl.load(coefficient_ptr + index_b)
        weight = pair_weights(logit, row, column, peak_ptr, inverse_ptr, rate, index_a, index_b, NORMALIZE)
        position_a, position_b, masked = needs_mask(first_a, first_b, num_rows, padded, BLOCK)
        if masked:
            weight = tl.where(kept_pairs(position_a + index, position_b + index, num_rows), weight, 0.0)
        if ROUND:
            weight = round_to_tf32(weight)
        # Apart from the total, for the reason that logits' products are.
        total = tl.fma(weighed_sum(weight, other, TERMS, BFLOAT16, PRECISION), 1.0, total)
        if PARTS == 2:
            more_total = tl.fma(weighed_sum(weight, more_other, TERMS, BFLOAT16, PRECISION), 1.0, more_total)
    target = sums_ptr + share.to(tl.int64) * sums_plane
    target += (local + index).to(tl.int64)[:, None] * (PARTS * DEPTH) + tl.arange(0, DEPTH)[None, :]
    tl.store(target, total)
    if PARTS == 2:
        tl.store(target + DEPTH, more_total)


def fill(gradients: dict[int, Tensor], rows: Rows, weighed: Pull, problem: Problem, chosen: FlashConfig) -> None:
    """Gradients (n, d) of the sides asked for."""
    plan = schedule.plan_flash(rows.n, rows.d, chosen.block, problem)
    first, last = min(gradients) * rows.padded, (max(gradients) + 1) * rows.padded
    width = rows.packed.shape[1]
    memory = torch.empty(
        (plan.shares, min(plan.run, last - first), width), dtype=torch.float32, device=rows.packed.device
    )
    tiles = TensorDescriptor.from_tensor(rows.packed, [chosen.block, chosen.depth])
    for start in range(first, last, plan.run):
        sums = memory[:, : min(plan.run, last - start)]
        row_tiles = sums.shape[1] // chosen.block
        flash_gradient[(row_tiles * plan.shares,)](
            tiles,
            rows.stats[stats.FACTOR],
            rows.stats[stats.RESIDUE],
            rows.rate,
            weighed.coefficient,
            rows.stats[stats.PEAK],
            rows.stats[stats.INVERSE],
            sums,
            sums.stride(0),
            rows.n,
            rows.padded,
            start,
            row_tiles,
            schedule.product_columns(rows.n, problem),
            plan.sweep,
            BLOCK=chosen.block,
            DEPTH=chosen.depth,
            PARTS=width // chosen.depth,
            CROSS=rows.cross,
            NORMALIZE=rows.normalize,
            ROUND=chosen.rounds_weights,
            TERMS=chosen.weight_terms,
            BFLOAT16=chosen.weight_dtype == torch.bfloat16,
            PRODUCTS=chosen.products,
            PRECISION=chosen.weight_products,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
        )
        finish(sums, rows, start, weighed, gradients, chosen)
