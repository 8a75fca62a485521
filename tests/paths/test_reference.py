"""The reference itself: eager definitions against the loop transcription, the closed form against autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

from ctloss.reference import contrast, loops
from ctloss.reference.eager import unit_rows
from support.acceptance import check, random_factors
from support.regimes import Case, cases
from support.truth import arguments, norms, truth

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@given(cases(max_n=5, max_d=4, dtypes=(torch.float64,)))
def test_eager_follows_the_loops(case: Case) -> None:
    call = arguments(case.batch(), case.problem())
    z, positive = contrast(**call)
    exact = loops.log_ratios(**call)
    rounding = truth(case, torch.ones_like(z), torch.ones_like(z)).per_logit
    assert len(exact) == len(z) == len(positive)
    for ours, ours_positive, (expected, expected_positive) in zip(z.tolist(), positive.tolist(), exact, strict=True):
        assert abs(ours_positive - float(expected_positive)) <= rounding
        if expected is None:
            assert ours == -math.inf
        else:
            assert abs(ours - float(expected)) <= rounding * max(1.0, abs(float(expected)))


@given(cases(max_n=12, max_d=10, dtypes=(torch.float64,)))
def test_closed_form_is_autograd(case: Case) -> None:
    """Row by row, relative to the terms that cancel in that row: a zero row's gradient is exactly zero."""
    case = replace(case, seed=4 * case.seed)  # a and b near 1
    a, b = random_factors(case)
    batch, call = case.batch(), arguments(case.batch(), case.problem())
    temperature = torch.as_tensor(batch.temperature, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (batch.x, batch.y, temperature, *batch.candidates)]
    x, y, tau, *candidates = inputs
    z, positive = contrast(**{**call, "x": x, "y": y, "temperature": tau, "candidates": candidates})
    some = z > -math.inf
    # Σ a·lse − b·s⁺ as Σ a·z + (a − b)·s⁺, a being 0 without negatives.
    (a * z.masked_fill(~some, 0.0) + (a - b) * positive).sum().backward()

    expected = truth(case, a, b)
    # Autograd forms b as a − (a − b), with errors of the size of those two.
    sizes = truth(case, a, a.abs() + b.abs())
    grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in inputs]
    lengths = norms(*batch.sides)
    lengths = lengths if case.normalize else torch.ones_like(lengths)
    error = (torch.cat([*grads[:2], *grads[3:]]) - torch.cat(expected.gradients)) * lengths[:, None]
    allowed = torch.cat(sizes.cancelling) * lengths * sizes.per_logit
    # Below the smallest normal number there are fewer digits, before and after dividing by a row's length.
    allowed = allowed + torch.finfo(torch.float64).smallest_normal * (1 + lengths)
    assert (torch.linalg.vector_norm(error, dim=1) <= allowed).all()
    assert grads[2].shape == expected.slope.shape
    assert ((grads[2] - expected.slope).abs() <= sizes.slope_size * sizes.per_logit).all()


@given(cases(max_n=40, max_d=60, dtypes=DTYPES))
def test_the_reference_meets_the_bounds_of_every_path(case: Case) -> None:
    check(case, "reference")


# One of each kind: some rows without negatives, every side, repeated ids, a temperature for every row.
SIDES = {"candidates": [torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dot products": {"normalize": False},
    "cross": {"negatives": "cross"},
    "own, x": {"negatives": "own", "directions": "x"},
    "candidates only": {"negatives": "none", **SIDES},
    "no negatives at all": {"negatives": "none"},
    "ids that repeat": {"ids": torch.tensor([4, 4, 7]), "candidate_ids": [torch.tensor([7, 4, 5])], **SIDES},
    "all of one id": {"ids": torch.tensor([1, 1, 1]), "candidate_ids": [None], **SIDES},
    "some rows without negatives": {"ids": torch.tensor([2, 2, 2]), "negatives": "cross", "margin": -0.3, **SIDES},
    "margin": {"margin": 0.1},
    "temperatures": {"temperature": torch.linspace(0.3, 0.8, 6, dtype=torch.float64)},
}


def three_pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    return x, y


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck_twice(variant: str) -> None:
    options = dict(VARIANTS[variant])
    candidates = options.pop("candidates", [])
    temperature = options.pop("temperature", torch.tensor(0.5, dtype=torch.float64))

    def finite(x: Tensor, y: Tensor, temperature: Tensor, *candidates: Tensor) -> tuple[Tensor, Tensor]:
        z, positive = contrast(x, y, temperature=temperature, candidates=candidates, **options)
        return z.masked_fill(z == -math.inf, 0.0), positive

    inputs = [t.clone().requires_grad_() for t in (*three_pairs(), temperature, *candidates)]
    assert torch.autograd.gradcheck(finite, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(finite, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_transforms(variant: str) -> None:
    options = VARIANTS[variant]
    x, y = three_pairs()

    def values(x: Tensor) -> Tensor:
        z, positive = contrast(x, y, **options)
        return torch.cat((torch.nn.functional.softplus(z), positive))

    def total(x: Tensor) -> Tensor:
        return values(x).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    assert gradient.isfinite().all()
    torch.testing.assert_close(grad(total)(x), gradient)
    torch.testing.assert_close(jvp(total, (x,), (y,))[1], (gradient * y).sum())
    torch.testing.assert_close(jacrev(values)(x).sum(0), gradient)
    second = hessian(total)(x)
    assert second.isfinite().all()
    step = 1e-6 * y
    torch.testing.assert_close(
        (second * y).sum((2, 3)), (grad(total)(x + step) - grad(total)(x - step)) / 2e-6, rtol=1e-4, atol=1e-4
    )
    stacked = vmap(values)(torch.stack((x, 2 * x)))
    torch.testing.assert_close(stacked, torch.stack((values(x), values(2 * x))))


def test_rows_without_negatives_depend_on_nothing() -> None:
    x, y = (rows.requires_grad_() for rows in three_pairs())
    z, positive = contrast(x[:1], y[:1])
    assert z.tolist() == [-math.inf, -math.inf]
    gradients = torch.autograd.grad(z.sum(), (x, y), retain_graph=True)
    assert all((gradient == 0).all() for gradient in gradients)
    assert torch.autograd.grad(positive.sum(), x)[0].isfinite().all()


def test_phi_far_below_single_precision() -> None:
    """At φ = 1e-20 CZ-NCE is −46 and infoNCE 1e-20, neither of them 0."""
    x = torch.eye(2, dtype=torch.float64)
    z, _ = contrast(x, x, temperature=1 / (20 * math.log(10) + math.log(2)))
    torch.testing.assert_close(z.exp(), torch.full((4,), 1e-20, dtype=torch.float64), rtol=1e-12, atol=0)


def test_unit_rows_of_any_scale() -> None:
    tiny, huge = 5e-324, math.ldexp(1.0, 1023)
    rows = torch.tensor([[tiny, 0.0], [huge, huge], [0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    root = math.sqrt(0.5)
    expected = torch.tensor([[1.0, 0.0], [root, root], [0.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(unit_rows(rows), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_comparison_with_a_row_that_is_not_finite_gives_nan(bad: float) -> None:
    x, y, candidates = torch.randn(3, 4), torch.randn(3, 4), torch.randn(2, 4)
    x[1, 2] = bad
    assert contrast(x, y)[0].isnan().all()
    # With "cross", rows of x are only compared with those of y.
    assert contrast(x, y, negatives="cross")[0].isnan().tolist() == [False, True, False, True, True, True]
    candidates[1, 2] = bad
    assert contrast(y, y, negatives="none", candidates=[candidates])[0].isnan().all()


def test_a_row_without_negatives_that_is_not_finite_gives_nan() -> None:
    x = torch.tensor([[1.0, math.nan]])
    assert contrast(x, x)[0].isnan().all()
    assert contrast(torch.ones(1, 2), torch.ones(1, 2), temperature=torch.tensor(-1.0))[0].isnan().all()


def test_temperatures_that_are_not_positive_give_nan() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    for bad in (0.0, -0.07, math.nan):
        assert contrast(x, y, temperature=torch.tensor(bad))[0].isnan().all()
        z, _ = contrast(x, y, temperature=torch.tensor([0.1, 0.1, bad, 0.1, 0.1, 0.1]))
        assert z.isnan().tolist() == [False, False, True, False, False, False]


def test_refuses_unknown_words() -> None:
    with pytest.raises(ValueError, match=r"negatives 'both', 'cross', 'own' or 'none'.*got 'all'"):
        contrast(torch.eye(2), torch.eye(2), negatives="all")
