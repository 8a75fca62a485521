"""The acceptance checks, themselves tested: the reference passes, and each planted fault is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from ctloss.kernels.problem import Batch, Forward, Problem, Shape
from ctloss.reference.gradients import pairs
from support.acceptance import check_answer, check_engine
from support.regimes import Candidates, Case, cases
from support.truth import ReferenceEngine, State, arguments, definition, plain, truth

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Every option at once, so that a fault in any of them shows.
EVERYTHING = Case(
    "random",
    n=7,
    d=5,
    temperature=0.3,
    need=(True, True, True),
    candidates=(Candidates(9, ids=True), Candidates(4)),
    ids=3,
    margin=0.8,
    temperatures="rows",
    weights="rows",
)
# The same through a public function, whose temperatures may be one per pair.
EVERY_ANSWER = replace(EVERYTHING, loss="info_nce", temperatures="pairs")
PLAIN = Case("random", n=7, d=5)
EMPTY = replace(PLAIN, ids=1)


@given(cases(max_n=40, max_d=60, dtypes=DTYPES))
def test_the_reference_is_a_good_engine(case: Case) -> None:
    check_engine(case, ReferenceEngine())


# What is computed instead of the call, and a case in which that must be noticed.
WRONG_CALLS: dict[str, tuple[Case, str, Callable[[Any, Any], Any]]] = {
    "pairs with equal ids count": (EVERYTHING, "ids", lambda batch, problem: torch.arange(len(batch.x))),
    "ids of 32 bits": (EVERYTHING, "ids", lambda batch, problem: batch.ids.int().long()),
    "candidates' ids are ignored": (EVERYTHING, "candidate_ids", lambda batch, problem: (None, None)),
    "candidates without ids are numbered like pairs": (
        replace(EVERYTHING, ids=None),
        "candidate_ids",
        lambda batch, problem: tuple(torch.arange(len(side)) for side in batch.candidates),
    ),
    "the margin is ignored": (EVERYTHING, "margin", lambda batch, problem: None),
    "the margin applies to logits": (EVERYTHING, "margin", lambda batch, problem: problem.margin * 0.3),
    "only the other side is compared with": (EVERYTHING, "negatives", lambda batch, problem: "cross"),
    "every side is compared with": (replace(PLAIN, negatives="own"), "negatives", lambda batch, problem: "both"),
    "one temperature serves all rows": (EVERYTHING, "temperature", lambda batch, problem: batch.temperature.mean()),
    "rows of y have the temperatures of x": (
        EVERYTHING,
        "temperature",
        lambda batch, problem: batch.temperature[:7].repeat(2),
    ),
    "rows are not normalised": (PLAIN, "normalize", lambda batch, problem: False),
}


@pytest.mark.parametrize("forward_too", [True, False], ids=["both passes", "backward only"])
@pytest.mark.parametrize("fault", WRONG_CALLS)
def test_a_wrong_call_is_caught(fault: str, forward_too: bool) -> None:
    case, name, change = WRONG_CALLS[fault]

    def instead(batch: Batch, problem: Problem) -> tuple[Batch, Problem]:
        value = {name: change(batch, problem)}
        return (batch._replace(**value), problem) if name in Batch._fields else (batch, replace(problem, **value))

    class Faulty(ReferenceEngine):
        def forward(self, batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
            asked = instead(batch, problem) if forward_too else (batch, problem)
            return super().forward(*asked, moment=moment, gradient=gradient)

        def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
            return super().backward(State(*instead(state.batch, state.problem), state.z), a, b, needs)

    check_engine(case, ReferenceEngine())
    with pytest.raises(AssertionError, match="over the bound|z = −∞" if forward_too else "gradient: error"):
        check_engine(case, Faulty())


# What is returned for one of the forward's results, a case in which that must be noticed, and the message.
WRONG_FORWARDS: dict[str, tuple[Case, str, Callable[[Any], Tensor], str]] = {
    "a thousandth of a per cent off": (PLAIN, "z", lambda found: found.z * (1 + 1e-5), "z: "),
    "single precision for doubles": (
        replace(PLAIN, dtype=torch.float64),
        "z",
        lambda found: found.z.float().double(),
        "z: ",
    ),
    "z in another dtype": (PLAIN, "z", lambda found: found.z.float(), "^z"),
    "NaN without negatives": (EMPTY, "z", lambda found: found.z * 0, "without negatives"),
    "zero without negatives": (EMPTY, "z", lambda found: found.z.clamp_min(0), "without negatives"),
    "the positive's similarity": (PLAIN, "positive", lambda found: found.positive * 0.07, "positive: "),
    "a moment without negatives": (EMPTY, "moment", lambda found: -found.positive, "moment"),
    "the mean logit for the moment": (PLAIN, "moment", lambda found: found.moment + found.positive, "moment: "),
}


@pytest.mark.parametrize("fault", WRONG_FORWARDS)
def test_a_wrong_forward_is_caught(fault: str) -> None:
    case, name, change, message = WRONG_FORWARDS[fault]

    class Faulty(ReferenceEngine):
        def forward(self, *arguments: Any, **options: bool) -> Forward:
            found = super().forward(*arguments, **options)
            return found if getattr(found, name) is None else found._replace(**{name: change(found)})

    check_engine(case, ReferenceEngine())
    with pytest.raises(AssertionError, match=message):
        check_engine(case, Faulty())


class NoCandidates(ReferenceEngine):
    """Zeros for the candidates, although they need a gradient."""

    def backward(self, state: State, *arguments: Any) -> list[Tensor | None]:
        found = super().backward(state, *arguments)
        return [*found[:2], *(None if g is None else torch.zeros_like(g) for g in found[2:])]


class NoneForCandidates(ReferenceEngine):
    """No tensor for the candidates, although they need a gradient."""

    def backward(self, state: State, *arguments: Any) -> list[Tensor | None]:
        return [*super().backward(state, *arguments)[:2], None, None]


class Unneeded(ReferenceEngine):
    """Gradients for all sides."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        return super().backward(state, a, b, (True,) * len(needs))


class CandidatesOfOneSide(ReferenceEngine):
    """The candidates' gradient from the rows of x only."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        first = torch.arange(len(a)) < len(state.batch.x)
        of_x = super().backward(state, a * first, b * first, needs)
        return [*super().backward(state, a, b, needs)[:2], *of_x[2:]]


class OneFactor(ReferenceEngine):
    """a for b: right for losses that only depend on z."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        return super().backward(state, a, a, needs)


class ProbabilityMinusOne(ReferenceEngine):
    """The positive's pull as 1 minus what single precision keeps of 1 − b."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        return super().backward(state, a, 1 - (1 - b).float().double(), needs)


class SingleFactors(ReferenceEngine):
    """a and b in single precision, which ends at 1e-45."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        return super().backward(state, a.float().double(), b.float().double(), needs)


class HalfGradient(ReferenceEngine):
    """Gradients that have been in half precision."""

    def backward(self, *arguments: Any) -> list[Tensor | None]:
        return [None if g is None else g.bfloat16().to(g.dtype) for g in super().backward(*arguments)]


class OtherDtype(ReferenceEngine):
    """Gradients in double precision, whatever the sides are in."""

    def backward(self, *arguments: Any) -> list[Tensor | None]:
        return [None if g is None else g.double() for g in super().backward(*arguments)]


class Consumed(ReferenceEngine):
    """A state that works for one backward call only."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        seen = state.z.isnan().all()
        state.z.fill_(torch.nan)
        return super().backward(state, a * ~seen, b * ~seen, needs)


class Wavering(ReferenceEngine):
    """A slightly different result in every call."""

    calls = 0

    def backward(self, *arguments: Any) -> list[Tensor | None]:
        self.calls += 1
        return [None if g is None else g * (1 + self.calls * 2.0**-23) for g in super().backward(*arguments)]


class FactorsChanged(ReferenceEngine):
    """The caller's a is scaled in place."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        found = super().backward(state, a, b, needs)
        a *= 2
        return found


class InputChanged(ReferenceEngine):
    """The caller's rows are scaled in place."""

    def forward(self, batch: Batch, *arguments: Any, **options: bool) -> Forward:
        found = super().forward(batch, *arguments, **options)
        batch.x.mul_(2)
        return found


class NotANumber(ReferenceEngine):
    """0 · ∞ in rows without negatives."""

    def backward(self, state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        return super().backward(state, a, b + 0 * state.z, needs)


class SharedMemory(ReferenceEngine):
    """Saves the caller's rows."""

    def save(self, state: State) -> list[Tensor]:
        return [state.batch.x]

    def saved_shapes(
        self, shape: Shape, problem: Problem, *, gradient: bool
    ) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((shape.n, shape.d), torch.float32)]


class OtherShapes(ReferenceEngine):
    """Promises other shapes than it saves."""

    def saved_shapes(
        self, shape: Shape, problem: Problem, *, gradient: bool
    ) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((shape.n,), torch.float64)]


class Refusing(ReferenceEngine):
    """Supports nothing."""

    def unsupported(self, *arguments: Any) -> str | None:
        return "never"


# The seed modulo 4 chooses the scale of a and b.
FAULTY: list[tuple[type[ReferenceEngine], Case, str]] = [
    (NoCandidates, EVERYTHING, "gradient: error"),
    (NoneForCandidates, EVERYTHING, "none where one was"),
    (Unneeded, replace(PLAIN, need=(True, False, False)), "was not needed"),
    (CandidatesOfOneSide, EVERYTHING, "gradient: error"),
    (OneFactor, PLAIN, "gradient: error"),
    (ProbabilityMinusOne, replace(PLAIN, seed=1), "gradient: error"),
    (SingleFactors, replace(PLAIN, seed=2, dtype=torch.float64), "gradient: error"),
    (SingleFactors, replace(PLAIN, seed=2, regime="scaled", dtype=torch.float64), "gradient: error"),
    (HalfGradient, PLAIN, "gradient: error"),
    (HalfGradient, replace(PLAIN, candidates=(Candidates(5, dtype=torch.bfloat16),)), "gradient: error"),
    (OtherDtype, PLAIN, ""),
    (Consumed, PLAIN, "gradient: error"),
    (Wavering, PLAIN, "the second differs"),
    (FactorsChanged, PLAIN, "error|modified"),
    (InputChanged, replace(PLAIN, need=(False, False, True)), "an input was modified"),
    (NotANumber, EMPTY, "not finite"),
    (SharedMemory, PLAIN, "shares its memory"),
    (OtherShapes, PLAIN, ""),
    (Refusing, PLAIN, ""),
]


@pytest.mark.parametrize(("faulty", "case", "message"), FAULTY)
def test_a_faulty_engine_is_caught(faulty: type[ReferenceEngine], case: Case, message: str) -> None:
    check_engine(case, ReferenceEngine())
    with pytest.raises(AssertionError, match=message or None):
        check_engine(case, faulty())


@given(cases(max_n=40, max_d=60, dtypes=DTYPES))
def test_the_definition_is_a_good_answer(case: Case) -> None:
    check_answer(case, *definition(case))


# What a public function returns instead of the definition's loss or gradient, a case in which that must be noticed, and
# the message.
Gradients = list[Tensor | None]


def changed_loss(change: Callable[[Tensor], Tensor]) -> Callable[[Case, Tensor, Any], tuple[Tensor, Gradients]]:
    return lambda case, loss, gradients: (change(loss), gradients)


def changed_gradient(
    k: int, change: Callable[[Tensor], Any]
) -> Callable[[Case, Tensor, Any], tuple[Tensor, Gradients]]:
    return lambda case, loss, gradients: (loss, [*gradients[:k], change(gradients[k]), *gradients[k + 1 :]])


def probability_minus_one(case: Case, loss: Tensor, gradients: Gradients) -> tuple[Tensor, Gradients]:
    """The pull of infoNCE's positive as a softmax minus its one-hot target, formed in single precision."""
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
        EVERY_ANSWER,
        lambda case, loss, gradients: (loss * plain(replace(case, reduction="sum")).shares.mean().float(), gradients),
        "value",
    ),
    "no weights": (
        replace(EVERY_ANSWER, reduction="none"),
        lambda case, loss, gradients: (plain(case).rows.float(), gradients),
        "value",
    ),
    "1 for rows without negatives": (
        replace(PLAIN, ids=1, form="ratio", reduction="none"),
        changed_loss(torch.ones_like),
        "value",
    ),
    "no gradient for candidates": (EVERY_ANSWER, changed_gradient(3, torch.zeros_like), "gradient: error"),
    "NaN": (EVERY_ANSWER, changed_gradient(4, lambda g: g / 0 * 0), "not finite"),
    "one row's gradient vanished": (
        replace(PLAIN, negatives="none", candidates=(Candidates(3, need=False),), directions="x", regime="scaled"),
        changed_gradient(0, lambda g: g * (g.abs() > g.abs().amin(1).min() * 1e6)),
        "vanished|error",
    ),
    "temperatures of pairs from the rows of x only": (
        EVERY_ANSWER,
        changed_gradient(2, lambda g: g / 2),
        "temperature",
    ),
    "one number for all temperatures": (EVERY_ANSWER, changed_gradient(2, torch.sum), ""),
    "nothing for the temperatures": (EVERY_ANSWER, changed_gradient(2, lambda g: None), ""),
}


@pytest.mark.parametrize("fault", WRONG_ANSWERS)
def test_a_wrong_answer_is_caught(fault: str) -> None:
    case, change, message = WRONG_ANSWERS[fault]
    check_answer(case, *definition(case))
    with pytest.raises(AssertionError, match=message or None):
        check_answer(case, *change(case, *definition(case)))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_margin_leaves_the_requested_share(share: float) -> None:
    case = Case("random", 20, 8, candidates=(Candidates(11, ids=True),), ids=9)
    every = pairs(**arguments(case.batch(), case.problem())).counts.sum()
    case = replace(case, margin=share)
    left = pairs(**arguments(case.batch(), case.problem())).counts.sum()
    assert abs(left / every - share) < 0.01


def test_any_row_loss_has_its_factors() -> None:
    """Label smoothing as an example: softplus(z) + ε s⁺ has a = σ(z) and b = σ(z) − ε."""
    case = replace(EVERY_ANSWER, reduction="sum", upstream=3.0)
    smooth = plain(case, lambda z, positive: torch.nn.functional.softplus(z) + 0.1 * positive)
    some = smooth.z > -torch.inf
    torch.testing.assert_close(smooth.a, 3 * smooth.shares * torch.sigmoid(smooth.z))
    torch.testing.assert_close(smooth.b, smooth.a - 0.3 * smooth.shares * some)
