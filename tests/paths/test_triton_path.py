"""The Triton path: on a CPU under Triton's interpreter, which cannot do bfloat16; compiled on a GPU."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctloss.kernels.problem import Batch, Shape
from ctloss.kernels.triton_path import engine, gradient, small, small_gradient
from ctloss.kernels.triton_path.plan import config, layout, memory
from ctloss.kernels.triton_path.plan.layout import identities, stack_of
from support.regimes import Candidates, Case, cases
from support.triton_calls import (
    DEVICE,
    DTYPES,
    ON_GPU,
    Counted,
    both_passes,
    chain_of,
    check,
    in_flash,
    in_panels,
    pairs,
    problem,
    shape_of,
)

# Not marked numeric: this path's other test modules are faster, and they are repeated for other processors.

HARD, QUEUE = Candidates(31), Candidates(70, need=False)
# Sizes around whole tiles and runs of 128 rows, widths with every remainder, more columns than a tile is deep.
PLAIN = [
    Case("random", 129, 160, negatives="both"),
    Case("trained", 200, 96, exponent=-12.0, directions="x"),
    Case("collapsed", 257, 33, negatives="cross", temperature=0.02),
]
# Their options lead into panels at any size.
IN_PANELS = [
    Case("hard", 150, 70, dtype=torch.float16, candidates=(HARD, QUEUE)),
    Case("big", 131, 65, normalize=False, negatives="cross", strides="padded", ids=40),
    Case("scaled", 193, 47, strides="transposed", temperatures="rows"),
    Case("random", 131, 65, negatives="own", candidates=(QUEUE, replace(HARD, ids=True)), ids=20, margin=0.7),
    Case("hard", 130, 70, negatives="none", candidates=(HARD, HARD), temperature=0.01, directions="x"),
]

# Sides that do not fill tiles, for the kernels of small batches; the first is the smallest without float64 products.
RAGGED = [
    Case("hard", 65, 33, exponent=-5.0, negatives="cross", strides="every other"),
    Case("collapsed", 97, 70, dtype=torch.float16),
    Case("scaled", 129, 65, negatives="cross", need=(True, False, True), directions="x"),
    Case("zeros", 161, 20, strides="padded", need=(False, True, True)),
    Case("identical", 191, 17, temperature=0.01),
]

# One of each option away from the plain call.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"negatives": "cross"},
    {"directions": "x"},
    {"negatives": "cross", "directions": "x"},
    {"negatives": "own"},
    {"negatives": "own", "directions": "x", "candidates": (HARD,)},
    {"negatives": "none", "candidates": (HARD, QUEUE)},
    {"candidates": (HARD, QUEUE, Candidates(0))},
    {"ids": 9},
    {"ids": 9, "candidates": (HARD, replace(QUEUE, ids=True))},
    {"candidates": (replace(HARD, ids=True),)},
    {"margin": 0.6},
    {"temperatures": "rows"},
    {"temperatures": "rows", "directions": "x", "normalize": False, "margin": 0.6, "candidates": (HARD,)},
]

# Which panels' sums are held: of the plain call and of one with candidates and ids each way, of the others one of them.
HELD: list[tuple[dict[str, Any], int | None]] = [
    *((options, held) for options in (OPTIONS[0], OPTIONS[10]) for held in (0, 192, None)),
    *zip(OPTIONS[2::2][:3], (0, 192, None), strict=True),
    (OPTIONS[8], 192),
    (OPTIONS[12], None),
]

# The interpreter is slow, and the tests of flash and kept panels draw as many cases again.
FEWER = settings(max_examples=settings().max_examples // 2)


@pytest.fixture(params=["small", "panels", "flash"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small batches' three kernels, panels for every batch, or panels with the gradient's weights in registers."""
    {"small": lambda patch: None, "panels": in_panels, "flash": in_flash}[request.param](monkeypatch)
    taken = {"small": "three, products kept", "panels": "panels", "flash": "panels, flash gradient"}
    assert engine.describe(Shape(40, 8, device_type=DEVICE), problem())["kernels"] == taken[request.param]
    return str(request.param)


@FEWER
@given(cases(max_n=48, max_d=160, dtypes=DTYPES))
def test_acceptance(case: Case) -> None:
    check(case)


@FEWER
@given(case=cases(max_n=48, max_d=160, dtypes=DTYPES), panels_only=st.booleans())
def test_acceptance_of_the_products_of_larger_batches(case: Case, panels_only: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "FEW_PAIRS", 0)
        if panels_only:
            in_panels(patch)
        check(case, chain_of(case))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_acceptance_of_every_option(options: dict[str, Any], path: str) -> None:
    check(Case("random", 37, 24, **options))


@pytest.mark.parametrize(("options", "held"), HELD, ids=str)
def test_acceptance_in_small_panels(options: dict[str, Any], held: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least memory that panels take, whether they serve both of their sides, one run of rows, or some held ones."""
    in_panels(monkeypatch)
    monkeypatch.setattr(config, "FEW_PAIRS", 0)
    plan = memory.BackwardPlan(128, 128, held is None, held or 0)
    monkeypatch.setattr(memory, "plan_backward", lambda *about: plan)
    monkeypatch.setattr(layout, "forward_panel", lambda *about: 128)
    check(Case("random", 130, 8, **options))


@pytest.mark.parametrize("case", [*PLAIN, *IN_PANELS], ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_acceptance_larger(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    in_panels(monkeypatch)
    check(case, chain_of(case))


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_acceptance_larger_in_three_kernels(case: Case) -> None:
    assert str(engine.describe(shape_of(case), case.problem())["kernels"]).startswith("three")
    check(case, chain_of(case))


@pytest.mark.parametrize("case", RAGGED, ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_acceptance_ragged(case: Case) -> None:
    check(case, chain_of(case))


@pytest.mark.parametrize("regime", ["random", "collapsed", "zeros"])
def test_rounded_weights(regime: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in large float16 batches; errors along the row, which are large in collapsed batches, are projected out."""
    monkeypatch.setattr(config, "MANY_PAIRS", 2)
    monkeypatch.setattr(config, "FEW_PAIRS", 0)
    case = Case(regime, 40, 33, dtype=torch.float16)
    assert config.choose(shape_of(case), config.INTERPRETER, problem()).rounds_weights
    check(case, chain_of(case))


@pytest.mark.parametrize("a_exponent", [-1000, -300, 0, 300])
@pytest.mark.parametrize("normalize", [True, False])
def test_factors_of_any_scale(a_exponent: int, normalize: bool, path: str) -> None:
    """a and b are scaled by a power of two, so scaling them scales the gradient exactly."""
    batch = pairs(Case("random", 20, 12, normalize=normalize))
    asked = problem(normalize=normalize)
    a = torch.linspace(0.5, 2, 40, dtype=torch.float64, device=DEVICE)
    plain = both_passes(batch, asked, a)
    scaled = both_passes(batch, asked, a * 2.0**a_exponent)
    for one, other in zip(plain[3:], scaled[3:], strict=True):
        assert torch.equal((one.double() * 2.0**a_exponent).float(), other)


@pytest.mark.parametrize("a_share", [0.0, 1e-30, 1.0])
def test_b_is_independent_of_a(a_share: float, path: str) -> None:
    """Without a, the gradient is that of b."""
    batch = pairs(Case("random", 20, 12))
    forward = engine.forward(batch, problem(), moment=False, gradient=True)
    b = torch.full_like(forward.z, 2.0)
    both, pulled = (engine.backward(forward.state, b * share, b, (True, True)) for share in (a_share, 0.0))
    for one, other in zip(both, pulled, strict=True):
        assert one is not None
        assert torch.equal(one, other) == (a_share != 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize(("workspace", "shared"), [(1 << 15, False), (1 << 18, True)])
def test_small_workspace(
    dtype: torch.dtype, negatives: str, workspace: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeping nothing, several panels, and one run of rows after the other only change the rounding."""
    monkeypatch.setattr(config, "flash_wins", lambda *about: False)
    case = Case("random", 150, 40, dtype=dtype, negatives=negatives)
    batch = pairs(case)
    large, narrow = problem(negatives=negatives), problem(negatives=negatives, workspace=workspace)
    description = engine.describe(batch.shape, narrow)
    assert description["backward_panel"] == 128
    assert description["backward_shared"] == shared
    assert shared or description["forward_panel"] == 256
    passes = [both_passes(batch, narrow), both_passes(batch, large)]
    in_panels(monkeypatch)
    assert engine.describe(batch.shape, large)["backward_panel"] == 384
    passes.append(both_passes(batch, large))
    for one, *others in zip(*passes, strict=True):
        tolerance = {torch.float64: 1e-6, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[one.dtype]
        for other in others:
            assert (one - other).abs().max() <= tolerance * one.abs().max()


@pytest.mark.parametrize("options", [{}, {"candidates": (HARD, QUEUE), "ids": 9, "margin": 0.5}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_bit_for_bit(dtype: torch.dtype, options: dict[str, Any], path: str) -> None:
    case = Case("random", 67, 50, dtype=dtype, **options)
    batch, asked = pairs(case), case.problem()
    first = both_passes(batch, asked)
    for _ in range(2):
        assert all(map(torch.equal, first, both_passes(batch, asked)))


@pytest.mark.parametrize("regime", ["random", "big", "zeros", "scaled"])
def test_reads_nothing_unwritten(regime: str, path: str, poisoned: None) -> None:
    for options in (
        {},
        {"negatives": "cross"},
        {"candidates": (HARD, QUEUE)},
        {"negatives": "none", "directions": "x"},
    ):
        case = Case(regime, 35, 21, normalize=regime != "big", **options)
        check(case)
        forward = engine.forward(case.batch(DEVICE), case.problem(), moment=True, gradient=True)
        assert all(saved.isfinite().all() for saved in engine.save(forward.state)), "unwritten outputs"


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, True), (False, False, True), (True, True, False)]
)
@pytest.mark.parametrize("negatives", ["both", "cross", "none"])
def test_a_gradient_does_not_depend_on_which_others_are_needed(
    needs: tuple[bool, bool, bool], negatives: str, path: str
) -> None:
    batch, asked = pairs(Case("random", 33, 20, candidates=(HARD,))), problem(negatives=negatives)
    every, some = both_passes(batch, asked)[3:], both_passes(batch, asked, needs=needs)[3:]
    assert all(map(torch.equal, [full for full, need in zip(every, needs, strict=True) if need], some))


def test_candidates_on_one_side_cost_no_gradient_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only needed sums are kept, in whole tiles."""
    rows = []
    add = gradient.add_gradient

    def counted(block: Any, packed: Any, sums: torch.Tensor, first: bool, chosen: Any) -> None:
        rows.append(sums.shape[0])
        add(block, packed, sums, first, chosen)

    monkeypatch.setattr(gradient, "add_gradient", counted)
    case = Case("random", 20, 12, candidates=(Candidates(30), Candidates(600)))
    both_passes(pairs(case), problem(), needs=(True, False, True, False))
    # Sums of x's 20 rows over the pairs and over the candidates, and of 30 candidates, each padded to 64.
    assert sorted(rows) == [64, 64, 64]


def test_sides_of_several_dtypes(path: str) -> None:
    """Each gradient has its side's dtype, and half-precision rows are not rounded further."""
    case = Case("random", 20, 12, candidates=(Candidates(9),))
    batch = pairs(case)
    mixed = batch._replace(y=batch.y.half(), candidates=(batch.candidates[0].half(),))
    widened = mixed._replace(y=mixed.y.float(), candidates=(mixed.candidates[0].float(),))
    for half, full in ((mixed, widened), (mixed._replace(candidates=()), widened._replace(candidates=()))):
        found, expected = both_passes(half, problem()), both_passes(full, problem())
        assert [gradient.dtype for gradient in found[3:]] == [side.dtype for side in half.sides]
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other.to(one.dtype))


def test_evaluation_without_gradients(path: str) -> None:
    batch = pairs(Case("random", 20, 12))
    forward = engine.forward(batch, problem(), moment=False, gradient=False)
    assert forward.moment is None
    assert torch.equal(forward.z, both_passes(batch, problem())[0])


def test_temperature_tensor_is_the_number(path: str) -> None:
    case = Case("random", 17, 9)
    by_number, by_tensor, by_row = (
        both_passes(pairs(case, temperature=tau), problem())
        for tau in (0.05, *(torch.full(size, 0.05, dtype=torch.float64, device=DEVICE) for size in ((), (34,))))
    )
    assert all(map(torch.equal, by_number, by_tensor))
    for one, other in zip(by_number, by_row, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, -0.07, math.nan])
def test_temperature_refused_on_the_device_gives_nan(value: float, path: str) -> None:
    """A value that is not read back shows as NaN in every result."""
    results = both_passes(pairs(Case("random", 9, 8), temperature=torch.tensor(value, device=DEVICE)), problem())
    assert all(result.isnan().all() for result in results)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("options", [{}, {"negatives": "own", "candidates": (HARD,)}], ids=str)
def test_not_finite_in_gives_nan_out(bad: float, normalize: bool, options: dict[str, Any], path: str) -> None:
    case = Case("random", 40, 20, normalize=normalize, **options)
    batch = pairs(case)
    batch.x[3, 7] = bad
    z, _, moment, of_x, *_ = both_passes(batch, case.problem())
    assert z[3].isnan()
    assert moment[3].isnan()
    assert of_x[3].isnan().any()


def test_rows_of_zeros_have_no_gradient(path: str) -> None:
    of_x, of_y = both_passes(pairs(Case("zeros", 12, 7)), problem())[3:]
    assert (of_x[0] == 0).all()
    assert (of_y[-1] == 0).all()
    assert of_x[1:].any(dim=1).all()


@pytest.mark.parametrize(
    ("n", "options"),
    [(1, {}), (1, {"negatives": "cross"}), (5, {"negatives": "none"}), (5, {"ids": 1}), (5, {"ids": 1, "margin": 0.5})],
    ids=str,
)
def test_rows_without_negatives(n: int, options: dict[str, Any], path: str) -> None:
    case = Case("random", n, 7, **options)
    z, positive, moment, *gradients = both_passes(pairs(case), case.problem())
    assert (z == -torch.inf).all()
    assert positive.isfinite().all()
    assert (moment == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)


def test_factors_of_zero(path: str) -> None:
    a = torch.zeros(24, dtype=torch.float64, device=DEVICE)
    assert all((gradient == 0).all() for gradient in both_passes(pairs(Case("random", 12, 7)), problem(), a)[3:])


@pytest.mark.parametrize("exponent", [-140, -100, 100, 120])
def test_rows_of_any_scale(exponent: int, path: str) -> None:
    """Powers of two do not change cosines and so values, from subnormal numbers to the largest."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(-8, 9, (2, 20, 12), generator=generator).float().to(DEVICE)
    scaled = (x.double() * 2.0**exponent).float()
    plain, other = (both_passes(Batch(rows, y, (y[:5],)), problem())[0] for rows in (x, scaled))
    torch.testing.assert_close(plain, other, rtol=1e-6, atol=1e-6)


def test_identities_are_equal_where_ids_are() -> None:
    """64-bit ids map to 32 bits; −1 means padding whatever the ids, and candidates without ids equal nothing."""
    ids = torch.tensor([2**40, -1, 2**40, 7], device=DEVICE)
    candidates = torch.zeros(3, 2, device=DEVICE), torch.zeros(4, 2, device=DEVICE)
    of_candidates = (None, torch.tensor([7, 8, -1, -(2**50)], device=DEVICE))
    batch = Batch(
        torch.zeros(4, 2, device=DEVICE), torch.zeros(4, 2, device=DEVICE), candidates, 1.0, ids, of_candidates
    )
    stack = stack_of(batch.shape)
    found = identities(batch, stack)
    assert found is not None
    first = 2 * stack.padded
    rows = torch.cat((found[:4], found[stack.padded :][:4], found[first:][:7]))
    assert (rows >= 0).all()
    assert (found >= 0).sum() == len(rows)
    unique = torch.tensor([10**15 + k for k in range(3)], device=DEVICE)
    expected = torch.cat((ids, ids, unique, of_candidates[1]))
    assert torch.equal(rows[:, None] == rows[None, :], expected[:, None] == expected[None, :])
    assert identities(batch._replace(ids=None, candidate_ids=(None, None)), stack) is None


@settings(max_examples=30)
@given(
    n=st.integers(1, 100_000),
    d=st.integers(1, 4096),
    m=st.integers(0, 100_000),
    workspace=st.integers(20, 34).map(lambda bits: 1 << bits),
)
def test_describe(n: int, d: int, m: int, workspace: int) -> None:
    shape = Shape(n, d, (m,) * (m > 0), DTYPES[1], DEVICE)
    asked = problem(workspace=workspace)
    description = engine.describe(shape, asked)
    ((size,), dtype), *_ = engine.saved_shapes(shape, asked, gradient=True)
    assert dtype == torch.float32
    planes = 10 * stack_of(shape).num_rows
    if description["kernels"] == "panels, flash gradient":
        assert d <= 2 * config.WIDTH_PADDING
        assert str(description["kept_tiles"]).startswith("0 of")
    elif description["kernels"] == "panels":
        for panel in (description["forward_panel"], description["backward_panel"]):
            assert isinstance(panel, int)
            assert panel % 64 == 0
        assert size <= planes + workspace / 4
    else:
        assert n <= config.SMALL_PAIRS
        assert m == 0
        assert (2 * n) ** 2 <= size <= planes + workspace / 4


def test_a_small_batch_takes_three_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    for module, name in ((small, "small_products"), (small, "small_close"), (small_gradient, "small_gradient")):
        monkeypatch.setattr(module, name, Counted(getattr(module, name), launched))
    assert len(both_passes(pairs(Case("random", 5, 8)), problem())) == 5
    assert launched == ["small_products", "small_close", "small_gradient"]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precisions_run(precision: str, path: str) -> None:
    """Their accuracy shows on a GPU only; the interpreter always multiplies exactly."""
    batch = pairs(Case("random", 40, 33))
    exact, found = (both_passes(batch, asked)[0] for asked in (problem(), problem(precision=precision)))
    assert (found - exact).abs().max() < (2e-2 if precision == "medium" else 1e-5)


@pytest.mark.parametrize(
    ("dtype", "device", "reason"),
    [
        (torch.float64, DEVICE, "float64"),
        (torch.float32, "cpu" if ON_GPU else "cuda", "tensors"),
        pytest.param(torch.bfloat16, "cpu", "bfloat16", marks=pytest.mark.skipif(ON_GPU, reason="of the interpreter")),
    ],
)
def test_unsupported_says_why(dtype: torch.dtype, device: str, reason: str) -> None:
    why = engine.unsupported(Shape(8, 8, dtype=dtype, device_type=device), problem())
    assert why is not None
    assert reason in why


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"candidates": (HARD, QUEUE), "ids": 9, "margin": 0.5}], ids=str)
def test_captured_in_a_graph(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Replays follow the inputs, so nothing was read back while capturing."""
    case = Case("random", 300, 96, dtype=dtype, **options)
    batch, asked = pairs(case, temperature=torch.tensor(0.07, device=DEVICE)), case.problem()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both_passes(batch, asked)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both_passes(batch, asked)
    assert isinstance(batch.temperature, torch.Tensor)
    batch.x.copy_(torch.randn_like(batch.x))
    batch.temperature.fill_(0.1)
    graph.replay()
    for replayed, eager in zip(captured, both_passes(batch, asked), strict=True):
        assert torch.equal(replayed, eager)
