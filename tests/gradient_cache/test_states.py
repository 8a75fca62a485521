"""Random generators, autocast and modes: replayed in the backward pass, and left alone by it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy
import pytest
import torch
from torch import Tensor, nn

import ctloss

ROWS = torch.ones(6, 2)


def generators() -> tuple[bytes, object, str]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(numpy.random.get_state())


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "python": random.random,
    "numpy": numpy.random.random,
}


@pytest.mark.parametrize("name", DRAWS)
def test_generators(name: str) -> None:
    """What was drawn for a chunk is drawn again for it, and then nothing was."""
    weight = torch.ones(2, requires_grad=True)
    drawn: list[float] = []

    def encode(rows: Tensor) -> Tensor:
        drawn.append(DRAWS[name]())
        return drawn[-1] * rows * weight

    found = ctloss.GradientCache(2)(encode, ROWS)
    between = DRAWS[name]()
    before = generators()
    found.sum().backward()
    assert generators() == before
    assert len(drawn) == 6
    assert drawn[:3] == drawn[3:]
    assert len({*drawn[:3], between}) == 4
    torch.testing.assert_close(weight.grad, torch.full((2,), 2 * sum(drawn[:3])))


def test_an_error_in_the_replay() -> None:
    weight = torch.ones(2, requires_grad=True)
    calls: list[Tensor] = []

    def encode(rows: Tensor) -> Tensor:
        calls.append(torch.rand(2))
        if len(calls) == 5:
            raise KeyError("of the encoder")
        return rows * weight

    found = ctloss.GradientCache(2)(encode, ROWS)
    before = generators()
    with pytest.raises(KeyError, match="of the encoder"):
        found.sum().backward()
    assert generators() == before
    assert weight.grad is None
    assert weight._backward_hooks is None
    ctloss.GradientCache(2)(encode, ROWS).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((2,), 6.0))


def test_autocast_of_the_forward_pass() -> None:
    """Whether the backward pass runs outside of it, inside, or inside another."""
    encoder = nn.Linear(2, 3)
    dtypes: list[torch.dtype] = []

    def encode(rows: Tensor) -> Tensor:
        found: Tensor = encoder(rows)
        dtypes.append(found.dtype)
        return found

    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = ctloss.GradientCache(2)(encode, ROWS)
        wanted = torch.bfloat16 if enabled else torch.float32
        assert found.dtype == wanted
        found.sum().backward(retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            found.sum().backward(retain_graph=True)
            assert torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", torch.float16):
            found.sum().backward()
        assert dtypes == 12 * [wanted]
        dtypes.clear()
        assert encoder.weight.grad is not None
        torch.testing.assert_close(encoder.weight.grad, torch.full((3, 2), 18.0))
        encoder.weight.grad = None


def test_modes_must_not_change() -> None:
    encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    found = ctloss.GradientCache(2)(encoder, ROWS)
    encoder.eval()
    with pytest.raises(RuntimeError, match="got training=True, then False; call"):
        found.sum().backward()
    encoder.train()
    found.sum().backward()


@pytest.mark.parametrize("what", ["parameter", "input", "input in encode"])
def test_tensors_must_not_change(what: str) -> None:
    encoder, rows = nn.Linear(2, 2), ROWS.clone()

    def encode(part: Tensor) -> Tensor:
        found: Tensor = encoder(part.add_(1.0) if what == "input in encode" else part)
        return found

    found = ctloss.GradientCache(2)(encode, rows)
    if what != "input in encode":
        with torch.no_grad():
            (encoder.weight if what == "parameter" else rows).add_(1.0)
    with pytest.raises(RuntimeError, match=r"changed in place, by encode or between .*; step the optimiser"):
        found.sum().backward()


def test_hooks_on_modules_end_with_the_first_chunk() -> None:
    """A module that is called elsewhere in the meantime is not one of the encoder's."""
    encoder, other = nn.Linear(2, 2), nn.BatchNorm1d(2)
    found = ctloss.GradientCache(2)(encoder, ROWS)
    other(ROWS)
    other.eval()
    found.sum().backward()


@contextmanager
def switched(module: nn.Module) -> Iterator[None]:
    module.eval()
    try:
        yield
    finally:
        module.train()


def test_modes_within_encode() -> None:
    """An encode that runs its module in another mode than it finds it in does so both times."""
    encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def encode(rows: Tensor) -> Tensor:
        with switched(encoder):
            found: Tensor = encoder(rows)
        return found

    whole = encode(ROWS)
    found = ctloss.GradientCache(2)(encode, ROWS)
    torch.testing.assert_close(found, whole)
    found.sum().backward()
