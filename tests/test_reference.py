"""The truth itself: eager definitions against the loop transcription, the closed form against autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from acceptance import check, norms, truth
from hypothesis import given
from regimes import Case, cases

from ctloss.checks import DTYPES
from ctloss.reference import loops, row_losses
from ctloss.reference.eager import unit_rows

pytestmark = pytest.mark.numeric

EVERY_OPTION = [
    {"loss": loss, "negatives": negatives, "normalize": normalize}
    for loss in ("cz_nce", "info_nce")
    for negatives in ("both", "cross")
    for normalize in (True, False)
]


@pytest.mark.parametrize("options", EVERY_OPTION)
@pytest.mark.parametrize("regime", ["random", "trained", "hard", "collapsed", "zeros"])
def test_eager_follows_the_loops(options: dict, regime: str) -> None:
    case = Case(regime, n=4, d=5, temperature=0.05, normalize=options["normalize"], dtype=torch.float64)
    x, y = case.embeddings()
    eager = row_losses(x, y, temperature=0.05, **options)
    exact = loops.row_losses(x, y, temperature=0.05, **options)
    for value, expected in zip(eager.tolist(), map(float, exact), strict=True):
        scale = abs(expected) if options["loss"] == "info_nce" else max(1.0, abs(expected))
        assert abs(value - expected) <= 4e-14 * (1 + 50) * scale


def test_phi_far_below_single_precision() -> None:
    """At φ = 1e-20 CZ-NCE is -46 and infoNCE 1e-20, neither of them 0."""
    case = Case("trained", n=8, d=64, temperature=0.01, exponent=-20.0, dtype=torch.float64)
    x, y = case.embeddings()
    z = row_losses(x, y, loss="cz_nce", temperature=0.01)
    nce = row_losses(x, y, loss="info_nce", temperature=0.01)
    assert -50 < z.min() < z.max() < -30
    torch.testing.assert_close(nce, z.exp(), rtol=1e-12, atol=0)


@given(cases(max_n=12, max_d=10, dtypes=(torch.float64,), fixed_form="log"))
def test_closed_form_is_autograd(case: Case) -> None:
    """Row by row, relative to the terms that cancel in that row: a zero row's gradient is exactly zero."""
    case = replace(case, reduction="none", upstream=1.0)
    x, y = (rows.clone().requires_grad_() for rows in case.embeddings())
    tau = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    options = {"loss": case.loss, "negatives": case.negatives, "normalize": case.normalize}
    upstream = case.upstream_gradient()
    row_losses(x, y, temperature=tau, **options).backward(upstream)
    expected = truth(case, x.detach(), y.detach(), upstream)
    scale = norms(x.detach(), y.detach()) if case.normalize else torch.ones(2 * case.n, dtype=torch.float64)
    assert x.grad is not None
    assert y.grad is not None
    assert tau.grad is not None
    error = (torch.cat((x.grad, y.grad)) - expected.gradient) * scale[:, None]
    allowed = expected.cancelling * scale * expected.per_logit
    assert (torch.linalg.vector_norm(error, dim=1) <= allowed).all()
    assert abs(tau.grad - expected.slope) <= expected.slope_cancelling * expected.per_logit


@given(cases(max_n=40, max_d=60, dtypes=DTYPES))
def test_the_reference_meets_the_bounds_of_every_path(case: Case) -> None:
    check(case, "reference")


@pytest.mark.parametrize("options", EVERY_OPTION)
def test_gradcheck_twice(options: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def loss(x: torch.Tensor, y: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        return row_losses(x, y, temperature=tau, **options)

    assert torch.autograd.gradcheck(loss, (x, y, tau))
    assert torch.autograd.gradgradcheck(loss, (x, y, tau))


def test_unit_rows_of_any_scale() -> None:
    tiny, huge = 5e-324, math.ldexp(1.0, 1023)
    rows = torch.tensor([[tiny, 0.0], [huge, huge], [0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    root = math.sqrt(0.5)
    expected = torch.tensor([[1.0, 0.0], [root, root], [0.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(unit_rows(rows), expected, rtol=1e-15, atol=0)


def test_a_row_that_is_not_finite_gives_nan() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    x[1, 2] = torch.inf
    assert row_losses(x, y, loss="cz_nce").isnan().all()
