"""Two ranks against each other on the Triton path: one product of two rows serves both ranks' anchors.

Two stacks lie in one packed matrix, one after the other: each rank's pairs, with the other rank's candidates as its
candidates. So all that a rank's anchors have in the engine is as it is there, and only the pairs of the two ranks
remain. In them the second stack's rows stand where candidates do, except that they have sums of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch, Problem, Shape
from ..triton_path import engine
from ..triton_path.gradient import add_gradient, finish
from ..triton_path.lse import close, fold, panel_lse, served, slot_memory
from ..triton_path.pack import Rows, pack_into
from ..triton_path.plan import config, layout, memory
from ..triton_path.plan.config import BlockConfig
from ..triton_path.plan.layout import CANDIDATES, Block, Panel, Span, X, Y, length
from ..triton_path.weights import Factors, panel_weights, set_sums, weigh, weight_memory
from . import Anchors, Sums


@dataclass(frozen=True)
class Meeting:
    """The rows of two ranks as the kernels see them.

    Attributes:
        own: one rank's pairs, and the other's candidates.
        other: the other rank's pairs, and the first one's candidates.
        whole: all rows; those of ``other`` follow those of ``own``.
        problem: the options.
        config: how the kernels are compiled.
        similarities: the positives' similarities of either, (padded rows) float64.
    """

    own: Rows
    other: Rows
    whole: Rows
    problem: Problem
    config: BlockConfig
    similarities: tuple[Tensor, Tensor]

    @property
    def start(self) -> int:
        """Where the other stack begins."""
        return self.own.stack.num_rows

    def across(self, side: int) -> tuple[Rows, Span]:
        """One of the other rank's sides among all rows; no row after it counts."""
        first, last = (self.start + end for end in self.other.stack.span(side))
        stack = self.whole.stack
        live = first + self.other.stack.n - 2 * stack.padded
        return replace(self.whole, stack=replace(stack, candidates=(live,))), (first, last)

    def compares(self, side: int, other: int) -> bool:
        """Whether rows of a rank's side are anchors whose negatives include the other rank's ``other`` side."""
        return layout.is_compared(side, other, self.whole.stack, self.problem)


class Part(NamedTuple):
    """Pairs of rows of which one at least is an anchor.

    Attributes:
        rows: what ``panel`` counts its rows in.
        start: where these begin among all rows.
        panel: the pairs.
    """

    rows: Rows
    start: int
    panel: Panel


def meet(own: Batch, other: Batch, problem: Problem, *, mutual: bool, moment: bool) -> tuple[Sums, Sums | None]:
    """z of own's anchors over other's rows and candidates and, if mutual, of other's anchors over own's.

    Ranks whose temperature is one 0-d tensor, or equal numbers, share their logits. Otherwise each anchor has its own.

    Args:
        own: one rank's batch.
        other: another's, of as many columns.
        problem: the options of the loss call that both belong to; ``dims`` is not looked at.
        mutual: serve other's anchors too.
        moment: also find Σ_j P_ij s_ij − s⁺_i.

    Returns:
        The sums of own's anchors, and those of other's or ``None``.
    """
    with engine.on(own.x):
        meeting = _pack(own, other, problem, both=mutual)
        planes = 3 if moment else 2
        parts = list(_parts(meeting, mutual, planes))
        ranks = (meeting.own, meeting.other)[: 2 if mutual else 1]
        results = [_results(rows, problem, moment) for rows in ranks]
        slots = slot_memory(meeting.whole, [part.panel for part in parts], planes, meeting.config)
        for rows, start, panel in parts:
            filled = panel_lse(rows, panel, slots, planes, meeting.config)
            for (first, _), sums in zip(served(panel), filled, strict=True):
                rank = int(start + first >= meeting.start)
                place = start + first - rank * meeting.start
                fold(ranks[rank], sums, place, meeting.similarities[rank], results[rank], False)
        for rows, similarity, result in zip(ranks, meeting.similarities, results, strict=False):
            close(rows, similarity, result, problem)
    found = [Sums(z, moments) for z, _, moments in results]
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
        One float32 tensor per side of own; ``None`` where not needed.
    """
    gradients = [
        torch.empty(side.shape, dtype=torch.float32, device=side.device) if need else None
        for side, need in zip(own.sides, needs, strict=True)
    ]
    if not any(needs):
        return gradients
    with engine.on(own.x):
        meeting = _pack(own, other, problem, both=any(needs[CANDIDATES:]))
        near, far = meeting.own, meeting.other
        factors = _weigh(meeting, of_own, of_other)
        of_far = replace(factors, coefficient=factors.coefficient[meeting.start :])
        candidates, foreign = near.stack.span(CANDIDATES), len(other.candidates)
        for span in layout.wanted_spans((*needs[:CANDIDATES], *[False] * foreign), near.stack):
            side = near.stack.side(span[0])
            swept = [
                meeting.across(met) for met in (X, Y) if meeting.compares(side, met) or meeting.compares(met, side)
            ]
            if length(candidates) and layout.is_compared(side, CANDIDATES, near.stack, problem):
                swept.append((near, candidates))
            _finish_runs(near, factors, [*gradients[:CANDIDATES], *[None] * foreign], span, swept, meeting)
        if any(needs[CANDIDATES:]):
            anchors = 0, far.stack.span(Y if problem.directions == "both" else X)[1]
            for span in layout.wanted_spans((False, False, *needs[CANDIDATES:]), far.stack):
                _finish_runs(far, of_far, [None, None, *gradients[CANDIDATES:]], span, [(far, anchors)], meeting)
    return gradients


def _pack(own: Batch, other: Batch, problem: Problem, *, both: bool) -> Meeting:
    """Both ranks' stacks, their statistics found and no logit seen; own's candidates only with ``both``."""
    own, other = _with_temperatures(own, other, problem)
    # Of all rows in any case: whatever is asked, a margin must leave out the same pairs.
    shape = _shape(own, other, problem)
    if not both:
        own = own._replace(candidates=(), candidate_ids=())
    chosen = replace(config.choose(shape, engine._arch(), problem), specialised=False)
    masked = own.ids is not None and other.ids is not None
    batches = _crossed(own, other, masked), _crossed(other, own, masked)
    padding = layout.stack_of(shape).padding
    stacks = [layout.stack_of(batch.shape, padding) for batch in batches]
    start, count = stacks[0].num_rows, sum(stack.num_rows for stack in stacks)
    device = own.x.device
    packed = torch.empty((count, stacks[0].width), dtype=shape.dtype, device=device)
    stats = torch.empty((layout.PLANES, count), dtype=torch.float32, device=device)
    ids = layout.identities_of(list(zip(batches, stacks, strict=True))) if masked else None
    ranks, similarities = [], []
    for batch, stack, part in zip(batches, stacks, (slice(0, start), slice(start, count)), strict=True):
        similarity = torch.empty(stack.padded, dtype=torch.float64, device=device)
        of_rank = None if ids is None else ids[part]
        ranks.append(pack_into(packed[part], stats[:, part], batch, of_rank, similarity, stack, problem, chosen))
        similarities.append(similarity)
    whole = replace(ranks[0], packed=packed, stats=stats, ids=ids, stack=replace(stacks[0], num_rows=count))
    return Meeting(ranks[0], ranks[1], whole, problem, chosen, (similarities[0], similarities[1]))


def _crossed(pairs: Batch, others: Batch, masked: bool) -> Batch:
    """A rank's pairs with the other rank's candidates; ids only count if both ranks have them."""
    return pairs._replace(
        candidates=others.candidates,
        ids=pairs.ids if masked else None,
        candidate_ids=others.candidate_ids if masked else (),
    )


def _with_temperatures(own: Batch, other: Batch, problem: Problem) -> tuple[Batch, Batch]:
    """Both ranks with the one temperature that they share, or with one for each anchor."""
    tau, of_other = own.temperature, other.temperature
    if not isinstance(tau, Tensor) and not isinstance(of_other, Tensor) and tau == of_other:
        return own, other
    if tau is of_other and isinstance(tau, Tensor) and tau.dim() == 0:
        return own, other
    return _with_rows(own, problem), _with_rows(other, problem)


def _with_rows(batch: Batch, problem: Problem) -> Batch:
    tau, anchors = batch.temperature, batch.x.shape[0] * problem.num_directions
    if not isinstance(tau, Tensor):
        tau = torch.full((), tau, dtype=torch.float64, device=batch.x.device)
    return batch._replace(temperature=tau.expand(anchors))


def _shape(own: Batch, other: Batch, problem: Problem) -> Shape:
    """What tiles and formats are chosen by: the smaller rank's pairs, with all the rows that they are compared with."""
    one, two = own.shape, other.shape
    candidates = sum(one.candidates) + sum(two.candidates)
    if problem.negatives != "none":
        candidates += 2 * max(one.n, two.n)
    dtype = torch.promote_types(one.dtype, two.dtype)
    return one._replace(n=min(one.n, two.n), candidates=(candidates,), dtype=dtype)


def _parts(meeting: Meeting, mutual: bool, planes: int) -> Iterator[Part]:
    """Every pair of rows of which one is compared with the other, once."""
    problem, tile = meeting.problem, meeting.config.block
    size = layout.forward_panel(meeting.whole.stack, tile, planes, problem.workspace)

    def part(rows: Rows, start: int, found: Sequence[Block]) -> Iterator[Part]:
        for panel in layout.panels(found, size, rows.stack):
            yield Part(rows, start, panel)

    for other in (X, Y):
        rows, columns = meeting.across(other)
        answered = [side for side in (X, Y) if mutual and meeting.compares(other, side)]
        compared = [side for side in (X, Y) if meeting.compares(side, other)]
        found = []
        if compared:
            # Both sides make one block.
            span = rows.stack.span(compared[0])[0], rows.stack.span(compared[-1])[1]
            found.append(Block(span, columns, compared[0] in answered, 0))
        found += [Block(columns, rows.stack.span(side), False, 0) for side in answered if side not in compared]
        yield from part(rows, 0, found)
    to_candidates = replace(problem, negatives="none")
    for rows, start in ((meeting.own, 0), (meeting.other, meeting.start))[: 2 if mutual else 1]:
        yield from part(rows, start, layout.blocks(rows.stack, to_candidates, tile))


def _results(rows: Rows, problem: Problem, moment: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Room for the z, the positives' logits and the moments of a rank's anchors."""
    anchors, device = rows.stack.n * problem.num_directions, rows.packed.device
    z, positive = (torch.empty(anchors, dtype=torch.float64, device=device) for _ in range(2))
    return z, positive, torch.empty_like(z) if moment else None


def _weigh(meeting: Meeting, of_own: Anchors, of_other: Anchors) -> Factors:
    """What the gradient needs of both ranks' anchors, with one gain for all rows; no positive pulls."""
    ranks = []
    for rows, (a, lse) in ((meeting.own, of_own), (meeting.other, of_other)):
        set_sums(rows, a, lse)
        ranks.append(weigh(rows, a, torch.zeros_like(a)))
    gain = torch.maximum(ranks[0].gain, ranks[1].gain)
    coefficient = torch.cat([factors.coefficient * (factors.gain / gain).float() for factors in ranks])
    return Factors(coefficient, ranks[0].pull, gain)


def _finish_runs(
    rows: Rows,
    factors: Factors,
    gradients: Sequence[Tensor | None],
    span: Span,
    swept: Sequence[tuple[Rows, Span]],
    meeting: Meeting,
) -> None:
    """Fill the gradients of a span of a rank's stack, one run of rows after the other.

    ``swept`` are the rows that they are compared with, each among the rows whose tiles hold both.
    """
    chosen, stack = meeting.config, meeting.whole.stack
    plan = memory.plan_backward(stack, chosen.weight_bytes, meeting.problem.workspace)
    runs = layout.cut(span, plan.size, rows.stack)
    met = [(view, part) for view, columns in swept for part in layout.cut(columns, plan.columns, view.stack)]
    widest = [max((part for _, part in met), key=length)] if met else []
    weights = weight_memory(rows, [Panel(max(runs, key=length), part) for part in widest], chosen)
    for run in runs:
        sums = torch.zeros((length(run), stack.width), dtype=torch.float32, device=rows.packed.device)
        for view, part in met:
            block = panel_weights(view, Panel(run, part), factors, weights, chosen)
            add_gradient(block, view.packed[slice(*part)], sums, False, chosen)
        finish(sums[None], rows, run, factors, gradients, chosen)
