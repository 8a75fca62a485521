"""The end of the backward: weights times the rows they weigh, the positive's share, the projection."""

from __future__ import annotations

import triton
import triton.language as tl

from . import stack
from .tiles import tile_at

SCALE, INVERSE = tl.constexpr(stack.SCALE), tl.constexpr(stack.INVERSE)


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
    """sums += W rows (or W^T rows) over ``count`` rows, a float32 tile that only this program touches.

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


@triton.jit
def load_chunk(base, row, columns, pitch):
    """Some columns of packed rows in float32, zero outside."""
    pointers = base + row.to(tl.int64)[:, None] * pitch + columns[None, :]
    return tl.load(pointers, mask=(columns < pitch)[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_sums(sums_ptr, plane, planes, row, columns, pitch):
    """Some columns of rows' sums, the planes that they are shared out over added in order."""
    value = load_chunk(sums_ptr, row, columns, pitch)
    for _ in range(1, planes):
        sums_ptr += plane
        value += load_chunk(sums_ptr, row, columns, pitch)
    return value


@triton.jit
def norms_shared_out(pull, gain, stats_ptr, plane, own, other, ROWS: tl.constexpr, NORMALIZE: tl.constexpr):
    """What stacked rows ``own`` are pulled to ``other`` with, 1/|row|, and what a finished row is multiplied by."""
    factor = tl.full((ROWS,), 1.0, tl.float64) * gain
    inverse = tl.full((ROWS,), 1.0, tl.float32)
    if NORMALIZE:
        inverse = tl.load(stats_ptr + INVERSE * plane + own)
        # The sums hold 1/|row| already, the positive does not.
        pull = pull * inverse * tl.load(stats_ptr + INVERSE * plane + other)
        factor = factor * tl.load(stats_ptr + SCALE * plane + own).to(tl.float64)
    return pull, inverse, factor


@triton.jit
def projected(value, own, radial, inverse):
    """Columns of rows without their radial part, of which ``own`` are those of the row projected off."""
    return value - radial[:, None] * (own * inverse[:, None])


@triton.jit
def store_gradient(gradient_ptr, value, factor, position, columns, num_rows, width):
    """Rows of a side's gradient, each times its factor."""
    # In float64: a tiny gain and a large 1/|row| may each leave float32's range where their product does not.
    value = (value.to(tl.float64) * factor[:, None]).to(tl.float32)
    target = gradient_ptr + position.to(tl.int64)[:, None] * width + columns[None, :]
    mask = (position < num_rows)[:, None] & (columns < width)[None, :]
    tl.store(target, value.to(gradient_ptr.dtype.element_ty), mask=mask)


@triton.jit
def finish_pairs(
    sums_ptr,
    sums_plane,
    sums_planes,
    packed_ptr,
    stats_ptr,
    pull_ptr,
    gain_ptr,
    x_gradient_ptr,
    y_gradient_ptr,
    first,
    num_pairs,
    padded,
    plane,
    width,
    pitch,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """gradient_i = gain [Σ_j W_ij u_j - pull u_p(i)], for cosines projected off u_i and divided by |row i|.

    ``sums`` holds the stacked rows of x and y from ``first`` on, added up over its planes; ``pull`` is what both rows
    of a pair ask of their positive. The radial part is taken from the very sums that it is subtracted from: what
    rounded weights do to it cancels.
    """
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # A program's rows lie within one side.
    side = ((first + tl.program_id(0) * ROWS) >= padded).to(tl.int32)
    own_row = first + local
    position = own_row - side * padded
    other_row = position + (1 - side) * padded
    pull, inverse, factor = norms_shared_out(
        tl.load(pull_ptr + position), tl.load(gain_ptr), stats_ptr, plane, own_row, other_row, ROWS, NORMALIZE
    )
    offsets = tl.arange(0, DEPTH)
    radial = tl.zeros((ROWS,), tl.float32)
    if NORMALIZE:
        for start in range(0, pitch, DEPTH):
            columns = start + offsets
            other = load_chunk(packed_ptr, other_row, columns, pitch)
            sums = load_sums(sums_ptr, sums_plane, sums_planes, local, columns, pitch) - pull[:, None] * other
            radial += tl.sum(sums * (load_chunk(packed_ptr, own_row, columns, pitch) * inverse[:, None]), 1)
    for start in range(0, pitch, DEPTH):
        columns = start + offsets
        value = load_sums(sums_ptr, sums_plane, sums_planes, local, columns, pitch)
        value -= pull[:, None] * load_chunk(packed_ptr, other_row, columns, pitch)
        if NORMALIZE:
            value = projected(value, load_chunk(packed_ptr, own_row, columns, pitch), radial, inverse)
        # The sides may differ in dtype.
        if side == 1:
            store_gradient(y_gradient_ptr, value, factor, position, columns, num_pairs, width)
        else:
            store_gradient(x_gradient_ptr, value, factor, position, columns, num_pairs, width)


@triton.jit
def finish_candidates(
    sums_ptr,
    sums_plane,
    sums_planes,
    packed_ptr,
    stats_ptr,
    gain_ptr,
    gradient_ptr,
    first,
    num_rows,
    plane,
    width,
    pitch,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """The same of ``num_rows`` candidates, which nothing pulls; ``sums`` and the gradient begin at row ``first``."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    local = tl.minimum(index, num_rows - 1)
    own_row = first + local
    _, inverse, factor = norms_shared_out(0.0, tl.load(gain_ptr), stats_ptr, plane, own_row, own_row, ROWS, NORMALIZE)
    offsets = tl.arange(0, DEPTH)
    radial = tl.zeros((ROWS,), tl.float32)
    if NORMALIZE:
        for start in range(0, pitch, DEPTH):
            columns = start + offsets
            sums = load_sums(sums_ptr, sums_plane, sums_planes, local, columns, pitch)
            radial += tl.sum(sums * (load_chunk(packed_ptr, own_row, columns, pitch) * inverse[:, None]), 1)
    for start in range(0, pitch, DEPTH):
        columns = start + offsets
        value = load_sums(sums_ptr, sums_plane, sums_planes, local, columns, pitch)
        if NORMALIZE:
            value = projected(value, load_chunk(packed_ptr, own_row, columns, pitch), radial, inverse)
        store_gradient(gradient_ptr, value, factor, index, columns, num_rows, width)
