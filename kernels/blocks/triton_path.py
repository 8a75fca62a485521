"""Two ranks against each other on the Triton path: the other rank's rows are candidates of one call of its engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch, Problem
from ..triton_path import engine
from . import Anchors, Sums


class Call(NamedTuple):
    """A call in which some of one rank's anchors are compared with rows of the other rank.

    Attributes:
        batch: the anchors' pairs, and the other rank's rows as candidates.
        problem: the options.
        rows: which of the anchors they are.
        sides: which of the anchors' sides its x and y are.
        met: which of the other rank's sides its candidates are.
    """

    batch: Batch
    problem: Problem
    rows: slice
    sides: tuple[int, int]
    met: list[int]


def meet(own: Batch, other: Batch, problem: Problem, *, mutual: bool, moment: bool) -> tuple[Sums, Sums | None]:
    """z of own's anchors over other's rows and candidates and, if mutual, of other's anchors over own's."""
    return _sums(own, other, problem, moment), _sums(other, own, problem, moment) if mutual else None


def pull(
    own: Batch, other: Batch, problem: Problem, of_own: Anchors, of_other: Anchors, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of Σ a_i lse_i over the block's pairs with respect to own's sides, in float32; None if not needed."""
    found = [
        torch.zeros(side.shape, dtype=torch.float32, device=side.device) if need else None
        for side, need in zip(own.sides, needs, strict=True)
    ]
    for call in _calls(own, other, problem):
        wanted = tuple(needs[side] for side in call.sides) + (False,) * len(call.met)
        for side, gradient in zip(call.sides, _gradients(call, of_own, wanted), strict=False):
            if gradient is not None:
                found[side] = gradient + found[side]
    for call in _calls(other, own, problem):
        wanted = (False, False, *(needs[side] for side in call.met))
        for side, gradient in zip(call.met, _gradients(call, of_other, wanted)[2:], strict=True):
            if gradient is not None:
                found[side] = gradient + found[side]
    return found


def _calls(anchors: Batch, others: Batch, problem: Problem) -> Iterator[Call]:
    """The calls that compare one rank's anchors with the other rank's rows."""
    n, masked = anchors.x.shape[0], anchors.ids is not None and others.ids is not None
    ids = [others.ids, others.ids, *(others.candidate_ids or (None,) * len(others.candidates))]
    candidates = list(range(2, 2 + len(others.candidates)))

    def call(sides: tuple[int, int], pairs: list[int], rows: slice, directions: str) -> Call:
        met = pairs + candidates
        tau = anchors.temperature
        batch = Batch(
            anchors.sides[sides[0]],
            anchors.sides[sides[1]],
            tuple(others.sides[side] for side in met),
            tau[rows] if isinstance(tau, Tensor) and tau.dim() else tau,
            anchors.ids if masked else None,
            tuple(ids[side] if masked else None for side in met),
        )
        return Call(batch, replace(problem, negatives="none", directions=directions), rows, sides, met)

    if problem.negatives in ("both", "none"):
        pairs = [0, 1] if problem.negatives == "both" else []
        yield call((0, 1), pairs, slice(0, n * problem.num_directions), problem.directions)
        return
    for side in range(problem.num_directions):
        met = side if problem.negatives == "own" else 1 - side
        yield call((side, 1 - side), [met], slice(side * n, (side + 1) * n), "x")


def _sums(anchors: Batch, others: Batch, problem: Problem, moment: bool) -> Sums:
    found = [
        engine.forward(call.batch, call.problem, moment=moment, gradient=False)
        for call in _calls(anchors, others, problem)
    ]
    moments = torch.cat([each.moment for each in found if each.moment is not None]) if moment else None
    return Sums(torch.cat([each.z for each in found]), moments)


def _gradients(call: Call, anchors: Anchors, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Those of a call's sides: the anchors' a is split by the share of the negatives that are in the block."""
    if not any(needs):
        return [None] * len(needs)
    forward = engine.forward(call.batch, call.problem, moment=False, gradient=False)
    assert forward.positive is not None
    a, lse = (each[call.rows] for each in anchors)
    share = torch.exp(forward.z + (forward.positive - lse))
    return engine.backward(forward.state, torch.where(a == 0, 0.0, a * share), torch.zeros_like(a), needs)
