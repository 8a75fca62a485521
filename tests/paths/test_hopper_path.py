"""When the Hopper kernels are taken, and whole calls with them: interpreted, but for these on the simulated machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctloss.kernels.problem import Problem, Shape
from ctloss.kernels.triton_path import engine
from ctloss.kernels.triton_path.hopper import lse, weights
from ctloss.kernels.triton_path.plan import config, layout
from ctloss.kernels.triton_path.plan.config import CDNA3, INTERPRETER, can_specialise, choose
from support.hopper.language import simulated
from support.regimes import Candidates, Case
from support.triton_calls import DEVICE, ON_GPU, both_passes, check, in_panels, problem

HALF = torch.float16
LARGE = Shape(4096, 768, dtype=torch.bfloat16)
CASES = [
    Case("random", 100, 70, dtype=HALF),
    Case("hard", 70, 64, dtype=HALF, negatives="cross", temperature=0.01),
    Case("random", 70, 40, dtype=HALF, normalize=False, temperature=1.0, candidates=(Candidates(90),)),
]
LARGER = [
    Case("random", 140, 70, dtype=HALF),
    Case("collapsed", 150, 33, dtype=HALF, negatives="own", ids=40),
    Case("trained", 130, 70, dtype=HALF, directions="x", candidates=(Candidates(150, need=False, ids=True),), ids=90),
]


@pytest.fixture(scope="module")
def machine() -> SimpleNamespace:
    return simulated()


def noting(name: str, launch: Callable[..., None], launched: list[str]) -> Callable[..., None]:
    """The same function, which also notes its name."""

    def noted(*arguments: object, **options: object) -> None:
        launched.append(name)
        launch(*arguments, **options)

    return noted


@pytest.fixture
def launched(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take the Hopper kernels for every batch, and the simulated machine for them; the launches, by kernel."""
    found: list[str] = []
    in_panels(monkeypatch)
    monkeypatch.setattr(config, "MANY_PAIRS", 2)
    monkeypatch.setattr(config, "TENSOR_COLUMNS", 1 << 20)

    def specialised(shape: Shape, arch: int, asked: Problem) -> config.BlockConfig:
        return replace(choose(shape, arch, asked), block=128, depth=64, specialised=True)

    monkeypatch.setattr(config, "choose", specialised)
    for module in (lse, weights):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "launch", noting(name, getattr(machine, name).launch, found))
    return found


@pytest.mark.skipif(ON_GPU, reason="the kernels around those on the machine are interpreted")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.regime}-{case.negatives}")
@pytest.mark.usefixtures("poisoned")
def test_acceptance(case: Case, launched: list[str]) -> None:
    check(case, chain=64)
    assert set(launched) == {"lse", "weights"}


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="the kernels around those on the machine are interpreted")
@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.regime}-{case.negatives}")
@pytest.mark.usefixtures("poisoned")
def test_acceptance_of_larger_batches(case: Case, launched: list[str]) -> None:
    check(case, chain=64)
    assert set(launched) == {"lse", "weights"}


@pytest.mark.skipif(ON_GPU, reason="the kernels around those on the machine are interpreted")
@pytest.mark.parametrize("many", [2, 1024], ids=["cosines", "logits"])
@pytest.mark.usefixtures("poisoned")
def test_kept_logits_are_read_by_the_other_kernel(
    many: int, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a panel of which none is kept is formed again; what is kept comes from the same numbers either way."""
    batch = Case("random", 100, 70, dtype=HALF).batch(DEVICE)
    monkeypatch.setattr(config, "COARSE", config.HALF_PRECISION if many == 2 else ())
    formed = both_passes(batch, problem())
    assert launched == ["lse", "weights"]
    monkeypatch.setattr(config, "TENSOR_COLUMNS", 0)
    kept = both_passes(batch, problem())
    assert launched[2:] == ["lse"]
    for one, other in zip(formed, kept, strict=True):
        # An exponential changes by at most 2^-11 where cosines are kept in 16 bits.
        assert (one.double() - other.double()).norm() <= 3 * 2.0**-11 * other.double().norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_they_could_run(dtype: torch.dtype) -> None:
    shape, plain = LARGE._replace(dtype=dtype), Problem()
    # Any width is packed into rows that tensor maps take, and any temperature is read on the device.
    for able in (shape, shape._replace(d=75), shape._replace(n=1024), shape._replace(masked=True)):
        assert can_specialise(able, 90, plain)
        assert layout.stack_of(able).width * dtype.itemsize % 16 == 0
    assert can_specialise(shape, 90, replace(plain, normalize=False, negatives="none"))
    for arch in (INTERPRETER, 80, 89, 100, 120, CDNA3):
        assert not can_specialise(shape, arch, plain)
    for unable in (shape._replace(dtype=torch.float32), shape._replace(n=1023), shape._replace(per_row=True)):
        assert not can_specialise(unable, 90, plain)
    assert not can_specialise(shape, 90, replace(plain, margin=0.1))
    assert not can_specialise(shape._replace(masked=True), 90, replace(plain, normalize=False))
    # Too few negatives for rounded weights.
    assert not can_specialise(shape._replace(candidates=(7,)), 90, replace(plain, negatives="none"))


def test_they_are_off_until_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One name switches all on, and the description says which would run; where they cannot, nothing changes."""
    monkeypatch.setattr(engine, "_arch", lambda: 90)
    single = LARGE._replace(dtype=torch.float32)
    before = engine.describe(LARGE, Problem()), engine.describe(single, Problem())
    assert before[0]["specialised"] is before[1]["specialised"] is False
    monkeypatch.setattr(config, "SPECIALISED", True)
    assert engine.describe(LARGE, Problem()) == before[0] | {"specialised": True}
    assert engine.describe(single, Problem()) == before[1]


def test_without_gluon_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_has_gluon", lambda: False)
    assert not can_specialise(LARGE, 90, Problem())


def test_tiles_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="expected tiles of 128 rows and 64 columns"):
        replace(choose(LARGE, 80, Problem()), specialised=True)


ON_HOPPER = ON_GPU and torch.cuda.get_device_capability() == (9, 0)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not ON_HOPPER, reason="they are compiled for compute capability 9.0")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negatives": "cross", "temperature": 0.01},
        {"normalize": False, "temperature": 1.0},
        {"directions": "x", "candidates": (Candidates(1500),), "ids": 900},
    ],
    ids=["both", "cross", "dot", "candidates"],
)
def test_acceptance_on_hopper(dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are compiled, with logits kept and formed again; and every time the same bits."""
    monkeypatch.setattr(config, "SPECIALISED", True)
    for columns in (0, 1 << 20):
        monkeypatch.setattr(config, "TENSOR_COLUMNS", columns)
        case = Case("random", 1100, 192, dtype=dtype, **options)
        check(case)
        assert engine.describe(case.batch(DEVICE).shape, case.problem())["specialised"]
        first = both_passes(case.batch(DEVICE), case.problem())
        for _ in range(5):
            assert all(map(torch.equal, first, both_passes(case.batch(DEVICE), case.problem())))
