"""The sigmoid loss on the Triton path: one pass over tiles makes losses and panels of weights; nothing n × n is kept.

The rows are packed, multiplied, weighed and projected as those of the other losses are; see
:mod:`..torch_path.sig_lip` for the formulas.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..problem import Batch, Problem, Shape
from ..sigmoid import SCALE, Solved, softplus
from . import config, engine
from .stack import SCALE as SCALES
from .stack import X, Y, identities, stack_of, table

if TYPE_CHECKING:
    from .panels import Rows

LOSSES, WEIGHTS, MOMENTS = range(3)
LARGEST_WITH_IDS = 64


def solve(
    batch: Batch,
    bias: float | Tensor,
    problem: Problem,
    *,
    weights: Tensor | None = None,
    needs: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> Solved:
    """Row losses and the gradient of Σ_i weights_i · rows_i; arguments and result as on the torch path."""
    with engine._on(batch.x):
        return _solve(batch, bias, replace(problem, negatives="cross", directions="both"), weights, needs)


def _solve(
    batch: Batch, bias: float | Tensor, problem: Problem, weights: Tensor | None, needs: tuple[bool, bool, bool, bool]
) -> Solved:
    from . import panels

    shape, device = batch.shape, batch.x.device
    n, stack = shape.n, stack_of(shape)
    chosen = _configuration(batch.shape, problem)
    saved = torch.empty(stack.saved_floats, dtype=torch.float32, device=device)
    similarity = torch.empty(stack.padded, dtype=torch.float64, device=device)
    rows = panels.pack(batch, saved, identities(batch, stack), similarity, stack, problem, chosen)
    tau = batch.temperature
    inverse = 1 / tau if not isinstance(tau, Tensor) else torch.where(tau > 0, 1 / tau.double(), torch.nan)
    positive = similarity[:n] * inverse
    losses = softplus(-(positive + bias))
    if not any(needs):
        sums, _ = _tiles(rows, bias, None, problem, chosen, needs)
        return Solved(losses + sums[LOSSES, :n], (None, None), None, None, None)
    scales = torch.zeros(stack.padded, dtype=torch.float32, device=device)
    scales[:n] = 1.0 if weights is None else weights
    pull = torch.exp(-softplus(positive + bias)).mul_(SCALE).mul_(scales[:n])
    sums, gradient = _tiles(rows, bias, scales, problem, chosen, needs)
    gradients = _finished(rows, gradient, pull, shape.d, needs, chosen)
    # Of x's rows and y's; multiplied in again where the upstream gradient is known.
    powers = torch.log2(table(saved, stack)[SCALES].view(-1, 1))
    exponents = torch.cat((powers[:n], powers[stack.padded :][:n]))
    slope = (pull * positive).sum() - sums[MOMENTS].sum() if needs[2] else None
    offset = sums[WEIGHTS].sum() - pull.sum() if needs[3] else None
    slope = None if slope is None else slope * inverse
    return Solved(losses + sums[LOSSES, :n], gradients, exponents, slope, offset)


def _configuration(shape: Shape, problem: Problem) -> config.BlockConfig:
    """The other losses' tiles; smaller ones where ids take the registers that the largest leave."""
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
    """Sums over the tiles, (planes, padded rows of x) float64, and of weighed rows, (stacked rows, width)."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from . import panels
    from .sigmoids import block_sigmoids

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
            stack.num_rows,
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
            panels.add_gradient(weights, packed[padded : 2 * padded], gradient[start:stop], True, chosen)
        if needs[Y]:
            panels.add_gradient(weights.mT, packed[start:stop], gradient[padded:], start == 0, chosen)
    return sums, gradient


def _height(padding: int, padded: int, planes: int, problem: Problem, chosen: config.BlockConfig) -> int:
    """Rows of a panel, whole tiles: as many as the workspace has room for weights and sums of."""
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
    """Gradients of x and y in float32, times 2^30 and τ, of rows as rescaled."""
    from . import panels

    stack = rows.stack
    sides = [side for side in (X, Y) if needs[side]]
    if not sides:
        return None, None
    gradients = [sums.new_empty((stack.n, d)) if needs[side] else None for side in (X, Y)]
    pulls = torch.zeros(stack.padded, dtype=torch.float32, device=sums.device)
    pulls[: stack.n] = pull
    stats = rows.stats.clone()
    stats[SCALES] = 1.0
    asked = panels.Asked(sums, pulls, torch.ones((), dtype=torch.float64, device=sums.device))
    span = stack.span(sides[0])[0], stack.span(sides[-1])[1]
    panels.finish(sums[None, slice(*span)], replace(rows, stats=stats), span, asked, gradients, chosen)
    return gradients[X], gradients[Y]
