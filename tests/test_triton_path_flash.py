"""The Triton path's gradient with weights in registers, also in float32 and at widths that do not choose it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from acceptance import check
from agreement import assert_alike
from hypothesis import given, settings
from hypothesis import strategies as st
from regimes import Case, cases
from triton_calls import DEVICE, DTYPES, both_passes, chain_of, in_flash, problem

from ctloss.kernels.triton_path import engine, flash, launch, schedule

pytestmark = pytest.mark.numeric

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"loss": "info_nce", "reduction": "sum"}], ids=str)
@pytest.mark.parametrize(("d", "tau"), [(40, 0.07), (100, 0.01)])
def test_means_what_panels_mean(
    d: int, tau: float, options: dict[str, Any], negatives: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the workspace: all rows' sums in one share or several, or some rows after the others."""
    case = Case("random", 70, d, dtype=dtype, temperature=tau, negatives=negatives, **options)
    x, y = (rows.to(DEVICE) for rows in case.embeddings())
    in_flash(monkeypatch, wins=False)
    expected = both_passes(x, y, problem(negatives=negatives, **options), tau)
    for workspace, shares, run in ((1 << 28, 4 if negatives == "cross" else 8, 256), (1 << 15, 1, 128)):
        in_flash(monkeypatch)
        asked = problem(negatives=negatives, workspace=workspace, **options)
        plan = schedule.plan_flash(70, d, 32, asked)
        assert (plan.shares, plan.run) == (shares, run)
        assert_alike(case, x, y, both_passes(x, y, asked, tau), expected, chain=chain_of(case))


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
