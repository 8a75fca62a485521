"""Tiles of the Triton path worked on in halves, so that two blocks fit a multiprocessor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from acceptance import check
from agreement import assert_alike
from hypothesis import given, settings
from regimes import Case, cases
from triton_calls import DEVICE, DTYPES, both_passes, chain_of, problem

from ctloss.kernels.triton_path import config, engine

pytestmark = pytest.mark.numeric

LARGER = [
    Case("collapsed", 257, 33, negatives="cross", temperature=0.02),
    Case("hard", 150, 70, dtype=torch.float16, reduction="none", need=(True, True, True)),
    Case("big", 131, 65, normalize=False, negatives="cross", loss="info_nce", strides="padded"),
]


def in_halves(halves: config.Halves, patch: pytest.MonkeyPatch) -> None:
    """Have every tile worked on in halves."""
    choose = config.choose
    patch.setattr(config, "FEW_PAIRS", 0)
    patch.setattr(config, "SMALL_PAIRS", 0)
    patch.setattr(config, "choose", lambda *about: replace(choose(*about), halves=halves))


@pytest.mark.parametrize("halves", ["together", "apart"])
@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.regime}-{case.n}x{case.d}")
def test_halves_of_tiles(case: Case, halves: config.Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    in_halves(halves, monkeypatch)
    assert engine.describe(case.dtype, DEVICE, case.n, case.d, problem())["halves"] == halves
    check(case, "triton", DEVICE, chain=chain_of(case))


@pytest.mark.parametrize("halves", ["together", "apart"])
def test_halves_of_any_batch(halves: config.Halves) -> None:
    """A half may be nothing but padding or what is left out, and any row's maximum may lie in either."""

    @settings(max_examples=10)
    @given(cases(max_n=48, max_d=70, dtypes=DTYPES))
    def accepted(case: Case) -> None:
        with pytest.MonkeyPatch.context() as patch:
            in_halves(halves, patch)
            check(case, "triton", DEVICE, chain=chain_of(case))

    accepted()


@pytest.mark.parametrize("halves", ["together", "apart"])
@pytest.mark.parametrize("tau", [0.07, 0.01])
def test_halves_change_the_order_of_sums_alone(
    halves: config.Halves, tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("random", 70, 40, temperature=tau)
    x, y = (rows.to(DEVICE) for rows in case.embeddings())
    monkeypatch.setattr(config, "FEW_PAIRS", 0)
    monkeypatch.setattr(config, "SMALL_PAIRS", 0)
    whole = both_passes(x, y, problem(), tau)
    in_halves(halves, monkeypatch)
    # Not that the answers differ: sums in another order may come out the same.
    assert engine.describe(case.dtype, DEVICE, case.n, case.d, problem())["halves"] == halves
    halved = both_passes(x, y, problem(), tau)
    assert all(map(torch.equal, halved, both_passes(x, y, problem(), tau)))
    assert_alike(case, x, y, halved, whole)
