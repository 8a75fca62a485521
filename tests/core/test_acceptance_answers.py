"""The acceptance of public functions, itself tested: the definition passes, and each planted fault is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from ctloss.reference.gradients import pairs
from support.acceptance import check_answer
from support.reference_engine import definition
from support.regimes import Candidates, Case, cases
from support.truth import arguments, plain, truth

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@given(cases(max_n=40, max_d=60, dtypes=DTYPES))
def test_the_definition_is_a_good_answer(case: Case) -> None:
    check_answer(case, *definition(case))


# Every option at once, so that a fault in any of them has something to spoil.
EVERYTHING = Case(
    "random",
    n=7,
    d=5,
    temperature=0.3,
    loss="info_nce",
    need=(True, True, True),
    candidates=(Candidates(9, ids=True), Candidates(4)),
    ids=3,
    margin=0.8,
    temperatures="pairs",
    weights="rows",
)
PLAIN = Case("random", n=7, d=5)

# What a public function returns for a number or a gradient of the definition's, a case that must notice, and how.
Gradients = list[Tensor | None]


def changed_loss(change: Callable[[Tensor], Tensor]) -> Callable[[Case, Tensor, Any], tuple[Tensor, Gradients]]:
    return lambda case, loss, gradients: (change(loss), gradients)


def changed_gradient(
    k: int, change: Callable[[Tensor], Any]
) -> Callable[[Case, Tensor, Any], tuple[Tensor, Gradients]]:
    return lambda case, loss, gradients: (loss, [*gradients[:k], change(gradients[k]), *gradients[k + 1 :]])


def probability_minus_one(case: Case, loss: Tensor, gradients: Gradients) -> tuple[Tensor, Gradients]:
    """The pull of infoNCE's positive by a softmax less its one-hot target, formed in single precision."""
    wanted = plain(case)
    less = wanted.shares * (1 - (1 - wanted.a / wanted.shares).float().double())
    exact = truth(case, wanted.a, less)
    return loss, [exact.gradients[0].float(), exact.gradients[1].float(), None]


TRAINED = Case("trained", 8, 24, temperature=0.01, loss="info_nce", exponent=-20.0)
WRONG_ANSWERS: dict[str, tuple[Case, Callable[[Case, Tensor, Any], tuple[Tensor, Gradients]], str]] = {
    "p - 1": (TRAINED, probability_minus_one, "gradient: error"),
    "infoNCE of a trained batch is zero": (TRAINED, changed_loss(torch.zeros_like), "value"),
    "a thousandth of a per cent off": (PLAIN, changed_loss(lambda loss: loss * (1 + 1e-5)), "value"),
    "in the input's half precision": (
        replace(PLAIN, dtype=torch.bfloat16),
        changed_loss(lambda loss: loss.bfloat16()),
        "",
    ),
    "weights by the number of rows": (
        EVERYTHING,
        lambda case, loss, gradients: (loss * plain(replace(case, reduction="sum")).shares.mean().float(), gradients),
        "value",
    ),
    "no weights": (
        replace(EVERYTHING, reduction="none"),
        lambda case, loss, gradients: (plain(case).rows.float(), gradients),
        "value",
    ),
    "1 for rows without negatives": (
        replace(PLAIN, ids=1, form="ratio", reduction="none"),
        changed_loss(torch.ones_like),
        "value",
    ),
    "no gradient for candidates": (EVERYTHING, changed_gradient(3, torch.zeros_like), "gradient: error"),
    "NaN": (EVERYTHING, changed_gradient(4, lambda g: g / 0 * 0), "not finite"),
    "one row's gradient vanished": (
        replace(PLAIN, negatives="none", candidates=(Candidates(3, need=False),), directions="x", regime="scaled"),
        changed_gradient(0, lambda g: g * (g.abs() > g.abs().amin(1).min() * 1e6)),
        "vanished|error",
    ),
    "the temperatures of pairs by rows of x alone": (EVERYTHING, changed_gradient(2, lambda g: g / 2), "temperature"),
    "one number for all temperatures": (EVERYTHING, changed_gradient(2, torch.sum), ""),
    "nothing for the temperatures": (EVERYTHING, changed_gradient(2, lambda g: None), ""),
}


@pytest.mark.parametrize("fault", WRONG_ANSWERS)
def test_a_wrong_answer_is_caught(fault: str) -> None:
    case, change, message = WRONG_ANSWERS[fault]
    check_answer(case, *definition(case))
    with pytest.raises(AssertionError, match=message or None):
        check_answer(case, *change(case, *definition(case)))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_margin_lets_the_share_stand_that_was_asked_for(share: float) -> None:
    case = Case("random", 20, 8, candidates=(Candidates(11, ids=True),), ids=9)
    every = pairs(**arguments(case.batch(), case.problem())).counts.sum()
    case = replace(case, margin=share)
    left = pairs(**arguments(case.batch(), case.problem())).counts.sum()
    assert abs(left / every - share) < 0.01


def test_any_row_loss_has_its_factors() -> None:
    """Label smoothing's part that every loss of z and s⁺ shares: softplus(z) + ε s⁺ has a = σ(z) and b = σ(z) − ε."""
    case = replace(EVERYTHING, reduction="sum", upstream=3.0)
    smooth = plain(case, lambda z, positive: torch.nn.functional.softplus(z) + 0.1 * positive)
    some = smooth.z > -torch.inf
    torch.testing.assert_close(smooth.a, 3 * smooth.shares * torch.sigmoid(smooth.z))
    torch.testing.assert_close(smooth.b, smooth.a - 0.3 * smooth.shares * some)
