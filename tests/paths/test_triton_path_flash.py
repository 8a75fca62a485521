"""The Triton path's gradient with weights in registers, also in float32 and at widths that do not choose it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctloss.kernels.problem import Shape
from ctloss.kernels.triton_path import engine, flash, weights
from ctloss.kernels.triton_path.plan import layout
from ctloss.kernels.triton_path.plan.layout import stack_of, wanted_spans
from support.regimes import Candidates, Case, cases
from support.triton_calls import DEVICE, DTYPES, Counted, both_passes, chain_of, check, in_flash, pairs, problem

pytestmark = pytest.mark.numeric

# Sizes around whole tiles, rows of one and of two tiles of columns, sweeps with and without a gap.
LARGER = [
    Case("random", 129, 128, negatives="both"),
    Case("trained", 200, 96, exponent=-12.0, directions="x"),
    Case("collapsed", 257, 33, negatives="cross", temperature=0.02),
    Case("hard", 130, 70, dtype=torch.float16, negatives="own", candidates=(Candidates(70),)),
    Case("big", 131, 65, normalize=False, negatives="cross", strides="padded", ids=50),
    Case("scaled", 193, 47, strides="transposed", negatives="none", candidates=(Candidates(70), Candidates(9))),
    Case("identical", 160, 64, temperature=0.01),
]


@pytest.fixture
def flashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in registers for any batch, with sums split over as many programs as tiles allow."""
    in_flash(monkeypatch)
    assert engine.describe(Shape(40, 8, device_type=DEVICE), problem())["kernels"] == "panels, flash gradient"


@settings(max_examples=settings().max_examples // 2)
@given(case=cases(max_n=48, max_d=128, dtypes=DTYPES), least_sweep=st.sampled_from([64, 256]))
def test_acceptance(case: Case, least_sweep: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        in_flash(patch, least_sweep=least_sweep)
        check(case, chain_of(case))


@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_acceptance_larger(case: Case, flashing: None) -> None:
    check(case, chain_of(case))


@pytest.mark.parametrize(
    ("d", "tau", "options"),
    [
        (40, 0.07, {"negatives": "own", "candidates": (Candidates(70),)}),
        (100, 0.01, {}),
        (100, 0.07, {"normalize": False}),
    ],
)
def test_acceptance_in_any_workspace(
    d: int, tau: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in one share or several, for all rows at once or run by run."""
    case = Case("random", 70, d, temperature=tau, **options)
    shape = case.batch(DEVICE).shape
    stack = stack_of(shape)
    for workspace in (1 << 28, 1 << 15):
        in_flash(monkeypatch)
        asked = case.problem(workspace=workspace)
        monkeypatch.setattr(Case, "problem", lambda _, asked=asked, **changes: replace(asked, **changes))
        span, swept = layout.flash_runs(wanted_spans(case.needs, stack), stack, asked)[0]
        columns = sum(map(layout.length, swept))
        plan = layout.plan_flash(layout.length(span), columns, stack.width, 64, workspace)
        assert (plan.shares == 1) == (workspace == 1 << 15)
        check(case)
        monkeypatch.undo()


def test_a_launch_for_all_rows_and_no_panel(flashing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one launch per side; sides that sweep the same rows are one run."""
    launched: list[str] = []
    monkeypatch.setattr(flash, "flash_gradient", Counted(flash.flash_gradient, launched))
    monkeypatch.delattr(weights, "block_weights")
    for options, launches in (({}, 1), ({"negatives": "cross"}, 2), ({"candidates": (Candidates(9),)}, 2)):
        case = Case("random", 40, 8, **options)
        both_passes(pairs(case), case.problem())
        assert len(launched) == launches
        launched.clear()


@settings(max_examples=60)
@given(
    n=st.integers(1, 2**20),
    d=st.integers(1, 128),
    m=st.integers(0, 2**20),
    workspace=st.integers(2**20, 2**34),
    negatives=st.sampled_from(["both", "cross", "own", "none"]),
    directions=st.sampled_from(["both", "x"]),
)
def test_plans_share_all_columns_out_within_the_workspace(
    n: int, d: int, m: int, workspace: int, negatives: str, directions: str
) -> None:
    asked = problem(negatives=negatives, directions=directions, workspace=workspace)
    stack = stack_of(Shape(n, d, (m,)))
    wanted = wanted_spans((True, True, True), stack)
    covered = []
    for span, swept in layout.flash_runs(wanted, stack, asked):
        covered.append(span)
        columns = sum(map(layout.length, swept))
        plan = layout.plan_flash(layout.length(span), columns, stack.width, 64, workspace)
        assert len(swept) <= 2
        assert plan.sweep % 64 == plan.run % 64 == 0
        assert (plan.shares - 1) * plan.sweep < max(1, columns) <= plan.shares * plan.sweep
        # A run may be longer than the rows there are, and only their sums take memory.
        assert plan.shares * min(plan.run, layout.length(span)) * stack.width * 4 <= workspace
    assert sum(map(layout.length, covered)) == stack.num_rows
