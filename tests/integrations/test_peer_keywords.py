"""Keywords of other libraries: the error says what to use."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ctloss
from ctloss.core.keywords import ELSEWHERE

ROWS = torch.eye(4)
CALLS: dict[str, Callable[..., Any]] = {
    "info_nce": lambda **named: ctloss.info_nce(ROWS, ROWS, **named),
    "cz_nce": lambda **named: ctloss.cz_nce(ROWS, ROWS, **named),
    "contrast": lambda **named: ctloss.contrast(ROWS, ROWS, **named),
    "explain": lambda **named: ctloss.explain(ROWS, ROWS, **named),
    "sig_lip": lambda **named: ctloss.sig_lip(ROWS, ROWS, **named),
    "sup_con": lambda **named: ctloss.sup_con(ROWS, torch.arange(4), **named),
    "InfoNCELoss": lambda **named: ctloss.InfoNCELoss(**named),
    "CZNCELoss": lambda **named: ctloss.CZNCELoss(**named),
    "InfoNCELoss.forward": lambda **named: ctloss.InfoNCELoss()(ROWS, ROWS, **named),
    "CZNCELoss.forward": lambda **named: ctloss.CZNCELoss()(ROWS, ROWS, **named),
}
TAKEN = {"labels": {"sup_con"}, "bias": {"sig_lip"}}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_refuses_every_keyword(call: str) -> None:
    for keyword in ELSEWHERE:
        if call not in TAKEN.get(keyword, ()):
            with pytest.raises(TypeError, match=rf"unknown option '{keyword}'; .*its options are \w"):
                CALLS[call](**{keyword: 1})


@pytest.mark.parametrize(
    ("call", "keyword", "advice"),
    [
        ("info_nce", "scale", "pass temperature=1 / scale"),
        ("cz_nce", "logit_scale", "pass temperature=1 / logit_scale"),
        ("contrast", "gather_distributed", "group='world' compares with the rows of all ranks"),
        ("InfoNCELoss", "memory_bank_size", "pass them as candidates=; ctloss.integrations.lightly has their class"),
        ("info_nce", "label_smoothing", "ctloss.objectives.label_smoothing"),
        ("info_nce", "labels", r"ctloss.sup_con\(x, labels\)"),
        ("sig_lip", "logit_bias", "bias="),
        ("sup_con", "gather_with_grad", "group='world'"),
        ("InfoNCELoss.forward", "queue", "pass its rows as candidates="),
    ],
)
def test_what_to_use_is_said(call: str, keyword: str, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        CALLS[call](**{keyword: 1})


def test_no_advice_names_an_option_that_is_not_there() -> None:
    for keyword in ("queue", "hard_negatives", "matryoshka_dims"):
        with pytest.raises(TypeError, match=rf"sig_lip: unknown option '{keyword}'; its options are"):
            CALLS["sig_lip"](**{keyword: 1})


@pytest.mark.parametrize("name", ["info_nce", "cz_nce", "contrast", "sig_lip", "sup_con"])
def test_the_options_listed_are_those_of_the_signature(name: str) -> None:
    parameters = inspect.signature(getattr(ctloss, name)).parameters.values()
    taken = sorted(one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY)
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    with pytest.raises(TypeError) as caught:
        CALLS[name](nothing_of_the_kind=1)
    assert str(caught.value) == f"{name}: unknown option 'nothing_of_the_kind'; its options are {', '.join(taken)}"


def test_compilers_see_no_wrapper() -> None:
    """The graph has no break, and a compiled call refuses too."""

    def losses(x: torch.Tensor) -> torch.Tensor:
        return ctloss.sig_lip(x, x) + ctloss.InfoNCELoss()(x, x)

    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(losses, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), losses(x))
