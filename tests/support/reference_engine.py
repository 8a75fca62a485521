"""The reference in the shape of an engine, and as what a public function returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctloss.kernels.problem import Batch, Forward, Problem, Shape
from ctloss.reference import closed_form, contrast
from ctloss.reference.gradients import pairs

from .regimes import Case
from .truth import arguments, plain, truth


class State(NamedTuple):
    """What the reference keeps of its forward: the call, and a tensor for ``save`` to have one."""

    batch: Batch
    problem: Problem
    z: Tensor


class ReferenceEngine:
    """Every function of an engine, by the float64 definitions."""

    def unsupported(self, shape: Shape, problem: Problem) -> str | None:
        return None

    def describe(self, shape: Shape, problem: Problem) -> dict[str, object]:
        return {"computed in": "float64"}

    def forward(self, batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
        z, positive = contrast(**arguments(batch, problem))
        of = pairs(**arguments(batch, problem))
        means = (of.softmax * of.logits).sum(1) - positive
        moments = torch.where(of.counts.any(1), means, 0.0) if moment else None
        return Forward(z, positive, moments, State(batch, problem, z.clone()))

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        found = closed_form(a=a, b=b, **arguments(state.batch, state.problem))
        gradients = (found.x, found.y, *found.candidates)
        sides = state.batch.sides
        return [g.to(side.dtype) if need else None for g, side, need in zip(gradients, sides, needs, strict=True)]

    def save(self, state: State) -> list[Tensor]:
        return [state.z]

    def restore(self, tensors: list[Tensor], batch: Batch, problem: Problem) -> State:
        return State(batch, problem, *tensors)

    def saved_shapes(self, shape: Shape, problem: Problem, gradient: bool) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((shape.n * problem.num_directions,), torch.float64)]


def definition(case: Case) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and gradients as ``acceptance.answer`` returns them: the float64 truth, rounded once."""
    wanted = plain(case)
    exact = truth(case, wanted.a, wanted.b)
    grad_x, grad_y, *of_candidates = (
        gradient.to(side.dtype) if need else None
        for gradient, side, need in zip(exact.gradients, case.batch().sides, case.needs, strict=True)
    )
    slope, given = None, case.given_temperature()
    if case.need[2]:
        assert isinstance(given, Tensor)
        slope = exact.slope.reshape(-1, *given.shape).sum(0).to(given.dtype)
    return wanted.value.to(case.precise), [grad_x, grad_y, slope, *of_candidates]
