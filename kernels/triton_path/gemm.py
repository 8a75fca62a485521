"""Products of a block of weights with the rows it weighs, added to a float32 gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import tile_at


@triton.jit
def add_weighed(
    weights_ptr,
    packed_ptr,
    sums_ptr,
    count,
    weights_pitch,
    pitch,
    tiles_m,
    tiles_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sums += W rows (or W^T rows) over ``count`` rows, a float32 tile that this program alone touches.

    FIRST: there is nothing to add to. All extents are whole tiles; the padding weighs 0.
    """
    m, n = tile_at(tl.program_id(0), tiles_m, tiles_n, False, GROUP)
    index = m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    steps = tl.arange(0, DEPTH)
    for start in range(0, count, DEPTH):
        inner = (start + steps).to(tl.int64)
        if TRANSPOSED:
            weight = tl.load(weights_ptr + inner[:, None] * weights_pitch + index[None, :]).T
        else:
            weight = tl.load(weights_ptr + index.to(tl.int64)[:, None] * weights_pitch + inner[None, :])
        rows = tl.load(packed_ptr + inner[:, None] * pitch + columns[None, :]).to(weight.dtype)
        # Apart from the total, for the reason that logits' products are.
        total = tl.fma(tl.dot(weight, rows, input_precision=PRECISION), 1.0, total)
    target = sums_ptr + index.to(tl.int64)[:, None] * pitch + columns[None, :]
    if not FIRST:
        total += tl.load(target)
    tl.store(target, total)
