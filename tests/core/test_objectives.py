"""Every objective against its published formula in float64, or against exact arithmetic where formulas overflow."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctloss import objectives
from ctloss.contrast import Contrast

README = Path(__file__).resolve().parents[2] / "README.md"


class Family(NamedTuple):
    """An objective, and its published formula in plain operations for float64 and autograd."""

    loss: Callable[[Contrast], Tensor]
    published: Callable[[Tensor, Tensor], Tensor]


ALPHA = torch.linspace(-1, 1, 5, dtype=torch.float64)
MEANS = torch.linspace(0, 0.6, 5, dtype=torch.float64)  # what label smoothing takes the rows' mean logits to be
TAU = 0.1

FAMILIES = {
    "cz_nce": Family(lambda c: objectives.epsilon_nce(c, 0.0), lambda z, s: z),
    "info_nce": Family(lambda c: objectives.epsilon_nce(c, 1.0), lambda z, s: (1 + z.exp()).log()),
    "epsilon": Family(lambda c: objectives.epsilon_nce(c, 0.3), lambda z, s: (0.3 + z.exp()).log()),
    "margin": Family(lambda c: objectives.margin_nce(c, 0.3, 0.07), lambda z, s: (1 + (z + 0.3 / 0.07).exp()).log()),
    "focal": Family(lambda c: objectives.focal_nce(c, 2.0), lambda z, s: torch.sigmoid(z) ** 2 * (1 + z.exp()).log()),
    "debiased": Family(
        lambda c: objectives.debiased_nce(c, 0.01, 30, 0.2),
        lambda z, s: (1 + torch.maximum((z.exp() - 30 * 0.01) / 0.99, 30 * torch.exp(-1 / 0.2 - s))).log(),
    ),
    "rince": Family(
        lambda c: objectives.rince(c, 0.5, 0.1),
        lambda z, s: (-torch.exp(0.5 * s) + (0.1 * (s.exp() + (z + s).exp())) ** 0.5) / 0.5,
    ),
    "dclw": Family(
        lambda c: objectives.dclw(c, TAU, 0.5),
        lambda z, s: z + s - (2 - len(z) * torch.softmax(TAU * s / 0.5, 0)).detach() * s,
    ),
    "label_smoothing": Family(
        lambda c: objectives.label_smoothing(c, MEANS, 0.1), lambda z, s: (1 + z.exp()).log() + 0.1 * (s - MEANS)
    ),
    "sogclr": Family(lambda c: objectives.sogclr(c, ALPHA), lambda z, s: (z - ALPHA).exp()),
    "neuclip": Family(lambda c: objectives.neuclip(c, ALPHA), lambda z, s: (z - ALPHA).exp() + ALPHA - 1),
    "isogclr": Family(
        lambda c: objectives.isogclr(c, ALPHA, TAU, 6.0, 3),
        # τ (log u + ρ), whose log u moves with z as (e^z / M) / u does.
        lambda z, s: TAU * (ALPHA - math.log(3) + 6 + (z - ALPHA).exp() - (z - ALPHA).exp().detach()),
    ),
    "hardness_alpha": Family(
        lambda c: objectives.hardness_alpha(c, 4.0, TAU),
        # c is at τ / (1 + ατ); only the part of a logit that is not α cos has a gradient.
        lambda z, s: (1 + (z / 1.4 + (z - z / 1.4).detach() + (1 - 1 / 1.4) * s.detach()).exp()).log(),
    ),
}
EVERY = pytest.mark.parametrize("name", FAMILIES)


def five(values: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    return st.lists(values, min_size=5, max_size=5).map(lambda row: torch.tensor(row, dtype=torch.float64))


@EVERY
@given(z=five(st.floats(-12, 12)), positive=five(st.floats(-10, 10)))
def test_value_and_derivatives_are_the_published_ones(name: str, z: Tensor, positive: Tensor) -> None:
    family = FAMILIES[name]
    mine, theirs = ([t.clone().requires_grad_() for t in (z, positive)] for _ in range(2))
    loss, published = family.loss(Contrast(*mine)), family.published(*theirs)
    size = 1 + positive.abs() + torch.exp(0.5 * positive)
    pairs = zip((loss, *derivatives(loss, mine)), (published, *derivatives(published, theirs)), strict=True)
    for found, truth in pairs:
        # The published forms have rounding errors of the size of the terms they subtract.
        assert ((found - truth).abs() <= 1e-13 * (size * (1 + z.exp()) + truth.abs())).all()


def derivatives(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)


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
    """A small relative error however small the value: nothing is computed as 1 minus 1."""
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
    """e^z overflows above 709; the clamp begins where the correction exceeds the whole sum."""
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


def test_rows_of_a_contrast_are_one() -> None:
    c = Contrast(torch.linspace(-2, 2, 4), torch.linspace(1, 4, 4))
    whole = objectives.focal_nce(c, 2.0)
    for index in (slice(3), [2, 0], torch.tensor([3, 1]), torch.tensor([True, False, True, True])):
        assert torch.equal(objectives.focal_nce(c.rows(index), 2.0), whole[index])
    assert torch.equal(objectives.focal_nce(Contrast(c.z[:3], c.positive[:3]), 2.0), whole[:3])
    widths = Contrast(torch.stack((c.z, c.z + 1)), torch.stack((c.positive, c.positive + 1)))
    assert torch.equal(widths.rows(slice(1, 3)).z, widths.z[:, 1:3])


def test_rince_beyond_its_range() -> None:
    """As documented: −inf where e^(q s⁺) is, and finite below."""
    c = Contrast(torch.tensor([-1.0]), torch.tensor([200.0]))
    assert objectives.rince(c, 1.0, 0.1).item() == -math.inf
    assert objectives.rince(c, 0.4, 0.1).isfinite()


def test_a_row_may_have_zero_negatives() -> None:
    c = Contrast(torch.tensor([0.5, -math.inf]).requires_grad_(), torch.ones(2))
    loss = objectives.debiased_nce(c, 0.01, torch.tensor([3, 0]), 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), c.z)
    assert loss[1] == 0
    assert gradient[1] == 0
    assert loss[0].item() == pytest.approx(objectives.debiased_nce(c.rows([0]), 0.01, 3, 0.2).item())


# Every objective and every function of a contrast, called with usual options.
CALLS: dict[str, Callable[[Contrast], object]] = {
    **{name: family.loss for name, family in FAMILIES.items()},
    "gte_nce": objectives.gte_nce,
    "hardness_beta": lambda c: objectives.hardness_beta(c, c, 3),
    "row_losses": lambda c: objectives.row_losses(c, lambda z, s: z),
    "MovingNormalizer": lambda c: objectives.MovingNormalizer(9)(c, torch.arange(2), 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_anything_but_a_contrast_of_rows_is_refused(name: str) -> None:
    rows, widths = torch.zeros(4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"expected a contrast of shape \(rows,\), got \(2, 4\); .* once per width"):
        CALLS[name](Contrast(widths, widths))
    with pytest.raises(TypeError, match=r"expected a ctloss.Contrast, got tuple; .* rows\(index\)"):
        CALLS[name](Contrast(rows, rows)[:4])
    with pytest.raises(ValueError, match="expected a positive's logit for each of 4 rows"):
        CALLS[name](Contrast(rows, rows[:1]))
    with pytest.raises(TypeError, match=r"expected a floating-point tensor, got torch\.int64"):
        CALLS[name](Contrast(rows.long(), rows))


@pytest.mark.parametrize("name", [name for name in CALLS if name != "MovingNormalizer"])
def test_compiles_whole(name: str) -> None:
    """Under a compiler the checks read no tensor."""
    size = 4 if name == "gte_nce" else 5
    c = Contrast(torch.linspace(-2, 1, size), torch.linspace(3, 1, size))

    def values(one: Contrast) -> Tensor:
        found = CALLS[name](one)
        return found.z if isinstance(found, Contrast) else found  # type: ignore[return-value]

    torch.compiler.reset()
    compiled = torch.compile(lambda z, s: values(Contrast(z, s)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*c), values(c))


@pytest.mark.parametrize("name", FAMILIES)
def test_takes_transforms(name: str) -> None:
    leaves = torch.linspace(-2, 1, 5, dtype=torch.float64), torch.linspace(3, 1, 5, dtype=torch.float64)

    def total(z: Tensor, s: Tensor) -> Tensor:
        return FAMILIES[name].loss(Contrast(z, s)).sum()

    found = torch.func.grad(total, argnums=(0, 1))(*leaves)
    wanted = derivatives(total(*(mine := [leaf.clone().requires_grad_() for leaf in leaves])), mine)
    torch.testing.assert_close(found, wanted)
    stacked = tuple(torch.stack((leaf, -leaf)) for leaf in leaves)
    torch.testing.assert_close(torch.vmap(total)(*stacked)[0], total(*leaves))


COLUMN, SQUARE = torch.zeros(4, 1), torch.eye(2)
REFUSALS: list[tuple[Callable[[Contrast], object], type[Exception], str]] = [
    (lambda c: objectives.epsilon_nce(c, -1.0), ValueError, "epsilon: expected a finite number of at least 0, got -1."),
    (lambda c: objectives.epsilon_nce(c, "1"), TypeError, "epsilon: expected .*, got '1'; pass a number"),
    (
        lambda c: objectives.epsilon_nce(c, torch.tensor(1.0, requires_grad=True)),
        TypeError,
        "epsilon: expected .*, got a tensor; .* it has no gradient",
    ),
    (lambda c: objectives.margin_nce(c, math.inf, 0.1), ValueError, "margin: expected a finite number, got inf; LaBSE"),
    (
        lambda c: objectives.margin_nce(c, 0.1, torch.ones(3)),
        ValueError,
        r"temperature: expected one element, or a tensor of shape \(4,\), .* got shape \(3,\); .flatten",
    ),
    (lambda c: objectives.margin_nce(c, 0.1, COLUMN), ValueError, r"temperature: expected .*, got shape \(4, 1\)"),
    (lambda c: objectives.margin_nce(c, 0.1, 0), ValueError, "temperature: expected a positive, finite number"),
    (lambda c: objectives.margin_nce(c, 0.1, "1"), TypeError, "temperature: expected a number or a tensor, got '1'"),
    (lambda c: objectives.margin_nce(c, 0.1, torch.tensor(0.0)), ValueError, "temperature: expected a positive"),
    (lambda c: objectives.focal_nce(c, -0.5), ValueError, "gamma: expected a finite number of at least 0, got -0.5; "),
    (lambda c: objectives.debiased_nce(c, 1.0, 5, 0.1), ValueError, r"tau_plus: expected a number in \[0, 1\)"),
    (lambda c: objectives.debiased_nce(c, 0.1, -3, 0.1), ValueError, "num_negatives: expected the number .*, got -3; "),
    (
        lambda c: objectives.debiased_nce(c, 0.1, torch.tensor([1, 2, -3, 1]), 0.1),
        ValueError,
        "num_negatives: expected the number of a row's negatives, got -3; ",
    ),
    (lambda c: objectives.debiased_nce(c, 0.1, 5, 0.0), ValueError, "temperature: expected a positive"),
    (lambda c: objectives.rince(c, 0.0, 0.1), ValueError, r"q: expected a number in \(0, 1\], got 0.0; "),
    (lambda c: objectives.rince(c, 0.5, 0.0), ValueError, r"lam: expected a number in \(0, 1\]"),
    (lambda c: objectives.rince(c, 0.5, 2), ValueError, r"lam: expected a number in \(0, 1\], got 2; "),
    (lambda c: objectives.dclw(c, 0.1, 0.0), ValueError, "sigma: expected a positive number, got 0.0; "),
    (lambda c: objectives.dclw(c, -0.1), ValueError, "temperature: expected a positive"),
    (
        lambda c: objectives.label_smoothing(c, c.z, 1.5),
        ValueError,
        r"smoothing: expected a number in \[0, 1\], got 1.",
    ),
    (
        lambda c: objectives.label_smoothing(c, COLUMN, 0.1),
        ValueError,
        r"mean_logit: expected shape \(4,\), .*\(4, 1\)",
    ),
    (lambda c: objectives.sogclr(c, COLUMN), ValueError, r"log_normalizer: expected shape \(4,\), one number per row"),
    (lambda c: objectives.sogclr(c, 0.0), TypeError, "log_normalizer: expected a floating-point tensor"),
    (lambda c: objectives.neuclip(c, COLUMN), ValueError, r"log_normalizer: expected shape \(4,\)"),
    (lambda c: objectives.isogclr(c, COLUMN, 0.1, 6.0, 3), ValueError, r"log_normalizer: expected shape \(4,\)"),
    (lambda c: objectives.isogclr(c, c.z, COLUMN, 6.0, 3), ValueError, "temperature: expected one element"),
    (lambda c: objectives.isogclr(c, c.z, 0.1, math.nan, 3), ValueError, "rho: expected a finite number, got nan"),
    (lambda c: objectives.hardness_alpha(c, -1.0, 0.1), ValueError, "alpha: expected a finite number of at least 0"),
    (lambda c: objectives.hardness_alpha(c, 1.0, 0.0), ValueError, "temperature: expected a positive"),
    (lambda c: objectives.hardness_beta(c, c.rows([0]), 3), ValueError, "sharp: expected the 4 rows of sharper"),
    (lambda c: objectives.hardness_beta(c, c, -1), ValueError, "num_negatives: expected the number"),
    (lambda c: objectives.gte_nce(c.rows(slice(3))), ValueError, "c: expected both directions' rows, .*, got 3; form"),
    (
        lambda c: objectives.MovingNormalizer(4, gamma=0.0),
        ValueError,
        r"gamma: expected a number in \(0, 1\], got 0.0; ",
    ),
    (
        lambda c: objectives.MovingNormalizer(0),
        ValueError,
        "num_samples: expected a whole number of at least 1, got 0; ",
    ),
    (lambda c: objectives.MovingNormalizer("4"), TypeError, "num_samples: expected a whole number"),
    (
        lambda c: objectives.MovingNormalizer(4, num_directions=3),
        ValueError,
        "num_directions: expected 1 or 2, got 3; ",
    ),
    (lambda c: numbered(c, torch.arange(3)), ValueError, "ids: expected .* 2 rows per id, got shape"),
    (lambda c: numbered(c, torch.zeros(2, 1).long()), ValueError, r"ids: expected shape \(n,\) .* got shape \(2, 1\)"),
    (lambda c: numbered(c, [0, 1]), TypeError, "ids: expected a tensor of integers, one per row, got list; "),
    (
        lambda c: numbered(c, torch.zeros(2)),
        TypeError,
        "ids: expected a tensor of integers, one per row, got torch.float32",
    ),
    (lambda c: numbered(c, torch.ones(2).bool()), TypeError, "ids: expected a tensor of integers, .* got torch.bool"),
    (lambda c: numbered(c, torch.tensor([0, 4])), ValueError, "ids: expected numbers from 0 to 3, got 4; number"),
    (lambda c: numbered(c, torch.tensor([0, -1])), ValueError, "ids: expected numbers from 0 to 3, got -1; number"),
    (
        lambda c: objectives.MovingNormalizer(4).to("meta")(c, torch.arange(2), 3),
        ValueError,
        r"c: expected a contrast on the normaliser's device, meta, got one on cpu; move .*\.to\('cpu'\)",
    ),
    (lambda c: objectives.mean_logits(SQUARE, SQUARE, negatives="all"), ValueError, "negatives: expected one of"),
    (lambda c: objectives.mean_logits(SQUARE, SQUARE[:1]), ValueError, "x and y: expected two tensors of one shape"),
    (lambda c: objectives.mean_logits(SQUARE, SQUARE, temperature=0.0), ValueError, "temperature: expected a positive"),
    (
        lambda c: objectives.mean_logits(SQUARE, SQUARE, candidates=torch.eye(3)),
        ValueError,
        "candidates: expected rows as",
    ),
]


def numbered(c: Contrast, ids: object) -> Tensor:
    return objectives.MovingNormalizer(4)(c, ids, 5)


@pytest.mark.parametrize(("call", "kind", "message"), REFUSALS)
def test_refusals(call: Callable[[Contrast], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(Contrast(torch.zeros(4), torch.zeros(4)))


# Tools to write objectives with, not losses.
TOOLS = {"row_losses", "softplus"}


@pytest.mark.parametrize("name", sorted({*objectives.__all__} - TOOLS))
def test_is_in_the_readmes_table(name: str) -> None:
    table = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert any(f"o.{name}(" in line.split("|")[2] for line in table)


def test_all_modules_losses_are_public() -> None:
    folder = Path(objectives.__file__).parent
    named: set[str] = set()
    for path in sorted({*folder.glob("*.py")} - {folder / "__init__.py"}):
        named |= set(import_module(f"ctloss.objectives.{path.stem}").__all__)
    assert named == {*objectives.__all__}
    assert all(hasattr(objectives, name) for name in named)
