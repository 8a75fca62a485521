"""How far apart two answers to one call may lie: each is within its bound of the truth, so they within twice it.

In which bits they differ is up to the processor, its number of threads and its BLAS: a tolerance tried out on one
machine need not hold on the next, the bounds of :mod:`acceptance` hold on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ctloss.kernels.problem import Batch
from ctloss.reference import contrast

from .acceptance import OUTPUT_ROUNDING
from .regimes import Case
from .truth import ROW_LOSSES, length, truth_of


class Call(NamedTuple):
    """The exact answer to a plain call on two given sides, and what bounds an answer's error.

    Attributes:
        rows: row losses.
        gradient: of all rows, x's first.
        cancelling: the sizes of the terms of each row's gradient, added up.
        slope: the temperature's gradient.
        slope_cancelling: the sizes of its terms, added up.
        per_logit: the relative error that single precision causes in every weight.
    """

    rows: Tensor
    gradient: Tensor
    cancelling: Tensor
    slope: Tensor
    slope_cancelling: float
    per_logit: float


def truth_of_call(case: Case, x: Tensor, y: Tensor, upstream: Tensor) -> Call:
    """The truth of a call with a case's options, of which n counts only as a mean's divisor."""
    x, y = x.detach().cpu(), y.detach().cpu()
    problem, batch = case.problem(), Batch(x, y, temperature=case.temperature)
    z, positive = contrast(x, y, temperature=case.temperature, negatives=case.negatives, normalize=case.normalize)
    z.requires_grad_()
    rows = ROW_LOSSES[case.loss](z, positive)
    share = 1 / len(z) if case.reduction == "mean" else 1.0
    (a,) = torch.autograd.grad((upstream.cpu().double() * share * rows).sum(), z)
    found = truth_of(batch, problem, a, a, case.precise)
    return Call(
        rows.detach(),
        torch.cat(found.gradients),
        torch.cat(found.cancelling),
        found.slope,
        found.slope_size.item(),
        found.per_logit,
    )


Answer = Sequence[Tensor | None]
"""Row losses and the gradients of x, y and the temperature; ``None`` where not compared."""


def assert_alike(
    case: Case, x: Tensor, y: Tensor, one: Answer, other: Answer, upstream: Tensor | None = None, chain: int = 0
) -> None:
    """Hold the difference of two answers to twice what ``acceptance.check`` allows either.

    Args:
        case: the options of the call; its tensors are not read.
        x: the rows that both answers are about.
        y: the other side's.
        one: an answer.
        other: another.
        upstream: what the gradients were multiplied by; 1 if not given.
        chain: as in ``acceptance.check``.
    """
    x, y = x.detach().cpu(), y.detach().cpu()
    expected = truth_of_call(case, x, y, torch.ones(()) if upstream is None else upstream)
    largest = 1 if case.normalize else (torch.cat((x, y)).double() ** 2).sum(1).max().item()
    twice = 2 * (expected.per_logit + chain**0.5 * 2.0**-24 * largest / case.temperature)
    differences = [
        None if a is None or b is None else a.detach().cpu().double() - b.detach().cpu().double()
        for a, b in zip(one, other, strict=True)
    ]
    rows, grad_x, grad_y, slope = differences
    if rows is not None:
        size = expected.rows.abs() if case.loss == "info_nce" else expected.rows.abs().clamp_min(1)
        excess = (rows.abs() - twice * size).max().item()
        # A float32 below 1.2e-38 has fewer digits.
        assert excess <= 2.0**-149, f"rows: {excess:.3g} over the bound"
    _assert_gradients_alike(case, grad_x, grad_y, expected, twice)
    if slope is not None:
        allowed = expected.slope_cancelling * twice + 2 * OUTPUT_ROUNDING[case.dtype] * abs(expected.slope.item())
        assert abs(slope.item()) <= allowed, f"temperature gradient: {abs(slope.item()):.3g} over {allowed:.3g}"


def _assert_gradients_alike(
    case: Case, grad_x: Tensor | None, grad_y: Tensor | None, expected: Call, twice: float
) -> None:
    asked = torch.tensor([grad_x is not None, grad_y is not None]).repeat_interleave(case.n)
    if not asked.any():
        return
    difference = torch.cat([gradient for gradient in (grad_x, grad_y) if gradient is not None])
    allowed = length(expected.cancelling[asked]) * twice
    allowed += 2 * OUTPUT_ROUNDING[case.dtype] * length(expected.gradient[asked])
    assert length(difference) <= allowed, f"gradient: {length(difference):.3g} over {allowed:.3g}"
