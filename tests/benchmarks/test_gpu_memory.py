"""What the Triton path is said to allocate is what it allocates, and within the limits that are promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import ctloss
from benchmarks.gpu import memory
from ctloss.kernels.problem import Batch, Problem, Shape
from ctloss.kernels.triton_path import config, engine
from support.triton_calls import ON_GPU, in_panels

MIB = 1 << 20


def allocated(call: Callable[[], object]) -> int:
    """Bytes on the CPU at the peak of a call beyond those before it, by the allocator's own account."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    held = peak = 0
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


# Shared panels, runs with and without held rows, kept logits or not, one and several panels of the forward.
CALLS = [
    (150, 24, "both", 64 * MIB),
    (150, 24, "cross", 64 * MIB),
    (150, 24, "both", MIB // 8),
    (150, 24, "cross", MIB // 6),
    (140, 100, "both", MIB // 2),
]


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs where there is no GPU")
@pytest.mark.parametrize(("n", "d", "negatives", "workspace"), CALLS)
def test_passes_allocate_what_is_added_up(
    n: int, d: int, negatives: str, workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a few scalars. Rows of every length, so that nothing depends on the numbers."""
    in_panels(monkeypatch)
    monkeypatch.setattr(config, "FEW_PAIRS", 0)
    x, y = torch.randn(2, n, d).unbind()
    asked = Problem(negatives=negatives, workspace=workspace)
    batch = Batch(x.contiguous(), y.contiguous())
    shape = batch.shape
    promised = memory.forward_bytes(shape, config.INTERPRETER, asked)
    found = allocated(lambda: engine.forward(batch, asked, moment=False, gradient=True))
    assert promised <= found <= promised + 1024
    forward = engine.forward(batch, asked, moment=False, gradient=True)
    a = torch.ones_like(forward.z)
    # What the forward left is there before the backward begins.
    left = sum(tensor.nbytes for tensor in (forward.z, forward.state.saved)) + forward.z.nbytes
    promised = memory.backward_bytes(shape, config.INTERPRETER, asked) - left
    found = allocated(lambda: engine.backward(forward.state, a, a, (True, True)))
    assert promised <= found <= promised + 1024


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs where there is no GPU")
@pytest.mark.parametrize(("loss", "negatives"), [("cz_nce", "both"), ("info_nce", "cross")])
def test_a_step_stays_within_its_peak(loss: str, negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_panels(monkeypatch)
    x, y = (torch.randn(150, 24, requires_grad=True) for _ in range(2))

    def step() -> object:
        value = getattr(ctloss, loss)(x, y, negatives=negatives, impl="triton")
        return torch.autograd.grad(value, (x, y))

    try:
        ctloss.set_workspace_limit(MIB)
        found = allocated(step)
    finally:
        ctloss.set_workspace_limit(None)
    asked = Problem(loss=loss, negatives=negatives, workspace=MIB)
    peak = memory.peak_bytes(Shape(150, 24), config.INTERPRETER, asked)
    vectors = 8 * memory.ROW_NUMBERS * 2 * 150
    assert peak - vectors <= found <= peak + 4096


@pytest.mark.parametrize(("loss", "negatives"), [("cz_nce", "both"), ("info_nce", "cross")])
@pytest.mark.parametrize(("n", "most"), [(16384, 145), (65536, 578)])
def test_the_least_workspace_keeps_a_promise(n: int, most: int, loss: str, negatives: str) -> None:
    """768 columns in bfloat16, under a limit of 64 MiB."""
    asked = Problem(loss=loss, negatives=negatives, workspace=64 * MIB)
    shape = Shape(n, 768, dtype=torch.bfloat16)
    assert memory.peak_bytes(shape, 90, asked) <= most * MIB


def test_weights_are_formed_once_where_sums_fit() -> None:
    both, cross = Problem(workspace=1 << 30), Problem(negatives="cross", workspace=1 << 28)
    shape = Shape(65536, 768, dtype=torch.bfloat16)
    assert memory.times_formed(shape, 90, both) == 1
    # Sums of one language are half of all, and hold every pair.
    assert memory.times_formed(shape, 90, cross) == 1
    assert memory.times_formed(shape, 90, replace(both, workspace=1 << 28)) == pytest.approx(1.2, abs=0.01)
    assert memory.times_formed(shape, 90, replace(both, workspace=1 << 26)) == pytest.approx(2, abs=0.01)
