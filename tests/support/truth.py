"""The float64 answer to a case, and the sizes that bound errors: derived from the arithmetic, never tuned.

The reference also appears in the shape of an engine, so that acceptance tests can be tested on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctloss.kernels.problem import Batch, Forward, Problem, Shape
from ctloss.reference import closed_form, contrast
from ctloss.reference.eager import near_one_by_powers_of_two
from ctloss.reference.gradients import pairs

from .regimes import Case

RowLoss = Callable[[Tensor, Tensor], Tensor]

# From z and s⁺: equation (5) of Chen et al. 2022, and equation (1), softplus(z), where torch's softplus is 2e-9 off.
ROW_LOSSES: dict[str, RowLoss] = {
    "cz_nce": lambda z, positive: z,
    "info_nce": lambda z, positive: torch.logaddexp(z, torch.zeros_like(z)),
}

# Double precision is 2^29 times finer; the factor 4 is for the reference, which has the same precision.
FINENESS = {torch.float64: 4 * 2.0**-29}


class Plain(NamedTuple):
    """A loss of a case, evaluated by its definition.

    Attributes:
        value: what the public function returns: reduced, or one number per row.
        rows: the row losses, unweighted; 0 for a row without negatives.
        shares: what each row loss is multiplied by in the value.
        z: −∞ for a row without negatives.
        positive: s⁺.
        a: the derivative of upstream · value by each z.
        b: a less the derivative by each s⁺.
    """

    value: Tensor
    rows: Tensor
    shares: Tensor
    z: Tensor
    positive: Tensor
    a: Tensor
    b: Tensor


class Truth(NamedTuple):
    """The exact derivatives of Σ a·lse − b·s⁺, and what bounds an answer's error.

    Attributes:
        z: −∞ for a row without negatives.
        positive: s⁺.
        moment: Σ_j P_ij s_ij − s⁺_i; 0 for a row without negatives.
        moment_size: Σ_j P_ij |s_ij| + |s⁺_i|.
        gradients: one for each side.
        cancelling: A_i for each row of each side: the summed sizes of the terms that add up to its gradient.
        slope: the derivative by each row's temperature, or by the common one.
        slope_size: the summed sizes of its terms.
        per_logit: the relative error that single precision causes in every weight.
    """

    z: Tensor
    positive: Tensor
    moment: Tensor
    moment_size: Tensor
    gradients: tuple[Tensor, ...]
    cancelling: tuple[Tensor, ...]
    slope: Tensor
    slope_size: Tensor
    per_logit: float


def arguments(batch: Batch, problem: Problem) -> dict[str, Any]:
    """A call's tensors and options as the reference takes them."""
    names = ("negatives", "directions", "normalize", "margin")
    return {**batch._asdict(), **{name: getattr(problem, name) for name in names}}


def plain(case: Case, row_loss: RowLoss | None = None) -> Plain:
    """The case's loss, or that of another function of z and s⁺, with the case's weights, reduction and upstream."""
    row_loss = row_loss or ROW_LOSSES[case.loss]
    z, positive = contrast(**arguments(case.batch(), case.problem()))
    some = z > -torch.inf
    leaves = [z.masked_fill(~some, 0.0).requires_grad_(), positive.clone().requires_grad_()]
    rows = torch.where(some, row_loss(*leaves), 0.0)
    weights = case.row_weights()
    shares = torch.ones_like(z) if weights is None else weights.double().repeat(len(z) // len(weights))
    if case.reduction == "mean":
        shares = shares / shares.sum()
    upstream = case.upstream_gradient().double()
    by_z, by_positive = torch.autograd.grad((upstream * shares * rows).sum(), leaves, materialize_grads=True)
    rows = some.double() if case.form == "ratio" else rows.detach()
    value = shares * rows if case.reduction == "none" else (shares * rows).sum()
    return Plain(value, rows, shares, z, positive, by_z, by_z - by_positive)


def truth(case: Case, a: Tensor, b: Tensor) -> Truth:
    """The truth of a case's own tensors."""
    return truth_of(case.batch(), case.problem(), a, b, case.precise)


def truth_of(batch: Batch, problem: Problem, a: Tensor, b: Tensor, precise: torch.dtype) -> Truth:
    """Evaluate the closed form, and the same sums with the sizes of their terms."""
    n, num_rows = batch.x.shape[0], len(a)
    call = arguments(batch, problem)
    of = pairs(**call)
    z, positive = contrast(**call)
    gradients = closed_form(a=a, b=b, **call)
    lengths = norms(*batch.sides)
    # Σ_j W_ij ‖u_j‖ + c_i ‖u_p(i)‖: all weights have one sign, so nothing cancels.
    sizes = of.gather(a.abs(), -b.abs(), torch.linalg.vector_norm(of.sides, dim=1, keepdim=True))[:, 0]
    if problem.normalize:
        # A unit row's derivative by its row is at most 1 over the row's length; a row of zeros has none.
        sizes = torch.where(lengths > 0, sizes / lengths, 0.0)
    mean, mean_size = ((of.softmax * logits).sum(1) for logits in (of.logits, of.logits.abs()))
    some = of.counts.any(1)
    moment_size = mean_size + positive.abs()
    # a·moment + (a − b)·s⁺, as it is formed from a path's results.
    slope_size = (a.abs() * moment_size + (a - b).abs() * positive.abs()) / of.temperature
    per_row = isinstance(batch.temperature, Tensor) and batch.temperature.dim() == 1
    # A dot product in single precision is off by units in the last place of the summed sizes of its terms, even where
    # they cancel; the exponential turns a logit's error into a relative error of its weight. So S is that sum for the
    # pairs that count: never more than the largest logit of a row with itself.
    entries = of.sides.abs()
    products = entries[:num_rows] @ entries.T
    of_pairs = (entries[:n] * entries[n : 2 * n]).sum(1).repeat(num_rows // n)
    largest = (torch.cat([products.masked_fill(~of.counts, 0.0), of_pairs[:, None]], 1) / of.temperature[:, None]).max()
    return Truth(
        z=z,
        positive=positive,
        moment=torch.where(some, mean - positive, 0.0),
        moment_size=moment_size,
        gradients=(gradients.x, gradients.y, *gradients.candidates),
        cancelling=sizes.split([len(side) for side in batch.sides]),
        slope=gradients.temperature,
        slope_size=slope_size if per_row else slope_size.sum(),
        per_logit=(5e-7 + 1e-7 * largest.item()) * FINENESS.get(precise, 1.0),
    )


def norms(*sides: Tensor) -> Tensor:
    """The lengths of all sides' rows in float64, even where their squares do not fit."""
    near_one, first, second = near_one_by_powers_of_two(torch.cat([side.double() for side in sides]))
    return torch.linalg.vector_norm(near_one, dim=1) / first[:, 0] / second[:, 0]


def length(values: Tensor) -> float:
    """The Euclidean length of all entries, even where their squares do not fit."""
    largest = values.abs().amax().item() if values.numel() else 0.0
    return largest * torch.linalg.vector_norm(values / largest).item() if largest > 0 else 0.0


class State(NamedTuple):
    """What the reference keeps from its forward: the call, and a tensor for ``save`` to return."""

    batch: Batch
    problem: Problem
    z: Tensor


class ReferenceEngine:
    """Every function of an engine, from the float64 definitions."""

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
