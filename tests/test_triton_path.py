"""The Triton path: under Triton's interpreter on a CPU, where bfloat16 is out of its reach; compiled on a GPU."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from acceptance import answer, check, check_value, truth
from agreement import assert_alike
from hypothesis import given, settings
from hypothesis import strategies as st
from regimes import REGIMES, Case, cases
from triton_calls import DEVICE, DTYPES, ON_GPU, both_passes, chain_of, in_flash, problem

import ctloss
from ctloss.kernels.triton_path import config, engine, small

pytestmark = pytest.mark.numeric

# Around whole tiles and runs of 128 rows, widths that leave every remainder, more columns than a tile is deep.
LARGER = [
    Case("random", 129, 160, negatives="both"),
    Case("trained", 200, 96, loss="info_nce", exponent=-12.0, reduction="sum"),
    Case("collapsed", 257, 33, negatives="cross", temperature=0.02),
    Case("hard", 150, 70, dtype=torch.float16, reduction="none", need=(True, True, True)),
    Case("big", 131, 65, normalize=False, negatives="cross", loss="info_nce", strides="padded"),
    Case("scaled", 193, 47, need=(True, True, True), strides="transposed"),
]

# Sides that fill no tile, for the kernels of small batches; the first is the smallest without products in float64.
RAGGED = [
    Case("hard", 65, 33, loss="info_nce", exponent=-5.0, negatives="cross", strides="every other"),
    Case("collapsed", 97, 70, dtype=torch.float16, reduction="sum"),
    Case("scaled", 129, 65, negatives="cross", need=(True, False, True)),
    Case("zeros", 161, 20, reduction="none", strides="padded", need=(False, True, True)),
    Case("identical", 191, 17, temperature=0.01, loss="info_nce"),
]

# For what acceptance of another kind covers as well.
FEWER = settings(max_examples=settings().max_examples // 2)

# The largest batches that take three kernels: as it is, and so that every batch is computed in panels.
SMALL_PAIRS = {"small": config.SMALL_PAIRS, "panels": 0}


@pytest.fixture(params=[*SMALL_PAIRS, "flash"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take small batches' three kernels, panels for every batch, or panels and the gradient's weights in registers."""
    if request.param == "flash":
        in_flash(monkeypatch)
    else:
        monkeypatch.setattr(config, "SMALL_PAIRS", SMALL_PAIRS[request.param])
    taken = {"small": "three, products kept", "panels": "panels", "flash": "panels, flash gradient"}
    assert engine.describe(DTYPES[0], DEVICE, 40, 8, problem())["kernels"] == taken[request.param]
    return str(request.param)


@given(cases(max_n=48, max_d=160, dtypes=DTYPES))
def test_acceptance(case: Case) -> None:
    check(case, "triton", DEVICE)


@FEWER
@given(cases(max_n=48, max_d=160, dtypes=DTYPES))
def test_acceptance_in_panels(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "SMALL_PAIRS", 0)
        check(case, "triton", DEVICE)


@FEWER
@given(case=cases(max_n=48, max_d=160, dtypes=DTYPES), small_pairs=st.sampled_from(list(SMALL_PAIRS.values())))
def test_acceptance_of_the_products_of_larger_batches(case: Case, small_pairs: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "FEW_PAIRS", 0)
        patch.setattr(config, "SMALL_PAIRS", small_pairs)
        check(case, "triton", DEVICE, chain=chain_of(case))


@pytest.mark.parametrize("path", SMALL_PAIRS, indirect=True)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_acceptance_larger(case: Case, path: str) -> None:
    check(case, "triton", DEVICE)


@pytest.mark.parametrize("case", RAGGED, ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_acceptance_ragged(case: Case) -> None:
    check(case, "triton", DEVICE)


@pytest.mark.parametrize("regime", ["random", "collapsed", "zeros"])
def test_rounded_weights(regime: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large float16 batches use; errors along the row, large in collapsed batches, are projected out."""
    monkeypatch.setattr(config, "MANY_PAIRS", 2)
    monkeypatch.setattr(config, "FEW_PAIRS", 0)
    case = Case(regime, 40, 33, dtype=torch.float16)
    assert config.choose(case.n, case.d, case.dtype, config.INTERPRETER, problem()).rounds_weights
    check(case, "triton", DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize(("workspace", "shared"), [(1 << 15, False), (1 << 18, True)])
def test_small_workspace(
    dtype: torch.dtype, negatives: str, workspace: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing kept, several panels, and in the smallest one run of rows after the other change roundings alone."""
    monkeypatch.setattr(config, "flash_wins", lambda *about: False)
    case = Case("random", 150, 40, dtype=dtype, negatives=negatives)
    large, narrow = problem(negatives=negatives), problem(negatives=negatives, workspace=workspace)
    description = engine.describe(dtype, DEVICE, case.n, case.d, narrow)
    assert description["backward_panel"] == 128
    assert description["backward_shared"] == shared
    assert shared or description["forward_panel"] == 256
    x, y = (rows.to(DEVICE) for rows in case.embeddings())
    passes = [both_passes(x, y, narrow), both_passes(x, y, large)]
    monkeypatch.setattr(config, "SMALL_PAIRS", 0)
    assert engine.describe(dtype, DEVICE, case.n, case.d, large)["backward_panel"] == 384
    passes.append(both_passes(x, y, large))
    for other in passes[1:]:
        assert_alike(case, x, y, other, passes[0], chain=chain_of(case))


@pytest.mark.parametrize("case", [Case("random", 37, 50), replace(LARGER[3], n=70)], ids=["float32", "float16"])
def test_repeats_bit_for_bit(case: Case, path: str) -> None:
    case = replace(case, need=(True, True, True))
    first, gradients = answer(case, "triton", DEVICE)
    for _ in range(2):
        again, repeated = answer(case, "triton", DEVICE)
        assert torch.equal(first, again)
        assert all(torch.equal(a, b) for a, b in zip(gradients, repeated, strict=True))


@pytest.mark.parametrize("regime", REGIMES)
def test_reads_nothing_unwritten(regime: str, path: str, poisoned: None) -> None:
    normalize = regime != "big"
    for negatives in ("both", "cross"):
        check(Case(regime, 35, 21, normalize=normalize, negatives=negatives, need=(True, True, True)), "triton", DEVICE)


@pytest.mark.parametrize(
    "need", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_a_gradient_does_not_depend_on_the_others_asked_for(
    need: tuple[bool, bool, bool], negatives: str, path: str
) -> None:
    case = Case("random", 33, 20, negatives=negatives, need=(True, True, True))
    _, every = answer(case, "triton", DEVICE)
    _, some = answer(replace(case, need=need), "triton", DEVICE)
    for asked, full, part in zip(need, every, some, strict=True):
        assert (part is None) == (not asked)
        assert part is None or torch.equal(part, full)


def test_row_losses_without_gradients(path: str) -> None:
    case = Case("random", 20, 12, reduction="none")
    x, y = (rows.to(DEVICE) for rows in case.embeddings())
    with torch.no_grad():
        losses = ctloss.cz_nce(x, y, reduction="none", impl="triton")
    assert losses.shape == (40,)
    assert not losses.requires_grad
    check_value(case, losses.cpu(), truth(case, *case.embeddings(), case.upstream_gradient()))


def test_temperature_tensor_is_the_number(path: str) -> None:
    x, y = (rows.to(DEVICE) for rows in Case("random", 17, 9).embeddings())
    options = {"problem": problem(), "need_x": True, "need_y": True, "need_temperature": True}
    by_number = engine.forward(x, y, 0.05, **options)
    by_tensor = engine.forward(x, y, torch.tensor(0.05, dtype=torch.float64, device=DEVICE), **options)
    assert torch.equal(by_number[0], by_tensor[0])


@pytest.mark.parametrize("value", [0.0, -0.07, math.nan])
def test_temperature_refused_on_the_device_gives_nan(value: float, path: str) -> None:
    """A value that is not read back shows as NaN in every result."""
    x, y = (rows.to(DEVICE) for rows in Case("random", 9, 8).embeddings())
    results = both_passes(x, y, problem(), torch.tensor(value, device=DEVICE))
    assert len(results) == 4
    assert all(result.isnan().all() for result in results)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
def test_not_finite_in_gives_nan_out(bad: float, normalize: bool, loss: str, path: str) -> None:
    x, y = (rows.to(DEVICE) for rows in Case("random", 40, 20).embeddings())
    x[3, 7] = bad
    x.requires_grad_()
    value = getattr(ctloss, loss)(x, y, normalize=normalize, impl="triton")
    value.backward()
    assert value.isnan()
    assert x.grad is not None
    assert x.grad[3].isnan().any()


def test_rows_of_zeros_have_no_gradient(path: str) -> None:
    x, y = (rows.to(DEVICE).requires_grad_() for rows in Case("zeros", 12, 7).embeddings())
    ctloss.cz_nce(x, y, impl="triton").backward()
    assert x.grad is not None
    assert y.grad is not None
    assert (x.grad[0] == 0).all()
    assert (y.grad[-1] == 0).all()
    assert x.grad[1:].any(dim=1).all()


def test_upstream_of_zero(path: str) -> None:
    x, y = (rows.to(DEVICE).requires_grad_() for rows in Case("random", 12, 7).embeddings())
    (ctloss.info_nce(x, y, impl="triton") * 0).backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


@pytest.mark.parametrize("exponent", [-140, -100, 100, 120])
def test_rows_of_any_scale(exponent: int, path: str) -> None:
    """Cosines, and so values, do not notice a power of two, down to subnormal numbers and up to the largest."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(-8, 9, (2, 20, 12), generator=generator).float().to(DEVICE)
    case = Case("random", 20, 12, reduction="none")
    plain = ctloss.cz_nce(x, y, impl="triton", reduction="none")
    scaled = ctloss.cz_nce((x.double() * 2.0**exponent).float(), y, impl="triton", reduction="none")
    assert_alike(case, x, y, (scaled, None, None, None), (plain, None, None, None))


@settings(max_examples=30)
@given(n=st.integers(2, 100_000), d=st.integers(1, 4096), workspace=st.integers(20, 34).map(lambda bits: 1 << bits))
def test_describe(n: int, d: int, workspace: int) -> None:
    description = engine.describe(DTYPES[1], DEVICE, n, d, problem(workspace=workspace))
    size = math.prod(engine.stats_shape(DTYPES[1], n, d, problem(workspace=workspace), differentiated=True))
    if description["kernels"] == "panels, flash gradient":
        assert d <= 2 * config.WIDTH_PADDING
        assert str(description["kept_tiles"]).startswith("0 of")
    elif description["kernels"] == "panels":
        for panel in (description["forward_panel"], description["backward_panel"]):
            assert isinstance(panel, int)
            assert panel % 128 == 0
        assert size <= 9 * 2 * (n + 127) + workspace / 4
    else:
        assert n <= config.SMALL_PAIRS
        assert (2 * n) ** 2 <= size <= 9 * 2 * (n + 63) + workspace / 4


def test_a_small_batch_takes_three_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(small, name)

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            launched.append(self.name)
            return self.kernel[grid]

    for name in ("small_products", "small_close", "small_gradient"):
        monkeypatch.setattr(small, name, Counted(name))
    x, y = (rows.to(DEVICE) for rows in Case("random", 5, 8).embeddings())
    assert len(both_passes(x, y, problem())) == 4
    assert launched == ["small_products", "small_close", "small_gradient"]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precisions_run(precision: str, path: str) -> None:
    """Their tables belong to a GPU; the interpreter multiplies what is not cut before exactly."""
    case = Case("random", 40, 33)
    x, y = (rows.to(DEVICE).requires_grad_() for rows in case.embeddings())
    exact = ctloss.cz_nce(x, y, impl="triton", reduction="none")
    rows = ctloss.cz_nce(x, y, impl="triton", reduction="none", precision=precision)
    if ON_GPU or precision == "medium":
        assert (rows - exact).mean().abs().item() < (2e-2 if precision == "medium" else 1e-5)
    else:
        assert_alike(case, x, y, (rows, None, None, None), (exact, None, None, None))


@pytest.mark.parametrize(
    ("dtype", "device", "reason"),
    [(torch.float64, DEVICE, "float64"), (torch.float32, "cpu" if ON_GPU else "cuda", "tensors")],
)
def test_unsupported_says_why(dtype: torch.dtype, device: str, reason: str) -> None:
    why = engine.unsupported(dtype, device, 8, 8, problem())
    assert why is not None
    assert reason in why


@pytest.mark.skipif(ON_GPU, reason="about the interpreter")
def test_unsupported_bfloat16_under_the_interpreter() -> None:
    why = engine.unsupported(torch.bfloat16, "cpu", 8, 8, problem())
    assert why is not None
    assert "bfloat16" in why


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_captured_in_a_graph(dtype: torch.dtype) -> None:
    """Replays follow the inputs: nothing was read back while capturing."""
    x, y = (rows.to(DEVICE).requires_grad_() for rows in Case("random", 300, 96, dtype=dtype).embeddings())
    tau = torch.tensor(0.07, device=DEVICE, requires_grad=True)

    def step() -> tuple[torch.Tensor, ...]:
        loss = ctloss.cz_nce(x, y, temperature=tau, impl="triton")
        return loss.detach(), *torch.autograd.grad(loss, (x, y, tau))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        tau.fill_(0.1)
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        assert torch.equal(replayed, eager)
