"""The torch path: exact in every regime, within its workspace, with the same answer however it is computed."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from hypothesis import example, given
from torch import Tensor

import ctloss
from ctloss.kernels.problem import Batch, Problem, Shape
from ctloss.kernels.torch_path import denominators, engine, square
from ctloss.kernels.torch_path.layout import layout
from ctloss.kernels.torch_path.products import ExactProducts
from ctloss.kernels.torch_path.rows import prepare, row_exponents, times_power_of_two
from support.acceptance import assert_alike, check, check_engine, truth_of_call
from support.calls import factors, like, noisy, peak_bytes, solved
from support.regimes import REGIMES, Case, cases, usual_calls

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROOMY = Problem(loss="cz_nce")
BOTH = (True, True)


solve = partial(solved, engine)


@given(case=cases(max_n=300, max_d=800, dtypes=DTYPES))
def test_within_the_derived_bounds_everywhere(case: Case) -> None:
    check(case, "torch")


@given(case=cases(max_n=200, max_d=300, dtypes=DTYPES))
# Panels of odd sizes: those kept have to begin where they would in memory of their own.
@example(Case("random", 129, 1, temperature=0.01, normalize=False))
@example(Case("random", 133, 1, temperature=0.01, normalize=False, negatives="cross"))
def test_the_engine_is_within_the_bounds_for_any_a_and_b(case: Case) -> None:
    check_engine(case, engine)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n", [2, 33, 140])
def test_every_regime_reads_no_unwritten_memory(regime: str, n: int, dtype: torch.dtype, poisoned: None) -> None:
    for case in usual_calls(Case(regime, n, 48, dtype=dtype)):
        check(case, "torch")


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
@pytest.mark.parametrize("n", [100, 300])
def test_kept_recomputed_and_dense_agree(n: int, loss: str, negatives: str) -> None:
    x, y = noisy(n, 40)
    roomy = replace(ROOMY, loss=loss, negatives=negatives)
    tight = replace(roomy, workspace=1)
    middle = replace(roomy, workspace=4 * (2 * n * 40 + 2 * 2 * n * n + 6 * 128 * 2 * n))
    plans = {layout(Shape(n, 40), problem) for problem in (roomy, tight, middle)}
    assert {plan.keep for plan in plans} == {True, False}
    answers = [solve(x, y, problem) for problem in (roomy, tight, middle, replace(tight, reduction="none"))]
    for answer in answers[1:]:
        assert_alike(like(roomy, n, 40), x, y, answer, answers[0])


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
def test_optimistic_and_running_maximum_agree(loss: str, negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = noisy(150, 30)
    problem = replace(ROOMY, loss=loss, negatives=negatives)
    plain = solve(x, y, problem), solve(x, y, replace(problem, reduction="none"))
    monkeypatch.setattr(engine, "choose_shift", lambda logits, problem: None)
    monkeypatch.setattr(square, "solve", lambda *args, **kwargs: None)
    careful = solve(x, y, problem), solve(x, y, replace(problem, reduction="none"))
    for one, other in zip(plain, careful, strict=True):
        assert_alike(like(problem, 150, 30), x, y, one, other)


def test_the_optimistic_pass_declines_what_it_cannot_represent(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    running = denominators.running

    def counted(*args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return running(*args, **kwargs)

    monkeypatch.setattr(denominators, "running", counted)
    x, y = noisy(20, 16)
    solve(x, y, replace(ROOMY, normalize=False), 1.0)
    assert not called
    for n in (20, 200):
        x, y = noisy(n, 16)
        solve(x * 20, y * 20, replace(ROOMY, normalize=False), 1.0)
    assert len(called) == 2


@pytest.mark.parametrize("limit", [1 << 20, 4 << 20, 16 << 20, 64 << 20])
@pytest.mark.parametrize("tau", [0.07, 0.001])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_memory_stays_within_the_workspace(negatives: str, reduction: str, tau: float, limit: int) -> None:
    n, d = 1200, 8
    x, y = noisy(n, d)
    problem = replace(ROOMY, loss="info_nce", workspace=limit, reduction=reduction, negatives=negatives)
    batch = Batch(x, y, temperature=tau)
    allowed = limit + 2 * n * d * 4 + 24 * 2 * n * 8

    def both() -> list[Tensor | None]:
        found = engine.forward(batch, problem, moment=True, gradient=True)
        a = factors(problem, found.z)
        return engine.backward(found.state, a, a, BOTH)

    assert peak_bytes(lambda: engine.forward(batch, problem, moment=True, gradient=True)) <= allowed
    assert peak_bytes(both) <= allowed
    # The limit matters: all logits at once would not fit the smaller ones.
    assert limit > 4 << 20 or 4 * n * n > limit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [20, 150])
def test_repeats_are_bitwise_equal_and_inputs_untouched(n: int, dtype: torch.dtype) -> None:
    x, y = noisy(n, 24, dtype)
    before = x.clone(), y.clone()
    for reduction in ("mean", "none"):
        problem = replace(ROOMY, reduction=reduction)
        answers = [solve(x, y, problem) for _ in range(3)]
        for answer in answers[1:]:
            assert all(torch.equal(one, other) for one, other in zip(answer, answers[0], strict=True))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("n", [4, 140])
def test_what_is_not_finite_gives_nan(n: int, negatives: str, normalize: bool, value: float) -> None:
    x, y = noisy(n, 6)
    y[1, 2] = value
    for reduction in ("mean", "none"):
        for loss in ("cz_nce", "info_nce"):
            problem = replace(ROOMY, loss=loss, negatives=negatives, normalize=normalize, reduction=reduction)
            rows, grad_x, grad_y, slope = solve(x, y, problem)
            # The row itself, its positive, and every row with it among its negatives.
            touched = torch.ones(2 * n, dtype=torch.bool)
            if negatives == "cross":
                touched[n:] = False
                touched[n + 1] = True
            assert torch.equal(rows.isnan(), touched)
            assert grad_x.isnan().any(dim=1).all()
            assert grad_y[1].isnan().all()
            assert slope.isnan()


def test_zero_rows_have_cosine_zero_and_no_gradient() -> None:
    x, y = noisy(3, 5)
    x[0] = 0
    rows, grad_x, grad_y, _ = solve(x, y, ROOMY, 1.0)
    # Logits are cosines here, at most 1.
    assert math.isclose(rows[0].item(), math.log(4), rel_tol=5e-7 + 1e-7)
    assert (grad_x[0] == 0).all()
    assert torch.isfinite(grad_x).all()
    assert torch.isfinite(grad_y).all()


@pytest.mark.parametrize("exponent", [-110, -80, -40, 40, 80, 120])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("n", [9, 40])
def test_scaling_a_row_by_a_power_of_two_scales_its_gradient_back(exponent: int, reduction: str, n: int) -> None:
    x, y = noisy(n, 12)
    problem = replace(ROOMY, reduction=reduction)
    # Upstream gradients that bring the scaled row's gradient back into the normal range.
    size = 2.0 ** max(min(exponent, 60), -60)
    upstream = torch.tensor(size) if reduction == "mean" else torch.full((2 * n,), size)
    unscaled, plain, _, _ = solve(x, y, problem, upstream=upstream)
    scaled = x.clone()
    scaled[4] *= 2.0**exponent
    rows, gradient, _, _ = solve(scaled, y, problem, upstream=upstream)
    # Powers of two are exact, but the shortcut for few rows leaves such a row to a pass with other rounding.
    assert torch.equal(rows, unscaled) or n == 9
    exact = plain[4].double() * 2.0**-exponent
    representable = exact.abs() < torch.finfo(torch.float32).max
    back = gradient.double()
    back[4] = torch.where(representable, back[4] * 2.0**exponent, plain[4].double())
    of_call = replace(like(problem, n, 12), need=(True, False, False))
    assert_alike(of_call, x, y, (rows, back, None, None), (unscaled, plain, None, None), upstream)
    expected = truth_of_call(of_call, x, y, upstream)
    error = torch.linalg.vector_norm(back[4] - plain[4])
    assert error <= 2 * expected.cancelling[4] * expected.per_logit


@pytest.mark.parametrize("n", [16, 40])
@pytest.mark.parametrize("exponent", [31, 58])
def test_long_rows_keep_tiny_gradients(n: int, exponent: int) -> None:
    x, y = noisy(n, 64, noise=0.01)
    problem, size = replace(ROOMY, loss="info_nce"), 2.0**90
    upstream = torch.tensor(size)
    _, plain, _, _ = solve(x, y, problem, 0.0125, upstream=upstream)
    scale = 2.0**exponent
    _, scaled, _, _ = solve(x * scale, y * scale, problem, 0.0125, upstream=upstream)
    assert torch.linalg.vector_norm(plain) > 0
    of_call = like(problem, n, 64, 0.0125)
    assert_alike(of_call, x, y, (None, scaled * scale, None, None), (None, plain, None, None), upstream)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_vanishing_infonce_survives_under_a_large_upstream(reduction: str) -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 1e-3]])
    y = torch.tensor([[1.0, 1e-2], [-1.0, 0.0]])
    problem = replace(ROOMY, loss="info_nce", reduction=reduction)
    tau = 2 / 82
    huge = torch.tensor(1e30) if reduction == "mean" else torch.full((4,), 1e30 / 4)
    rows, grad_x, _, _ = solve(x, y, problem, tau, upstream=huge)
    assert 0 < rows.max().item() < 1e-34
    expected = truth_of_call(like(problem, 2, 2, tau), x, y, huge)
    # The terms that cancel in such a small gradient are up to 500 times larger.
    bounds = expected.cancelling[:2] * expected.per_logit
    for ours, exact, bound in zip(grad_x.double(), expected.gradient[:2], bounds, strict=True):
        assert torch.linalg.vector_norm(ours - exact) <= bound
        assert torch.linalg.vector_norm(exact) > max(100 * bound.item(), 1e-10)


def test_a_process_that_allows_bfloat16_products_gets_float32_ones() -> None:
    x, y = noisy(80, 64)
    expected = solve(x, y, ROOMY)
    former = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert all(torch.equal(one, other) for one, other in zip(solve(x, y, ROOMY), expected, strict=True))
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(ValueError, match="inside"), ExactProducts("cpu"):
            raise ValueError("inside")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(former)


def test_any_part_of_the_gradient_is_the_same() -> None:
    for n in (12, 150):
        for reduction in ("mean", "none"):
            problem = replace(ROOMY, loss="info_nce", reduction=reduction)
            x, y = noisy(n, 10)
            _, *whole = solve(x, y, problem)
            for needs in itertools.product([True, False], repeat=2):
                found = engine.forward(Batch(x, y), problem, moment=False, gradient=any(needs))
                a = factors(problem, found.z)
                parts = engine.backward(found.state, a, a, needs)
                assert tuple(part is not None for part in parts) == needs
                assert_alike(like(problem, n, 10), x, y, (None, *parts, None), (None, *whole))


def test_powers_of_two_are_exact_and_rows_know_theirs() -> None:
    tiny = torch.tensor([[2.0**-149], [2.0**127]])
    exponents = row_exponents(tiny)
    assert exponents.flatten().tolist() == [148.0, -128.0]
    assert times_power_of_two(tiny.clone(), exponents).flatten().tolist() == [0.5, 0.5]
    rows = prepare([tiny, tiny.flip(0)], True, torch.float32)
    assert rows.stacked.flatten().tolist() == [1.0] * 4
    assert rows.positive.tolist() == [1.0, 1.0]


def test_refuses_what_it_cannot_run() -> None:
    assert engine.unsupported(Shape(2, 1), ROOMY) is None
    assert "int64" in str(engine.unsupported(Shape(2, 1, dtype=torch.int64), ROOMY))
    assert "float64" in str(engine.unsupported(Shape(2, 1, device_type="mps"), ROOMY))


@pytest.mark.parametrize("loss", ["cz_nce", "contrast"])
def test_saved_tensors_have_the_promised_shape(loss: Literal["cz_nce", "contrast"]) -> None:
    problem = Problem(loss=loss, directions="x")
    for dtype in (torch.bfloat16, torch.float64):
        x, y = noisy(6, 3, dtype)
        batch = Batch(x, y, (x[:4],), 0.1, None, (None,))
        found = engine.forward(batch, problem, moment=False, gradient=True)
        if loss == "contrast":
            saved, promised = engine.save(found.state), engine.saved_shapes(batch.shape, problem, gradient=True)
        else:
            needs = (True, False, True)
            a = factors(problem, found.z)
            saved = engine.pack(engine.hold(found.state, a, a, needs), batch.shape.dtype, x.device)
            promised = engine.packed_shapes(batch.shape, needs)
        assert [(tuple(tensor.shape), tensor.dtype) for tensor in saved] == promised
        storages = [tensor.untyped_storage().data_ptr() for tensor in saved if tensor.numel()]
        assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("n", [40, 100, 600])
def test_a_row_that_one_negative_dominates_is_exact(n: int, negatives: str) -> None:
    """Where single rows are returned, a row must not carry the full rounding error of one float32 product."""
    x, y = noisy(n, 256, noise=0.1)
    # Each row of the second half nearly repeats one of the first; the product for their cosine rounds by 1e-7 or more.
    half = n // 2
    x[half:] = x[:half] + 1e-3 * y[half:]
    y[half:] = x[:half] + 1e-3 * y[half:]
    for tau, workspace in itertools.product((0.01, 0.05), (1, 256 << 20)):
        problem = Problem(loss="contrast", workspace=workspace, negatives=negatives)
        found = engine.forward(Batch(x, y, temperature=tau), problem, moment=False, gradient=True)
        z, _ = ctloss.reference.contrast(x, y, temperature=tau, negatives=negatives)
        assert ((found.z - z).abs() <= z.abs().clamp_min(1) * (5e-7 + 1e-7 / tau)).all()
