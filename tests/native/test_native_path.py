"""The native path: exact in every regime and instruction set, and the same bits however many threads take part."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

import ctloss
from ctloss.kernels.native import engine, library
from ctloss.kernels.problem import Batch, Problem, Shape
from ctloss.kernels.torch_path import engine as torch_engine
from support.acceptance import assert_alike, check, check_engine, truth_of_call
from support.calls import factors, like, noisy, solved, value_and_gradients
from support.regimes import REGIMES, Candidates, Case, cases, usual_calls

pytestmark = [pytest.mark.numeric, pytest.mark.skipif(library.kernels is None, reason=str(library.missing()))]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROOMY = Problem(loss="cz_nce")
# Enough products for three threads.
N, D = 150, 80
solve = partial(solved, engine)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    former = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(former)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the kernels are entered."""

    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the kernels were entered: {name}")

    monkeypatch.setattr(library, "kernels", Untouchable())


def apart(program: str, **environment: str) -> str:
    """What a program prints in a process of its own, which has the tests' helpers and such an environment."""
    tests = Path(__file__).parents[1]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]), **environment}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=found, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Tight:
    """The engine with no room for exponentials."""

    def __getattr__(self, name: str) -> Any:
        return getattr(engine, name)

    def forward(self, batch: Batch, problem: Problem, **options: bool) -> Any:
        return engine.forward(batch, replace(problem, workspace=1), **options)

    def restore(self, tensors: list[Tensor], batch: Batch, problem: Problem) -> Any:
        return engine.restore(tensors, batch, replace(problem, workspace=1))


@given(case=cases(max_n=300, max_d=800, dtypes=DTYPES))
def test_within_the_derived_bounds_everywhere(case: Case) -> None:
    check(case, "native")


@given(case=cases(max_n=200, max_d=300, dtypes=DTYPES))
def test_the_engine_is_within_the_bounds_for_any_a_and_b(case: Case) -> None:
    check_engine(case, engine)


@given(case=cases(max_n=200, max_d=100, dtypes=DTYPES))
def test_exponentials_formed_again_are_within_the_bounds(case: Case) -> None:
    check_engine(case, Tight())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n", [2, 33, 140])
def test_every_regime_reads_no_unwritten_memory(regime: str, n: int, dtype: torch.dtype, poisoned: None) -> None:
    for case in usual_calls(Case(regime, n, 48, dtype=dtype)):
        check(case, "native")


# Sizes at, just below and just above whole vectors, blocks and tiles.
@pytest.mark.parametrize("n", [1, 12, 13, 48, 49, 97, 193])
@pytest.mark.parametrize("d", [1, 17, 64, 65, 257])
def test_sizes_around_those_of_blocks(n: int, d: int) -> None:
    sides = (Candidates(n + 1, ids=True), Candidates(1, need=False))
    for negatives, directions in itertools.product(("both", "cross", "own", "none"), ("both", "x")):
        case = Case("random", n, d, negatives=negatives, directions=directions, candidates=sides, need=(True,) * 3)
        check(case, "native")
        check(replace(case, temperatures="rows", reduction="none", loss="info_nce"), "native")


@pytest.mark.parametrize("exponent", [-1.0, -10.0, -20.0, -36.0])
@pytest.mark.parametrize("n", [20, 150])
def test_trained_batches_down_to_the_smallest_losses(n: int, exponent: float) -> None:
    for regime, loss, dtype in itertools.product(("trained", "hard"), ("cz_nce", "info_nce"), DTYPES):
        case = Case(regime, n, 64, dtype=dtype, temperature=0.01, loss=loss, exponent=exponent, need=(True,) * 3)
        check(case, "native")
        check_engine(case, engine)


def test_a_row_without_like_rows_has_no_moment_left_of_a_shift() -> None:
    """At low temperatures exponents are shifted; a mean of small logits must not be what is left of the shift."""
    check_engine(Case("zeros", 2, 1, temperature=0.01, need=(True,) * 3), engine)
    check_engine(Case("random", 40, 4096, temperature=0.01, need=(True,) * 3), engine)


def declined() -> dict[str, tuple[Batch, dict[str, Any]]]:
    x, y = noisy(20, 12)
    spoilt, long = x.clone(), 20 * x
    spoilt[3, 4] = math.nan
    opposite = torch.cat((torch.ones(1, 12), -torch.ones(19, 12)))
    return {
        "no negatives": (Batch(x, y, ids=torch.zeros(20, dtype=torch.int64)), {}),
        "not finite": (Batch(spoilt, y), {}),
        "sums beyond the largest number": (Batch(long, 20 * y, temperature=1.0), {"normalize": False}),
        "sums below the smallest number": (Batch(opposite, opposite, temperature=0.005), {"negatives": "cross"}),
    }


@pytest.mark.parametrize("name", declined())
@pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
def test_what_the_kernels_decline_has_the_bits_of_the_torch_path(loss: Any, name: str) -> None:
    batch, options = declined()[name]
    mean = Problem(loss=loss, **options)
    assert engine.solve(batch, mean, 1.0, (True, True), moment=False) is None
    for problem in (mean, replace(mean, reduction="none")):
        assert isinstance(engine.forward(batch, problem, moment=True, gradient=True).state, torch_engine.State)
        given = {"ids": batch.ids, "temperature": batch.temperature, "reduction": problem.reduction, **options}
        function = partial(getattr(ctloss, loss), **given)
        answers = [
            value_and_gradients(lambda x, y, impl=impl, function=function: function(x, y, impl=impl).sum(), *batch[:2])
            for impl in ("native", "torch")
        ]
        for one, other in zip(*answers, strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("n", [4, 140])
def test_what_is_not_finite_gives_nan(n: int, negatives: str, normalize: bool, value: float) -> None:
    x, y = noisy(n, 6)
    y[1, 2] = value
    for reduction, loss in itertools.product(("mean", "none"), ("cz_nce", "info_nce")):
        problem = Problem(loss=loss, negatives=negatives, normalize=normalize, reduction=reduction)
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


@pytest.mark.parametrize("exponent", [-120, -80, -31, -20, -1, 1, 20, 31, 80, 120])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("n", [9, 40])
def test_scaling_a_row_by_a_power_of_two_scales_its_gradient_back(
    n: int, reduction: str, sign: float, exponent: int
) -> None:
    x, y = noisy(n, 12)
    # The largest entry is negative or positive.
    x[4] = sign * x[4].abs()
    problem = replace(ROOMY, reduction=reduction)
    # Upstream gradients that bring the scaled row's gradient back into the normal range.
    size = 2.0 ** max(min(exponent, 60), -60)
    upstream = torch.tensor(size) if reduction == "mean" else torch.full((2 * n,), size)
    unscaled, plain, _, _ = solve(x, y, problem, upstream=upstream)
    scaled = x.clone()
    scaled[4] *= 2.0**exponent
    rows, gradient, _, _ = solve(scaled, y, problem, upstream=upstream)
    assert torch.equal(rows, unscaled)
    exact = plain[4].double() * 2.0**-exponent
    representable = exact.abs() < torch.finfo(torch.float32).max
    back = gradient.double()
    back[4] = torch.where(representable, back[4] * 2.0**exponent, plain[4].double())
    if abs(exponent) < 30:
        # Rows that are as they came need no powers of two, and nothing else tells them apart.
        assert torch.equal(back, plain.double())
    of_call = replace(like(problem, n, 12), need=(True, False, False))
    assert_alike(of_call, x, y, (rows, back, None, None), (unscaled, plain, None, None), upstream)
    expected = truth_of_call(of_call, x, y, upstream)
    assert torch.linalg.vector_norm(back[4] - plain[4]) <= 2 * expected.cancelling[4] * expected.per_logit


@pytest.mark.parametrize("n", [16, 40])
@pytest.mark.parametrize("exponent", [31, 58])
def test_long_rows_keep_tiny_gradients(n: int, exponent: int) -> None:
    x, y = noisy(n, 64, noise=0.01)
    problem, scale, upstream = replace(ROOMY, loss="info_nce"), 2.0**exponent, torch.tensor(2.0**90)
    _, plain, _, _ = solve(x, y, problem, 0.0125, upstream=upstream)
    _, scaled, _, _ = solve(x * scale, y * scale, problem, 0.0125, upstream=upstream)
    assert torch.linalg.vector_norm(plain) > 0
    of_call = like(problem, n, 64, 0.0125)
    assert_alike(of_call, x, y, (None, scaled * scale, None, None), (None, plain, None, None), upstream)


@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-39, 1e-20, 1e20, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_subnormal_and_huge_rows_have_the_losses_of_their_directions(dtype: torch.dtype, size: float) -> None:
    x = size * torch.eye(5).to(dtype)
    x[4] = -x[3]
    y, given = x.flip(0), torch.tensor(0.5)
    for loss in (ctloss.cz_nce, ctloss.info_nce):
        unit = (x != 0) * x.sign()
        found, expected = (
            loss(a, b, temperature=given, impl=impl)
            for a, b, impl in ((x, y, "native"), (unit, unit.flip(0), "reference"))
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


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
    bounds = expected.cancelling[:2] * expected.per_logit
    for ours, exact, bound in zip(grad_x.double(), expected.gradient[:2], bounds, strict=True):
        assert torch.linalg.vector_norm(ours - exact) <= bound
        assert torch.linalg.vector_norm(exact) > max(100 * bound.item(), 1e-10)


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("n", [20, 40, 100, 600])
def test_a_row_that_one_negative_dominates_is_exact(n: int, negatives: str) -> None:
    """Where single rows are returned, a row must not carry the full rounding error of one float32 product."""
    x, y = noisy(n, 256, noise=0.1)
    half = n // 2
    x[half:] = x[:half] + 1e-3 * y[half:]
    y[half:] = x[:half] + 1e-3 * y[half:]
    for tau in (0.01, 0.05):
        found = engine.forward(
            Batch(x, y, temperature=tau), Problem(loss="contrast", negatives=negatives), moment=False, gradient=True
        )
        z, _ = ctloss.reference.contrast(x, y, temperature=tau, negatives=negatives)
        assert ((found.z - z).abs() <= z.abs().clamp_min(1) * (5e-7 + 1e-7 / tau)).all()


def test_zero_rows_have_cosine_zero_and_no_gradient() -> None:
    x, y = noisy(3, 5)
    x[0] = 0
    rows, grad_x, grad_y, _ = solve(x, y, ROOMY, 1.0)
    assert math.isclose(rows[0].item(), math.log(4), rel_tol=5e-7 + 1e-7)
    assert (grad_x[0] == 0).all()
    assert torch.isfinite(grad_x).all()
    assert torch.isfinite(grad_y).all()


def test_any_part_of_the_gradient_has_the_same_bits() -> None:
    for n, reduction in itertools.product((12, 150), ("mean", "none")):
        problem = replace(ROOMY, loss="info_nce", reduction=reduction)
        x, y = noisy(n, 10)
        _, *whole, _ = solve(x, y, problem)
        for needs in itertools.product([True, False], repeat=2):
            found = engine.forward(Batch(x, y), problem, moment=False, gradient=any(needs))
            a = factors(problem, found.z)
            parts = engine.backward(found.state, a, a, needs)
            assert tuple(part is not None for part in parts) == needs
            assert all(one is None or torch.equal(one, other) for one, other in zip(parts, whole, strict=True))


def one_call_of_each_kind(n: int = N, d: int = D) -> list[Tensor]:
    """The losses and gradients of several calls with threads enough to do."""
    x, y = noisy(n, d)
    hard = noisy(n, d, seed=1)[0]
    taus = torch.linspace(0.05, 0.5, n)
    calls: list[dict[str, Any]] = [
        {},
        {"reduction": "none"},
        {"negatives": "cross", "candidates": hard, "temperature": torch.tensor(0.1, requires_grad=True)},
        {"negatives": "own", "temperature": taus.requires_grad_(), "weights": torch.linspace(0, 1, n)},
        {"ids": torch.arange(n) // 2, "margin": 0.1, "directions": "x"},
    ]
    answers = []
    for options in calls:
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        loss = ctloss.info_nce(*leaves, impl="native", **options)
        tau = options.get("temperature")
        leaves += [tau] if isinstance(tau, Tensor) else []
        answers += [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]
    return answers


def assert_same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(map(torch.equal, one, other))


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    threads(1)
    alone = one_call_of_each_kind()
    for count in (2, 3, 2, 1):
        threads(count)
        assert_same_bits(one_call_of_each_kind(), alone)


def test_repeated_calls_give_the_same_bits(threads: Callable[[int], None]) -> None:
    threads(3)
    first = one_call_of_each_kind()
    for n in (7, N, 40, N):
        again = one_call_of_each_kind(n)
        if n == N:
            assert_same_bits(again, first)


def test_calls_from_several_threads_at_once_give_the_same_bits() -> None:
    expected = {n: one_call_of_each_kind(n) for n in (10, 100, N)}

    def call(turn: int) -> tuple[int, list[Tensor]]:
        # Of this thread alone.
        torch.set_num_threads(1 + turn % 3)
        n = (10, 100, N)[turn % 3 - turn // 8]
        return n, one_call_of_each_kind(n)

    former = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(4) as pool:
            for n, answers in pool.map(call, range(16)):
                assert_same_bits(answers, expected[n])
    finally:
        torch.set_num_threads(former)


def test_a_forked_child_has_threads_of_its_own() -> None:
    program = (
        "import os, torch\n"
        "from native.test_native_path import one_call_of_each_kind as call\n"
        "torch.set_num_threads(2)\n"
        "before = call()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    same = all(map(torch.equal, call(), before))\n"
        "    os._exit(0 if same else 3)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert all(map(torch.equal, call(), before))\n"
        "print('the same')\n"
    )
    assert "the same" in apart(program, OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.parametrize(("given", "widest"), [("avx2", "avx2"), ("default", "portable")])
def test_other_instruction_sets_are_exact(given: str, widest: str) -> None:
    """The kernels are chosen when they are loaded, so in a process of their own.

    Continuous integration repeats every numeric test under both settings, at all sizes.
    """
    program = (
        "import itertools, torch\n"
        "from dataclasses import replace\n"
        "from ctloss.kernels.native import engine, library\n"
        "from support.acceptance import check, check_engine\n"
        "from support.regimes import REGIMES, Candidates, Case, usual_calls\n"
        "dtypes = (torch.float32, torch.bfloat16, torch.float16)\n"
        "more = (Candidates(41, ids=True), Candidates(3, dtype=torch.float16))\n"
        "for place, (regime, n) in enumerate(itertools.product(REGIMES, (3, 97))):\n"
        "    dtype = dtypes[place % 3]\n"
        "    for case in usual_calls(Case(regime, n, 33, dtype=dtype)):\n"
        "        check(case, 'native')\n"
        "    for negatives in ('both', 'cross', 'own', 'none'):\n"
        "        case = Case(regime, n, 70, dtype=dtype, negatives=negatives, candidates=more, need=(True,) * 3)\n"
        "        check_engine(case, engine)\n"
        "        check_engine(replace(case, temperatures='rows', ids=n // 2 + 1, directions='x'), engine)\n"
        "print(library.kernels.capability())\n"
    )
    found = apart(program, ATEN_CPU_CAPABILITY=given).strip()
    assert found in (widest, "portable")


def test_kernels_follow_the_processor_and_its_setting() -> None:
    program = "from ctloss.kernels.native import library; print(library.kernels.capability())"
    order = ["portable", "avx2", "avx512", "avx512bf16"]
    found = [order.index(apart(program, ATEN_CPU_CAPABILITY=given).strip()) for given in ("default", "avx2", "avx512")]
    assert found == sorted(found)
    assert found[0] == 0
    assert found[1] < 2


def test_without_kernels_the_torch_path_takes_everything() -> None:
    program = (
        "import torch, ctloss\n"
        "x = torch.eye(4)\n"
        "told = ctloss.explain(x, x)\n"
        "assert told.path == 'torch', told\n"
        "assert 'CTLOSS_NATIVE=0' in told.reason, told\n"
        "assert torch.equal(ctloss.cz_nce(x, x), ctloss.cz_nce(x, x, impl='torch'))\n"
        "try:\n    ctloss.cz_nce(x, x, impl='native')\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    printed = apart(program, CTLOSS_NATIVE="0")
    assert "impl='native' cannot run here: the compiled kernels are missing" in printed
    assert "impl='auto' takes a path that can" in printed


def test_what_it_cannot_run_is_refused_by_name_with_a_reason() -> None:
    x = torch.randn(6, 8)
    refused: list[tuple[str, dict[str, Any], Tensor]] = [
        ("float64", {}, x.double()),
        ("dims", {"dims": (8, 4)}, x),
    ]
    for reason, options, rows in refused:
        with pytest.raises(RuntimeError, match=f"impl='native' cannot run here: .*{reason}"):
            ctloss.cz_nce(rows, rows, impl="native", **options)
        told = ctloss.explain(rows, rows, **options)
        assert told.path == "torch"
        assert reason in told.reason
    # One side in double precision is enough.
    assert ctloss.explain(x, x, candidates=x.double()).path == "torch"
    assert ctloss.explain(x.half(), x.bfloat16()).path == "native"
    assert engine.unsupported(Shape(2, 1), ROOMY) is None
    assert "int64" in str(engine.unsupported(Shape(2, 1, dtype=torch.int64), ROOMY))


@pytest.mark.parametrize("negatives", ["both", "cross", "own", "none"])
@pytest.mark.parametrize("n", [30, 100, 300])
def test_exponentials_kept_or_formed_again_agree(n: int, negatives: Any) -> None:
    for regime, directions, temperatures in itertools.product(
        ("random", "collapsed"), ("both", "x"), ("number", "pairs")
    ):
        case = Case(
            regime,
            n,
            40,
            negatives=negatives,
            directions=directions,
            temperatures=temperatures,
            candidates=(Candidates(2 * n + 1, ids=True), Candidates(5, need=False)),
            need=(True,) * 3,
            margin=0.9 if temperatures == "pairs" else None,
        )
        tight = replace(case.problem(), workspace=1)
        assert "formed again" in str(engine.describe(case.batch().shape, tight)["gradient"])
        assert "kept" in str(engine.describe(case.batch().shape, case.problem())["gradient"])
        check_engine(case, Tight())


def test_a_small_workspace_changes_no_loss() -> None:
    x, y = noisy(600, 16)
    x.requires_grad_()
    expected = ctloss.cz_nce(x, y, impl="native")
    (gradient,) = torch.autograd.grad(expected, x)
    try:
        ctloss.set_workspace_limit(1 << 20)
        told = ctloss.explain(x, y)
        assert told.path == "native"
        assert "formed again" in str(told)
        found = ctloss.cz_nce(x, y)
        assert torch.equal(found, expected)
        (again,) = torch.autograd.grad(found, x)
        assert_alike(like(ROOMY, 600, 16), x, y, (None, again, None, None), (None, gradient, None, None))
    finally:
        ctloss.set_workspace_limit(None)


@pytest.mark.parametrize("device", ["meta", "cuda", "mps"])
def test_the_kernels_are_for_the_cpu_alone(device: str, never: None) -> None:
    assert f"not on {device}" in str(engine.unsupported(Shape(4, 8, device_type=device), ROOMY))
    if device == "meta":
        x = torch.randn(4, 8, device=device, requires_grad=True)
        loss = ctloss.cz_nce(x, x.detach())
        loss.backward()
        assert (loss.device.type, ctloss.explain(x, x).path) == ("meta", "torch")
        with pytest.raises(RuntimeError, match="not on meta"):
            ctloss.cz_nce(x, x, impl="native")


def test_compilers_see_operators_and_transforms_the_reference(never: None) -> None:
    x, y = noisy(6, 8)
    stack = torch.stack((x, y, x + y))

    def loss(a: Tensor) -> Tensor:
        return ctloss.cz_nce(a, y)

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ctloss.cz_nce(leaf, y, impl="reference"), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.vmap(loss)(stack), torch.stack([loss_of(part, y) for part in stack]))
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=r"impl='native' cannot run here: .* transforms of torch\.func"):
            transform(lambda a: ctloss.cz_nce(a, y, impl="native"))(x)
    with torch._subclasses.FakeTensorMode() as mode:
        assert ctloss.cz_nce(mode.from_tensor(x), mode.from_tensor(y), impl="native").shape == ()


def loss_of(x: Tensor, y: Tensor) -> Tensor:
    """By the definition."""
    return ctloss.cz_nce(x, y, impl="reference")


# Tensors whose memory is not what they mean.
def unusual() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "transposed": lambda rows: rows.T.contiguous().T,
        "every other": lambda rows: rows.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2],
        "backwards in memory": lambda rows: rows.flip(0).contiguous().flip(0),
        "one row for all": lambda rows: rows[:1].expand(len(rows), -1),
        "one column for all": lambda rows: rows[:, :1].expand(-1, rows.shape[1]),
        "part of complex numbers": lambda rows: torch.complex(rows, rows).imag,
        "with its sign noted apart": lambda rows: torch.complex(rows, -rows).conj().imag,
        "a negative view": lambda rows: torch._neg_view(-rows),
        "in the middle of a storage": lambda rows: torch.cat((rows, rows, rows))[len(rows) : 2 * len(rows)],
    }


@pytest.mark.parametrize("name", unusual())
@pytest.mark.parametrize("d", [1, 8])
def test_tensors_are_read_as_what_they_mean(d: int, name: str) -> None:
    made = unusual()[name]
    x, y = noisy(10, d)
    x, hard = made(x), made(noisy(10, d, seed=1)[0])
    assert_equal_to_plain(x, y, candidates=hard)


@pytest.mark.parametrize("made", [lambda v: v.repeat_interleave(2)[::2], lambda v: v[:1].expand(10), torch.clone])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ids_weights_and_temperatures_of_any_strides(dtype: torch.dtype, made: Callable[[Tensor], Tensor]) -> None:
    x, y = noisy(10, 8)
    ids = made(torch.tensor([0, 1, 0, 2, 3, 3, 4, 5, 6, 0]))
    vector = made(torch.linspace(0.1, 1, 10, dtype=dtype))
    for reduction in ("mean", "sum", "none"):
        options = {"directions": "x", "reduction": reduction, "candidates": y.flip(0)}
        assert_equal_to_plain(x, y, weights=vector, **options)
        assert_equal_to_plain(x, y, temperature=vector, **options)
        assert_equal_to_plain(x, y, ids=ids, candidate_ids=ids, **options)


def assert_equal_to_plain(x: Tensor, y: Tensor, **options: Any) -> None:
    """The same call with copies of all tensors in memory of their own gives the same bits."""

    def answers(copy: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        given = {name: copy(one) if isinstance(one, Tensor) else one for name, one in options.items()}
        return value_and_gradients(lambda a, b: ctloss.info_nce(copy(a), b, impl="native", **given).sum(), x, y)

    assert_same_bits(list(answers(lambda one: one)), list(answers(lambda one: one.resolve_neg().contiguous().clone())))


@pytest.mark.parametrize("setting", ["set_default_dtype(torch.float64)", "set_default_device('meta')"])
def test_defaults_of_the_process_change_nothing(setting: str) -> None:
    """In a process of its own, which the kernels would take with them if they wrote to memory of another size."""
    program = (
        "import torch, ctloss\n"
        "x = torch.randn(30, 8).requires_grad_()\n"
        "y, w, t = torch.randn(30, 8), torch.rand(30), torch.full((30,), 0.1, requires_grad=True)\n"
        "def answers():\n"
        "    found = []\n"
        "    for r, f in (('mean', 'log'), ('sum', 'ratio'), ('none', 'log')):\n"
        "        for weights in (None, w):\n"
        "            loss = ctloss.cz_nce(x, y, temperature=t, weights=weights, reduction=r, form=f, impl='native')\n"
        "            found += [loss.detach(), *torch.autograd.grad(loss.sum(), (x, t))]\n"
        "    return found\n"
        "before = answers()\n"
        f"torch.{setting}\n"
        "after = answers()\n"
        "assert [one.dtype for one in before] == [one.dtype for one in after]\n"
        "assert all(map(torch.equal, before, after))\n"
    )
    apart(program)


def test_autocast_and_product_precision_change_nothing() -> None:
    former = torch.get_float32_matmul_precision()
    expected = one_call_of_each_kind(30)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same_bits(one_call_of_each_kind(30), expected)
    finally:
        torch.set_float32_matmul_precision(former)


def test_inputs_and_what_they_share_memory_with_are_untouched() -> None:
    wide = torch.randn(40, 20)
    before = wide.clone()
    x, y = wide[:20, 3:13].requires_grad_(), wide[20:, 3:13].detach()
    for reduction in ("mean", "none"):
        loss = ctloss.cz_nce(x, y, candidates=wide[5:9, :10].detach(), impl="native", reduction=reduction).sum()
        torch.autograd.grad(loss, x, retain_graph=True)
        torch.autograd.grad(loss, x)
        assert torch.equal(wide, before)


def test_a_large_batch_leaves_no_memory_behind() -> None:
    """By the resident size of a process of its own: the kernels' memory is known to no allocator of Python's."""
    program = (
        "import torch, ctloss\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "def call(n):\n"
        "    x = torch.randn(n, 16, requires_grad=True)\n"
        "    ctloss.cz_nce(x, x.detach().flip(0), impl='native').backward()\n"
        "for _ in range(50):\n    call(64)\n"
        "before = resident()\n"
        "call(3000)\n"
        "for _ in range(200):\n    call(64)\n"
        "print(resident() - before)\n"
    )
    # The large batch takes 144 MB.
    assert int(apart(program)) < 48 << 20


@pytest.mark.parametrize("limit", [8 << 20, 64 << 20])
@pytest.mark.parametrize(
    ("n", "d", "candidates", "negatives"),
    [
        (1800, 16, 0, "both"),
        (3000, 16, 0, "both"),
        (10_000, 4, 1, "none"),
        (1, 8, 100_000, "none"),
        (2500, 64, 0, "cross"),
        (1500, 16, 7, "own"),
    ],
)
def test_memory_stays_within_the_workspace(n: int, d: int, candidates: int, negatives: str, limit: int) -> None:
    """The most that a process of its own had resident, beyond what it had before, the gradients and a few vectors."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux, which tells the most memory since it was asked to forget")
    program = (
        "import torch, ctloss\n"
        "from ctloss.kernels.native import engine\n"
        "from ctloss.kernels.problem import Batch, Problem\n"
        "def most():\n"
        "    return next(int(line.split()[1]) << 10 for line in open('/proc/self/status') if 'VmHWM' in line)\n"
        f"n, d, m = {n}, {d}, {candidates}\n"
        "sides = [torch.randn(rows, d) for rows in (n, n, m)]\n"
        f"problem = Problem(loss='cz_nce', negatives={negatives!r}, workspace={limit})\n"
        "batch = Batch(sides[0], sides[1], tuple(sides[2:]) if m else ())\n"
        "small = Batch(sides[0][:1], sides[1][:1], (sides[0][:9],))\n"
        "for one in (small, batch):\n"
        "    open('/proc/self/clear_refs', 'w').write('5')\n"
        "    before = most()\n"
        "    needs = (True,) * len(one.sides)\n"
        "    assert engine.solve(one, problem, 1.0, needs, moment=True) is not None\n"
        "print(most() - before)\n"
    )
    # Beside it, the gradients and vectors with one entry per row; a thread's tile, and the allocators' slack.
    rows = 2 * n + candidates
    assert int(apart(program)) < limit + 4 * d * rows + 200 * rows + (6 << 20)


@pytest.mark.parametrize("device", ["meta"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_outputs_are_on_the_cpu_whatever_the_default_device(device: str, reduction: str) -> None:
    x, y = noisy(8, 16)
    labels = torch.arange(8) // 2
    with torch.device(device):
        for loss in (
            lambda: ctloss.sig_lip(x, y, reduction=reduction),  # type: ignore[arg-type]
            lambda: ctloss.sup_con(x, labels, reduction=reduction),  # type: ignore[arg-type]
            lambda: ctloss.info_nce(x, y, reduction=reduction),  # type: ignore[arg-type]
        ):
            assert loss().device.type == "cpu"


def test_an_infinite_bias_has_an_infinite_loss() -> None:
    x, y = noisy(40, 8)
    assert ctloss.sig_lip(x, y, bias=torch.tensor(math.inf)).isinf()


@pytest.mark.parametrize("loss", ["contrast", "sup_con", "sig_lip"])
def test_ids_that_change_before_the_backward_reads_them_are_noticed(loss: str) -> None:
    x, y = noisy(16, 8)
    x.requires_grad_()
    ids = torch.arange(16) // 2
    value = {
        "contrast": lambda: ctloss.contrast(x, y, ids=ids).z,
        "sup_con": lambda: ctloss.sup_con(x, ids, reduction="none"),
        "sig_lip": lambda: ctloss.sig_lip(x, y, ids=ids, reduction="none"),
    }[loss]()
    ids.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_ids_that_are_not_read_again_may_change() -> None:
    x, y = noisy(16, 8)
    x.requires_grad_()
    ids = torch.arange(16) // 2
    value = ctloss.info_nce(x, y, ids=ids)
    (expected,) = torch.autograd.grad(value, x, retain_graph=True)
    ids.zero_()
    (found,) = torch.autograd.grad(value, x)
    assert torch.equal(found, expected)


def test_weights_beyond_the_normal_numbers() -> None:
    x, y = noisy(4, 8)
    x.requires_grad_()
    tiny = torch.full((8,), 1e-310, dtype=torch.float64)
    ctloss.info_nce(x, y, weights=tiny, reduction="sum").backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(4, 8))


def test_a_sign_that_is_noted_beside_the_memory() -> None:
    x, y = noisy(6, 8)
    noted = torch._neg_view(-x)
    assert torch.equal(ctloss.sig_lip(noted, y), ctloss.sig_lip(x, y))
    labels = torch.arange(6) // 2
    assert torch.equal(ctloss.sup_con(noted, labels), ctloss.sup_con(x, labels))


@pytest.mark.parametrize("labels", [torch.arange(4), torch.zeros(4, dtype=torch.int64)])
def test_rows_whose_products_overflow_have_no_gradient_that_is_not_a_number(labels: Tensor) -> None:
    x = (1e19 * torch.eye(4, 8)).requires_grad_()
    ctloss.sup_con(x, labels, normalize=False).backward()
    assert x.grad is not None
    exact = x.detach().clone().requires_grad_()
    ctloss.sup_con(exact, labels, normalize=False, impl="reference").backward()
    assert exact.grad is not None
    assert torch.equal(x.grad.isnan(), exact.grad.isnan())
