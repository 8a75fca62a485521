"""The forward's sums of exponentials on Hopper, as ``block_lse`` of the path has them: the same slots, folded alike."""

from __future__ import annotations

from torch import Tensor

from .names import copy_out, fence_async_shared, gl, jit, wait_for_copies_out
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
from .tiles import COMMON_PEAK_RATE, LOWEST, counted, exp2, in_steps, logits, needs_mask, outline, quarters


@jit
def keep_part(logit, rate, kept, turn, row, column):
    """Copy a part of a tile's logits to where it is kept; two buffers take turns."""
    kept_desc, staged, _, kept_row = kept
    # The copy before the last has read this buffer.
    wait_for_copies_out(pendings=1)
    buffer = staged.index(turn)
    if kept_desc.dtype == gl.int16:
        buffer.store(in_steps(logit, rate))
    else:
        buffer.store(logit)
    fence_async_shared()
    copy_out(kept_desc, [kept_row + row, column], buffer)
    return turn ^ 1


@jit
def part_logits(
    product,
    row: gl.constexpr,
    column: gl.constexpr,
    tables,
    tile,
    kept,
    turn,
    NORMALIZE: gl.constexpr,
    KEEP: gl.constexpr,
):
    """The logits of a part of a tile, -inf for pairs that are left out; kept before that."""
    factor_ptr, plane, rate, ids_ptr = tables
    first_a, first_b, lag, inside_a, inside_b, masked = tile
    rows = row + gl.arange(0, product.shape[0], gl.SliceLayout(1, product.type.layout))
    columns = column + gl.arange(0, product.shape[1], gl.SliceLayout(0, product.type.layout))
    logit = logits(product, factor_ptr, plane, first_a + rows, first_b + columns, rate, NORMALIZE, True)
    if KEEP and kept[2]:
        turn = keep_part(logit, rate, kept, turn, row, column)
    if masked:
        live = counted(ids_ptr, first_a, first_b, rows, columns, lag, inside_a, inside_b)
        logit = gl.where(live, logit, float("-inf"))
    return logit, turn


@jit
def tile_logits(upper, lower, tables, tile, kept, turn, NORMALIZE: gl.constexpr, KEEP: gl.constexpr):
    """The logits of a tile's two halves by quarters, in the registers of the products.

    The branch in each part keeps the compiler from loading the factors of all of them at once, for which there are no
    registers.
    """
    HALF: gl.constexpr = upper.shape[0]
    WIDTH: gl.constexpr = upper.shape[1] // 4
    above = quarters(upper)
    below = quarters(lower)
    uppers = ()
    lowers = ()
    for quarter in gl.static_range(4):
        logit, turn = part_logits(above[quarter], 0, quarter * WIDTH, tables, tile, kept, turn, NORMALIZE, KEEP)
        uppers = uppers + (logit,)  # type: ignore[assignment]  # noqa: RUF005
        logit, turn = part_logits(below[quarter], HALF, quarter * WIDTH, tables, tile, kept, turn, NORMALIZE, KEEP)
        lowers = lowers + (logit,)  # type: ignore[assignment]  # noqa: RUF005
    return uppers, lowers, turn


@jit
def first_moment(distance, weight):
    """Weights times distances; a weight of 0 may have distance -inf, and their product must be 0."""
    return weight * gl.maximum(distance, LOWEST)


@jit
def sums(
    uppers, lowers, row_slot, row_plane, column_slot, column_plane, twice, MOMENT: gl.constexpr, MIRRORED: gl.constexpr
):
    """Write the row sums and, if ``twice``, the column sums of a tile; the peak of all is 0."""
    HALF: gl.constexpr = uppers[0].shape[0]
    WIDTH: gl.constexpr = uppers[0].shape[1]
    down: gl.constexpr = gl.SliceLayout(1, uppers[0].type.layout)
    across: gl.constexpr = gl.SliceLayout(0, uppers[0].type.layout)
    no_peak = gl.zeros([HALF], gl.float32, down)
    upper_total = no_peak
    lower_total = no_peak
    upper_moment = no_peak
    lower_moment = no_peak
    for quarter in gl.static_range(4):
        target = column_slot + quarter * WIDTH + gl.arange(0, WIDTH, across)
        upper = exp2(uppers[quarter])
        lower = exp2(lowers[quarter])
        upper_total += gl.sum(upper, 1)
        lower_total += gl.sum(lower, 1)
        if MIRRORED:
            gl.store(target, gl.zeros([WIDTH], gl.float32, across), mask=twice)
            gl.store(target + column_plane, gl.sum(upper + lower, 0), mask=twice)
        if MOMENT:
            upper = first_moment(uppers[quarter], upper)
            lower = first_moment(lowers[quarter], lower)
            upper_moment += gl.sum(upper, 1)
            lower_moment += gl.sum(lower, 1)
            if MIRRORED:
                gl.store(target + 2 * column_plane, gl.sum(upper + lower, 0), mask=twice)
    target = row_slot + gl.arange(0, HALF, down)
    gl.store(target, no_peak)
    gl.store(target + HALF, no_peak)
    gl.store(target + row_plane, upper_total)
    gl.store(target + row_plane + HALF, lower_total)
    if MOMENT:
        gl.store(target + 2 * row_plane, upper_moment)
        gl.store(target + 2 * row_plane + HALF, lower_moment)


@jit
def row_sums_with_peaks(parts, row_slot, row_plane, MOMENT: gl.constexpr):
    """Write the row sums of half a tile, relative to each row's largest logit."""
    HALF: gl.constexpr = parts[0].shape[0]
    down: gl.constexpr = gl.SliceLayout(1, parts[0].type.layout)
    largest = gl.maximum(gl.maximum(parts[0], parts[1]), gl.maximum(parts[2], parts[3]))
    peak = gl.maximum(gl.max(largest, 1), gl.full([HALF], LOWEST, gl.float32, down))
    total = gl.zeros([HALF], gl.float32, down)
    moment = gl.zeros([HALF], gl.float32, down)
    for quarter in gl.static_range(4):
        distance = parts[quarter] - peak[:, None]
        weight = exp2(distance)
        total += gl.sum(weight, 1)
        if MOMENT:
            moment += gl.sum(first_moment(distance, weight), 1)
    target = row_slot + gl.arange(0, HALF, down)
    gl.store(target, peak)
    gl.store(target + row_plane, total)
    if MOMENT:
        gl.store(target + 2 * row_plane, moment)


@jit
def column_sums_with_peaks(uppers, lowers, column_slot, column_plane, twice, MOMENT: gl.constexpr):
    """Write the column sums of a tile, relative to each column's largest logit."""
    WIDTH: gl.constexpr = uppers[0].shape[1]
    across: gl.constexpr = gl.SliceLayout(0, uppers[0].type.layout)
    for quarter in gl.static_range(4):
        target = column_slot + quarter * WIDTH + gl.arange(0, WIDTH, across)
        peak = gl.max(gl.maximum(uppers[quarter], lowers[quarter]), 0)
        peak = gl.maximum(peak, gl.full([WIDTH], LOWEST, gl.float32, across))
        distance = uppers[quarter] - peak[None, :]
        weight = exp2(distance)
        total = gl.sum(weight, 0)
        if MOMENT:
            moment = gl.sum(first_moment(distance, weight), 0)
        distance = lowers[quarter] - peak[None, :]
        weight = exp2(distance)
        gl.store(target, peak, mask=twice)
        gl.store(target + column_plane, total + gl.sum(weight, 0), mask=twice)
        if MOMENT:
            gl.store(target + 2 * column_plane, moment + gl.sum(first_moment(distance, weight), 0), mask=twice)


@jit
def sums_with_peaks(
    uppers, lowers, row_slot, row_plane, column_slot, column_plane, twice, MOMENT: gl.constexpr, MIRRORED: gl.constexpr
):
    """As :func:`sums`, relative to the largest logit of each row and of each column."""
    row_sums_with_peaks(uppers, row_slot, row_plane, MOMENT)
    row_sums_with_peaks(lowers, row_slot + uppers[0].shape[0], row_plane, MOMENT)
    if MIRRORED:
        column_sums_with_peaks(uppers, lowers, column_slot, column_plane, twice, MOMENT)


@jit
def consumer(
    rows,
    columns,
    full,
    empty,
    kept_desc,
    staged,
    factor_ptr,
    rate_ptr,
    ids_ptr,
    row_slots,
    column_slots,
    row_plane,
    column_plane,
    row_pitch,
    column_pitch,
    num_kept,
    block_a,
    block_b,
    tiles_before,
    tiles_high,
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
    MIRRORED: gl.constexpr,
    NORMALIZE: gl.constexpr,
    MOMENT: gl.constexpr,
    KEEP: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Multiply and sum one half of every tile."""
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
            row_slot = row_slots + b.to(gl.int64) * row_pitch + a * BLOCK
            column_slot = column_slots + a.to(gl.int64) * column_pitch + b * BLOCK
            # As kept_place of the path counts them.
            high = (first_b - block_b) // BLOCK
            place = tiles_before + gl.where(tiles_high == 0, high * (high + 1) // 2, high * tiles_high)
            place += (first_a - block_a) // BLOCK
            lag, inside_a, inside_b = outline(first_a, first_b, num_pairs, num_candidates, padded)
            masked = needs_mask(ids_ptr, lag, inside_a, inside_b, BLOCK)
            rate = gl.load(rate_ptr)
            uppers, lowers, turn = tile_logits(
                upper,
                lower,
                (factor_ptr, plane, rate, ids_ptr),
                (first_a, first_b, lag, inside_a, inside_b, masked),
                (kept_desc, staged, place < num_kept, place * BLOCK),
                turn,
                NORMALIZE,
                KEEP,
            )
            # A tile on the diagonal is its own mirror.
            twice = (a != b) | (not TRIANGLE)
            common = rate <= COMMON_PEAK_RATE
            if not NORMALIZE:
                # Never so; without any branch, triton 3.6 fails to compile.
                common = num_pairs < 0
            if NORMALIZE and common:
                sums(uppers, lowers, row_slot, row_plane, column_slot, column_plane, twice, MOMENT, MIRRORED)
            if not common:
                sums_with_peaks(uppers, lowers, row_slot, row_plane, column_slot, column_plane, twice, MOMENT, MIRRORED)
    if KEEP:
        wait_for_copies_out(pendings=0)


@jit
def hopper_lse(
    rows_desc,
    columns_desc,
    kept_desc,
    factor_ptr,
    rate_ptr,
    ids_ptr,
    row_slots,
    column_slots,
    row_plane,
    column_plane,
    row_pitch,
    column_pitch,
    num_kept,
    block_a,
    block_b,
    tiles_before,
    tiles_high,
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
    MIRRORED: gl.constexpr,
    NORMALIZE: gl.constexpr,
    MOMENT: gl.constexpr,
    KEEP: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """As ``block_lse``, a block for every multiprocessor.

    ``factor_ptr``: what rows contribute to a cosine's logit, and ``plane`` floats further what that leaves.
    ``rate_ptr``: log2(e)/τ. ``kept_desc``, unless None: kept tiles below one another.
    """
    rows, columns, full, empty = make_ring(rows_desc, columns_desc, BLOCK, DEPTH, STAGES)
    above, below = staging(kept_desc, rows, KEEP, BLOCK)
    gl.warp_specialize(
        [
            (consumer, (rows, columns, full, empty, kept_desc, above, factor_ptr, rate_ptr, ids_ptr, row_slots,
                        column_slots, row_plane, column_plane, row_pitch, column_pitch, num_kept, block_a, block_b,
                        tiles_before, tiles_high, num_pairs, num_candidates, padded, plane, pitch, a_start, b_start,
                        tiles_a, tiles_b, programs, 0, TRIANGLE, MIRRORED, NORMALIZE, MOMENT, KEEP, GROUP, BLOCK,
                        DEPTH, STAGES)),
            (consumer, (rows, columns, full, empty, kept_desc, below, factor_ptr, rate_ptr, ids_ptr, row_slots,
                        column_slots, row_plane, column_plane, row_pitch, column_pitch, num_kept, block_a, block_b,
                        tiles_before, tiles_high, num_pairs, num_candidates, padded, plane, pitch, a_start, b_start,
                        tiles_a, tiles_b, programs, 1, TRIANGLE, MIRRORED, NORMALIZE, MOMENT, KEEP, GROUP, BLOCK,
                        DEPTH, STAGES)),
            (producer, (rows_desc, columns_desc, rows, columns, full, empty, pitch, programs, tiles_a, tiles_b,
                        a_start, b_start, TRIANGLE, GROUP, BLOCK, DEPTH, STAGES)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def launch(
    packed: Tensor,
    factor: Tensor,
    rate: Tensor,
    ids: Tensor | None,
    row_slots: Tensor,
    column_slots: Tensor,
    kept: Tensor | None,
    extents: tuple[int, ...],
    *,
    triangle: bool,
    mirrored: bool,
    normalize: bool,
    moment: bool,
) -> None:
    """Fill a panel's slots (planes, tiles, rows) and keep its logits where there is room.

    Args:
        packed: all rows, half precision.
        factor: (rows,) float32, what each contributes to a cosine's logit; what that leaves follows as the next plane.
        rate: (1,) float32 or longer, log2(e)/τ first.
        ids: (rows,) int32, or None.
        row_slots: for the panel's rows.
        column_slots: for its columns, filled if ``mirrored``; of a ``triangle`` the same.
        kept: tiles of logits (float32) or cosines (int16), or None.
        extents: the integers that ``block_lse`` takes, from num_kept to tiles_b.
    """
    *_, tiles_a, tiles_b = extents
    programs = num_programs(tiles_a, tiles_b, triangle)
    hopper_lse[grid(programs, packed.device)](
        *operands(packed),
        None if kept is None else described(kept.view(-1, BLOCK), BLOCK // 2, BLOCK // 4),
        factor,
        rate,
        ids,
        row_slots,
        column_slots,
        row_slots.stride(0),
        column_slots.stride(0),
        row_slots.shape[2],
        column_slots.shape[2],
        *extents,
        programs,
        TRIANGLE=triangle,
        MIRRORED=mirrored,
        NORMALIZE=normalize,
        MOMENT=moment,
        KEEP=kept is not None,
        **OPTIONS,
    )
