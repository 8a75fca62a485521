"""Every objective against its published formula, in float64, and where formulas overflow against exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctloss import objectives
from ctloss.contrast import Contrast

F = torch.nn.functional


class Family(NamedTuple):
    """An objective, its value as published, and the derivatives ∂L/∂z and ∂L/∂s⁺."""

    loss: Callable[[Contrast], Tensor]
    published: Callable[[Tensor, Tensor], Tensor]
    by_z: Callable[[Tensor, Tensor], Tensor]
    by_positive: Callable[[Tensor, Tensor], Tensor]


def nothing(z: Tensor, s: Tensor) -> Tensor:
    return torch.zeros_like(z)


def debiased(z: Tensor, s: Tensor) -> Tensor:
    return (1 + torch.maximum((z.exp() - 30 * 0.01) / 0.99, 30 * torch.exp(-1 / 0.2 - s))).log()


def unclamped(z: Tensor, s: Tensor) -> Tensor:
    return (z.exp() - 0.3) / 0.99 > 30 * torch.exp(-1 / 0.2 - s)


def forgiving(z: Tensor, s: Tensor) -> Tensor:
    return 0.1**0.5 * torch.exp(0.5 * (s + F.softplus(z)))


SIGMA = torch.sigmoid
MEAN = 0.3  # what label smoothing takes a row's mean logit to be
ALPHA = torch.linspace(-1, 1, 5, dtype=torch.float64)
ADDITIVE = 0.3 / 0.07
HARD = 1 + 4 * 0.1

FAMILIES = {
    "cz_nce": Family(
        lambda c: objectives.epsilon_nce(c, 0.0), lambda z, s: z, lambda z, s: torch.ones_like(z), nothing
    ),
    "info_nce": Family(
        lambda c: objectives.epsilon_nce(c, 1.0), lambda z, s: (1 + z.exp()).log(), lambda z, s: SIGMA(z), nothing
    ),
    "epsilon": Family(
        lambda c: objectives.epsilon_nce(c, 0.3),
        lambda z, s: (0.3 + z.exp()).log(),
        lambda z, s: SIGMA(z - math.log(0.3)),
        nothing,
    ),
    "margin": Family(
        lambda c: objectives.margin_nce(c, 0.3, 0.07),
        lambda z, s: (1 + (z + ADDITIVE).exp()).log(),
        lambda z, s: SIGMA(z + ADDITIVE),
        nothing,
    ),
    "focal": Family(
        lambda c: objectives.focal_nce(c, 2.0),
        lambda z, s: SIGMA(z) ** 2 * (1 + z.exp()).log(),
        lambda z, s: SIGMA(z) ** 2 * (2 * (1 - SIGMA(z)) * (1 + z.exp()).log() + SIGMA(z)),
        nothing,
    ),
    "debiased": Family(
        lambda c: objectives.debiased_nce(c, 0.01, 30, 0.2),
        debiased,
        lambda z, s: torch.where(unclamped(z, s), z.exp() / (z.exp() + 1 - 0.01 * 31), 0.0),
        lambda z, s: torch.where(unclamped(z, s), 0.0, -SIGMA(math.log(30) - 1 / 0.2 - s)),
    ),
    "rince": Family(
        lambda c: objectives.rince(c, 0.5, 0.1),
        lambda z, s: (-torch.exp(0.5 * s) + (0.1 * (s.exp() + (z + s).exp())) ** 0.5) / 0.5,
        lambda z, s: forgiving(z, s) * SIGMA(z),
        lambda z, s: forgiving(z, s) - torch.exp(0.5 * s),
    ),
    "dclw": Family(
        lambda c: objectives.dclw(c, 0.1, 0.5),
        lambda z, s: z + s - (2 - len(z) * torch.softmax(0.1 * s / 0.5, 0)) * s,
        lambda z, s: torch.ones_like(z),
        lambda z, s: len(z) * torch.softmax(0.1 * s / 0.5, 0) - 1,
    ),
    "label_smoothing": Family(
        lambda c: objectives.label_smoothing(c, torch.tensor(MEAN), 0.1),
        lambda z, s: (1 + z.exp()).log() + 0.1 * s - 0.1 * torch.tensor(MEAN).double(),
        lambda z, s: SIGMA(z),
        lambda z, s: torch.full_like(z, 0.1),
    ),
    "sogclr": Family(
        lambda c: objectives.sogclr(c, ALPHA), lambda z, s: (z - ALPHA).exp(), lambda z, s: (z - ALPHA).exp(), nothing
    ),
    "neuclip": Family(
        lambda c: objectives.neuclip(c, ALPHA),
        lambda z, s: (z - ALPHA).exp() + ALPHA - 1,
        lambda z, s: (z - ALPHA).exp(),
        nothing,
    ),
    "isogclr": Family(
        lambda c: objectives.isogclr(c, ALPHA, torch.full((5,), 0.1), 6.0, 3),
        lambda z, s: torch.full_like(z, 0.1).float().double() * (ALPHA - math.log(3) + 6),
        lambda z, s: torch.full_like(z, 0.1).float().double() * (z - ALPHA).exp(),
        nothing,
    ),
    "hardness_alpha": Family(
        lambda c: objectives.hardness_alpha(c, 4.0, 0.1),
        lambda z, s: (1 + (z + (1 - 1 / HARD) * s).exp()).log(),
        lambda z, s: SIGMA(z + (1 - 1 / HARD) * s) / HARD,
        nothing,
    ),
}
EVERY = pytest.mark.parametrize("name", FAMILIES)


def five(values: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    return st.lists(values, min_size=5, max_size=5).map(lambda row: torch.tensor(row, dtype=torch.float64))


@EVERY
@given(z=five(st.floats(-12, 12)), positive=five(st.floats(-10, 10)))
def test_value_and_derivatives_are_the_published_ones(name: str, z: Tensor, positive: Tensor) -> None:
    family = FAMILIES[name]
    leaves = [t.clone().requires_grad_() for t in (z, positive)]
    loss = family.loss(Contrast(*leaves))
    found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)
    wanted = family.published(z, positive), family.by_z(z, positive), family.by_positive(z, positive)
    size = 1 + positive.abs() + torch.exp(0.5 * positive)
    for mine, truth in zip((loss, *found), wanted, strict=True):
        # The published forms round at the size of what they subtract.
        assert ((mine - truth).abs() <= 1e-13 * (size * (1 + z.exp()) + truth.abs())).all()


@EVERY
def test_gradcheck(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z, positive = (torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    if name in ("dclw", "hardness_alpha", "isogclr"):
        pytest.skip("its value holds parts without gradient")
    assert torch.autograd.gradcheck(lambda z, s: FAMILIES[name].loss(Contrast(z, s)), (z, positive))
    assert torch.autograd.gradgradcheck(lambda z, s: FAMILIES[name].loss(Contrast(z, s)), (z, positive))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positive", [-1e4, 0.0, 1e4])
def test_rows_without_negatives_lose_nothing(name: str, dtype: torch.dtype, positive: float) -> None:
    z = torch.full((5,), -math.inf, dtype=dtype, requires_grad=True)
    s = torch.full((5,), positive, dtype=dtype, requires_grad=True)
    loss = FAMILIES[name].loss(Contrast(z, s))
    assert loss.dtype == dtype
    assert (loss == 0).all()
    for gradient in torch.autograd.grad(loss.sum(), (z, s), allow_unused=True, materialize_grads=True):
        assert (gradient == 0).all()


@EVERY
def test_a_row_of_nan_stays_one(name: str) -> None:
    z = torch.zeros(5)
    z[2] = math.nan
    loss = FAMILIES[name].loss(Contrast(z, torch.zeros(5)))
    if name != "isogclr":  # where the normaliser, not z, is the value
        assert loss[2].isnan()
    assert loss[[0, 1, 3, 4]].isfinite().all()


def softplus_exactly(z: float) -> float:
    with localcontext() as context:
        context.prec = 400
        return float((1 + Decimal(z).exp()).ln())


def sigmoid_exactly(z: float) -> float:
    with localcontext() as context:
        context.prec = 400
        return float(1 / (1 + (-Decimal(z)).exp()))


EXTREMES = [-1e4, -700.0, -90.0, -40.5, -39.5, -20.5, -1e-9, 0.0, 20.5, 39.5, 40.5, 90.0, 1e4]


@pytest.mark.parametrize("z", EXTREMES)
def test_infonce_at_both_ends(z: float) -> None:
    """Relative to itself, however small: nothing has become 1 minus 1."""
    leaf = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    loss = objectives.epsilon_nce(Contrast(leaf, torch.zeros(1, dtype=torch.float64)), 1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert math.isclose(loss.item(), softplus_exactly(z), rel_tol=1e-14)
    assert math.isclose(gradient.item(), sigmoid_exactly(z), rel_tol=1e-14)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("sogclr", "neuclip", "isogclr")])
@pytest.mark.parametrize("z", EXTREMES)
def test_extremes_are_finite(name: str, z: float) -> None:
    for dtype in (torch.float32, torch.float64):
        leaves = [torch.full((5,), value, dtype=dtype, requires_grad=True) for value in (z, 5.0)]
        loss = FAMILIES[name].loss(Contrast(*leaves))
        if name == "rince" and z > 1400:
            continue  # e^(z/2) itself
        gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)
        assert all(t.isfinite().all() for t in (loss, *gradients))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("z", [-90.0, -30.0, 30.0, 1e4])
def test_focal_at_both_ends(gamma: float, z: float) -> None:
    found = objectives.focal_nce(Contrast(torch.tensor([z]).double(), torch.zeros(1)), gamma)
    assert math.isclose(found.item(), sigmoid_exactly(z) ** gamma * softplus_exactly(z), rel_tol=1e-12)


def test_debiased_at_both_ends() -> None:
    """e^z overflows above 709; the clamp begins where the bias eats the whole sum."""
    c = Contrast(torch.tensor([1e4, 800.0, math.log(0.3), -50.0], dtype=torch.float64), torch.full((4,), 3.0).double())
    found = objectives.debiased_nce(c, 0.01, 30, 0.2)
    floor = math.log1p(30 * math.exp(-5 - 3))
    wanted = torch.tensor([1e4 - math.log(0.99), 800 - math.log(0.99), floor, floor], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0.0)
    none = objectives.debiased_nce(c, 0.0, 30, 0.02)
    assert (none >= objectives.epsilon_nce(c, 1.0)).all()


def test_rince_tends_to_infonce() -> None:
    c = Contrast(torch.linspace(-9, 9, 7).double(), torch.linspace(-5, 5, 7).double())
    torch.testing.assert_close(objectives.rince(c, 1e-9, 1.0), objectives.epsilon_nce(c, 1.0), rtol=1e-7, atol=1e-12)


@given(z=five(st.floats(-12, 12)), other=five(st.floats(-12, 12)))
def test_gte_is_one_softmax_of_four_directions(z: Tensor, other: Tensor) -> None:
    both = torch.cat((z, other)).requires_grad_()
    found = objectives.gte_nce(Contrast(both, torch.zeros(10)))
    total = 2 + z.exp() + other.exp()
    torch.testing.assert_close(found, total.log())
    (gradient,) = torch.autograd.grad(found.sum(), both)
    torch.testing.assert_close(gradient, both.detach().exp() / total.repeat(2), rtol=1e-12, atol=0.0)


def test_gte_with_rows_without_negatives() -> None:
    z = torch.tensor([-math.inf, 0.0, -math.inf, -math.inf], requires_grad=True)
    loss = objectives.gte_nce(Contrast(z, torch.zeros(4)))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    torch.testing.assert_close(loss, torch.tensor([0.0, math.log(3)]))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1 / 3, 0.0, 0.0]))


def test_margin_carries_the_temperatures_gradient() -> None:
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    c = Contrast(torch.tensor([-1.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda t: objectives.margin_nce(c, 0.3, t), (tau,))


REFUSALS: list[tuple[Callable[[Contrast], object], str]] = [
    (lambda c: objectives.epsilon_nce(c, -1.0), "epsilon: expected a finite number of at least 0, got -1.0"),
    (lambda c: objectives.margin_nce(c, math.inf, 0.1), "margin: expected a finite number, got inf"),
    (lambda c: objectives.margin_nce(c, 0.1, torch.ones(3)), "one for each of 4 rows"),
    (lambda c: objectives.focal_nce(c, -0.5), "gamma: expected"),
    (lambda c: objectives.debiased_nce(c, 1.0, 5, 0.1), r"tau_plus: expected a number in \[0, 1\)"),
    (lambda c: objectives.rince(c, 0.0, 0.1), r"q: expected a number in \(0, 1\]"),
    (lambda c: objectives.rince(c, 0.5, 0.0), "lam: expected"),
    (lambda c: objectives.dclw(c, 0.1, 0.0), "sigma: expected"),
    (lambda c: objectives.label_smoothing(c, c.z, 1.5), "smoothing: expected"),
    (lambda c: objectives.hardness_alpha(c, -1.0, 0.1), "alpha: expected"),
    (lambda c: objectives.gte_nce(Contrast(c.z[:3], c.positive[:3])), "both directions' rows"),
    (lambda c: objectives.MovingNormalizer(4, gamma=0.0), "gamma: expected"),
    (lambda c: objectives.MovingNormalizer(4)(c, torch.arange(3), 5), "2 rows an id"),
    (lambda c: objectives.mean_logits(torch.eye(2), torch.eye(2), negatives="all"), "negatives: expected"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call: Callable[[Contrast], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Contrast(torch.zeros(4), torch.zeros(4)))
