"""The last pass over a gradient: the positive's share, the projection, the upstream gradient."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_chunk(base, index, columns, num_rows, width, stride_r, stride_c):
    """Some columns of some rows in float32, zero outside."""
    pointers = base + index.to(tl.int64)[:, None] * stride_r + columns.to(tl.int64)[None, :] * stride_c
    mask = (index < num_rows)[:, None] & (columns < width)[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def finish_gradient(
    sums_ptr,
    own_ptr,
    other_ptr,
    own_scale,
    other_scale,
    own_inverse,
    other_inverse,
    pull_ptr,
    gain_ptr,
    gradient_ptr,
    num_rows,
    width,
    stride_or,
    stride_oc,
    stride_pr,
    stride_pc,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """gradient_i = gain [Σ_j W_ij u_j - (v_i + v_p(i)) u_p(i)], for cosines projected off u_i and divided by |row i|.

    The radial part is taken from the very sums that it is subtracted from: what rounded weights do to it cancels.
    ``sums`` may be ``gradient`` itself; each program reads its rows before it writes them.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = index < num_rows
    pull = tl.load(pull_ptr + index, mask=live, other=0.0)
    gain = tl.load(gain_ptr)
    offsets = tl.arange(0, DEPTH)
    radial = tl.zeros((BLOCK,), tl.float32)
    factor = tl.full((BLOCK,), 1.0, tl.float64) * gain
    pull_scale = tl.full((BLOCK,), 1.0, tl.float32)
    if NORMALIZE:
        scale = tl.load(own_scale + index, mask=live, other=0.0)
        inverse = tl.load(own_inverse + index, mask=live, other=0.0)
        # The sums hold 1/|row| already, the positive does not.
        pull = pull * inverse * tl.load(other_inverse + index, mask=live, other=0.0)
        pull_scale = tl.load(other_scale + index, mask=live, other=0.0)
        factor = factor * scale.to(tl.float64)
        for start in range(0, width, DEPTH):
            columns = start + offsets
            own = load_chunk(own_ptr, index, columns, num_rows, width, stride_or, stride_oc) * scale[:, None]
            other = load_chunk(other_ptr, index, columns, num_rows, width, stride_pr, stride_pc) * pull_scale[:, None]
            sums = load_chunk(sums_ptr, index, columns, num_rows, width, width, 1) - pull[:, None] * other
            radial += tl.sum(sums * (own * inverse[:, None]), 1)
        # No thread may overwrite sums that another has yet to read.
        tl.debug_barrier()
    for start in range(0, width, DEPTH):
        columns = start + offsets
        other = load_chunk(other_ptr, index, columns, num_rows, width, stride_pr, stride_pc) * pull_scale[:, None]
        value = load_chunk(sums_ptr, index, columns, num_rows, width, width, 1) - pull[:, None] * other
        if NORMALIZE:
            own = load_chunk(own_ptr, index, columns, num_rows, width, stride_or, stride_oc) * scale[:, None]
            value -= radial[:, None] * (own * inverse[:, None])
        # In float64: a tiny gain and a large 1/|row| may each leave float32's range where their product does not.
        value = (value.to(tl.float64) * factor[:, None]).to(tl.float32)
        target = gradient_ptr + index.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(target, value.to(gradient_ptr.dtype.element_ty), mask=live[:, None] & (columns < width)[None, :])
