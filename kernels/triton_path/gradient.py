"""The backward: panels of weights times the rows they weigh, the positives' share, and the projection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..problem import Problem
from .kept import edge_of, panel_weights
from .pack import PACK_DEPTH, Rows
from .plan import layout, memory
from .plan.config import BlockConfig, RowConfig
from .plan.layout import CANDIDATES, Panel, Span, length
from .tiles import tile_at
from .weights import Factors, weight_memory

SCALE, INVERSE = tl.constexpr(layout.SCALE), tl.constexpr(layout.INVERSE)


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
    """sums += W rows (or W^T rows) over ``count`` rows; only this program touches its float32 tile of the sums.

    FIRST: there is nothing to add to yet. All extents are whole tiles; the padding weighs 0.
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
        # Summed separately from the total, for the same reason as in add_products.
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
    """Some columns of rows' sums; the planes that hold parts of them are added in order."""
    value = load_chunk(sums_ptr, row, columns, pitch)
    for _ in range(1, planes):
        sums_ptr += plane
        value += load_chunk(sums_ptr, row, columns, pitch)
    return value


@triton.jit
def norms_shared_out(pull, gain, stats_ptr, plane, own, other, ROWS: tl.constexpr, NORMALIZE: tl.constexpr):
    """The pull of stacked rows ``own`` towards ``other``, 1/|row|, and the factor of a finished row."""
    factor = tl.full((ROWS,), 1.0, tl.float64) * gain
    inverse = tl.full((ROWS,), 1.0, tl.float32)
    if NORMALIZE:
        inverse = tl.load(stats_ptr + INVERSE * plane + own)
        # The sums already contain 1/|row|, the positive does not.
        pull = pull * inverse * tl.load(stats_ptr + INVERSE * plane + other)
        factor = factor * tl.load(stats_ptr + SCALE * plane + own).to(tl.float64)
    return pull, inverse, factor


@triton.jit
def projected(value, own, radial, inverse):
    """Columns of a gradient without its radial part; ``own`` are the same columns of the rows themselves."""
    return value - radial[:, None] * (own * inverse[:, None])


@triton.jit
def store_gradient(gradient_ptr, value, factor, position, columns, num_rows, width):
    """Write rows of a side's gradient, each times its factor."""
    # In float64: a tiny gain and a large 1/|row| may each leave float32's range even where their product does not.
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

    ``sums`` holds the stacked rows of x and y from ``first`` on, split over planes that add up; ``pull`` is that of
    both rows of a pair together. The radial part is computed from the very sums that it is subtracted from, so the
    rounding of the weights cancels in it.
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
    """The same for ``num_rows`` candidates, which have no positive; sums and gradient begin at row ``first``."""
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


def backward(
    rows: Rows,
    factors: Factors,
    gradients: Sequence[Tensor | None],
    wanted: list[Span],
    problem: Problem,
    config: BlockConfig,
) -> None:
    """Fill the gradients that are not None, whose stacked rows are ``wanted``.

    Either each panel of weights serves both of its sides, or one run of rows is finished after the other.
    """
    stack = rows.stack
    workspace = problem.workspace - (0 if rows.kept is None else rows.kept.nbytes)
    plan = memory.plan_backward(stack, config.weight_bytes, workspace)
    assert rows.kept is None or plan.shared, "kept tiles are only found by their place above the diagonal"
    if plan.shared:
        _in_shared_panels(rows, factors, gradients, wanted, plan.size, problem, config)
    else:
        _run_by_run(rows, factors, gradients, wanted, plan, problem, config)


def _in_shared_panels(
    rows: Rows,
    factors: Factors,
    gradients: Sequence[Tensor | None],
    wanted: list[Span],
    size: int,
    problem: Problem,
    config: BlockConfig,
) -> None:
    """Add each panel of weights to the sums of both of its sides, as far as they are wanted."""
    packed, stack = rows.packed, rows.stack
    origin = wanted[0][0]
    sums = torch.empty((wanted[-1][1] - origin, stack.width), dtype=torch.float32, device=packed.device)

    def sums_of(span: Span) -> Tensor:
        return sums[span[0] - origin : span[1] - origin]

    blocks = layout.blocks(stack, problem, config.block)
    edge = None if rows.kept is None else edge_of(blocks, rows.kept.numel() // config.block**2, config.block)
    panels = list(layout.panels(blocks, size, stack, edge))
    panels = [panel for panel in panels if _common(panel.rows, wanted) or _common(panel.columns, wanted)]
    for span in wanted:
        if not any(_common(run, [span]) for panel in panels for run in (panel.rows, panel.columns)):
            # Compared with nothing.
            sums_of(span).zero_()
    memory_of_weights = weight_memory(rows, panels, config)
    begun: set[Span] = set()
    for panel in panels:
        block = weights_of(rows, panel, factors, memory_of_weights, config)
        served = [(block, panel.rows, panel.columns)]
        if not panel.diagonal:
            served.append((block.mT, panel.columns, panel.rows))
        for weights, run, others in served:
            for span in _common(run, wanted):
                part = weights[:, span[0] - run[0] : span[1] - run[0]]
                add_gradient(part, packed[slice(*others)], sums_of(span), span not in begun, config)
                begun.add(span)
    for span in _common((0, stack.num_rows), wanted):
        finish(sums_of(span)[None], rows, span, factors, gradients, config)


def _run_by_run(
    rows: Rows,
    factors: Factors,
    gradients: Sequence[Tensor | None],
    wanted: list[Span],
    plan: memory.BackwardPlan,
    problem: Problem,
    config: BlockConfig,
) -> None:
    """Finish one run of rows before the next begins; the last rows' sums may be held throughout."""
    packed, stack = rows.packed, rows.stack
    held = memory.held_spans(wanted, plan)
    held_sums = [torch.zeros((length(span), stack.width), dtype=torch.float32, device=packed.device) for span in held]

    def sums_of(part: Span) -> Tensor:
        inside = zip(held, held_sums, strict=True)
        return next(of[part[0] - start : part[1] - start] for (start, stop), of in inside if start <= part[0] < stop)

    runs = memory.runs(wanted, plan, stack, problem)
    weights = weight_memory(rows, [panel for run in runs for panel, _ in run.panels], config)
    longest = max((length(run.rows) for run in runs if not run.held), default=0)
    sums_of_run = torch.empty((longest, stack.width), dtype=torch.float32, device=packed.device)
    for run in runs:
        sums = sums_of(run.rows) if run.held else sums_of_run[: length(run.rows)].zero_()
        for panel, serves_columns in run.panels:
            block = weights_of(rows, panel, factors, weights, config)
            add_gradient(block, packed[slice(*panel.columns)], sums, False, config)
            if serves_columns:
                add_gradient(block.mT, packed[slice(*run.rows)], sums_of(panel.columns), False, config)
        finish(sums[None], rows, run.rows, factors, gradients, config)


def _common(run: Span, wanted: Iterable[Span]) -> list[Span]:
    """The parts of the spans that lie in a run, in order; adjacent parts are joined."""
    found: list[Span] = []
    for span in wanted:
        first, last = max(run[0], span[0]), min(run[1], span[1])
        if first < last:
            if found and found[-1][1] == first:
                first = found.pop()[0]
            found.append((first, last))
    return found


def weights_of(rows: Rows, panel: Panel, factors: Factors, place: Tensor, config: BlockConfig) -> Tensor:
    """A panel's weights (terms, rows, columns), written to the front of the temporary ``place``.

    The warp-specialised kernel forms all logits again, so a panel with kept ones is left to the other.
    """
    if not config.specialised or rows.keeps_some_of(panel, config):
        return panel_weights(rows, panel, factors, place, config)
    from .hopper.weights import launch

    shape = config.weight_terms, length(panel.rows), length(panel.columns)
    block = place[: config.weight_terms * panel.pairs].view(shape)
    launch(
        rows.packed,
        rows.stats[layout.FACTOR],
        rows.stats[layout.INVERSE],
        rows.stats[layout.PEAK],
        rows.stats[layout.RATE],
        factors.coefficient,
        rows.ids,
        block,
        rows.extents(panel, config)[6:],
        triangle=panel.diagonal,
        normalize=rows.normalize,
        rounded=config.rounds_weights or config.weight_bytes == torch.bfloat16.itemsize,
    )
    return block


def add_gradient(block: Tensor, packed: Tensor, sums: Tensor, first: bool, config: BlockConfig) -> None:
    """sums += weights @ packed, or = with ``first``; sums are float32, ``block`` is (terms, rows, columns).

    The block may be a transpose.
    """
    if config.weight_dtype == torch.bfloat16:
        # The smallest terms first, for the same reason as in weighed_sum.
        for position, term in enumerate(reversed(block.unbind())):
            library_product(term, packed, sums, first and position == 0)
        return
    weights = block[0]
    transposed = weights.stride(1) != 1
    tiles_m, tiles_n = sums.shape[0] // config.gemm_rows, sums.shape[1] // config.gemm_columns
    add_weighed[(tiles_m * tiles_n,)](
        weights,
        packed,
        sums,
        packed.shape[0],
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
    """The same by cuBLAS: products of bfloat16 are exact, and global precision switches do not affect float32 sums."""
    if first:
        torch.mm(weights, packed, out_dtype=torch.float32, out=sums)
    else:
        torch.addmm(sums, weights, packed, out_dtype=torch.float32, out=sums)


def finish(
    sums: Tensor, rows: Rows, span: Span, factors: Factors, gradients: Sequence[Tensor | None], config: RowConfig
) -> None:
    """Turn the sums (planes that add up, rows, columns) of a span of stacked rows into their sides' gradients."""
    stack = rows.stack
    shared = {
        "ROWS": config.row_block,
        "DEPTH": min(PACK_DEPTH, triton.next_power_of_2(stack.width)),
        "NORMALIZE": rows.normalize,
        "num_warps": 4,
    }
    start, stop = span[0], min(span[1], 2 * stack.padded)
    if start < stop:
        some = next(gradient for gradient in gradients[:CANDIDATES] if gradient is not None)
        x_gradient, y_gradient = (some if gradient is None else gradient for gradient in gradients[:CANDIDATES])
        finish_pairs[((stop - start) // config.row_block,)](
            sums,
            sums.stride(0),
            sums.shape[0],
            rows.packed,
            rows.stats,
            factors.pull,
            factors.gain,
            x_gradient,
            y_gradient,
            start,
            stack.n,
            stack.padded,
            rows.plane,
            x_gradient.shape[1],
            stack.width,
            **shared,
        )
    for (first, last), gradient in zip(stack.candidate_spans(), gradients[CANDIDATES:], strict=True):
        start, stop = max(span[0], first), min(span[1], last)
        if gradient is not None and start < stop:
            part = sums[:, start - span[0] : stop - span[0]]
            finish_candidates[(triton.cdiv(stop - start, config.row_block),)](
                part,
                sums.stride(0),
                sums.shape[0],
                rows.packed,
                rows.stats,
                factors.gain,
                gradient[start - first :],
                start,
                stop - start,
                rows.plane,
                gradient.shape[1],
                stack.width,
                **shared,
            )
