"""SupCon over ranks: labels are compared on all of them.

The negatives' sums are those of :mod:`ctloss.ranks.contrast`, with labels as ids. What is left are the rows of one
label, which travel once more: their logits are formed in float64, class by class where classes are large, else pair by
pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.ops import NO_SECOND_DERIVATIVE, Refused, WithoutAutocast, output_dtype
from ..core.units import unit_rows
from ..kernels.problem import Batch, Problem
from ..kernels.sigmoid import softplus
from .agreement import total, watched
from .contrast import Call, one_at_a_time
from .group import Across, Ranks
from .losses import contrasts, part_of_loss
from .transport import Part, arrivals

LARGE = 1 << 10
"""Pairs of rows of one label from which on they are multiplied as a matrix."""
ENTRIES = 1 << 20
"""Entries of a matrix at a time."""
PAIRS = 1 << 12
"""Pairs that are multiplied one by one at a time."""


def sup_con(
    x: Tensor, labels: Tensor, temperature: float | Tensor, problem: Problem, across: Across, ranks: Ranks
) -> Tensor:
    """A rank's loss: equation (2) of arXiv 2004.11362 over the rows of all ranks.

    Args:
        x: ``(n, d)``; n may be 0.
        labels: ``(n,)`` int64, the same meaning on every rank.
        temperature: τ, a number or a tensor of one element or one per row.
        problem: of the negatives' term, with the loss's reduction.
        across: how ranks take part.
        ranks: who they are.
    """
    # Logits relative to the row itself: the sum over the negatives has no use for a positive.
    batch = Batch(x, x.detach(), (), temperature, labels)
    z, own_logit, call = contrasts(problem, across, ranks, batch, about={"loss": "'sup_con'"})
    lse_of_negatives = z + own_logit
    with torch.autocast(x.device.type, enabled=False):
        rows = unit_rows(x) if problem.normalize else x.double()
        tau = temperature.to(x.device).double() if isinstance(temperature, Tensor) else rows.new_tensor(temperature)
        inverse = tau.reciprocal().expand(x.shape[0])
        # Taking part in the backward must not hang on the need of one rank's rows.
        rows = rows + torch.zeros((), dtype=torch.float64, requires_grad=call.needed and torch.is_grad_enabled())
        lse, mean, count = Positives.apply(call, labels, x.detach(), rows, inverse)
        paired = count > 0
        losses = softplus(lse_of_negatives - lse) + (lse - mean)
        losses = torch.where(paired, losses, 0.0)
    (of_all,) = total(ranks, call.description, paired.sum().double().view(1))
    return part_of_loss(call, across, losses, None, count=of_all.clamp_min(1.0)).to(output_dtype(x.dtype))


class Pairs(NamedTuple):
    """Rows of one label, of this rank (``left``) and of another: as a matrix, each with each, or pair by pair."""

    left: Tensor
    right: Tensor
    matrix: bool


def same_label(own: Tensor, other: Tensor, *, itself: bool) -> Iterator[Pairs]:
    """All pairs of rows of one label, but for a row with itself.

    Example:
        >>> [(found.left.tolist(), found.right.tolist())
        ...  for found in same_label(torch.tensor([3, 5]), torch.tensor([5, 4, 5]), itself=False)]
        [([1, 1], [0, 2])]
    """
    order = torch.argsort(other, stable=True)
    ordered = other[order]
    first, last = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
    counts = last - first
    names, of_class, sizes = torch.unique(own, return_inverse=True, return_counts=True)
    large = (sizes * torch.zeros_like(names).index_put((of_class,), counts))[of_class] >= LARGE
    for name in names[torch.unique(of_class[large])].tolist():
        left, right = (own == name).nonzero().flatten(), (other == name).nonzero().flatten()
        for part in left.split(max(1, ENTRIES // len(right))):
            yield Pairs(part, right, True)
    counts = counts.masked_fill(large, 0)
    left = torch.repeat_interleave(torch.arange(len(own), device=own.device), counts)
    places = torch.arange(len(left), device=own.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    right = order[first[left] + places]
    if itself:
        left, right = left[left != right], right[left != right]
    for start in range(0, len(left), PAIRS):
        yield Pairs(left[start : start + PAIRS], right[start : start + PAIRS], False)


class Positives(torch.autograd.Function):
    """lse over each row's positives on all ranks, the mean of their logits, and how many there are, float64."""

    @staticmethod
    def forward(ctx: Any, call: Call, labels: Tensor, raw: Tensor, rows: Tensor, inverse: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        lowest = rows.new_full((len(rows),), -torch.inf)
        peak = lowest
        weight, moment, similarities, count = (torch.zeros_like(peak) for _ in range(4))
        with WithoutAutocast(rows.device.type), watched(call.ranks, call.description):
            for own, (their_labels, others) in _met(call, [labels, raw], rows):
                for pairs in same_label(labels, their_labels, itself=own):
                    similarity, there, left = _multiplied(rows, others, pairs, itself=own)
                    logits = (similarity * inverse[left, None]).masked_fill(~there, -torch.inf)
                    raised = torch.maximum(peak, lowest.scatter_reduce(0, left, logits.amax(1), "amax"))
                    shrink = torch.where(peak == -torch.inf, 0.0, torch.exp(peak - raised))
                    # A row alone in its class meets nothing but itself.
                    terms = torch.exp(logits - raised.masked_fill(raised == -torch.inf, 0.0)[left, None])
                    weight = (weight * shrink).index_add_(0, left, terms.sum(1))
                    moment = (moment * shrink).index_add_(0, left, (terms * similarity).sum(1))
                    similarities.index_add_(0, left, (similarity * there).sum(1))
                    count.index_add_(0, left, there.sum(1).double())
                    peak = raised
        alone, several = count == 0, count.clamp_min(1.0)
        weight = weight.masked_fill(alone, 1.0)
        lse, mean = torch.where(alone, 0.0, peak + torch.log(weight)), similarities / several
        ctx.call, ctx.found = call, (lse, several, moment / weight, mean)
        ctx.save_for_backward(labels, raw, rows, inverse)
        ctx.mark_non_differentiable(count)
        return lse.clone(), mean * inverse, count

    @staticmethod
    def backward(ctx: Any, of_lse: Tensor | None, of_mean: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        one_at_a_time(of_lse, of_mean)
        call, (lse, several, expected, mean) = ctx.call, ctx.found
        labels, raw, rows, inverse = ctx.saved_tensors
        with torch.no_grad(), WithoutAutocast(rows.device.type), watched(call.ranks, call.description):
            c, e = (torch.zeros_like(lse) if one is None else one for one in (of_lse, of_mean))
            numbers = torch.stack((c * inverse, e * inverse / several, lse, inverse))
            gradient = torch.zeros_like(rows)
            if call.needed:
                for own, (their_labels, others, theirs) in _met(call, [labels, raw, numbers], rows):
                    theirs = numbers if own else theirs
                    for pairs in same_label(labels, their_labels, itself=own):
                        similarity, there, left = _multiplied(rows, others, pairs, itself=own)
                        right = pairs.right if pairs.matrix else pairs.right[:, None]
                        weights = _weights(similarity, numbers[:, left, None]) + _weights(similarity, theirs[:, right])
                        weights *= there
                        pulled = weights @ others[pairs.right] if pairs.matrix else weights * others[pairs.right]
                        gradient.index_add_(0, left, pulled)
            slope = c * expected + e * mean
        found: list[Tensor | None] = [gradient, slope]
        if torch.is_grad_enabled():
            sources = [one for one in (of_lse, of_mean, raw, rows, inverse) if one is not None]
            found = [None if one is None else Refused.apply(one, NO_SECOND_DERIVATIVE, *sources) for one in found]
        return None, None, None, *found


def _weights(similarity: Tensor, numbers: Tensor) -> Tensor:
    """An anchor's pull at each of its positives: of their lse and of their mean."""
    of_lse, of_mean, lse, inverse = numbers
    return of_lse * torch.exp(similarity * inverse - lse) + of_mean


def _met(call: Call, own: list[Tensor], rows: Tensor) -> Iterator[tuple[bool, list[Tensor]]]:
    """This rank's own tensors, then those of each other one: labels, rows in float64, and more; and whose they are."""
    labels, raw, *more = own
    parts = []
    for terms in call.terms:
        # The last dimension of numbers counts rows.
        shapes = [(terms.n,), (terms.n, raw.shape[1]), *((len(one), terms.n) for one in more)]
        parts.append([Part(shape, one.dtype) for shape, one in zip(shapes, own, strict=True)])
    arriving = arrivals(call.ranks, own, parts, call.problem.workspace)
    yield True, [labels, rows, *more]
    for _, (their_labels, theirs, *others) in arriving:
        yield False, [their_labels, unit_rows(theirs) if call.problem.normalize else theirs.double(), *others]


def _multiplied(rows: Tensor, others: Tensor, pairs: Pairs, *, itself: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of pairs, a row for each of ``left``; whether each is a pair at all, and whose it is."""
    left, right = rows[pairs.left], others[pairs.right]
    if not pairs.matrix:
        similarity = torch.linalg.vecdot(left, right).unsqueeze(1)
        return similarity, torch.ones_like(similarity, dtype=torch.bool), pairs.left
    there = torch.ones(len(left), len(right), dtype=torch.bool, device=rows.device)
    if itself:
        there = pairs.left[:, None] != pairs.right
    return left @ right.T, there, pairs.left
