"""Launches of the block kernels on whole problems: grids, strides and panel views, one function a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import triton
from torch import Tensor

from .config import BlockConfig
from .finish import finish_gradient
from .gemm import add_weighed
from .lse import block_lse, fold_slots
from .norms import positive_logits, row_norms
from .schedule import Panel
from .weights import block_weights

FOLD_ROWS = 128
ROW_DEPTH = 128


@dataclass(frozen=True)
class Rows:
    """The raw embeddings and what the kernels need of them, both sides.

    Attributes:
        sides: x and y, (n, d).
        inverse: inverse norms (2, padded rows), rounded to float32.
        residue: what that rounding left.
        scale: powers of two (2, padded rows).
        rescaled: int32 scalar, whether any power differs from 1.
        rate: float32 scalar, log2(e)/τ.
        normalize: cosines rather than dot products.
    """

    sides: tuple[Tensor, Tensor]
    inverse: Tensor
    residue: Tensor
    scale: Tensor
    rescaled: Tensor
    rate: Tensor
    normalize: bool

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self.sides[0].shape
        return n, d


def interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter, which is settled when Triton is imported."""
    return not isinstance(block_lse, triton.runtime.JITFunction)


def norms(rows: Tensor, scale: Tensor, inverse: Tensor, residue: Tensor, config: BlockConfig) -> None:
    """Fill one side's powers of two and inverse norms, the padding included."""
    n, d = rows.shape
    row_norms[(triton.cdiv(scale.numel(), config.row_block),)](
        rows,
        scale,
        inverse,
        residue,
        n,
        scale.numel(),
        d,
        rows.stride(0),
        rows.stride(1),
        BLOCK=config.row_block,
        DEPTH=ROW_DEPTH,
        RESCALE=config.rescale,
        num_warps=4,
    )


def positives(rows: Rows, positive: Tensor, config: BlockConfig) -> None:
    """Fill the pairs' logits (n,), float64."""
    (x, y), (n, d) = rows.sides, rows.shape
    positive_logits[(triton.cdiv(n, config.row_block),)](
        x,
        y,
        rows.inverse[0],
        rows.inverse[1],
        rows.residue[0],
        rows.residue[1],
        rows.scale[0],
        rows.scale[1],
        rows.rate,
        positive,
        n,
        d,
        *x.stride(),
        *y.stride(),
        BLOCK=config.row_block,
        DEPTH=ROW_DEPTH,
        NORMALIZE=rows.normalize,
        num_warps=4,
    )


def panel_lse(rows: Rows, panel: Panel, running: Tensor, slots: Tensor, config: BlockConfig) -> None:
    """Add a panel's logits to the running statistics (planes, 2, padded rows) of its rows and of its columns.

    ``slots`` is temporary memory, overwritten; ``running`` has three planes where first moments are wanted, else two.
    """
    planes = running.shape[0]
    num_a, num_b = panel.a_stop - panel.a_start, panel.b_stop - panel.b_start
    tiles_a, tiles_b = triton.cdiv(num_a, config.block), triton.cdiv(num_b, config.block)
    pitch_a, pitch_b = tiles_a * config.block, tiles_b * config.block
    row_slots = slots[: planes * tiles_b * pitch_a].view(planes, tiles_b, pitch_a)
    column_slots = row_slots
    if not panel.diagonal:
        column_slots = slots[row_slots.numel() :][: planes * tiles_a * pitch_b].view(planes, tiles_a, pitch_b)
    block_lse[(tiles_a * (tiles_a + 1) // 2 if panel.diagonal else tiles_a * tiles_b,)](
        *_operands(rows, panel),
        row_slots,
        column_slots,
        row_slots.stride(0),
        column_slots.stride(0),
        pitch_a,
        pitch_b,
        *_extents(rows, panel),
        panel.excluded,
        tiles_a,
        tiles_b,
        GROUP=config.group,
        TRIANGLE=panel.diagonal,
        NORMALIZE=rows.normalize,
        MOMENT=planes == 3,
        **_product_options(rows.shape[1], config),
    )
    _fold(row_slots, running[:, panel.a, panel.a_start : panel.a_stop])
    if not panel.diagonal:
        _fold(column_slots, running[:, panel.b, panel.b_start : panel.b_stop])


def _fold(slots: Tensor, running: Tensor) -> None:
    planes, num_slots, pitch = slots.shape
    n = running.shape[1]
    fold_slots[(triton.cdiv(n, FOLD_ROWS),)](
        slots,
        slots.stride(0),
        pitch,
        num_slots,
        running[0],
        running[1],
        running[planes - 1],
        n,
        BLOCK=FOLD_ROWS,
        MOMENT=planes == 3,
        num_warps=4,
    )


def panel_weights(
    rows: Rows, panel: Panel, coefficient: Tensor, peak: Tensor, weights: Tensor, config: BlockConfig
) -> Tensor:
    """A panel's weights, written to the front of the temporary memory ``weights`` and padded with zeros to whole tiles.

    ``coefficient`` and ``peak`` are (2, padded rows).
    """
    num_a, num_b = panel.a_stop - panel.a_start, panel.b_stop - panel.b_start
    tiles_a, tiles_b = triton.cdiv(num_a, config.block), triton.cdiv(num_b, config.block)
    pitch = tiles_b * config.block
    block = weights[: tiles_a * config.block * pitch].view(tiles_a * config.block, pitch)
    block_weights[(tiles_a * tiles_b,)](
        *_operands(rows, panel),
        coefficient[panel.a, panel.a_start :],
        coefficient[panel.b, panel.b_start :],
        peak[panel.a, panel.a_start :],
        peak[panel.b, panel.b_start :],
        block,
        pitch,
        *_extents(rows, panel),
        panel.excluded,
        tiles_a,
        tiles_b,
        GROUP=config.group,
        NORMALIZE=rows.normalize,
        ROUND=config.rounds_weights,
        **_product_options(rows.shape[1], config),
    )
    return block


def add_gradient(
    weights: Tensor, rows: Rows, side: int, start: int, stop: int, sums: Tensor, transposed: bool, config: BlockConfig
) -> None:
    """sums += W rows[start:stop] of one side, or with ``transposed`` W^T times them; sums is float32 (·, d)."""
    num_out, d = sums.shape
    source = rows.sides[side][start:stop]
    tiles_m, tiles_n = triton.cdiv(num_out, config.gemm_rows), triton.cdiv(d, config.gemm_columns)
    add_weighed[(tiles_m * tiles_n,)](
        weights,
        source,
        rows.scale[side, start:],
        rows.rescaled,
        sums,
        num_out,
        stop - start,
        d,
        weights.stride(0),
        *source.stride(),
        sums.stride(0),
        tiles_m,
        tiles_n,
        BLOCK_M=config.gemm_rows,
        BLOCK_N=config.gemm_columns,
        DEPTH=config.gemm_depth,
        GROUP=config.group,
        EVEN=d % config.gemm_columns == 0,
        TRANSPOSED=transposed,
        RESCALE=config.rescale,
        PROMOTE=config.promotes_weights,
        PRECISION=config.weight_products,
        num_warps=config.gemm_warps,
        num_stages=config.gemm_stages,
    )


def finish(
    sums: Tensor,
    rows: Rows,
    side: int,
    start: int,
    stop: int,
    pull: Tensor,
    gain: Tensor,
    gradient: Tensor,
    config: BlockConfig,
) -> None:
    """Turn the sums of rows start:stop of one side into their gradient; ``gradient`` (n, d) may be the sums' memory."""
    own, other = rows.sides[side][start:stop], rows.sides[1 - side][start:stop]
    num_rows, d = own.shape
    finish_gradient[(triton.cdiv(num_rows, config.row_block),)](
        sums,
        own,
        other,
        rows.scale[side, start:],
        rows.scale[1 - side, start:],
        rows.inverse[side, start:],
        rows.inverse[1 - side, start:],
        pull[start:],
        gain,
        gradient[start:stop],
        num_rows,
        d,
        *own.stride(),
        *other.stride(),
        BLOCK=config.row_block,
        DEPTH=ROW_DEPTH,
        NORMALIZE=rows.normalize,
        num_warps=4,
    )


def _operands(rows: Rows, panel: Panel) -> tuple[Tensor, ...]:
    a, b = panel.a, panel.b
    return (
        rows.sides[a][panel.a_start : panel.a_stop],
        rows.sides[b][panel.b_start : panel.b_stop],
        rows.inverse[a, panel.a_start :],
        rows.inverse[b, panel.b_start :],
        rows.residue[a, panel.a_start :],
        rows.residue[b, panel.b_start :],
        rows.scale[a, panel.a_start :],
        rows.scale[b, panel.b_start :],
        rows.rescaled,
        rows.rate,
    )


def _extents(rows: Rows, panel: Panel) -> tuple[int, ...]:
    """Rows, columns and width of a panel, and the strides of its operands."""
    a, b = rows.sides[panel.a], rows.sides[panel.b]
    return panel.a_stop - panel.a_start, panel.b_stop - panel.b_start, rows.shape[1], *a.stride(), *b.stride()


def _product_options(d: int, config: BlockConfig) -> dict[str, object]:
    return {
        "BLOCK": config.block,
        "DEPTH": config.depth,
        "EVEN": d % config.depth == 0,
        "RESCALE": config.rescale,
        "PROMOTE": config.promote,
        "PRECISION": config.products,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
