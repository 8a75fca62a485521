"""The sigmoid loss on the Triton path: one pass over tiles forms losses and panels of weights; nothing n × n is kept.

The rows are packed, multiplied, weighed and projected like those of the other losses; see
:mod:`..torch_path.sig_lip` for the formulas.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import sigmoid
from ..problem import Batch, Problem, Shape
from ..sigmoid import Solved, softplus
from . import engine
from .gradient import add_gradient, finish
from .pack import Rows, pack
from .plan import config, layout
from .plan.layout import X, Y, identities, stack_of, table
from .tiles import counted_pairs, logits, needs_mask, tile_at, tile_products
from .weights import Factors, round_to_tf32

INVERSE = tl.constexpr(layout.INVERSE)
LN2 = tl.constexpr(math.log(2))
# Weights are held times 2^30, so that even the tiny ones of a fully trained batch stay normal numbers.
SCALE = tl.constexpr(sigmoid.SCALE)
LOSSES, WEIGHTS, MOMENTS = range(3)
LARGEST_WITH_IDS = 64


@triton.jit
def log1p_of_fraction(value):
    """log(1 + v) for v between 0 and 1, with a small relative error: 2 artanh(v / (2 + v)) as a series."""
    ratio = value / (2.0 + value)
    square = ratio * ratio
    # The next term is below 2e-9 of the sum.
    series = 1.0 / 13 + square * (1.0 / 15)
    series = 1.0 / 9 + square * (1.0 / 11 + square * series)
    series = 1.0 / 5 + square * (1.0 / 7 + square * series)
    return 2.0 * ratio * (1.0 + square * (1.0 / 3 + square * series))


@triton.jit
def block_sigmoids(
    packed,
    stats_ptr,
    ids_ptr,
    bias_ptr,
    scales_ptr,
    slots_ptr,
    slots_plane,
    slots_pitch,
    weights_ptr,
    weights_pitch,
    weights_plane,
    num_pairs,
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
    NORMALIZE: tl.constexpr,
    ROUND: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of x's rows from ``a_start`` on against y's from ``b_start`` on, without pairs of equal identities.

    Row i's sums over the tile go to slot (tile of b) of each plane: of the losses and, with weights, of the weights
    and of the weights times the logits without bias. A weight is 2^30 σ(logit) times the row's entry in ``scales_ptr``.
    It is stored as TERMS numbers that add up, divided for cosines by both rows' norms, so that W b and Wᵀ a are
    gradients with respect to raw rows, except for the projection. ``weights_ptr``: None if only losses are wanted.
    """
    a, b = tile_at(tl.program_id(0), tiles_a, tiles_b, False, GROUP)
    first_a = a_start + a * BLOCK
    first_b = b_start + b * BLOCK
    index = tl.arange(0, BLOCK)
    index_a, index_b = first_a + index, first_b + index
    product = tile_products(packed, pitch, first_a, first_b, BLOCK, DEPTH, PRECISION)
    logit = logits(product, stats_ptr, plane, index_a, index_b, 1, NORMALIZE, False)
    biased = logit + tl.load(bias_ptr)
    # Both are formed from exp(−|logit|) ≤ 1, so nothing overflows and nothing is one minus a probability.
    fraction = tl.exp2(-tl.abs(biased))
    loss = tl.maximum(biased, 0.0) * LN2 + log1p_of_fraction(fraction)
    weight = tl.where(biased >= 0, 1.0, fraction) / (1.0 + fraction) * SCALE
    if needs_mask(ids_ptr, first_a, first_b, num_pairs, 0, padded, BLOCK):
        counted = counted_pairs(ids_ptr, first_a, first_b, num_pairs, 0, padded, BLOCK)
        loss = tl.where(counted, loss, 0.0)
        weight = tl.where(counted, weight, 0.0)
    slot = slots_ptr + b.to(tl.int64) * slots_pitch + a * BLOCK + index
    tl.store(slot, tl.sum(loss, 1))
    if weights_ptr is not None:
        weight = weight * tl.load(scales_ptr + index_a)[:, None]
        tl.store(slot + slots_plane, tl.sum(weight, 1))
        # A padding row's logit may be NaN where the bias is.
        tl.store(slot + 2 * slots_plane, tl.sum(tl.where(weight == 0, 0.0, weight * (logit * LN2)), 1))
        if NORMALIZE:
            inverse = stats_ptr + INVERSE * plane
            weight = weight * tl.load(inverse + index_a)[:, None] * tl.load(inverse + index_b)[None, :]
        if ROUND:
            weight = round_to_tf32(weight)
        target = weights_ptr + (a * BLOCK + index).to(tl.int64)[:, None] * weights_pitch + (b * BLOCK + index)[None, :]
        for term in tl.static_range(TERMS):
            rounded = weight.to(weights_ptr.dtype.element_ty)
            tl.store(target, rounded)
            if term + 1 < TERMS:
                weight -= rounded.to(tl.float32)
                target += weights_plane


def solve(
    batch: Batch,
    bias: float | Tensor,
    problem: Problem,
    *,
    weights: Tensor | None = None,
    needs: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> Solved:
    """Row losses and the gradient of Σ_i weights_i · rows_i; arguments and result as on the torch path."""
    with engine.on(batch.x):
        return _solve(batch, bias, replace(problem, negatives="cross", directions="both"), weights, needs)


def _solve(
    batch: Batch, bias: float | Tensor, problem: Problem, weights: Tensor | None, needs: tuple[bool, bool, bool, bool]
) -> Solved:
    shape, device = batch.shape, batch.x.device
    n, stack = shape.n, stack_of(shape)
    chosen = _configuration(batch.shape, problem)
    saved = torch.empty(stack.saved_floats, dtype=torch.float32, device=device)
    similarity = torch.empty(stack.padded, dtype=torch.float64, device=device)
    rows = pack(batch, saved, identities(batch, stack), similarity, stack, problem, chosen)
    tau = batch.temperature
    inverse = 1 / tau if not isinstance(tau, Tensor) else torch.where(tau > 0, 1 / tau.double(), torch.nan)
    positive = similarity[:n] * inverse
    losses = softplus(-(positive + bias))
    if not any(needs):
        sums, _ = _tiles(rows, bias, None, problem, chosen, needs)
        return Solved(losses + sums[LOSSES, :n], (None, None), None, None, None)
    scales = torch.zeros(stack.padded, dtype=torch.float32, device=device)
    scales[:n] = 1.0 if weights is None else weights
    pull = torch.exp(-softplus(positive + bias)).mul_(sigmoid.SCALE).mul_(scales[:n])
    sums, gradient = _tiles(rows, bias, scales, problem, chosen, needs)
    gradients = _finished(rows, gradient, pull, shape.d, needs, chosen)
    # The powers of two of x's and y's rows, undone once the upstream gradient is known.
    powers = torch.log2(table(saved, stack)[layout.SCALE].view(-1, 1))
    exponents = torch.cat((powers[:n], powers[stack.padded :][:n]))
    slope = (pull * positive).sum() - sums[MOMENTS].sum() if needs[2] else None
    offset = sums[WEIGHTS].sum() - pull.sum() if needs[3] else None
    slope = None if slope is None else slope * inverse
    return Solved(losses + sums[LOSSES, :n], gradients, exponents, slope, offset)


def _configuration(shape: Shape, problem: Problem) -> config.BlockConfig:
    """The tiles of the other losses, or smaller ones where the largest leave no registers for ids."""
    chosen = config.choose(shape, engine._arch(), problem)
    if shape.masked and chosen.block > LARGEST_WITH_IDS:
        return replace(chosen, block=LARGEST_WITH_IDS, num_warps=4, num_stages=4)
    return chosen


def _tiles(
    rows: Rows,
    bias: float | Tensor,
    scales: Tensor | None,
    problem: Problem,
    chosen: config.BlockConfig,
    needs: tuple[bool, ...],
) -> tuple[Tensor, Tensor]:
    """Sums over the tiles, (planes, padded rows of x) float64, and sums of weighed rows, (stacked rows, width)."""
    stack, packed, device = rows.stack, rows.packed, rows.packed.device
    padded, block = stack.padded, chosen.block
    b = torch.as_tensor(bias, dtype=torch.float64).to(device) / math.log(2)
    planes = 1 if scales is None else 3
    height = _height(stack.padding, padded, planes, problem, chosen)
    slots = torch.empty(planes * height * padded // block, dtype=torch.float32, device=device)
    entries = 0 if scales is None else chosen.weight_terms * height * padded
    memory = torch.empty(entries, dtype=chosen.weight_dtype, device=device)
    sums = torch.empty((planes, padded), dtype=torch.float64, device=device)
    gradient = torch.empty((2 * padded, stack.width), dtype=torch.float32, device=device)
    for start in range(0, padded, height):
        stop = min(start + height, padded)
        count = stop - start
        tiles_a, tiles_b = count // block, padded // block
        filled = slots[: planes * tiles_b * count].view(planes, tiles_b, count)
        weights = None
        if scales is not None:
            weights = memory[: chosen.weight_terms * count * padded].view(chosen.weight_terms, count, padded)
        block_sigmoids[(tiles_a * tiles_b,)](
            TensorDescriptor.from_tensor(packed, [block, chosen.depth]),
            rows.stats,
            rows.ids,
            b.float(),
            scales,
            filled,
            filled.stride(0),
            filled.stride(1),
            weights,
            padded,
            count * padded,
            stack.n,
            padded,
            rows.plane,
            stack.width,
            start,
            padded,
            tiles_a,
            tiles_b,
            BLOCK=block,
            DEPTH=chosen.depth,
            GROUP=chosen.group,
            NORMALIZE=rows.normalize,
            ROUND=chosen.rounds_weights,
            TERMS=chosen.weight_terms,
            PRECISION=chosen.products,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
        )
        torch.sum(filled, 1, dtype=torch.float64, out=sums[:, start:stop])
        if weights is None:
            continue
        if needs[X]:
            add_gradient(weights, packed[padded : 2 * padded], gradient[start:stop], True, chosen)
        if needs[Y]:
            add_gradient(weights.mT, packed[start:stop], gradient[padded:], start == 0, chosen)
    return sums, gradient


def _height(padding: int, padded: int, planes: int, problem: Problem, chosen: config.BlockConfig) -> int:
    """Rows of a panel, in whole tiles: as many as have room for their weights and sums in the workspace."""
    of_a_row = 4 * planes * padded // chosen.block + (chosen.weight_bytes * padded if planes > 1 else 0)
    return min(padded, max(1, problem.workspace // (of_a_row * padding)) * padding)


def _finished(
    rows: Rows,
    sums: Tensor,
    pull: Tensor,
    d: int,
    needs: tuple[bool, ...],
    chosen: config.BlockConfig,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y in float32, times 2^30 and τ, with respect to the rescaled rows."""
    stack = rows.stack
    sides = [side for side in (X, Y) if needs[side]]
    if not sides:
        return None, None
    gradients = [sums.new_empty((stack.n, d)) if needs[side] else None for side in (X, Y)]
    pulls = torch.zeros(stack.padded, dtype=torch.float32, device=sums.device)
    pulls[: stack.n] = pull
    stats = rows.stats.clone()
    stats[layout.SCALE] = 1.0
    factors = Factors(sums, pulls, torch.ones((), dtype=torch.float64, device=sums.device))
    span = stack.span(sides[0])[0], stack.span(sides[-1])[1]
    finish(sums[None, slice(*span)], replace(rows, stats=stats), span, factors, gradients, chosen)
    return gradients[X], gradients[Y]
