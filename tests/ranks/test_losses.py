"""Losses over real ranks, with every option: as one process with the whole batch would have them, within its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.acceptance import check_answer
from support.calls import on_this_machine
from support.ranks.calls import answer
from support.ranks.pool import shared
from support.regimes import Case, cases

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PATHS = ("reference", "torch", *on_this_machine())


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, Case, list[float], str, dict[str, Any]]:
    """A case, how many ranks it is cut into and where, how rows travel, and the options of ranks."""
    case = draw(cases(max_n=48, max_d=20, dtypes=DTYPES))
    world = draw(st.integers(2, 4))
    even = draw(st.booleans())
    cuts = sorted(draw(st.lists(st.floats(0, 1), min_size=world - 1, max_size=world - 1)))
    if even:
        cuts = [rank / world for rank in range(1, world)]
    if case.ids is None:
        # Places of different ranks coincide, so candidates with ids need pairs with ids.
        case = replace(case, candidates=tuple(replace(side, ids=False) for side in case.candidates))
    alike = draw(st.booleans())
    if alike:
        # Each rank's part of a shared candidate's gradient is rounded, and the parts may cancel.
        exact = [(side.dtype or case.dtype) == case.precise for side in case.candidates]
        sides = zip(case.candidates, exact, strict=True)
        case = replace(case, candidates=tuple(replace(side, need=side.need and one) for side, one in sides))
    large = case.regime == "scaled" or torch.float16 in {side.dtype or case.dtype for side in (case, *case.candidates)}
    options = {
        "impl": draw(st.sampled_from(PATHS)),
        # Thirds of a half precision number are rounded once more, and W times a number may be beyond its dtype.
        "average": "sum" if world == 3 or large else draw(st.sampled_from(["mean", "sum"])),
        "shared_candidates": alike,
    }
    return world, case, cuts, draw(st.sampled_from(["ring", "gather"])), options


def supported(case: Case, impl: str) -> bool:
    return impl != "native" or torch.float64 not in {side.dtype for side in case.batch().sides}


@given(call=calls())
def test_ranks_have_the_loss_and_gradient_of_one_process(
    call: tuple[int, Case, list[float], str, dict[str, Any]],
) -> None:
    world, case, cuts, transport, options = call
    if not supported(case, options["impl"]):
        options["impl"] = "auto"
    check_answer(case, *answer(shared(), world, case, cuts, transport, **options))
