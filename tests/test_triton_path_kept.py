"""Logits that the Triton path keeps from the forward for the backward."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from acceptance import answer, check
from hypothesis import given, settings
from regimes import Case, cases
from triton_calls import DEVICE, DTYPES, both_passes, chain_of, problem

import ctloss
from ctloss.kernels.problem import Problem
from ctloss.kernels.triton_path import config, engine, kept, schedule

pytestmark = pytest.mark.numeric

NEEDS = {"need_x": True, "need_y": True, "need_temperature": True}

# The regimes whose weights may be rounded: many negatives of like size.
ROUNDED = [
    Case("random", 40, 33, need=(True, True, True)),
    Case("random", 45, 70, negatives="cross", loss="info_nce", temperature=0.2, need=(True, False, True)),
    Case("random", 70, 20, reduction="none", need=(False, True, True)),
    Case("collapsed", 33, 33, negatives="cross", reduction="sum", temperature=0.065),
    Case("collapsed", 97, 40, loss="info_nce", need=(True, True, True), strides="transposed"),
    Case("identical", 65, 17, need=(False, True, False)),
    Case("zeros", 40, 20, reduction="none", strides="padded", need=(True, True, True)),
    Case("scaled", 35, 64, negatives="cross", temperature=1.0),
]


def keep(patch: pytest.MonkeyPatch, many_pairs: int = config.MANY_PAIRS) -> None:
    """Have every batch computed in panels and its logits kept, from so many pairs on in 16 bits.

    float16 stands in for bfloat16 there, which the interpreter does not know.
    """
    patch.setattr(config, "COARSE", config.HALF_PRECISION)
    for name in ("FEW_PAIRS", "SMALL_PAIRS", "TENSOR_COLUMNS", "PLAIN_COLUMNS"):
        patch.setattr(config, name, 0)
    patch.setattr(config, "MANY_PAIRS", many_pairs)


def forget(patch: pytest.MonkeyPatch) -> None:
    """Have logits formed again instead."""
    for name in ("TENSOR_COLUMNS", "PLAIN_COLUMNS"):
        patch.setattr(config, name, 1 << 20)


def kept_share(case: Case, asked: Problem) -> float:
    """The share of a call's tiles that are kept."""
    count, every = str(engine.describe(case.dtype, DEVICE, case.n, case.d, asked)["kept_tiles"]).split(" of ")
    return int(count) / int(every)


def test_acceptance_with_kept_logits() -> None:
    @settings(max_examples=settings().max_examples // 2)
    @given(cases(max_n=48, max_d=70, dtypes=DTYPES))
    def accepted(case: Case) -> None:
        with pytest.MonkeyPatch.context() as patch:
            keep(patch)
            assert kept_share(case, problem(negatives=case.negatives, normalize=case.normalize)) == 1
            check(case, "triton", DEVICE, chain=chain_of(case))

    accepted()


@pytest.mark.parametrize("case", ROUNDED, ids=lambda case: f"{case.regime}-{case.n}x{case.d}-{case.negatives}")
def test_acceptance_with_kept_cosines(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits, beside weights that are rounded as much."""
    keep(monkeypatch, many_pairs=2)
    for dtype in DTYPES[1:]:
        chosen = config.choose(case.n, case.d, dtype, config.INTERPRETER, problem())
        assert chosen.keeps
        assert chosen.kept_dtype == torch.int16
        check(replace(case, dtype=dtype), "triton", DEVICE)


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize(("normalize", "tau"), [(True, 0.07), (True, 0.005), (False, 0.07)])
@pytest.mark.usefixtures("poisoned")
def test_kept_float32_logits_are_those_formed_again(
    negatives: str, normalize: bool, tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, whether all are kept or as many as fit."""
    case = Case("random", 70, 40, negatives=negatives, normalize=normalize, temperature=tau)
    x, y = (rows.to(DEVICE) for rows in case.embeddings())
    asked = problem(negatives=negatives, normalize=normalize)
    narrow = replace(asked, workspace=438_000 if negatives == "both" else 377_000)
    keep(monkeypatch)
    assert kept_share(case, asked) == 1
    assert 0.5 <= kept_share(case, narrow) < 1
    assert kept_share(case, replace(asked, workspace=1 << 18)) == 0
    every = both_passes(x, y, asked, tau)
    some = both_passes(x, y, narrow, torch.tensor(tau, dtype=torch.float64, device=DEVICE))
    forget(monkeypatch)
    assert kept_share(case, asked) == 0
    none = both_passes(x, y, asked, tau)
    assert all(map(torch.equal, every, none))
    assert all(map(torch.equal, some, none))


@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_kept_tiles_are_found_by_other_panels(negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (rows.to(DEVICE) for rows in Case("random", 70, 20).embeddings())
    asked = problem(negatives=negatives)
    keep(monkeypatch)
    monkeypatch.setattr(schedule, "LARGEST_PANEL", 128)
    description = engine.describe(torch.float32, DEVICE, 70, 20, asked)
    assert (description["forward_panel"], description["backward_panel"]) == (256, 128)
    used = both_passes(x, y, asked)
    forget(monkeypatch)
    assert all(map(torch.equal, used, both_passes(x, y, asked)))


@pytest.mark.parametrize("tau", [0.032, 0.031, 0.01])
def test_cosines_too_coarse_for_a_small_temperature_are_not_used(tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is settled on the device, where the temperature may be."""
    case = Case("random", 40, 33, dtype=torch.float16)
    x, y = (rows.to(DEVICE) for rows in case.embeddings())
    temperature = torch.tensor(tau, device=DEVICE)
    keep(monkeypatch, many_pairs=2)
    used = both_passes(x, y, problem(), temperature)
    forget(monkeypatch)
    formed = both_passes(x, y, problem(), temperature)
    fine = 1 / math.log(2) / tau <= kept.COARSEST_RATE.value
    assert fine == (tau >= 1 / 32)
    assert torch.equal(used[0], formed[0])
    assert torch.equal(used[3], formed[3]), "the temperature's gradient knows nothing of what is kept"
    assert torch.equal(used[1], formed[1]) != fine


@pytest.mark.parametrize("tau", [0.07, 0.032])
@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("alike", [False, True], ids=["random", "half a step off all alike"])
def test_cosines_are_fine_enough_for_bfloat16(
    tau: float, negatives: str, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all cosines are 1/2 and what 16 bits take does not average out.

    An exponential moves by 2^-11 at most, and with it the weight (tf32) and the gradient (float16) by a step each.
    """
    if alike:
        x = torch.cat((torch.ones(8, 1), torch.eye(8)), 1).to(DEVICE, DTYPES[-1])
        y = x.clone()
    else:
        case = Case("random", 70, 48, dtype=DTYPES[-1], negatives=negatives)
        x, y = (rows.to(DEVICE) for rows in case.embeddings())
    asked = problem(negatives=negatives)
    keep(monkeypatch, many_pairs=2)
    used = both_passes(x, y, asked, tau)
    forget(monkeypatch)
    for one, other in zip(used[1:3], both_passes(x, y, asked, tau)[1:3], strict=True):
        assert 0 < (one.double() - other.double()).norm() <= 3 * 2.0**-11 * other.double().norm()


@pytest.mark.parametrize("many_pairs", [2, config.MANY_PAIRS])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_in_gives_nan_out(bad: float, many_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, many_pairs)
    x, y = (rows.to(DEVICE) for rows in Case("random", 40, 20, dtype=torch.float16).embeddings())
    x[3, 7] = bad
    x.requires_grad_()
    value = ctloss.info_nce(x, y, impl="triton")
    value.backward()
    assert value.isnan()
    assert x.grad is not None
    assert x.grad[3].isnan().any()


@pytest.mark.parametrize("value", [0.0, -0.07, math.nan])
def test_temperature_refused_on_the_device_gives_nan(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, many_pairs=2)
    x, y = (rows.to(DEVICE) for rows in Case("random", 9, 8, dtype=torch.float16).embeddings())
    assert all(result.isnan().all() for result in both_passes(x, y, problem(), torch.tensor(value, device=DEVICE)))


@pytest.mark.parametrize("many_pairs", [2, config.MANY_PAIRS])
def test_repeats_bit_for_bit(many_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, many_pairs)
    case = Case("random", 70, 50, dtype=torch.float16, need=(True, True, True))
    first, again = answer(case, "triton", DEVICE), answer(case, "triton", DEVICE)
    assert torch.equal(first[0], again[0])
    assert all(map(torch.equal, first[1], again[1]))


@pytest.mark.parametrize("many_pairs", [2, config.MANY_PAIRS])
def test_opcheck(many_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are promised for changing sizes as well, and what is kept is a function of the inputs, padding too."""
    keep(monkeypatch, many_pairs)
    x, y = (rows.to(DEVICE).requires_grad_() for rows in Case("random", 11, 20, dtype=DTYPES[-1]).embeddings())
    options = "info_nce both 1 mean highest 268435456 log triton"
    torch.library.opcheck(torch.ops.ctloss.contrastive.default, (x, y, None, 0.1, f"{options} 1 1 0"))


def test_compiles_for_changing_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch)
    torch.compiler.reset()

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ctloss.cz_nce(x, y, impl="triton")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (9, 70):
        x, y = (rows.to(DEVICE).requires_grad_() for rows in Case("random", n, 20).embeddings())
        found, expected = compiled(x, y), step(x, y)
        assert torch.equal(found, expected)
        assert all(map(torch.equal, torch.autograd.grad(found, (x, y)), torch.autograd.grad(expected, (x, y))))


@pytest.mark.parametrize("many_pairs", [2, config.MANY_PAIRS])
@pytest.mark.parametrize("negatives", ["both", "cross"])
def test_only_what_will_be_differentiated_is_kept(
    negatives: str, many_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics have the promised shape, and evaluation has nothing but them."""
    keep(monkeypatch, many_pairs)
    asked = problem(negatives=negatives)
    for dtype in DTYPES:
        x, y = (rows.to(DEVICE) for rows in Case("random", 70, 20, dtype=dtype).embeddings())
        saved = {}
        for differentiated in (True, False):
            needs = NEEDS | {"need_x": False, "need_y": differentiated}
            _, saved[differentiated], *_ = engine.forward(x, y, 0.07, asked, **needs)
            shape = engine.stats_shape(dtype, 70, 20, asked, differentiated=differentiated)
            assert saved[differentiated].shape == shape
        assert saved[False].numel() == 9 * 2 * 128
        # Both sides are padded to 128 rows.
        block = engine.describe(dtype, DEVICE, 70, 20, asked)["block"]
        assert isinstance(block, int)
        tiles = 128 // block
        pairs = block**2 * (tiles**2 if negatives == "cross" else tiles * (2 * tiles + 1))
        bits = 16 if many_pairs == 2 and dtype != torch.float32 else 32
        assert saved[True].numel() - saved[False].numel() == pairs * bits // 32
