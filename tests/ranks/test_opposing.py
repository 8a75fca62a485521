"""The sigmoid loss over ranks: a rectangle of rows without partners, and real ranks against one process."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ctloss
from ctloss.kernels.problem import Problem
from ctloss.kernels.sigmoid import SCALE, Solved
from ctloss.kernels.torch_path.engine import Held, release
from ctloss.kernels.torch_path.sig_lip import oppose
from ctloss.reference.sig_lip import opposing_losses, row_losses
from support.acceptance import check_rows, side_rows
from support.calls import noisy
from support.ranks import sig_lip as on_ranks
from support.ranks.pool import Ended, shared
from support.regimes import Case
from support.sig_lip import FLOOR, Question, check_answer, questions
from support.truth import FINENESS, norms

pytestmark = pytest.mark.numeric

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FEWER = settings(max_examples=settings().max_examples // 2)


def test_the_definition_is_what_partners_leave() -> None:
    x, y = noisy(6, 3, torch.float64)
    ids = torch.tensor([0, 1, 0, 2, 3, 1])
    for given_ids in (None, ids):
        options: dict[str, Any] = {"temperature": 0.3, "bias": -1.0}
        whole = row_losses(x, y, ids=given_ids, **options)
        cut = None if given_ids is None else (ids[:4], ids[4:])
        own = row_losses(x[:4], y[:4], ids=None if given_ids is None else ids[:4], **options)
        assert torch.allclose(own + opposing_losses(x[:4], y[4:], ids=cut, **options), whole[:4], rtol=1e-14, atol=0)


@given(
    question=questions(max_n=150, max_d=80, dtypes=DTYPES),
    share=st.floats(0, 1),
    workspace=st.sampled_from([1, 1 << 28]),
)
@example(Question(Case("scaled", 2, 36, torch.float16, 1.0, need=(True, True, True), seed=7108), 0.0), 0.0, 1)
@example(Question(Case("random", 600, 9), ids=tuple(range(600))), 0.5, 1 << 28)
@example(Question(Case("zeros", 66, 1, temperature=0.01, normalize=False, need=(False, False, True)), -100.0), 0.5, 1)
@example(Question(Case("random", 600, 9, need=(True, True, True))), 0.0, 1)
def test_a_rectangle_is_within_the_derived_bounds(question: Question, share: float, workspace: int) -> None:
    case, at = question.case, 1 + round(share * (question.case.n - 2))
    x, y = case.embeddings()
    x, y = x[:at], y[at:]
    ids = question.ids_tensor("cpu")
    cut = None if ids is None else (ids[:at], ids[at:])
    generator = torch.Generator().manual_seed(case.seed)
    weights = torch.randn(at, generator=generator).clamp(-1, 1).to(case.precise)
    needs = (*case.need, question.need_bias)
    problem = Problem(normalize=case.normalize, workspace=workspace)
    solved = oppose(x, y, case.temperature, question.bias, cut, problem, weights=weights, needs=needs)
    check_rectangle(question, x, y, cut, weights.double(), solved)
    alone = oppose(x, y, case.temperature, question.bias, cut, problem)
    assert torch.equal(alone.rows, solved.rows)
    assert alone.gradients == (None, None)


def check_rectangle(
    question: Question, x: Tensor, y: Tensor, ids: tuple[Tensor, Tensor] | None, weights: Tensor, solved: Solved
) -> None:
    case = question.case
    leaves = [side.double().clone().requires_grad_() for side in (x, y)]
    leaves += [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (case.temperature, question.bias)]
    options: dict[str, Any] = {"normalize": case.normalize, "ids": ids}
    exact = opposing_losses(*leaves[:2], temperature=leaves[2], bias=leaves[3], **options)
    wanted = torch.autograd.grad((exact * weights).sum(), leaves)
    exact = exact.detach()
    units = [ctloss.reference.eager.unit_rows(side.double()) if case.normalize else side.double() for side in (x, y)]
    similar = units[0] @ units[1].T / case.temperature
    of_pairs = torch.sigmoid(similar + question.bias)
    if ids is not None:
        of_pairs = of_pairs.masked_fill(ids[0][:, None] == ids[1], 0.0)
    of_pairs *= weights[:, None]
    largest = similar.abs().max().item() + abs(question.bias)
    per_logit = (5e-7 + 1e-7 * largest) * FINENESS.get(case.dtype, 1.0)
    floor = len(y) * FLOOR if case.precise != torch.float64 else 0.0
    assert solved.rows.dtype == torch.float64
    assert ((solved.rows - exact).abs() <= exact * per_logit + floor).all()
    exponents = None if solved.exponents is None else list(solved.exponents.split([len(x), len(y)]))
    found = release(Held(list(solved.gradients), exponents, -30), 1 / case.temperature, (case.precise,) * 2)
    for index, (side, gradient) in enumerate(zip((x, y), found, strict=True)):
        assert (gradient is not None) == case.need[index]
        if gradient is not None:
            # A float32 exponential below its smallest normal number is off by an absolute amount.
            sizes = of_pairs.abs() + weights.abs()[:, None] * (floor / len(y) / per_logit)
            sizes = (sizes if index == 0 else sizes.T) @ torch.linalg.vector_norm(units[1 - index], dim=1)
            scale = norms(side) if case.normalize else torch.ones(len(side), dtype=torch.float64)
            cancelling = torch.where(scale > 0, sizes / scale, 0.0) / case.temperature
            check_rows(side_rows(case, gradient, wanted[index], cancelling, scale), per_logit)
    smallest = torch.finfo(torch.float32).smallest_normal * (1 + weights.abs().sum().item())
    scalars = (solved.slope, similar / case.temperature, wanted[2]), (solved.offset, torch.ones(()), wanted[3])
    for need, (slope, per_pair, gradient) in zip((case.need[2], question.need_bias), scalars, strict=True):
        assert (slope is not None) == need
        if slope is not None:
            allowed = (of_pairs * per_pair).abs().sum().item() * per_logit + smallest / case.temperature
            assert abs(slope.item() / SCALE - gradient.item()) <= allowed


@FEWER
@given(
    question=questions(max_n=48, max_d=20, dtypes=DTYPES),
    world=st.integers(2, 4),
    fractions=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    transport=st.sampled_from(["ring", "gather"]),
    impl=st.sampled_from(["auto", "torch", "reference"]),
    average=st.sampled_from(["mean", "sum"]),
)
@example(Question(Case("random", 2, 4, need=(True, True, True))), 2, [0.5, 0.5, 0.5], "ring", "torch", "mean")
@example(Question(Case("random", 9, 4, need=(True, True, True))), 3, [0.0, 0.5, 0.5], "ring", "auto", "sum")
@example(Question(Case("random", 9, 4, need=(False, False, True))), 4, [0.0, 0.5, 0.5], "gather", "torch", "mean")
def test_ranks_have_the_loss_and_gradient_of_one_process(
    question: Question, world: int, fractions: list[float], transport: str, impl: str, average: str
) -> None:
    # Thirds of a half precision number are rounded once more, and several times a number may be beyond float16.
    average = "sum" if world == 3 or question.case.dtype == torch.float16 else average
    cuts = sorted(fractions[: world - 1])
    check_answer(question, *on_ranks.answer(shared(), world, question, cuts, transport, impl=impl, average=average))


@pytest.mark.parametrize("transport", ["ring", "gather"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_even_ranks_need_no_sizes(reduction: str, transport: str) -> None:
    case = Case("random", 12, 5, reduction=reduction, need=(True, True, True))
    for world, seed in itertools.product((2, 4), (0, 1)):
        question = Question(replace(case, seed=seed), -2.0, tuple(range(6)) * 2)
        cuts = [rank / world for rank in range(1, world)]
        check_answer(question, *on_ranks.answer(shared(), world, question, cuts, transport, even=True))


def differing(group: Any, bias: float) -> None:
    x, y = noisy(4, 3)
    ctloss.sig_lip(x, y, bias=bias, group=group)


def test_ranks_that_differ_are_told_so() -> None:
    with pytest.raises(Ended, match=r"rank 1 has bias=-9\.0 where others have -10\.0"):
        shared().run(3, differing, [-10.0, -9.0, -10.0])


def second(group: Any) -> str:
    x, y = noisy(4, 3)
    (gradient,) = torch.autograd.grad(ctloss.sig_lip(x.requires_grad_(), y, group=group), x, create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), x)
    except RuntimeError as error:
        return str(error)
    return ""


def test_there_is_no_second_derivative() -> None:
    assert all("second derivative" in message for message in shared().run(2, second))
