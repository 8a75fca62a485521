"""z and the positives' logits of a rank's anchors over the negatives of all ranks, as one differentiable function.

The forward compares a rank's rows with themselves on the planned path, and with those of other ranks block by block,
each two ranks once. All of a row's z are relative to its own positive, so they add up as logarithms of sums do. The
backward lets all rows travel again, with the two numbers of each anchor, a and lse: from these every rank forms the
gradient of its own rows by itself. No gradient travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.ops import NO_SECOND_DERIVATIVE, Found, Refused, WithoutAutocast, is_plain, slope_of
from ..core.plan import Plan, cached_plan
from ..kernels import blocks
from ..kernels.blocks import Anchors, Sums
from ..kernels.problem import Batch, Problem
from . import schedule
from .agreement import Description, Terms, watched
from .batches import Layout, anchors_of, of_anchors, own_batch, part_of, together
from .group import Ranks
from .transport import SUMS, Gathered, Messages, Part, Ring, begin, pack, size_of, unpack


@dataclass(frozen=True)
class Call:
    """One call of all ranks, as one of them sees it.

    Attributes:
        ranks: who takes part.
        terms: what each of them brings.
        description: what is said of this call where an exchange fails.
        problem: the options; ``by_row`` decides how exact single rows are.
        num_shared: how many of the candidate sides, the last ones, are the same on every rank.
    """

    ranks: Ranks
    terms: list[Terms]
    description: Description
    problem: Problem
    num_shared: int

    @property
    def needed(self) -> bool:
        """Whether any rank's rows need a gradient, so that all ranks have to take part in the backward."""
        return any(one.needs for one in self.terms)

    @property
    def rows(self) -> list[int]:
        """Rows that each rank sends."""
        return [2 * one.n + sum(one.candidates) for one in self.terms]

    def anchors(self, rank: int) -> int:
        """Anchors of a rank."""
        return self.problem.num_directions * self.terms[rank].n


class Total:
    """z and moments of a rank's anchors, to which blocks add theirs."""

    def __init__(self, num_anchors: int, device: torch.device, *, moment: bool) -> None:
        self.z = torch.full((num_anchors,), -torch.inf, dtype=torch.float64, device=device)
        self.moment = torch.zeros_like(self.z) if moment else None

    def add(self, sums: Sums, places: Tensor | slice = slice(None)) -> None:
        """Add a block's sums to those of the anchors at some places."""
        before, added = self.z[places], sums.z
        z = torch.logaddexp(before, added)
        if self.moment is not None:
            assert sums.moment is not None
            shares = [torch.where(one == -torch.inf, 0.0, torch.exp(one - z)) for one in (before, added)]
            self.moment[places] = shares[0] * self.moment[places] + shares[1] * sums.moment
        self.z[places] = z


class State(NamedTuple):
    """What the backward needs of the forward.

    Attributes:
        chosen: the path of the rank's own rows; ``None`` if it has none.
        local: that path's state.
        z_local: ``(anchors,)`` z over the rank's own rows and candidates.
        gathered: the rows of all ranks, if they have been gathered and are met one by one.
        others: those of all other ranks as one batch, if they were met at once.
        kept: what the path has kept of that.
    """

    chosen: Plan | None
    local: Any
    z_local: Tensor | None
    gathered: Gathered | None
    others: Batch | None = None
    kept: Tensor | None = None


def block_path(own: Batch, problem: Problem) -> Any:
    """The module that compares rows of two ranks."""
    shape = own.shape
    path = cached_plan(shape._replace(n=max(1, shape.n)), problem).path
    return blocks.path(path)


def _against_candidates(anchors: Batch, candidates: Batch) -> Batch:
    """A batch whose anchors are compared with another's candidates only, if ``negatives`` is "none"."""
    return anchors._replace(candidates=candidates.candidates, candidate_ids=candidates.candidate_ids)


def meet(own: Batch, other: Batch, problem: Problem, *, moment: bool) -> tuple[Sums | None, Sums | None]:
    """What two ranks add to each other's sums; ``None`` for a rank without pairs."""
    if own.x.shape[0] and other.x.shape[0]:
        return block_path(own, problem).meet(own, other, problem, mutual=True, moment=moment)
    found: list[Sums | None] = []
    for anchors, candidates in ((own, other), (other, own)):
        if not anchors.x.shape[0] or not any(side.shape[0] for side in candidates.candidates):
            found.append(None)
            continue
        batch, alone = _against_candidates(anchors, candidates), replace(problem, negatives="none")
        engine = cached_plan(batch.shape, alone).engine
        forward = engine.forward(batch, alone, moment=moment, gradient=False)
        found.append(Sums(forward.z, forward.moment))
    return found[0], found[1]


def meet_at_once(
    own: Batch, others: Batch, problem: Problem, *, moment: bool, gradient: bool
) -> tuple[Sums | None, Tensor | None]:
    """What all other ranks add to a rank's sums, and what its path has kept for the backward."""
    if not own.x.shape[0] or not others.x.shape[0]:
        return meet(own, others, problem, moment=moment)[0], None
    path = block_path(own, problem)
    if gradient and hasattr(path, "meet_and_keep"):
        found = path.meet_and_keep(own, others, problem, moment=moment)
        if found is not None:
            sums, kept = found
            return sums, kept
    return path.meet(own, others, problem, mutual=False, moment=moment)[0], None


def pull(
    own: Batch,
    other: Batch,
    problem: Problem,
    of_own: Anchors,
    of_other: Anchors,
    needs: tuple[bool, ...],
    kept: Tensor | None = None,
) -> list[Tensor | None]:
    """What two ranks' pairs add to the gradient of one's own sides, in the accumulation dtype."""
    if own.x.shape[0] and other.x.shape[0]:
        more = () if kept is None else (kept,)
        found: list[Tensor | None] = block_path(own, problem).pull(own, other, problem, of_own, of_other, needs, *more)
        return found
    gradients: list[Tensor | None] = [None] * len(needs)
    alone = replace(problem, negatives="none")
    if own.x.shape[0]:
        if any(side.shape[0] for side in other.candidates):
            wanted = (*needs[:2], *[False] * len(other.candidates))
            gradients[:2] = _alone(_against_candidates(own, other), alone, of_own, wanted)[:2]
    elif other.x.shape[0] and any(side.shape[0] for side in own.candidates):
        wanted = (False, False, *needs[2:])
        gradients[2:] = _alone(_against_candidates(other, own), alone, of_other, wanted)[2:]
    return gradients


def _alone(batch: Batch, problem: Problem, anchors: Anchors, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradient of Σ a lse with lse over more than the batch's candidates."""
    chosen = cached_plan(batch.shape, problem)
    exact = replace(problem, loss="contrast")
    forward = chosen.engine.forward(batch, exact, moment=False, gradient=True)
    lse = forward.z + forward.positive
    a = torch.where(forward.z == -torch.inf, 0.0, anchors.a * torch.exp(lse - anchors.lse))
    return _local_gradient(chosen, forward.state, a, torch.zeros_like(a), needs)


def _local_gradient(chosen: Plan, state: Any, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """An engine's gradients in the accumulation dtype, to be added up before they are rounded."""
    dtype = torch.float64 if chosen.shape.dtype == torch.float64 else torch.float32
    engine = chosen.engine
    if hasattr(engine, "hold"):
        found: list[Tensor | None] = engine.release(engine.hold(state, a, b, needs), 1.0, (dtype,) * len(needs))
        return found
    return [None if one is None else one.to(dtype) for one in engine.backward(state, a, b, needs)]


def forward(call: Call, batch: Batch, *, moment: bool, gradient: bool) -> tuple[Total, Tensor, State]:
    """z and moments over all ranks, the positives' logits, and what :func:`backward` needs."""
    ranks, terms, problem = call.ranks, call.terms, call.problem
    own, device = own_batch(batch, call.num_shared), batch.x.device
    layout = Layout.of(own)
    parts = [layout.parts(one, problem.num_directions) for one in terms]
    steps = schedule.forward(ranks.rank, ranks.world)
    arriving = begin(ranks, layout.tensors(own), parts, problem.workspace, steps[-1].hop)
    gathered = arriving if isinstance(arriving, Gathered) else None

    total = Total(call.anchors(ranks.rank), device, moment=moment)
    chosen, local, z_local = None, None, None
    positive = torch.zeros_like(total.z)
    if terms[ranks.rank].n:
        chosen = cached_plan(batch.shape, problem)
        found = chosen.engine.forward(batch, problem, moment=moment, gradient=gradient)
        z_local, positive, local = found.z, found.positive, found.state
        total.add(Sums(found.z, found.moment))

    if gathered is not None and schedule.at_once(call.rows, problem.workspace):
        peers = [ranks.peer(hop) for hop in range(1, ranks.world)]
        batches = [
            layout.batch(unpack(one, parts[peer]), batch.temperature) for one, peer in zip(gathered, peers, strict=True)
        ]
        others = together(batches, problem.num_directions)
        sums, kept = meet_at_once(own, others, problem, moment=moment, gradient=gradient)
        if sums is not None:
            total.add(sums)
        return total, positive, State(chosen, local, z_local, None, others, kept)

    returning: tuple[Messages, Tensor, Tensor] | None = None
    for step, arrived in zip(steps, arriving, strict=False):
        peer = ranks.peer(step.hop)
        other = layout.batch(unpack(arrived, parts[peer]), batch.temperature)
        halves = (own, step.own), (other, step.other)
        mine, theirs = (part_of(one, half, problem.num_directions) for one, half in halves)
        of_own, of_other = meet(mine, theirs, problem, moment=moment)
        if of_own is not None:
            total.add(of_own, anchors_of(terms[ranks.rank].n, step.own, problem.num_directions, device))
        if returning is not None:
            _add_returned(total, *returning)
        returning = _return(call, step, of_other, theirs, device, moment=moment)
    if returning is not None:
        _add_returned(total, *returning)
    return total, positive, State(chosen, local, z_local, gathered)


def _return(
    call: Call, step: schedule.Step, sums: Sums | None, theirs: Batch, device: torch.device, *, moment: bool
) -> tuple[Messages, Tensor, Tensor]:
    """Send the other rank's share of a block to it, and receive this rank's share of the block formed elsewhere."""
    ranks, directions = call.ranks, call.problem.num_directions
    planes = 2 if moment else 1
    sent = torch.full((planes, directions * theirs.x.shape[0]), -torch.inf, dtype=torch.float64, device=device)
    sent[1:] = 0.0
    if sums is not None:
        sent[0] = sums.z
        if moment:
            assert sums.moment is not None
            sent[1] = sums.moment
    origin = ranks.peer(-step.hop)
    (half,) = [one.other for one in schedule.forward(origin, ranks.world) if one.hop == step.hop]
    places = anchors_of(call.terms[ranks.rank].n, half, directions, device)
    received = sent.new_empty((planes, len(places)))
    messages = Messages(ranks, [(sent, ranks.peer(step.hop))], [(received, origin)], SUMS)
    return messages, received, places


def _add_returned(total: Total, messages: Messages, received: Tensor, places: Tensor) -> None:
    messages.wait()
    if len(places):
        total.add(Sums(received[0], received[1] if len(received) > 1 else None), places)


def backward(
    call: Call, batch: Batch, state: State, z: Tensor, positive: Tensor, a: Tensor, b: Tensor, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of all ranks' Σ a lse − b s⁺ with respect to this rank's sides; ``None`` where not needed."""
    problem, own = call.problem, own_batch(batch, call.num_shared)
    # Others' rows are on their way while this rank's own are worked on.
    arriving = _others_again(call, own, state, z, positive, a) if call.needed else None
    gradients: list[Tensor | None] = [None] * len(needs)
    if state.chosen is not None and any(needs):
        assert state.z_local is not None
        share = torch.where(state.z_local == -torch.inf, 0.0, torch.exp(state.z_local - z))
        gradients = _local_gradient(state.chosen, state.local, a * share, b, needs)
    anchors, wanted = Anchors(a, _finite_lse(z, positive)), needs[: len(own.sides)]
    for other, theirs in arriving or ():
        if any(wanted):
            pulls = pull(own, other, problem, anchors, Anchors(*theirs), wanted, state.kept)
            for index, one in enumerate(pulls):
                if one is not None:
                    former = gradients[index]
                    gradients[index] = one if former is None else former.add_(one)
    return [
        None if not need else torch.zeros_like(side) if one is None else one.to(side.dtype)
        for one, side, need in zip(gradients, batch.sides, needs, strict=True)
    ]


def _finite_lse(z: Tensor, positive: Tensor) -> Tensor:
    return torch.where(z == -torch.inf, 0.0, z + positive)


def _others_again(
    call: Call, own: Batch, state: State, z: Tensor, positive: Tensor, a: Tensor
) -> Iterable[tuple[Batch, Tensor]]:
    """Every other rank's batch, and its anchors' a and lse, in the order of the ring; or all of them as one.

    Messages start at once; iterating waits for them.
    """
    ranks, directions = call.ranks, call.problem.num_directions
    hops = len(schedule.backward(ranks.world))
    layout, peers = Layout.of(own), [ranks.peer(hop) for hop in range(1, hops + 1)]
    of_rows = [layout.parts(one, directions) for one in call.terms]
    of_numbers = [[Part((2, call.anchors(rank)), torch.float64)] for rank in range(ranks.world)]
    numbers = torch.stack((a, _finite_lse(z, positive)))
    if state.gathered is None and state.others is None:
        parts = [rows + others for rows, others in zip(of_rows, of_numbers, strict=True)]
        message = pack([*layout.tensors(own), numbers], parts[ranks.rank])
        return _unpacked(Ring(ranks, message, [size_of(one) for one in parts], hops), peers, parts, layout, own)
    message = pack([numbers], of_numbers[ranks.rank])
    arriving = Gathered(ranks, message, [size_of(one) for one in of_numbers], hops)
    if state.others is not None:
        return _as_one(arriving, peers, of_numbers, state.others, directions)
    assert state.gathered is not None
    return _side_by_side(state.gathered, arriving, peers, of_rows, of_numbers, layout, own)


def _unpacked(
    arriving: Ring, peers: list[int], parts: list[list[Part]], layout: Layout, own: Batch
) -> Iterator[tuple[Batch, Tensor]]:
    for peer, arrived in zip(peers, arriving, strict=True):
        *tensors, others = unpack(arrived, parts[peer])
        yield layout.batch(tensors, own.temperature), others


def _side_by_side(
    gathered: Gathered,
    arriving: Gathered,
    peers: list[int],
    of_rows: list[list[Part]],
    of_numbers: list[list[Part]],
    layout: Layout,
    own: Batch,
) -> Iterator[tuple[Batch, Tensor]]:
    for peer, rows, arrived in zip(peers, gathered, arriving, strict=True):
        batch = layout.batch(unpack(rows, of_rows[peer]), own.temperature)
        yield batch, unpack(arrived, of_numbers[peer])[0]


def _as_one(
    arriving: Gathered, peers: list[int], of_numbers: list[list[Part]], others: Batch, num_directions: int
) -> Iterator[tuple[Batch, Tensor]]:
    numbers = [unpack(arrived, of_numbers[peer])[0] for peer, arrived in zip(peers, arriving, strict=True)]
    yield others, of_anchors(numbers, num_directions)


def one_at_a_time(*upstream: Tensor | None) -> None:
    """Refuse a batch of upstream gradients.

    Raises:
        RuntimeError: for a tensor that is not plain.
    """
    if not all(one is None or is_plain(one) for one in upstream):
        raise RuntimeError(
            "group: expected one gradient at a time, got a batch of them (is_grads_batched, or torch.vmap over a "
            "backward); every rank would have to exchange each of them: loop over the upstream gradients"
        )


class Shared(torch.autograd.Function):
    """(z, positive) of a rank's anchors, float64, over the negatives of all ranks."""

    @staticmethod
    def forward(ctx: Any, call: Call, ids: Any, temperature: Any, taking_part: Tensor, *sides: Tensor) -> Any:
        needed = ctx.needs_input_grad
        ctx.needs = (*needed[4:], needed[2])
        batch = Batch(sides[0], sides[1], sides[2:], temperature, *ids)
        with WithoutAutocast(batch.x.device.type), watched(call.ranks, call.description):
            total, positive, state = forward(call, batch, moment=ctx.needs[-1], gradient=any(ctx.needs[:-1]))
        ctx.set_materialize_grads(False)
        ctx.call, ctx.ids, ctx.state = call, ids, state
        ctx.temperature = None if isinstance(temperature, Tensor) else temperature
        ctx.found = total.z, positive, total.moment
        own_ids = [one for one in (ids[0], *ids[1]) if one is not None]
        # So that a change of what is read again is noticed, and a second derivative reaches the inputs.
        ctx.save_for_backward(*sides, *((temperature,) if isinstance(temperature, Tensor) else ()), *own_ids)
        return total.z.clone(), positive.clone()

    @staticmethod
    def backward(ctx: Any, of_z: Tensor | None, of_positive: Tensor | None) -> tuple[Tensor | None, ...]:
        one_at_a_time(of_z, of_positive)
        call, needs = ctx.call, ctx.needs
        saved = ctx.saved_tensors
        sides = saved[: len(needs) - 1]
        temperature = saved[len(sides)] if ctx.temperature is None else ctx.temperature
        batch = Batch(sides[0], sides[1], sides[2:], temperature, *ctx.ids)
        (z, positive, moment), state = ctx.found, ctx.state
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.state = ctx.found = None
        with torch.no_grad(), WithoutAutocast(batch.x.device.type), watched(call.ranks, call.description):
            # Whatever a loss makes of −inf, a row without negatives has no gradient.
            a = torch.zeros_like(z) if of_z is None else torch.where(z == -torch.inf, 0.0, of_z.double())
            b = a if of_positive is None else a - of_positive
            gradients = backward(call, batch, state, z, positive, a, b, needs[:-1])
            slope = slope_of(Found(None, 1.0, positive, moment, None), a, b, temperature) if needs[-1] else None
        found = [*gradients, slope]
        if torch.is_grad_enabled():
            sources = [one for one in (of_z, of_positive, *sides) if one is not None]
            found = [None if one is None else Refused.apply(one, NO_SECOND_DERIVATIVE, *sources) for one in found]
        return None, None, found[-1], None, *found[:-1]
