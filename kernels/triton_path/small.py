"""Launches of the three kernels that small batches take: products, row losses, gradients.

Up to some hundred pairs launches cost more than what they compute. So nothing is packed, all dot products are kept for
the backward, in memory that stays in the L2 cache, and each kernel does all that needs no other program's results.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..problem import Problem
from . import stats
from .config import SmallConfig
from .rows import PACK_DEPTH, WEIGH_SWEEP, empty_slope, temperature_arguments
from .schedule import padded_rows, product_columns, product_parts
from .small_close import small_close
from .small_gradient import small_gradient
from .small_products import small_products

NUM_WARPS = 4
GROUP = 8
# Given no limit the assembler spills registers of four warps for more blocks on a multiprocessor than there will be.
MOST_REGISTERS = 255


def forward(
    x: Tensor, y: Tensor, temperature: float | Tensor, problem: Problem, need_temperature: bool, chosen: SmallConfig
) -> tuple[Tensor, Tensor]:
    """Row losses (2n,) and what :func:`backward` needs."""
    n, d = x.shape
    padded, columns = padded_rows(n), product_columns(n, problem)
    cross = problem.negatives == "cross"
    saved = torch.empty(stats.floats_with_products(n, problem), dtype=torch.float32, device=x.device)
    positive = torch.empty(padded, dtype=torch.float64, device=x.device)
    losses = torch.empty(2 * n, dtype=torch.float32, device=x.device)
    products = _products(saved, n)
    tau, rate = temperature_arguments(temperature, saved)
    tiles = columns // chosen.block
    num_tiles = tiles * tiles if cross else tiles * (tiles + 1) // 2
    shared = {
        "CROSS": cross,
        "NORMALIZE": problem.normalize,
        "PARTS": product_parts(n),
        "TENSOR": isinstance(temperature, Tensor),
        "num_warps": NUM_WARPS,
    }
    small_products[(padded // chosen.row_block + num_tiles,)](
        x,
        y,
        tau,
        rate,
        products,
        saved,
        positive,
        n,
        padded,
        d,
        columns,
        *x.stride(),
        *y.stride(),
        tiles,
        BLOCK=chosen.block,
        DEPTH=chosen.depth,
        STAGES=chosen.num_stages,
        GROUP=GROUP,
        ROWS=chosen.row_block,
        ROW_DEPTH=min(PACK_DEPTH, triton.next_power_of_2(d)),
        RESCALE=chosen.rescale,
        PRECISION=chosen.products,
        **shared,
    )
    small_close[(2 * padded // chosen.row_block,)](
        products,
        tau,
        rate,
        saved,
        positive,
        losses,
        n,
        padded,
        columns,
        ROWS=chosen.row_block,
        COLUMNS=triton.next_power_of_2(columns),
        MOMENT=need_temperature,
        INFO=problem.loss == "info_nce",
        **shared,
    )
    return losses, saved


def backward(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    saved: Tensor,
    problem: Problem,
    needs: tuple[bool, bool, bool],
    chosen: SmallConfig,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, y and the temperature, None where not needed."""
    n, d = x.shape
    padded = padded_rows(n)
    x_gradient, y_gradient = (
        torch.empty((n, d), dtype=x.dtype, device=x.device) if need else None for need in needs[:2]
    )
    slope = empty_slope(temperature, 1, x.device) if needs[2] else None
    tau, rate = temperature_arguments(temperature, saved)
    num_rows = padded * (needs[0] + needs[1])
    column_tiles = triton.cdiv(d, chosen.gradient_columns)
    tiles = num_rows // chosen.gradient_rows * column_tiles
    small_gradient[(tiles + needs[2],)](
        x,
        y,
        tau,
        rate,
        _products(saved, n),
        saved,
        upstream.contiguous(),
        x if x_gradient is None else x_gradient,
        y if y_gradient is None else y_gradient,
        saved if slope is None else slope,
        n,
        padded,
        d,
        product_columns(n, problem),
        *x.stride(),
        *y.stride(),
        2 * n if problem.reduction == "mean" else 1,
        0 if needs[0] else padded,
        tiles,
        column_tiles,
        ROWS=chosen.gradient_rows,
        COLUMNS=chosen.gradient_columns,
        DEPTH=chosen.gradient_depth,
        SWEEP=WEIGH_SWEEP,
        CROSS=problem.negatives == "cross",
        NORMALIZE=problem.normalize,
        PARTS=product_parts(n),
        RESCALE=chosen.rescale,
        TENSOR=isinstance(temperature, Tensor),
        PER_ROW=upstream.dim() == 1,
        INFO=problem.loss == "info_nce",
        SLOPE=needs[2],
        ROUND=chosen.rounds_weights,
        TERMS=chosen.weight_terms,
        BFLOAT16=chosen.weight_dtype == torch.bfloat16,
        PRECISION=chosen.weight_products,
        num_warps=chosen.gradient_warps,
        maxnreg=MOST_REGISTERS if chosen.gradient_warps == NUM_WARPS else None,
        num_stages=chosen.gradient_stages,
    )
    return x_gradient, y_gradient, None if slope is None else slope[0]


def _products(saved: Tensor, n: int) -> Tensor:
    """The products (parts, 2 padded rows, product columns), flat."""
    return saved[stats.PLANES * 2 * padded_rows(n) :]
