"""Gradients of narrow embeddings with the weights in registers, so that no memory grows with the number of pairs.

A program owns some rows and sweeps the rows that they are compared with. For each tile it forms the logits and from
them the weights, multiplies the weights by the tile's rows, and adds the products to sums that only it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..problem import Problem
from .gradient import finish
from .pack import Rows
from .plan import layout
from .plan.config import FlashConfig
from .plan.layout import Span, length
from .tiles import add_products, counted_pairs, logits, needs_mask
from .weights import Factors, pair_weights, round_to_tf32, weighed_sum


@triton.jit
def flash_gradient(
    packed,
    stats_ptr,
    ids_ptr,
    coefficient_ptr,
    sums_ptr,
    sums_plane,
    num_pairs,
    num_candidates,
    padded,
    plane,
    first_row,
    row_tiles,
    begin,
    before_gap,
    gap,
    num_columns,
    sweep,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRODUCTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Σ_j W_ij u_j of BLOCK stacked rows over ``sweep`` of the rows j that they are compared with, W as in the panels.

    Those are ``num_columns`` rows from ``begin`` on; all after the first ``before_gap`` lie ``gap`` rows further on.
    Rows have PARTS times DEPTH columns. Share s of the sums of stacked rows from ``first_row`` on goes to plane s.
    """
    program = tl.program_id(0)
    local = program % row_tiles * BLOCK
    first_a = first_row + local
    share = program // row_tiles
    index = tl.arange(0, BLOCK)
    row = tl.load(coefficient_ptr + first_a + index)
    own = packed.load([first_a, 0])
    total = tl.zeros((BLOCK, DEPTH), tl.float32)
    if PARTS == 2:
        more_own = packed.load([first_a, DEPTH])
        more_total = tl.zeros((BLOCK, DEPTH), tl.float32)
    for start in range(share * sweep, tl.minimum((share + 1) * sweep, num_columns), BLOCK):
        first_b = begin + start + tl.where(start < before_gap, 0, gap)
        other = packed.load([first_b, 0])
        product = tl.dot(own, other.T, input_precision=PRODUCTS)
        if PARTS == 2:
            more_other = packed.load([first_b, DEPTH])
            product = add_products(product, more_own, more_other, PRODUCTS)
        index_a, index_b = first_a + index, first_b + index
        logit = logits(product, stats_ptr, plane, index_a, index_b, 1, NORMALIZE, False)
        column = tl.load(coefficient_ptr + index_b)
        weight = pair_weights(logit, logit, row, column, stats_ptr, plane, index_a, index_b, NORMALIZE, False, False)
        if needs_mask(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK):
            counted = counted_pairs(ids_ptr, first_a, first_b, num_pairs, num_candidates, padded, BLOCK)
            weight = tl.where(counted, weight, 0.0)
        if ROUND:
            weight = round_to_tf32(weight)
        # Summed separately from the total, for the same reason as in add_products.
        total = tl.fma(weighed_sum(weight, other, TERMS, BFLOAT16, PRECISION), 1.0, total)
        if PARTS == 2:
            more_total = tl.fma(weighed_sum(weight, more_other, TERMS, BFLOAT16, PRECISION), 1.0, more_total)
    target = sums_ptr + share.to(tl.int64) * sums_plane
    target += (local + index).to(tl.int64)[:, None] * (PARTS * DEPTH) + tl.arange(0, DEPTH)[None, :]
    tl.store(target, total)
    if PARTS == 2:
        tl.store(target + DEPTH, more_total)


def backward(
    rows: Rows,
    factors: Factors,
    gradients: Sequence[Tensor | None],
    wanted: list[Span],
    problem: Problem,
    chosen: FlashConfig,
) -> None:
    """Fill the gradients that are not None, whose stacked rows are ``wanted``."""
    stack, device = rows.stack, rows.packed.device
    tiles = TensorDescriptor.from_tensor(rows.packed, [chosen.block, chosen.depth])
    for span, swept in layout.flash_runs(wanted, stack, problem):
        num_columns = sum(map(length, swept))
        plan = layout.plan_flash(length(span), num_columns, stack.width, chosen.block, problem.workspace)
        (begin, end), *others = swept or [(0, 0)]
        gap = others[0][0] - end if others else 0
        size = min(plan.run, length(span))
        memory = torch.empty((plan.shares, size, stack.width), dtype=torch.float32, device=device)
        for start in range(span[0], span[1], size):
            run = start, min(start + size, span[1])
            sums = memory[:, : length(run)]
            row_tiles = length(run) // chosen.block
            flash_gradient[(row_tiles * plan.shares,)](
                tiles,
                rows.stats,
                rows.ids,
                factors.coefficient,
                sums,
                sums.stride(0),
                stack.n,
                stack.m,
                stack.padded,
                rows.plane,
                start,
                row_tiles,
                begin,
                end - begin,
                gap,
                num_columns,
                plan.sweep,
                BLOCK=chosen.block,
                DEPTH=chosen.depth,
                PARTS=stack.width // chosen.depth,
                NORMALIZE=rows.normalize,
                ROUND=chosen.rounds_weights,
                TERMS=chosen.weight_terms,
                BFLOAT16=chosen.weight_dtype == torch.bfloat16,
                PRODUCTS=chosen.products,
                PRECISION=chosen.weight_products,
                num_warps=chosen.num_warps,
                num_stages=chosen.num_stages,
            )
            finish(sums, rows, run, factors, gradients, chosen)
