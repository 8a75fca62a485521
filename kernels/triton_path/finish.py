"""The last pass over a gradient: the positive's share, the projection, the upstream gradient."""

from __future__ import annotations

import triton
import triton.language as tl


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
def norms_shared_out(pull, gain, scale_ptr, inverse_ptr, own, other, ROWS: tl.constexpr, NORMALIZE: tl.constexpr):
    """What stacked rows ``own`` are pulled to ``other`` with, 1/|row|, and what a finished row is multiplied by."""
    factor = tl.full((ROWS,), 1.0, tl.float64) * gain
    inverse = tl.full((ROWS,), 1.0, tl.float32)
    if NORMALIZE:
        inverse = tl.load(inverse_ptr + own)
        # The sums hold 1/|row| already, the positive does not.
        pull = pull * inverse * tl.load(inverse_ptr + other)
        factor = factor * tl.load(scale_ptr + own).to(tl.float64)
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
def finish_gradient(
    sums_ptr,
    sums_plane,
    sums_planes,
    packed_ptr,
    scale_ptr,
    inverse_ptr,
    pull_ptr,
    gain_ptr,
    x_gradient_ptr,
    y_gradient_ptr,
    first,
    num_rows,
    padded,
    width,
    pitch,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """gradient_i = gain [Σ_j W_ij u_j - (v_i + v_p(i)) u_p(i)], for cosines projected off u_i and divided by |row i|.

    ``sums`` holds the stacked rows from ``first`` on, added up over its planes. The radial part is taken from the very
    sums that it is subtracted from: what rounded weights do to it cancels.
    """
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # A program's rows lie within one side.
    side = ((first + tl.program_id(0) * ROWS) >= padded).to(tl.int32)
    own_row = first + local
    position = own_row - side * padded
    other_row = position + (1 - side) * padded
    gradient_ptr = x_gradient_ptr
    if side == 1:
        gradient_ptr = y_gradient_ptr
    pull, inverse, factor = norms_shared_out(
        tl.load(pull_ptr + position), tl.load(gain_ptr), scale_ptr, inverse_ptr, own_row, other_row, ROWS, NORMALIZE
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
        store_gradient(gradient_ptr, value, factor, position, columns, num_rows, width)
