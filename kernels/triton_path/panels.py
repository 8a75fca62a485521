"""The passes over batches of any kind: the rows packed, panels of logits, panels of weights and their gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..problem import Batch, Problem
from . import schedule
from .config import BlockConfig, RowConfig
from .gradient import add_weighed, finish_candidates, finish_pairs
from .lse import block_lse, fold_slots
from .pack import pack_candidates, pack_pairs
from .schedule import Panel, length
from .stack import CANDIDATES, Span, Stack, X, Y, table
from .weights import block_weights, weigh_rows

LOG2_E = 1 / log(2)
PACK_DEPTH = 512
FOLD_ROWS, FOLD_SLOTS = 32, 16
WEIGH_ROWS, WEIGH_SWEEP = 256, 1024


@dataclass(frozen=True)
class Rows:
    """The embeddings as the kernels see them.

    Attributes:
        packed: all rows stacked, contiguous, rescaled by powers of two.
        stats: what is kept of each of them, see :mod:`.stack`.
        ids: what tells them apart, or None.
        kept: tiles of logits, one after the other, or None.
        stack: where they lie.
        normalize: cosines rather than dot products.
        per_row: a temperature of its own for each.
        limited: some are left out by the margin.
    """

    packed: Tensor
    stats: Tensor
    ids: Tensor | None
    kept: Tensor | None
    stack: Stack
    normalize: bool
    per_row: bool
    limited: bool


@dataclass(frozen=True)
class Asked:
    """What the gradient needs of a and b.

    Attributes:
        coefficient: a over temperature and total (stacked rows).
        pull: the b of each pair over the temperature, added (padded rows).
        gain: float64 scalar, common to all rows.
    """

    coefficient: Tensor
    pull: Tensor
    gain: Tensor


def temperature_arguments(batch: Batch, placeholder: Tensor) -> tuple[Tensor, int, float, str]:
    """What a kernel that reads the temperature is given: τ on the device, its stride, log2(e)/τ as a number, which."""
    tau = batch.temperature
    if not isinstance(tau, Tensor):
        return placeholder, 0, LOG2_E / tau, "number"
    return (tau, 0, 0.0, "scalar") if tau.dim() == 0 else (tau, tau.stride(0), 0.0, "rows")


def pack(
    batch: Batch,
    saved: Tensor,
    ids: Tensor | None,
    similarity: Tensor | None,
    stack: Stack,
    problem: Problem,
    config: BlockConfig,
) -> Rows:
    """Stack all sides' rows, rescaled as ``saved`` says.

    With ``similarity`` (padded rows, float64) what it says is found first, and both are filled. What ``saved`` holds
    beyond that are kept logits.
    """
    shape = batch.shape
    packed = torch.empty((stack.num_rows, stack.width), dtype=shape.dtype, device=batch.x.device)
    stats = table(saved, stack)
    tau, tau_stride, rate, tau_kind = temperature_arguments(batch, saved)
    shared = {
        "ROWS": config.row_block,
        "DEPTH": min(PACK_DEPTH, triton.next_power_of_2(stack.width)),
        "NORMALIZE": problem.normalize,
        "RESCALE": config.rescale,
        "TAU": tau_kind,
        "FRESH": similarity is not None,
        "num_warps": 4,
    }
    pack_pairs[(stack.padded // config.row_block,)](
        batch.x,
        batch.y,
        tau,
        tau_stride,
        rate,
        float(problem.margin or 0.0),
        packed,
        stats,
        saved if similarity is None else similarity,
        stack.n,
        stack.padded,
        stack.num_rows,
        shape.d,
        stack.width,
        *batch.x.stride(),
        *batch.y.stride(),
        int(problem.directions == "both"),
        **shared,
    )
    first, last = stack.span(CANDIDATES)
    sides = [side for side in batch.candidates if side.shape[0]]
    for position, side in enumerate(sides):
        count = side.shape[0]
        stored = last - first if position + 1 == len(sides) else count
        pack_candidates[(triton.cdiv(stored, config.row_block),)](
            side,
            tau,
            rate,
            packed,
            stats,
            first,
            count,
            stored,
            stack.num_rows,
            shape.d,
            stack.width,
            *side.stride(),
            **shared,
        )
        first += count
    rest = saved[stack.saved_floats :]
    kept = rest.view(config.kept_dtype) if rest.numel() else None
    limited = problem.margin is not None
    return Rows(packed, stats, ids, kept, stack, problem.normalize, shape.per_row, limited)


def forward(
    rows: Rows, similarity: Tensor, results: tuple[Tensor, Tensor, Tensor | None], problem: Problem, config: BlockConfig
) -> None:
    """Sum all rows' negatives, and fill z, the positives' logits and, unless None, the moments (rows) with float64."""
    stack = rows.stack
    planes = 2 if results[2] is None else 3
    workspace = problem.workspace - (0 if rows.kept is None else rows.kept.nbytes)
    size = schedule.forward_panel(stack, config.block, planes, workspace)
    panels = list(schedule.panels(schedule.blocks(stack, problem, config.block), size, stack))
    if not panels:
        # Nothing to compare with.
        last = stack.span(Y if problem.directions == "both" else X)[1]
        _fold(rows, similarity.new_empty((planes, 0, last), dtype=torch.float32), 0, similarity, results, True)
        return
    slots = torch.empty(
        max(_slots(panel, planes, config) for panel in panels), dtype=torch.float32, device=rows.packed.device
    )
    left = Counter(span for panel in panels for span in _served(panel))
    for panel in panels:
        for span, filled in zip(_served(panel), _panel_lse(rows, panel, slots, planes, config), strict=True):
            left[span] -= 1
            _fold(rows, filled, span[0], similarity, results, left[span] == 0)


def _served(panel: Panel) -> list[Span]:
    """The rows that a panel's logits belong to."""
    return [panel.rows, panel.columns] if panel.serves_columns else [panel.rows]


def _slots(panel: Panel, planes: int, config: BlockConfig) -> int:
    """How many floats a panel's slots take."""
    return planes * panel.pairs // config.block * len(_served(panel))


def _panel_lse(rows: Rows, panel: Panel, memory: Tensor, planes: int, config: BlockConfig) -> list[Tensor]:
    """The slots (planes, tiles, rows) of those that the panel serves, in the temporary ``memory``."""
    num_a, num_b = length(panel.rows), length(panel.columns)
    tiles_a, tiles_b = num_a // config.block, num_b // config.block
    row_slots = memory[: planes * tiles_b * num_a].view(planes, tiles_b, num_a)
    column_slots = row_slots
    if panel.serves_columns:
        column_slots = memory[row_slots.numel() :][: planes * tiles_a * num_b].view(planes, tiles_a, num_b)
    block_lse[(_num_tiles(panel, tiles_a, tiles_b),)](
        *_operands(rows, config),
        row_slots,
        column_slots,
        row_slots.stride(0),
        column_slots.stride(0),
        num_a,
        num_b,
        *_kept(rows, panel, config),
        *_extents(rows, panel),
        tiles_a,
        tiles_b,
        MIRRORED=panel.serves_columns,
        MOMENT=planes == 3,
        **_options(rows, panel, config),
    )
    return [row_slots, column_slots] if panel.serves_columns else [row_slots]


def _fold(
    rows: Rows,
    slots: Tensor,
    start: int,
    similarity: Tensor,
    results: tuple[Tensor, Tensor, Tensor | None],
    close: bool,
) -> None:
    """Fold slots (planes, tiles, rows) into what is kept of the stacked rows from ``start`` on.

    ``close``, for rows that no other slots follow: fill their results.
    """
    planes, num_slots, num_rows = slots.shape
    z, positive, moment = results
    fold_slots[(num_rows // FOLD_ROWS,)](
        slots,
        slots.stride(0),
        num_rows,
        num_slots,
        rows.stats,
        similarity,
        z,
        positive,
        z if moment is None else moment,
        rows.stack.n,
        rows.stack.padded,
        rows.stack.num_rows,
        start,
        ROWS=FOLD_ROWS,
        SLOTS=FOLD_SLOTS,
        PER_ROW=rows.per_row,
        MOMENT=planes == 3,
        CLOSE=close,
        num_warps=4,
    )


def weigh(rows: Rows, a: Tensor, b: Tensor) -> Asked:
    """What the gradient needs of a and b, (rows,) float64."""
    stack, device = rows.stack, rows.packed.device
    asked = Asked(
        torch.empty(stack.num_rows, dtype=torch.float32, device=device),
        torch.empty(stack.padded, dtype=torch.float32, device=device),
        torch.empty((), dtype=torch.float64, device=device),
    )
    # No candidate is an anchor.
    asked.coefficient[2 * stack.padded :].zero_()
    weigh_rows[(triton.cdiv(stack.padded, WEIGH_ROWS),)](
        a.contiguous(),
        b.contiguous(),
        rows.stats,
        *(asked.coefficient, asked.pull, asked.gain),
        stack.n,
        a.shape[0],
        stack.padded,
        stack.num_rows,
        ROWS=WEIGH_ROWS,
        SWEEP=WEIGH_SWEEP,
        PER_ROW=rows.per_row,
        num_warps=4,
    )
    return asked


def backward(
    rows: Rows,
    asked: Asked,
    gradients: Sequence[Tensor | None],
    wanted: list[Span],
    problem: Problem,
    config: BlockConfig,
) -> None:
    """Fill the gradients that there are tensors for, whose stacked rows are ``wanted``.

    From panels of weights that serve both of their sides, or one run of rows after the other.
    """
    stack = rows.stack
    workspace = problem.workspace - (0 if rows.kept is None else rows.kept.nbytes)
    plan = schedule.plan_backward(stack, config.weight_bytes, workspace)
    assert rows.kept is None or plan.shared, "kept tiles are found by their place above the diagonal only"
    if plan.shared:
        _in_shared_panels(rows, asked, gradients, wanted, plan.size, problem, config)
    else:
        _run_by_run(rows, asked, gradients, wanted, plan.size, problem, config)


def _in_shared_panels(
    rows: Rows,
    asked: Asked,
    gradients: Sequence[Tensor | None],
    wanted: list[Span],
    size: int,
    problem: Problem,
    config: BlockConfig,
) -> None:
    """Add to the sums of all rows that are wanted, both sides of a panel of weights at a time."""
    packed, stack = rows.packed, rows.stack
    origin = wanted[0][0]
    sums = torch.empty((wanted[-1][1] - origin, stack.width), dtype=torch.float32, device=packed.device)

    def sums_of(span: Span) -> Tensor:
        return sums[span[0] - origin : span[1] - origin]

    panels = list(schedule.panels(schedule.blocks(stack, problem, config.block), size, stack))
    panels = [panel for panel in panels if _common(panel.rows, wanted) or _common(panel.columns, wanted)]
    for span in wanted:
        if not any(_common(run, [span]) for panel in panels for run in (panel.rows, panel.columns)):
            # Compared with nothing.
            sums_of(span).zero_()
    memory = _weight_memory(rows, panels, config)
    begun: set[Span] = set()
    for panel in panels:
        block = _panel_weights(rows, panel, asked.coefficient, memory, config)
        served = [(block, panel.rows, panel.columns)]
        if not panel.diagonal:
            served.append((block.mT, panel.columns, panel.rows))
        for weights, run, others in served:
            for span in _common(run, wanted):
                part = weights[:, span[0] - run[0] : span[1] - run[0]]
                add_gradient(part, packed[slice(*others)], sums_of(span), span not in begun, config)
                begun.add(span)
    for span in _common((0, stack.num_rows), wanted):
        finish(sums_of(span)[None], rows, span, asked, gradients, config)


def _run_by_run(
    rows: Rows,
    asked: Asked,
    gradients: Sequence[Tensor | None],
    wanted: list[Span],
    size: int,
    problem: Problem,
    config: BlockConfig,
) -> None:
    """Finish one run of rows before the next is begun."""
    packed, stack = rows.packed, rows.stack
    sums_of_run = torch.empty((size, stack.width), dtype=torch.float32, device=packed.device)
    for span in wanted:
        partners = schedule.partners(stack.side(span[0]), stack, problem)
        columns = [part for partner in partners for part in schedule.cut(partner, size, stack)]
        for run in schedule.cut(span, size, stack):
            sums = sums_of_run[: length(run)]
            panels = [Panel(run, part) for part in columns]
            memory = _weight_memory(rows, panels, config)
            if not panels:
                sums.zero_()
            for position, panel in enumerate(panels):
                block = _panel_weights(rows, panel, asked.coefficient, memory, config)
                add_gradient(block, packed[slice(*panel.columns)], sums, position == 0, config)
            finish(sums[None], rows, run, asked, gradients, config)


def _common(run: Span, wanted: Iterable[Span]) -> list[Span]:
    """What a run has in common with spans in their order, those that meet joined."""
    found: list[Span] = []
    for span in wanted:
        first, last = max(run[0], span[0]), min(run[1], span[1])
        if first < last:
            if found and found[-1][1] == first:
                first = found.pop()[0]
            found.append((first, last))
    return found


def _weight_memory(rows: Rows, panels: Sequence[Panel], config: BlockConfig) -> Tensor:
    """Room for the weights of the largest panel."""
    count = config.weight_terms * max((panel.pairs for panel in panels), default=0)
    return torch.empty(count, dtype=config.weight_dtype, device=rows.packed.device)


def _panel_weights(rows: Rows, panel: Panel, coefficient: Tensor, memory: Tensor, config: BlockConfig) -> Tensor:
    """A panel's weights (terms, rows, columns), written to the front of the temporary memory ``memory``."""
    num_a, num_b = length(panel.rows), length(panel.columns)
    tiles_a, tiles_b = num_a // config.block, num_b // config.block
    block = memory[: config.weight_terms * panel.pairs].view(config.weight_terms, num_a, num_b)
    block_weights[(_num_tiles(panel, tiles_a, tiles_b),)](
        *_operands(rows, config),
        coefficient,
        block,
        num_b,
        panel.pairs,
        *_kept(rows, panel, config),
        *_extents(rows, panel),
        tiles_a,
        tiles_b,
        ROUND=config.rounds_weights,
        TERMS=config.weight_terms,
        **_options(rows, panel, config),
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
    """The same by cuBLAS: products of bfloat16 are exact, and float32 sums take no notice of the global switches."""
    if first:
        torch.mm(weights, packed, out_dtype=torch.float32, out=sums)
    else:
        torch.addmm(sums, weights, packed, out_dtype=torch.float32, out=sums)


def finish(
    sums: Tensor, rows: Rows, span: Span, asked: Asked, gradients: Sequence[Tensor | None], config: RowConfig
) -> None:
    """Turn sums (planes to be added, rows, columns) of the stacked rows of a span into their sides' gradients."""
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
            asked.pull,
            asked.gain,
            x_gradient,
            y_gradient,
            start,
            stack.n,
            stack.padded,
            stack.num_rows,
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
                asked.gain,
                gradient[start - first :],
                start,
                stop - start,
                stack.num_rows,
                gradient.shape[1],
                stack.width,
                **shared,
            )


def _num_tiles(panel: Panel, tiles_a: int, tiles_b: int) -> int:
    return tiles_a * (tiles_a + 1) // 2 if panel.diagonal else tiles_a * tiles_b


def _operands(rows: Rows, config: BlockConfig) -> tuple[object, ...]:
    return TensorDescriptor.from_tensor(rows.packed, [config.block, config.depth]), rows.stats, rows.ids


def _extents(rows: Rows, panel: Panel) -> tuple[int, ...]:
    stack = rows.stack
    place = panel.rows[0], panel.columns[0]
    return stack.n, stack.m, stack.padded, stack.num_rows, stack.width, *place


def _kept(rows: Rows, panel: Panel, config: BlockConfig) -> tuple[object, ...]:
    """Where tiles of logits are kept, how many, and which of them are the panel's."""
    if rows.kept is None or panel.block is None:
        return None, 0, 0, 0, 0, 0
    block = panel.block
    tiles_high = 0 if block.square else length(block.rows) // config.block
    return (
        rows.kept,
        rows.kept.numel() // config.block**2,
        block.rows[0],
        block.columns[0],
        block.tiles_before,
        tiles_high,
    )


def _options(rows: Rows, panel: Panel, config: BlockConfig) -> dict[str, object]:
    return {
        "BLOCK": config.block,
        "DEPTH": config.depth,
        "GROUP": config.group,
        "TRIANGLE": panel.diagonal,
        "NORMALIZE": rows.normalize,
        "PER_ROW": rows.per_row,
        "LIMITED": rows.limited,
        "PRECISION": config.products,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
