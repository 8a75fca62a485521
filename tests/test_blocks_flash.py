"""The Triton path's gradient with weights in registers, also in float32 and at widths that do not choose it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from acceptance import answer, check
from block_calls import DEVICE, DTYPES, both_passes, chain_of, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from regimes import REGIMES, Case, cases

import ctloss
from ctloss.kernels.blocks import config, engine, flash, launch, schedule

# Around whole tiles of either side, rows of one tile of columns and of two.
LARGER = [
    Case("random", 129, 128, negatives="both"),
    Case("trained", 200, 96, loss="info_nce", exponent=-12.0, reduction="sum"),
    Case("collapsed", 257, 33, negatives="cross", temperature=0.02),
    Case("hard", 150, 70, dtype=torch.float16, reduction="none", need=(True, True, True)),
    Case("big", 131, 65, normalize=False, negatives="cross", loss="info_nce", strides="padded"),
    Case("scaled", 193, 47, need=(True, True, True), strides="transposed"),
    Case("identical", 160, 64, temperature=0.01),
]


def in_flash(patch: pytest.MonkeyPatch, wins: bool = True, least_sweep: int = 32) -> None:
    """Have every batch's gradient formed with its weights in registers, or else in panels."""
    patch.setattr(config, "FEW_PAIRS", 0)
    patch.setattr(config, "SMALL_PAIRS", 0)
    patch.setattr(config, "flash_wins", lambda *about: wins)
    patch.setattr(schedule, "LEAST_SWEEP", least_sweep)


@pytest.fixture
def flashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in registers, for any batch, its rows' sums shared out as widely as tiles allow."""
    in_flash(monkeypatch)
    assert engine.describe(DTYPES[0], DEVICE, 40, 8, problem())["kernels"] == "panels, flash gradient"


@given(case=cases(max_n=48, max_d=128, dtypes=DTYPES), least_sweep=st.sampled_from([32, 256]))
def test_acceptance(case: Case, least_sweep: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        in_flash(patch, least_sweep=least_sweep)
        check(case, "triton", DEVICE, chain=chain_of(case))


@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_acceptance_larger(case: Case, flashing: None) -> None:
    check(case, "triton", DEVICE, chain=chain_of(case))


@pytest.mark.parametrize("regime", ["random", "collapsed", "zeros"])
def test_rounded_weights(regime: str, flashing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large float16 batches use; errors along the row, large in collapsed batches, are projected out."""
    monkeypatch.setattr(config, "MANY_PAIRS", 2)
    case = Case(regime, 40, 33, dtype=torch.float16)
    assert config.choose_flash(case.n, case.dtype, config.INTERPRETER, problem()).rounds_weights
    check(case, "triton", DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"loss": "info_nce", "reduction": "sum"}], ids=str)
@pytest.mark.parametrize(("d", "tau"), [(40, 0.07), (100, 0.01)])
def test_means_what_panels_mean(
    d: int, tau: float, options: dict[str, object], negatives: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the workspace: all rows' sums in one share or several, or some rows after the others."""
    normalize = bool(options.get("normalize", True))
    x, y = (rows.to(DEVICE) for rows in Case("random", 70, d, dtype=dtype, normalize=normalize).embeddings())
    in_flash(monkeypatch, wins=False)
    expected = both_passes(x, y, problem(negatives=negatives, **options), tau)
    tolerance = {torch.float32: 4e-7, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    for workspace, shares, run in ((1 << 28, 4 if negatives == "cross" else 8, 256), (1 << 15, 1, 128)):
        in_flash(monkeypatch)
        asked = problem(negatives=negatives, workspace=workspace, **options)
        plan = schedule.plan_flash(70, d, 32, asked)
        assert (plan.shares, plan.run) == (shares, run)
        for one, other in zip(expected, both_passes(x, y, asked, tau), strict=True):
            allowed = tolerance if one.dim() == 2 else 1e-6
            assert (one - other).abs().max() <= allowed * one.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_bit_for_bit(dtype: torch.dtype, flashing: None) -> None:
    case = Case("random", 70, 50, dtype=dtype, need=(True, True, True))
    first, gradients = answer(case, "triton", DEVICE)
    for _ in range(2):
        again, repeated = answer(case, "triton", DEVICE)
        assert torch.equal(first, again)
        assert all(torch.equal(a, b) for a, b in zip(gradients, repeated, strict=True))


@pytest.mark.parametrize("regime", REGIMES)
def test_reads_nothing_unwritten(regime: str, flashing: None, poisoned: None) -> None:
    normalize = regime != "big"
    for negatives in ("both", "cross"):
        case = Case(regime, 35, 21, normalize=normalize, negatives=negatives, need=(True, True, True))
        check(case, "triton", DEVICE)


@pytest.mark.parametrize(
    "need", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_a_gradient_does_not_depend_on_the_others_asked_for(
    need: tuple[bool, bool, bool], negatives: str, flashing: None
) -> None:
    case = Case("random", 70, 20, negatives=negatives, need=(True, True, True))
    _, every = answer(case, "triton", DEVICE)
    _, some = answer(replace(case, need=need), "triton", DEVICE)
    for asked, full, part in zip(need, every, some, strict=True):
        assert (part is None) == (not asked)
        assert part is None or torch.equal(part, full)


def test_temperature_on_the_device(flashing: None) -> None:
    x, y = (rows.to(DEVICE) for rows in Case("random", 17, 9).embeddings())
    by_number = both_passes(x, y, problem(), 0.05)
    by_tensor = both_passes(x, y, problem(), torch.tensor(0.05, dtype=torch.float64, device=DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(by_number[1:3], by_tensor[1:3], strict=True))
    for value in (0.0, -0.07, math.nan):
        refused = both_passes(x, y, problem(), torch.tensor(value, device=DEVICE))
        assert all(result.isnan().all() for result in refused)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_not_finite_in_gives_nan_out(bad: float, normalize: bool, flashing: None) -> None:
    x, y = (rows.to(DEVICE) for rows in Case("random", 40, 20).embeddings())
    x[3, 7] = bad
    x.requires_grad_()
    ctloss.cz_nce(x, y, normalize=normalize, impl="triton").backward()
    assert x.grad is not None
    assert x.grad[3].isnan().any()


def test_rows_of_zeros_have_no_gradient(flashing: None) -> None:
    x, y = (rows.to(DEVICE).requires_grad_() for rows in Case("zeros", 40, 7).embeddings())
    ctloss.cz_nce(x, y, impl="triton").backward()
    assert x.grad is not None
    assert (x.grad[0] == 0).all()
    assert x.grad[1:].any(dim=1).all()


def test_opcheck(flashing: None) -> None:
    x, y = (rows.to(DEVICE).requires_grad_() for rows in Case("random", 11, 20, dtype=DTYPES[-1]).embeddings())
    options = "cz_nce both 1 mean highest 268435456 log triton"
    torch.library.opcheck(torch.ops.ctloss.contrastive.default, (x, y, None, 0.1, f"{options} 1 1 0"))


def test_one_launch_and_no_panel(flashing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Counted:
        def __init__(self, kernel: object) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            launched.append(grid)
            return self.kernel[grid]  # type: ignore[index]

    monkeypatch.setattr(flash, "flash_gradient", Counted(flash.flash_gradient))
    monkeypatch.delattr(launch, "block_weights")
    x, y = (rows.to(DEVICE) for rows in Case("random", 40, 8).embeddings())
    assert len(both_passes(x, y, problem())) == 4
    assert len(launched) == 1


@settings(max_examples=60)
@given(
    n=st.integers(2, 2**20),
    d=st.integers(1, 128),
    workspace=st.integers(2**20, 2**34),
    negatives=st.sampled_from(["both", "cross"]),
)
def test_plans_share_all_columns_out_within_the_workspace(n: int, d: int, workspace: int, negatives: str) -> None:
    asked = problem(negatives=negatives, workspace=workspace)
    plan = schedule.plan_flash(n, d, 64, asked)
    columns = schedule.product_columns(n, asked)
    assert plan.sweep % 64 == plan.run % 64 == 0
    assert (plan.shares - 1) * plan.sweep < columns <= plan.shares * plan.sweep
    assert plan.shares * plan.run * schedule.padded_width(d) * 4 <= workspace
