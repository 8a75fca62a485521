"""Launches of the kernels over blocks of pairs: grids, panel views, one function a kernel."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import stats
from .config import BlockConfig
from .gemm import add_weighed
from .lse import block_lse
from .rows import Rows
from .schedule import Panel
from .weights import block_weights

# Registers of a multiprocessor of NVIDIA's, and threads of a warp.
REGISTERS, WARP = 65536, 32


def interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter, which is settled when Triton is imported."""
    return not isinstance(block_lse, triton.runtime.JITFunction)


def slots_for(panel: Panel, planes: int, config: BlockConfig) -> int:
    """How many floats a panel's slots take."""
    rows, columns = panel.a_stop - panel.a_start, panel.b_stop - panel.b_start
    return planes * rows * columns // config.block * (1 if panel.diagonal else 2)


def panel_lse(rows: Rows, panel: Panel, slots: Tensor, moment: bool, config: BlockConfig) -> tuple[Tensor, Tensor]:
    """The slots (planes, tiles, rows) of a panel's rows and of its columns, in the temporary memory ``slots``."""
    planes = 3 if moment else 2
    num_a, num_b = panel.a_stop - panel.a_start, panel.b_stop - panel.b_start
    tiles_a, tiles_b = num_a // config.block, num_b // config.block
    row_slots = slots[: planes * tiles_b * num_a].view(planes, tiles_b, num_a)
    column_slots = row_slots
    if not panel.diagonal:
        column_slots = slots[row_slots.numel() :][: planes * tiles_a * num_b].view(planes, tiles_a, num_b)
    block_lse[(_tiles(panel, tiles_a, tiles_b),)](
        *_operands(rows, config),
        row_slots,
        column_slots,
        row_slots.stride(0),
        column_slots.stride(0),
        num_a,
        num_b,
        *_kept(rows, config),
        *_extents(rows, panel),
        tiles_a,
        tiles_b,
        MOMENT=moment,
        **_product_options(rows, panel, config),
    )
    return row_slots, column_slots


def panel_weights(rows: Rows, panel: Panel, coefficient: Tensor, memory: Tensor, config: BlockConfig) -> Tensor:
    """A panel's weights (terms, rows, columns), written to the front of the temporary memory ``memory``."""
    num_a, num_b = panel.a_stop - panel.a_start, panel.b_stop - panel.b_start
    tiles_a, tiles_b = num_a // config.block, num_b // config.block
    block = memory[: config.weight_terms * num_a * num_b].view(config.weight_terms, num_a, num_b)
    block_weights[(_tiles(panel, tiles_a, tiles_b),)](
        *_operands(rows, config),
        coefficient,
        rows.stats[stats.PEAK],
        rows.stats[stats.INVERSE],
        block,
        num_b,
        num_a * num_b,
        *_kept(rows, config),
        *_extents(rows, panel),
        tiles_a,
        tiles_b,
        ROUND=config.rounds_weights,
        TERMS=config.weight_terms,
        **_product_options(rows, panel, config),
    )
    return block


def add_gradient(block: Tensor, packed: Tensor, sums: Tensor, first: bool, config: BlockConfig) -> None:
    """sums += weights @ packed, or with ``first`` = instead; sums is float32, ``block`` (terms, rows, columns).

    The block may be a transpose.
    """
    if config.weight_dtype == torch.bfloat16:
        # The smallest terms first, for the reason that small batches add them so.
        for position, term in enumerate(reversed(block.unbind())):
            library_product(term, packed, sums, first and position == 0)
        return
    weights = block[0]
    transposed = weights.stride(1) != 1
    count = packed.shape[0]
    tiles_m, tiles_n = sums.shape[0] // config.gemm_rows, sums.shape[1] // config.gemm_columns
    add_weighed[(tiles_m * tiles_n,)](
        weights,
        packed,
        sums,
        count,
        weights.stride(1) if transposed else weights.stride(0),
        packed.stride(0),
        tiles_m,
        tiles_n,
        BLOCK_M=config.gemm_rows,
        BLOCK_N=config.gemm_columns,
        DEPTH=config.gemm_depth,
        GROUP=config.group,
        TRANSPOSED=transposed,
        FIRST=first,
        PRECISION=config.weight_products,
        num_warps=config.gemm_warps,
        num_stages=config.gemm_stages,
    )


def library_product(weights: Tensor, packed: Tensor, sums: Tensor, first: bool) -> None:
    """The same by cuBLAS: products of bfloat16 are exact, and float32 sums take no notice of the global switches."""
    if first:
        torch.mm(weights, packed, out_dtype=torch.float32, out=sums)
    else:
        torch.addmm(sums, weights, packed, out_dtype=torch.float32, out=sums)


def _tiles(panel: Panel, tiles_a: int, tiles_b: int) -> int:
    return tiles_a * (tiles_a + 1) // 2 if panel.diagonal else tiles_a * tiles_b


def _operands(rows: Rows, config: BlockConfig) -> tuple[object, ...]:
    tiles = TensorDescriptor.from_tensor(rows.packed, [config.block, config.depth])
    halved = None
    if config.halves != "none":
        halved = TensorDescriptor.from_tensor(rows.packed, [config.block // 2, config.depth])
    return tiles, halved, rows.stats[stats.FACTOR], rows.stats[stats.RESIDUE], rows.rate


def _extents(rows: Rows, panel: Panel) -> tuple[int, ...]:
    return rows.n, rows.padded, rows.packed.shape[1], panel.a_start, panel.b_start


def _kept(rows: Rows, config: BlockConfig) -> tuple[Tensor | None, int]:
    """Where tiles of logits are kept, and how many."""
    return (None, 0) if rows.kept is None else (rows.kept, rows.kept.numel() // config.block**2)


def _product_options(rows: Rows, panel: Panel, config: BlockConfig) -> dict[str, object]:
    # The compiler takes what registers it is given, but two blocks have to share them.
    limit = {} if config.halves == "none" else {"maxnreg": REGISTERS // (2 * WARP * config.num_warps)}
    return {
        **limit,
        "BLOCK": config.block,
        "DEPTH": config.depth,
        "GROUP": config.group,
        "TRIANGLE": panel.diagonal,
        "NORMALIZE": rows.normalize,
        "PRECISION": config.products,
        "HALVES": config.halves,
        "CROSS": rows.cross,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
