"""The sigmoid loss on the Triton path, under the interpreter without a GPU: its bounds, panels, padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import ctloss
from ctloss.kernels.problem import Batch, Problem
from support.regimes import Case
from support.sig_lip import Question, check, pairs, questions

pytest.importorskip("triton")

from ctloss.kernels.torch_path import sig_lip as torch_path
from ctloss.kernels.torch_path.engine import Held, release
from ctloss.kernels.triton_path import sig_lip as triton_path

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter computes bfloat16 wrongly.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)[: 3 if torch.cuda.is_available() else 2]


@given(question=questions(max_n=100, max_d=80, dtypes=DTYPES))
@settings(max_examples=25)
def test_within_its_bounds(question: Question) -> None:
    check(question, "triton", DEVICE)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=questions(max_n=70, max_d=70, dtypes=DTYPES))
def test_reads_nothing_unwritten(poisoned: None, question: Question) -> None:
    check(question, "triton", DEVICE)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_panels_are_one(dtype: torch.dtype, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_path, "_height", lambda padding, *others: padding)
    case = Case(regime="trained", n=150, d=70, dtype=dtype, temperature=0.05, reduction=reduction, need=(True,) * 3)
    check(Question(case, ids=tuple(i // 2 for i in range(150))), "triton", DEVICE)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_sides_without_gradient(needs: tuple[bool, bool]) -> None:
    case = Case(regime="random", n=40, d=33, need=(*needs, True))
    check(Question(case), "triton", DEVICE)
    check(replace(Question(case), need_bias=False), "triton", DEVICE)


def test_means_what_the_torch_path_means() -> None:
    """Both paths' solve() return the same: gradients of rescaled rows, times τ and 2^30."""
    x, y = (side.detach().to(DEVICE) for side in pairs(70, 20))
    x[3] *= 2.0**50
    batch = Batch(x, y, temperature=0.1)
    solved = [path.solve(batch, -1.0, Problem(), needs=(True,) * 4) for path in (torch_path, triton_path)]
    torch.testing.assert_close(solved[0].rows, solved[1].rows, rtol=3e-6, atol=0.0)
    torch.testing.assert_close(solved[0].slope, solved[1].slope, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(solved[0].offset, solved[1].offset, rtol=1e-5, atol=0.0)
    back = []
    for result in solved:
        assert result.exponents is not None
        held = Held([*result.gradients], [result.exponents[:70], result.exponents[70:]], -30)
        back.append(release(held, 1.0, (torch.float64,) * 2))
    for one, other in zip(*back, strict=True):
        assert one is not None
        assert other is not None
        assert ((one - other).norm(dim=1) <= 1e-5 * one.norm(dim=1)).all()


def test_refuses_what_it_cannot_run() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="impl='triton' cannot run here: the Triton path takes"):
        ctloss.sig_lip(x, x, impl="triton")
