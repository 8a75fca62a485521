"""Two ranks' rows against each other on the torch path: sums for the anchors of both, the gradient of one.

The sides of both ranks are stacked, anchors first, and their pairs are panels of the same kind as a single batch's. A
logit that is the same both ways, with one temperature and no margin, is formed once for the anchors of both ranks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch, Problem, Shape
from ..torch_path import denominators, exact
from ..torch_path.denominators import Denominators, is_normal
from ..torch_path.engine import Held, choose_shift, of_sides, release, scaled, stacked
from ..torch_path.gradient import SCRATCH_ENTRIES, Weights, accumulate, runs
from ..torch_path.layout import FEW_ROWS, SHORTEST, TALLEST, Layout, Panel
from ..torch_path.logits import LN2, LOG2E, Logits, base2_scale
from ..torch_path.products import ExactProducts
from ..torch_path.rows import Rows, accumulation_dtype, prepare
from . import Anchors, Sums

NO_WEIGHT = 2.0**120
"""The lse of an anchor of weight 0: relative to it, the exponential of any logit is 0."""


def meet(own: Batch, other: Batch, problem: Problem, *, mutual: bool, moment: bool) -> tuple[Sums, Sums | None]:
    """z of own's anchors over other's rows and candidates and, if mutual, of other's anchors over own's.

    Args:
        own: one rank's batch.
        other: another's, of as many columns.
        problem: the options of the loss call that both belong to; ``dims`` is not looked at.
        mutual: serve other's anchors too.
        moment: also find Σ_j P_ij s_ij − s⁺_i.

    Returns:
        The sums of own's anchors, and those of other's or ``None``.

    Example:
        >>> x, y = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> own, other = Batch(x, x, temperature=1.0), Batch(y, y, temperature=1.0)
        >>> found, _ = meet(own, other, Problem(negatives="cross"), mutual=False, moment=False)
        >>> found.z
        tensor([-0.3069, -0.3069, -0.3069, -0.3069], dtype=torch.float64)
    """
    with ExactProducts(own.x.device.type):
        block = _block(own, other, problem, mutual=mutual)
        sums = _sum(block, problem, moment=moment)
    positive = block.positive * block.logits.scale
    z, moments = (sums.lse - positive).mul_(LN2), None
    if sums.mean is not None:
        moments = torch.where(sums.lse == -torch.inf, 0.0, sums.mean - positive * LN2)
    count = problem.num_directions * own.x.shape[0]
    found = [
        Sums(z[anchors], None if moments is None else moments[anchors])
        for anchors in (slice(count), slice(count, None))
    ]
    return found[0], found[1] if mutual else None


def pull(
    own: Batch, other: Batch, problem: Problem, of_own: Anchors, of_other: Anchors, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of Σ_i a_i lse_i over the block's pairs, i the anchors of both ranks, with respect to own's sides.

    The positives' terms are not part of it.

    Args:
        own: the batch whose gradients are wanted.
        other: another rank's.
        problem: as for :func:`meet`.
        of_own: own's anchors.
        of_other: other's anchors.
        needs: which of own's sides need a gradient.

    Returns:
        One tensor per side of own, in the accumulation dtype; ``None`` where not needed.

    Example:
        >>> x, y = torch.eye(4)[:1], torch.eye(4)[1:2]
        >>> own, other = Batch(x, x, temperature=1.0), Batch(y, y, temperature=1.0)
        >>> zero, one = (torch.full((1,), value, dtype=torch.float64) for value in (0.0, 1.0))
        >>> problem = Problem(negatives="cross", directions="x")
        >>> pull(own, other, problem, Anchors(one, zero), Anchors(zero, zero), (True, False))[0]
        tensor([[0., 1., 0., 0.]])
    """
    if not any(needs):
        return [None] * len(needs)
    with ExactProducts(own.x.device.type):
        block = _block(own, other, problem, mutual=True)
        logits, plan, order = block.logits, block.arrangement.plan, block.arrangement.order
        a: float | Tensor = torch.cat((of_own.a, of_other.a))
        a, _, bits = scaled(a, a, block.temperature, None)
        assert isinstance(a, Tensor)
        weights = _weigh(a, torch.cat((of_own.lse, of_other.lse)) * LOG2E, logits, problem, plan)
        sizes = [len(side) for side in block.sides]
        wanted_sides = tuple(rank == 0 and needs[side] for rank, side in order)
        wanted = runs(logits.rows, sizes, wanted_sides)
        accumulate(wanted, logits, plan, weights, None, None)
        for run in wanted:
            logits.rows.project(run.gradient, slice(run.start, run.stop))
    gradients = of_sides(wanted, sizes, wanted_sides)
    exponents = None if logits.rows.exponents is None else list(logits.rows.exponents.split(sizes))
    dtypes = (logits.rows.stacked.dtype,) * len(sizes)
    released = dict(zip(order, release(Held(gradients, exponents, bits), 1.0, dtypes, last=True), strict=True))
    return [released[0, side] for side in range(len(needs))]


class Arrangement(NamedTuple):
    """Where the sides of a block are stacked, and its panels.

    Attributes:
        order: of each stacked side: 0 for own or 1 for other, and which of its sides.
        plan: the panels.
        met: of each side of anchors: its place, and the runs of stacked rows that it is compared with.
        few: one rank has so few rows that rounding hardly averages out: form logits in float64.
    """

    order: tuple[tuple[int, int], ...]
    plan: Layout
    met: tuple[tuple[slice, tuple[tuple[int, int], ...]], ...]
    few: bool


class Block(NamedTuple):
    """Two ranks' rows, ready to be multiplied.

    Attributes:
        arrangement: where each side is.
        logits: what panels are formed from.
        positive: ``(anchors,)`` similarities of the pairs, float64.
        temperature: one for all, or one per anchor.
        sides: the raw rows, in the order of the stack.
    """

    arrangement: Arrangement
    logits: Logits
    positive: Tensor
    temperature: float | Tensor
    sides: list[Tensor]


def _block(own: Batch, other: Batch, problem: Problem, *, mutual: bool) -> Block:
    batches = (own, other)
    ranks = batches if mutual else batches[:1]
    temperature = _temperature(ranks, problem)
    mirrored = mutual and problem.margin is None and not (isinstance(temperature, Tensor) and temperature.dim() == 1)
    arrangement = _arrange(own.shape, other.shape, problem, mutual=mutual, mirrored=mirrored)
    # Off the CPU nothing is read back, so nothing tells which rows need it.
    precise = arrangement.few or (problem.by_row and own.x.device.type != "cpu")
    dtype = torch.promote_types(own.shape.dtype, other.shape.dtype)
    rows = [prepare(batch.sides, problem.normalize, dtype, precise=precise) for batch in batches]
    positive = torch.cat([part.positive.repeat(problem.num_directions) for part in rows[: len(ranks)]])
    stack = _stack(rows, batches, arrangement.order)
    scale = base2_scale(temperature)
    limits = None if problem.margin is None else (positive + problem.margin) * scale
    logits = Logits(stack, own.x.shape[0], scale, _ids(batches, arrangement), limits)
    return Block(arrangement, logits, positive, temperature, [batches[rank].sides[k] for rank, k in arrangement.order])


def _temperature(ranks: tuple[Batch, ...], problem: Problem) -> float | Tensor:
    """One temperature if it is known to be the same for all anchors, else one per anchor."""
    given = [batch.temperature for batch in ranks]
    if all(one is given[0] for one in given) and not (isinstance(given[0], Tensor) and given[0].dim()):
        return given[0]
    on_host = all(not isinstance(one, Tensor) or (not one.dim() and one.device.type == "cpu") for one in given)
    if on_host and len({float(one) for one in given}) == 1:
        return float(given[0])
    parts = []
    for one, batch in zip(given, ranks, strict=True):
        wide = torch.as_tensor(one, dtype=torch.float64, device=batch.x.device)
        parts.append(wide.expand(problem.num_directions * batch.x.shape[0]))
    return torch.cat(parts)


def _stack(rows: list[Rows], batches: tuple[Batch, Batch], order: tuple[tuple[int, int], ...]) -> Rows:
    """Both ranks' rows in the order of the stack; ``positive`` is that of own."""

    def joined(parts: list[Tensor]) -> Tensor:
        split = [part.split(batch.sizes) for part, batch in zip(parts, batches, strict=True)]
        return torch.cat([split[rank][side] for rank, side in order])

    def optional(name: str) -> Tensor | None:
        parts = [getattr(part, name) for part in rows]
        if parts[0] is None and parts[1] is None:
            return None
        # Only exponents may be one rank's alone: the other's rows have the power 0.
        zeros = [part.stacked.new_zeros((len(part.stacked), 1)) for part in rows]
        return joined([zero if part is None else part for zero, part in zip(zeros, parts, strict=True)])

    stacked_rows = joined([part.stacked for part in rows])
    return Rows(stacked_rows, optional("precise"), rows[0].positive, optional("norms"), optional("exponents"))


def _ids(batches: tuple[Batch, Batch], arrangement: Arrangement) -> tuple[tuple[slice, Tensor], ...]:
    """The ids of stacked rows: all anchors' first, then those of the sides that are not anchors and have ids."""
    if batches[0].ids is None or batches[1].ids is None:
        return ()
    anchors: list[Tensor] = []
    further: list[tuple[slice, Tensor]] = []
    first = 0
    for rank, side in arrangement.order:
        batch = batches[rank]
        ids = batch.ids if side < 2 else batch.candidate_ids[side - 2] if batch.candidate_ids else None
        last = first + batch.sizes[side]
        if first < arrangement.plan.num_anchors:
            assert ids is not None
            anchors.append(ids)
        elif ids is not None:
            further.append((slice(first, last), ids))
        first = last
    return (slice(0, arrangement.plan.num_anchors), torch.cat(anchors)), *further


@lru_cache(maxsize=1024)
def _arrange(own: Shape, other: Shape, problem: Problem, *, mutual: bool, mirrored: bool) -> Arrangement:
    """The panels of a block: anchors of either rank against runs of the other's rows, and their places.

    Other's anchors stand next to the rest of its rows, so own's anchors meet them in one run. The workspace holds two
    copies of the rows, as in :func:`..torch_path.layout.layout`, and two panels.
    """
    sizes = [[shape.n, shape.n, *shape.candidates] for shape in (own, other)]
    directions = range(problem.num_directions)
    anchors = [(rank, side) for rank in (0, 1) for side in directions]
    further = [(rank, side) for rank in (1, 0) for side in range(len(directions), len(sizes[rank]))]
    order = (*anchors, *further)
    places: dict[tuple[int, int], tuple[int, int]] = {}
    count = 0
    for rank, side in order:
        places[rank, side] = count, count + sizes[rank][side]
        count += sizes[rank][side]
    num_own = len(directions) * own.n
    num_anchors = num_own + len(directions) * other.n if mutual else num_own

    met = []
    for rank, side in anchors if mutual else anchors[: len(directions)]:
        of_rows = {"both": (0, 1), "cross": (1 - side,), "own": (side,), "none": ()}[problem.negatives]
        ranges = sorted(places[1 - rank, k] for k in (*of_rows, *range(2, len(sizes[1 - rank]))))
        met.append((slice(*places[rank, side]), _merged(ranges)))
    widest = max((last - first for _, merged in met for first, last in merged), default=1)
    item = accumulation_dtype(torch.promote_types(own.dtype, other.dtype)).itemsize
    spare = problem.workspace // item - 2 * count * own.d
    height = max(SHORTEST, min(TALLEST, max(own.n, other.n), spare // (2 * widest)))
    panels = []
    for anchor_side, merged in met:
        for start in range(anchor_side.start, anchor_side.stop, height):
            stop = min(start + height, anchor_side.stop)
            for first, last in merged:
                # Own's anchors serve other's, so these meet no anchors again.
                if not mirrored or first >= num_anchors:
                    panels.append(Panel(start, stop, first, last, own=False, mirror=first))
                elif start < num_own:
                    panels.append(Panel(start, stop, first, last, own=False, mirror=min(last, num_anchors)))
    plan = Layout(own.n, count, num_anchors, tuple(panels), height, keep=False, few=False, dense=False)
    # Rows in float64 take as much memory as two copies more.
    few = 2 * min(own.n, other.n) <= FEW_ROWS and 2 * count * own.d <= max(spare, SCRATCH_ENTRIES)
    return Arrangement(order, plan, tuple(met), few)


def _merged(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Adjacent ranges as one, without empty ones."""
    merged: list[tuple[int, int]] = []
    for first, last in ranges:
        if merged and merged[-1][1] == first:
            merged[-1] = (merged[-1][0], last)
        elif first < last:
            merged.append((first, last))
    return tuple(merged)


def _sum(block: Block, problem: Problem, *, moment: bool) -> Denominators:
    """The sums over the block's negatives: optimistic if possible, else running, and exact where single rows matter."""
    logits, plan = block.logits, block.arrangement.plan
    stack = logits.rows
    on_cpu = stack.stacked.device.type == "cpu"
    by_row = problem.by_row and on_cpu and stack.precise is None and stack.stacked.dtype == torch.float32
    found = None
    shift = choose_shift(logits, problem)
    if shift is not None:
        found = denominators.optimistic(logits, plan, shift, keep=False, moment=moment, shares=by_row)
    if found is None:
        found = denominators.running(logits, plan, keep=False, moment=moment)
    if by_row:
        rows = exact.dominated(found, logits, plan)
        for side, (place, met) in zip(block.sides, block.arrangement.met, strict=False):
            chosen = rows[(rows >= place.start) & (rows < place.stop)]
            for few in chosen.split(exact.ANCHORS) if len(chosen) else ():
                found.lse[few] = exact.lse_over(few, side[few - place.start], met, block.sides, logits, problem)
    return found


def _weigh(a: Tensor, lse: Tensor, logits: Logits, problem: Problem, plan: Layout) -> Weights:
    """What turns logits into weights: a over the sums of exponentials if these and their quotients are normal numbers.

    Args:
        a: ``(anchors,)`` float64, over the temperature and scaled.
        lse: ``(anchors,)`` float64, base-2, over the negatives of all ranks.
        logits: what panels are formed from.
        problem: the options.
        plan: the panels.
    """
    dtype = logits.rows.stacked.dtype
    idle, per_sum = a == 0, None
    shift = choose_shift(logits, problem)
    # Nothing bounds the exponentials of dot products for an anchor of weight 0.
    if shift is not None and (problem.normalize or not bool(idle.any())):
        total = torch.exp2(lse - shift).masked_fill_(idle, 1.0)
        quotient = a / total
        usable = [total.to(dtype), torch.where(idle, 1.0, quotient.abs()).to(dtype)]
        if all(is_normal(one) for one in usable):
            per_sum = stacked(quotient.to(dtype), plan)
    # Rounded to whole numbers, log-sum-exps are exact in float32; the rest is the weight's.
    whole = torch.round(lse)
    weight = a * torch.exp2(whole - lse)
    return Weights(
        weight=stacked(weight.masked_fill_(idle, 0.0).to(dtype), plan),
        per_sum=per_sum,
        shift=0.0 if shift is None else shift,
        lse=stacked(whole.masked_fill_(idle, NO_WEIGHT).to(dtype), plan),
    )
