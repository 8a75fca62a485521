"""All widths of ``dims`` in one pass: as exact as one call per width, and no column is multiplied twice."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import ctloss
from ctloss.kernels.problem import Batch, Forward, Problem, narrowed
from ctloss.kernels.torch_path import denominators, engine, nested
from ctloss.kernels.torch_path.layout import layout
from support.acceptance import (
    answer,
    bound_of_value,
    check_forward,
    check_gradients,
    check_slope,
    random_factors,
    within,
)
from support.calls import WHOLE_GRAPHS, peak_bytes
from support.regimes import REGIMES, Candidates, Case, cases, usual_calls
from support.truth import Truth, plain, truth

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class NestedCase(Case):
    """A case at several widths, or its part at one of them.

    In every third row the first ``vanishing`` columns are zero, and in the next row they are smaller by ``fading``
    powers of two. ``width``, if given, is the one of ``dims`` that the case is at.
    """

    dims: tuple[int, ...] = ()
    dim_weights: tuple[float, ...] | None = None
    vanishing: int = 0
    fading: int = 0
    width: int | None = None

    def at(self, width: int | None) -> NestedCase:
        """The case at one of its widths, or at all of them."""
        return replace(self, width=width)

    @property
    def factors(self) -> tuple[float, ...]:
        """What the loss at each width is multiplied by."""
        return self.dim_weights or (1.0,) * len(self.dims)

    def batch(self, device: str = "cpu") -> Batch:
        batch = super().batch(device)
        for side in batch.sides:
            side[::3, : self.vanishing] = 0
            side[1::3, : self.vanishing] *= 2.0**-self.fading
        return batch if self.width is None else narrowed(batch, self.width)

    def compared(self) -> list[Batch]:
        batch = self.at(None).batch()
        return [narrowed(batch, width) for width in self.dims]

    def parts(self) -> list[NestedCase]:
        """The case at each width."""
        return [self.at(width) for width in self.dims]


def at_widths(case: Case, **more: Any) -> NestedCase:
    return NestedCase(**{field.name: getattr(case, field.name) for field in fields(case)}, **more)


@st.composite
def nested_cases(draw: st.DrawFn, max_n: int, max_d: int) -> NestedCase:
    case = draw(cases(max_n=max_n, max_d=max_d, dtypes=DTYPES))
    dims = draw(st.lists(st.integers(1, case.d), min_size=1, max_size=4, unique=True))
    weight = st.sampled_from([1.0, 0.5, 0.25, -0.5, 3.0, 0.0])
    return at_widths(
        case,
        dims=tuple(dims),
        dim_weights=draw(st.one_of(st.none(), st.tuples(*[weight] * len(dims)))),
        vanishing=draw(st.sampled_from([0, 0, min(dims), max(dims)])),
        fading=draw(st.sampled_from([0, 4, 15, 40])),
    )


def total(truths: list[Truth], d: int) -> Truth:
    """The sum over the widths; the error bound is the sum of the widths' bounds."""
    per_logit = max(one.per_logit for one in truths)
    shares = [one.per_logit / per_logit for one in truths]

    def add(per_width: list[tuple[Tensor, ...]], factors: list[float]) -> tuple[Tensor, ...]:
        sums = []
        for of_side in zip(*per_width, strict=True):
            columns = d if of_side[0].dim() == 2 else 0
            padded = [torch.nn.functional.pad(one, (0, columns - one.shape[1])) if columns else one for one in of_side]
            sums.append(sum((one * factor for one, factor in zip(padded, factors, strict=True)), 0 * padded[0]))
        return tuple(sums)

    ones = [1.0] * len(truths)
    return truths[0]._replace(
        gradients=add([one.gradients for one in truths], ones),
        cancelling=add([one.cancelling for one in truths], shares),
        slope=sum((one.slope for one in truths), 0 * truths[0].slope),
        slope_size=add([(one.slope_size,) for one in truths], shares)[0],
        per_logit=per_logit,
    )


def check(case: NestedCase) -> None:
    """Hold the public function to the sum of all widths' bounds."""
    loss, gradients = answer(case, "torch", dims=case.dims, dim_weights=case.dim_weights)
    wanted = [plain(part) for part in case.parts()]
    truths = [
        truth(part, factor * of.a, factor * of.b)
        for part, of, factor in zip(case.parts(), wanted, case.factors, strict=True)
    ]
    values = [
        bound_of_value(part, of, expected.per_logit)
        for part, of, expected in zip(case.parts(), wanted, truths, strict=True)
    ]
    assert loss.dtype == case.precise
    exact = sum(factor * of.value for of, factor in zip(wanted, case.factors, strict=True))
    allowed = sum(abs(factor) * bound for bound, factor in zip(values, case.factors, strict=True))
    assert isinstance(exact, Tensor)
    assert isinstance(allowed, Tensor)
    within("value", loss, exact, allowed)
    grad_x, grad_y, slope, *of_candidates = gradients
    expected = total(truths, case.d)
    check_gradients(case, [grad_x, grad_y, *of_candidates], expected)
    if slope is not None:
        check_slope(case, slope, expected)


def check_engine(case: NestedCase, workspace: int) -> None:
    """Hold every width's z, and the gradients of any a and b, to the sum of all widths' bounds."""
    width = max(case.dims)
    case = case.at(width)
    batch, parts = case.batch(), case.parts()
    problem = case.problem(loss="contrast", form="log", dims=case.dims, workspace=workspace)
    # Of either sign and different sizes at the widths.
    sizes = torch.tensor([1.0, -0.5, 1e-3, 8.0], dtype=torch.float64)[: len(parts), None]
    factors = [random_factors(part) for part in parts]
    a, b = (torch.stack(one) * sizes for one in zip(*factors, strict=True))
    truths = [truth(part, *of_width) for part, *of_width in zip(parts, a, b, strict=True)]
    of_z = [truth(part, one, one) for part, one in zip(parts, a, strict=True)]
    found = nested.forward(batch, problem, moment=True, gradient=True)
    assert found.positive is not None
    assert found.moment is not None
    for place, expected in enumerate(truths):
        check_forward(Forward(found.z[place], found.positive[place], found.moment[place], None), expected)
    for other, exact in ((b, truths), (a, of_z), (b, truths)):
        check_gradients(case, nested.backward(found.state, a, other, case.needs), total(exact, width))


@given(case=nested_cases(max_n=200, max_d=300))
def test_within_the_sum_of_the_derived_bounds_everywhere(case: NestedCase) -> None:
    check(case)


@given(case=nested_cases(max_n=140, max_d=200), workspace=st.sampled_from([1, 1 << 28]))
def test_every_width_is_exact_kept_or_formed_again(case: NestedCase, workspace: int) -> None:
    check_engine(case, workspace)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n", [2, 33, 140])
def test_every_regime_reads_no_unwritten_memory(regime: str, n: int, dtype: torch.dtype, poisoned: None) -> None:
    for case in usual_calls(Case(regime, n, 96, dtype=dtype)):
        check(at_widths(case, dims=(8, 96, 70), dim_weights=(0.5, 1.0, 2.0)))


@pytest.mark.parametrize("regime", ["collapsed", "identical", "trained"])
@pytest.mark.parametrize("dims", [(64,), (64, 16), (4, 64, 3, 1)])
@pytest.mark.parametrize("tau", [1.0, 0.05, 0.005])
def test_many_rows_that_are_nearly_alike(regime: str, dims: tuple[int, ...], tau: float) -> None:
    case = Case(regime, 400, 64, temperature=tau, candidates=(Candidates(50),), exponent=-10.0)
    for normalize in (True, False):
        check(at_widths(replace(case, normalize=normalize), dims=dims))


def test_a_row_that_is_short_at_a_narrow_width() -> None:
    """Its gradient is largest there, and the terms that cancel in it are many times larger."""
    check(at_widths(Case("random", 1000, 128, loss="info_nce", candidates=(Candidates(100),)), dims=(2, 128)))


def test_any_part_of_the_gradient() -> None:
    case = Case("random", 100, 40, candidates=(Candidates(30),), need=(True, True, True))
    for need in ((True, False, False), (False, True, True), (False, False, True)):
        for candidates in ((Candidates(30),), (Candidates(30, need=False),)):
            part = replace(case, need=need, candidates=candidates)
            if any(part.need) or any(part.needs):
                check(at_widths(part, dims=(40, 10)))


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize("spoilt", ["nan", "inf", "vanishing"])
def test_unusual_rows_take_one_call_per_width(n: int, spoilt: str) -> None:
    x, y = rows(n, 24), rows(n, 24, 1)
    if spoilt == "vanishing":
        x[1, :8] *= 1e-9
    else:
        x[1, 20] = float(spoilt)
    problem = Problem(loss="contrast", dims=(8, 24), directions="x")
    state = nested.forward(Batch(x, y), problem, moment=False, gradient=True).state
    assert isinstance(state, nested.Apart)
    x.requires_grad_()
    found = ctloss.contrast(x, y, dims=(8, 24), directions="x")
    assert found.z[0].isfinite().all()
    assert found.z[1].isfinite().all() == (spoilt == "vanishing")
    if spoilt == "vanishing":
        torch.testing.assert_close(found.z[0], ctloss.contrast(x[:, :8], y[:, :8], directions="x").z)
        for reduction in ("mean", "none"):
            # On the path that serves dims, because another one rounds otherwise.
            options = {"reduction": reduction, "impl": "torch"}
            by_width = [ctloss.info_nce(x[:, :width], y[:, :width], **options).sum() for width in (8, 24)]
            once = ctloss.info_nce(x, y, dims=(8, 24), reduction=reduction).sum()
            torch.testing.assert_close(once, by_width[0] + by_width[1])
            (ours,), (theirs,) = torch.autograd.grad(once, x), torch.autograd.grad(by_width[0] + by_width[1], x)
            torch.testing.assert_close(ours, theirs)


def test_rows_of_zeros_at_a_width_have_cosine_zero_and_no_gradient() -> None:
    x, y = rows(3, 5).requires_grad_(), rows(3, 5, 1)
    with torch.no_grad():
        x[0, :2] = 0
    z = ctloss.contrast(x, y, temperature=1.0, dims=(2, 5)).z
    assert math.isclose(z[0, 0].item(), math.log(4), rel_tol=5e-7 + 1e-7)
    (gradient,) = torch.autograd.grad(ctloss.cz_nce(x, y, temperature=1.0, dims=(2,)), x)
    assert (gradient[0] == 0).all()
    assert gradient[1, :2].abs().min() > 0
    assert (gradient[:, 2:] == 0).all()


def test_the_optimistic_pass_declines_what_it_cannot_represent(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []

    class Counted(denominators.RunningSums):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            called.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(nested, "RunningSums", Counted)
    check(at_widths(Case("random", 100, 20), dims=(20, 5)))
    assert not called
    check(at_widths(Case("big", 100, 20, normalize=False, temperature=1.0), dims=(20, 5)))
    assert called == [1, 1]


@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_a_row_that_one_negative_dominates_is_exact(negatives: str) -> None:
    n, d = 300, 128
    x = rows(n, d)
    y = x + 0.1 * rows(n, d, 1)
    half = n // 2
    x[half:] = x[:half] + 1e-3 * y[half:]
    y[half:] = x[:half] + 1e-3 * y[half:]
    for tau, workspace in ((0.01, 1), (0.05, 1 << 28)):
        problem = Problem(loss="contrast", workspace=workspace, negatives=negatives, dims=(16, 128))
        found = nested.forward(Batch(x, y, temperature=tau), problem, moment=False, gradient=True)
        for z, width in zip(found.z, (16, 128), strict=True):
            exact, _ = ctloss.reference.contrast(x[:, :width], y[:, :width], temperature=tau, negatives=negatives)
            assert ((z - exact).abs() <= exact.abs().clamp_min(1) * (5e-7 + 1e-7 / tau)).all()


class Products(TorchDispatchMode):
    """Counts the floating-point operations of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        assert name not in ("bmm", "baddbmm", "mv", "addmv", "dot")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dims", [(96,), (96, 48, 24), (24, 7, 96, 65)])
def test_no_column_is_multiplied_twice(dims: tuple[int, ...], keep: bool) -> None:
    batch = Batch(rows(300, 96), rows(300, 96, 1))
    problem = Problem(loss="cz_nce", dims=dims, workspace=1 << 28 if keep else 1)
    plan = layout(batch.shape, problem)
    assert plan.keep == keep
    with Products() as of_forward:
        found = nested.forward(batch, problem, moment=True, gradient=True)
    with Products() as of_backward:
        nested.backward(found.state, 1.0, 1.0, (True, True))
    assert of_forward.flops == 2 * 96 * plan.entries
    # The backward costs what one call at the full width costs with the same panels.
    flat = replace(problem, dims=None)
    full = engine.forward(batch, flat, moment=True, gradient=True).state
    assert full.plan.panels == plan.panels
    with Products() as of_full_width:
        engine.backward(full, 1.0, 1.0, (True, True))
    assert of_backward.flops == of_full_width.flops


@pytest.mark.parametrize("limit", [1 << 20, 4 << 20, 16 << 20, 128 << 20])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("tau", [0.07, 0.001])
def test_memory_stays_within_the_workspace(tau: float, reduction: Any, limit: int) -> None:
    n, d = 1200, 8
    batch = Batch(rows(n, d), rows(n, d, 1), temperature=tau)
    problem = Problem(loss="info_nce", reduction=reduction, dims=(8, 4, 2), workspace=limit)
    allowed = limit + 2 * n * d * 4 + 3 * 24 * 2 * n * 8

    def both() -> list[Tensor | None]:
        found = nested.forward(batch, problem, moment=True, gradient=True)
        return nested.backward(found.state, 1.0, 1.0, (True, True))

    assert peak_bytes(both) <= allowed
    assert layout(batch.shape, problem).keep == (limit == 128 << 20)


@WHOLE_GRAPHS
def test_operators_take_one_call_per_width(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    forward = nested.forward

    def counted(*args: Any, **kwargs: Any) -> Forward:
        called.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(nested, "forward", counted)
    x, y = rows(12, 8).requires_grad_(), rows(12, 8, 1)

    def loss(x: Tensor) -> Tensor:
        return ctloss.info_nce(x, y, dims=(8, 3), dim_weights=(1.0, 0.5))

    expected = loss(x)
    assert called == [1]
    (gradient,) = torch.autograd.grad(expected, x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for other in (compiled(x), ctloss.info_nce(x, y, dims=(8, 3), dim_weights=(1.0, 0.5), impl="reference")):
        torch.testing.assert_close(other, expected)
        torch.testing.assert_close(torch.autograd.grad(other, x)[0], gradient)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), gradient)
    with FlopCounterMode(display=False):
        torch.testing.assert_close(loss(x), expected)
    assert called == [1]


def test_options_of_the_layer_above() -> None:
    x, y = rows(12, 8).requires_grad_(), rows(12, 8, 1).requires_grad_()
    weights, taus = torch.rand(12).requires_grad_(), torch.linspace(0.05, 0.4, 12).requires_grad_()
    leaves = (x, y, weights, taus)

    def loss(impl: Any) -> Tensor:
        one: Tensor = ctloss.cz_nce(x, y, dims=(3, 8), weights=weights, temperature=taus, impl=impl)
        return one + ctloss.contrast(x, y, dims=(3, 6), temperature=taus, impl=impl).z.exp().log1p().sum()

    found, expected = loss("torch"), loss("reference")
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, leaves, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, leaves))
    again = torch.autograd.grad(found, leaves)
    assert all(one.isfinite().all() for one in again)
    ratio = ctloss.cz_nce(x, y, dims=(3, 8), dim_weights=(2.0, 1.0), form="ratio", reduction="none")
    assert (ratio == 3).all()
    rows_of_z = ctloss.cz_nce(x, y, dims=(8, 3), reduction="none")
    torch.testing.assert_close(rows_of_z, ctloss.contrast(x, y, dims=(8, 3)).z.sum(0))
    (batched,) = torch.autograd.grad(rows_of_z, x, torch.eye(24), is_grads_batched=True)
    torch.testing.assert_close(
        batched.sum(0), torch.autograd.grad(ctloss.cz_nce(x, y, dims=(8, 3), reduction="sum"), x)[0]
    )


def test_explain_tells_how_widths_run() -> None:
    x = rows(4, 8)
    assert "one pass over the columns" in str(ctloss.explain(x, x, dims=(8, 4)))
    assert "widths: one call each" in str(ctloss.explain(x, x, dims=(8, 4), impl="reference"))
    assert "widths" not in str(ctloss.explain(x, x))
