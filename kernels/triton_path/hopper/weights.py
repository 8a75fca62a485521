"""The backward's weights on Hopper: what ``block_weights`` of the path computes, where no tile is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from .names import copy_out, fence_async_shared, gl, jit, seen_as, wait_for_copies_out
from .pipeline import (
    BLOCK,
    OPTIONS,
    described,
    grid,
    make_ring,
    num_programs,
    operands,
    producer,
    products,
    staging,
    tile_at,
)
from .tiles import COMMON_PEAK_RATE, counted, exp2, logits, needs_mask, outline, quarters


@jit
def round_to_tf32(value):
    """Round to tf32's 10 explicit bits, as the path does; NaN stays NaN."""
    bits = value.to(gl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(gl.float32, bitcast=True)
    return gl.where(value == value, rounded, value)


@jit
def pair_weights(product, rows, columns, tables, NORMALIZE: gl.constexpr, EXACT: gl.constexpr):
    """W_ij = k_i 2^(t - peak_i) + k_j 2^(t - peak_j) from products t; for cosines over both norms.

    Without EXACT, weights that will be rounded: the peaks are 0, and logits of at most 40 are rounded twice.
    """
    factor_ptr, plane, rate, inverse_ptr, peak_ptr, coefficient_ptr = tables
    row = gl.load(coefficient_ptr + rows)[:, None]
    column = gl.load(coefficient_ptr + columns)[None, :]
    logit = logits(product, factor_ptr, plane, rows, columns, rate, NORMALIZE, EXACT)
    if EXACT:
        of_row = exp2(logit - gl.load(peak_ptr + rows)[:, None]) * row
        weight = of_row + exp2(logit - gl.load(peak_ptr + columns)[None, :]) * column
        if NORMALIZE:
            weight *= gl.load(inverse_ptr + rows)[:, None]
            weight *= gl.load(inverse_ptr + columns)[None, :]
    else:
        # Two rows' factors are their inverse norms times the rate: nothing more has to be loaded.
        own = gl.load(factor_ptr + rows)[:, None] * (1.0 / rate)
        across = gl.load(factor_ptr + columns)[None, :]
        weight = exp2(logit) * gl.fma(row * own, across, own * (column * across))
    return weight


@jit
def store_part(weight, row, column, targets, turn, TRIANGLE: gl.constexpr, ROUND: gl.constexpr, TERMS: gl.constexpr):
    """Copy a part of a tile to its place and, if it is mirrored, transposed to its mirror's; two buffers take turns.

    As TERMS numbers that add up to a weight, each holding what the ones before leave.
    """
    weights_desc, mirror_desc, staged, num_rows, mirrored = targets
    if ROUND:
        weight = round_to_tf32(weight)
    for term in gl.static_range(TERMS):
        rounded = weight.to(weights_desc.dtype)
        # The copy before the last has read this buffer.
        wait_for_copies_out(pendings=1)
        buffer = staged.index(turn)
        buffer.store(rounded)
        fence_async_shared()
        copy_out(weights_desc, [term * num_rows + row, column], buffer)
        turn = turn ^ 1
        if TRIANGLE and mirrored:
            wait_for_copies_out(pendings=1)
            turned = seen_as(staged.index(turn), mirror_desc, [weight.shape[1], weight.shape[0]])
            turned.permute([1, 0]).store(rounded)
            fence_async_shared()
            copy_out(mirror_desc, [term * num_rows + column, row], turned)
            turn = turn ^ 1
        if term + 1 < TERMS:
            weight -= rounded.to(gl.float32)
    return turn


@jit
def half_weights(
    product,
    half,
    row,
    column,
    tables,
    ids_ptr,
    tile,
    targets,
    turn,
    TRIANGLE: gl.constexpr,
    NORMALIZE: gl.constexpr,
    EXACT: gl.constexpr,
    ROUND: gl.constexpr,
    TERMS: gl.constexpr,
):
    """Write the weights of half a tile, 0 for pairs that are left out."""
    first_a, first_b, lag, inside_a, inside_b, masked = tile
    WIDTH: gl.constexpr = product.shape[1] // 4
    parts = quarters(product)
    layout: gl.constexpr = parts[0].type.layout
    rows = half + gl.arange(0, product.shape[0], gl.SliceLayout(1, layout))
    for quarter in gl.static_range(4):
        columns = quarter * WIDTH + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
        weight = pair_weights(parts[quarter], first_a + rows, first_b + columns, tables, NORMALIZE, EXACT)
        if masked:
            live = counted(ids_ptr, first_a, first_b, rows, columns, lag, inside_a, inside_b)
            weight = gl.where(live, weight, 0.0)
        turn = store_part(weight, row + half, column + quarter * WIDTH, targets, turn, TRIANGLE, ROUND, TERMS)
    return turn


@jit
def consumer(
    rows,
    columns,
    full,
    empty,
    weights_desc,
    mirror_desc,
    staged,
    factor_ptr,
    inverse_ptr,
    peak_ptr,
    rate_ptr,
    coefficient_ptr,
    ids_ptr,
    num_rows,
    num_pairs,
    num_candidates,
    padded,
    plane,
    pitch,
    a_start,
    b_start,
    tiles_a,
    tiles_b,
    programs,
    SIDE: gl.constexpr,
    TRIANGLE: gl.constexpr,
    NORMALIZE: gl.constexpr,
    COARSE: gl.constexpr,
    ROUND: gl.constexpr,
    TERMS: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Multiply and weigh one half of every tile."""
    HALF: gl.constexpr = BLOCK // 2
    index = 0
    phase = 0
    turn = 0
    for program in range(gl.program_id(0), programs, gl.num_programs(0)):
        pair, b = tile_at(program, tiles_a, tiles_b, TRIANGLE, GROUP)
        a = 2 * pair + SIDE
        upper, lower, index, phase = products(
            rows, columns, full, empty, index, phase, pitch, SIDE, BLOCK, DEPTH, STAGES
        )
        wanted = (a < tiles_a) & (b < tiles_b)
        if TRIANGLE:
            wanted = wanted & (a <= b)
        if wanted:
            first_a = a_start + a * BLOCK
            first_b = b_start + b * BLOCK
            lag, inside_a, inside_b = outline(first_a, first_b, num_pairs, num_candidates, padded)
            masked = needs_mask(ids_ptr, lag, inside_a, inside_b, BLOCK)
            rate = gl.load(rate_ptr)
            tables = (factor_ptr, plane, rate, inverse_ptr, peak_ptr, coefficient_ptr)
            tile = (first_a, first_b, lag, inside_a, inside_b, masked)
            targets = (weights_desc, mirror_desc, staged, num_rows, a != b)
            for half in gl.static_range(2):
                product = upper if half == 0 else lower
                if COARSE and rate <= COMMON_PEAK_RATE:
                    turn = half_weights(
                        product, half * HALF, a * BLOCK, b * BLOCK, tables, ids_ptr, tile, targets, turn,
                        TRIANGLE, NORMALIZE, False, ROUND, TERMS,
                    )  # fmt: skip
                else:
                    turn = half_weights(
                        product, half * HALF, a * BLOCK, b * BLOCK, tables, ids_ptr, tile, targets, turn,
                        TRIANGLE, NORMALIZE, True, ROUND, TERMS,
                    )  # fmt: skip
    wait_for_copies_out(pendings=0)


@jit
def hopper_weights(
    rows_desc,
    columns_desc,
    weights_desc,
    mirror_desc,
    factor_ptr,
    inverse_ptr,
    peak_ptr,
    rate_ptr,
    coefficient_ptr,
    ids_ptr,
    num_rows,
    num_pairs,
    num_candidates,
    padded,
    plane,
    pitch,
    a_start,
    b_start,
    tiles_a,
    tiles_b,
    programs,
    TRIANGLE: gl.constexpr,
    NORMALIZE: gl.constexpr,
    COARSE: gl.constexpr,
    ROUND: gl.constexpr,
    TERMS: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """As ``block_weights``, a block for every multiprocessor.

    ``weights_desc``: the terms' rows of weights below one another, ``num_rows`` each; ``mirror_desc``: the same in
    transposed parts, or None. COARSE: weights are rounded to few digits.
    """
    rows, columns, full, empty = make_ring(rows_desc, columns_desc, BLOCK, DEPTH, STAGES)
    above, below = staging(weights_desc, rows, True, BLOCK)
    gl.warp_specialize(
        [
            (consumer, (rows, columns, full, empty, weights_desc, mirror_desc, above, factor_ptr, inverse_ptr,
                        peak_ptr, rate_ptr, coefficient_ptr, ids_ptr, num_rows, num_pairs, num_candidates, padded,
                        plane, pitch, a_start, b_start, tiles_a, tiles_b, programs, 0, TRIANGLE, NORMALIZE, COARSE,
                        ROUND, TERMS, GROUP, BLOCK, DEPTH, STAGES)),
            (consumer, (rows, columns, full, empty, weights_desc, mirror_desc, below, factor_ptr, inverse_ptr,
                        peak_ptr, rate_ptr, coefficient_ptr, ids_ptr, num_rows, num_pairs, num_candidates, padded,
                        plane, pitch, a_start, b_start, tiles_a, tiles_b, programs, 1, TRIANGLE, NORMALIZE, COARSE,
                        ROUND, TERMS, GROUP, BLOCK, DEPTH, STAGES)),
            (producer, (rows_desc, columns_desc, rows, columns, full, empty, pitch, programs, tiles_a, tiles_b,
                        a_start, b_start, TRIANGLE, GROUP, BLOCK, DEPTH, STAGES)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def launch(
    packed: Tensor,
    factor: Tensor,
    inverse: Tensor,
    peak: Tensor,
    rate: Tensor,
    coefficient: Tensor,
    ids: Tensor | None,
    weights: Tensor,
    extents: tuple[int, ...],
    *,
    triangle: bool,
    normalize: bool,
    rounded: bool,
) -> None:
    """Fill a panel's weights (terms, rows, columns), contiguous.

    Args:
        packed: all rows, half precision.
        factor: (rows,) float32, what each contributes to a cosine's logit; what that leaves follows as the next plane.
        inverse: (rows,) float32, 1/|row|.
        peak: (rows,) float32, peaks of the rows' logits.
        rate: (1,) float32 or longer, log2(e)/τ first.
        coefficient: (rows,) float32.
        ids: (rows,) int32, or None.
        weights: bfloat16 or float32.
        extents: the integers that ``block_weights`` takes, from num_pairs to tiles_b.
        rounded: a weight has no more than one bfloat16 number's digits or, in float32, tf32's.
    """
    *_, tiles_a, tiles_b = extents
    programs = num_programs(tiles_a, tiles_b, triangle)
    terms, num_rows, num_columns = weights.shape
    below = weights.view(terms * num_rows, num_columns)
    hopper_weights[grid(programs, packed.device)](
        *operands(packed),
        described(below, BLOCK // 2, BLOCK // 4),
        described(below, BLOCK // 4, BLOCK // 2) if triangle else None,
        factor,
        inverse,
        peak,
        rate,
        coefficient,
        ids,
        num_rows,
        *extents,
        programs,
        TRIANGLE=triangle,
        NORMALIZE=normalize,
        COARSE=rounded,
        ROUND=rounded and weights.dtype == torch.float32,
        TERMS=terms,
        **OPTIONS,
    )
