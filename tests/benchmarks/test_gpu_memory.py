"""What the Triton path is said to allocate is what it allocates, and within the limits that are promised."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from benchmarks.gpu import memory
from ctloss.kernels.problem import Batch, Problem, Shape
from ctloss.kernels.triton_path import engine
from ctloss.kernels.triton_path.plan import config
from support.triton_calls import ON_GPU, in_panels

MIB = 1 << 20


class Allocations(TorchDispatchMode):
    """Adds up the memory of tensors that are made and dropped meanwhile; those ``before`` do not count."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.alive: Counter[int] = Counter()
        self.held = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.before:
                self.note(tensor)
        return made

    def note(self, tensor: Tensor) -> None:
        """Count the storage until the last tensor on it is gone."""
        storage, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        self.alive[storage] += 1
        if self.alive[storage] == 1:
            self.held += size
            self.peak = max(self.peak, self.held)
        weakref.finalize(tensor, self.drop, storage, size)

    def drop(self, storage: int, size: int) -> None:
        """One tensor less."""
        self.alive[storage] -= 1
        if not self.alive[storage]:
            self.held -= size


# Shared panels, runs with and without held rows, kept logits or not, one and several panels of the forward.
CALLS = [
    (150, 24, "both", 64 * MIB),
    (150, 24, "cross", 64 * MIB),
    (150, 24, "both", MIB // 8),
    (150, 24, "both", MIB // 16),
    (150, 24, "cross", MIB // 6),
    (140, 100, "both", MIB // 2),
]


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs where there is no GPU")
@pytest.mark.parametrize(("n", "d", "negatives", "workspace"), CALLS)
def test_passes_allocate_what_is_added_up(
    n: int, d: int, negatives: str, workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a few scalars."""
    in_panels(monkeypatch)
    monkeypatch.setattr(config, "FEW_PAIRS", 0)
    x, y = torch.randn(2, n, d).unbind()
    asked = Problem(negatives=negatives, workspace=workspace)
    batch = Batch(x.contiguous(), y.contiguous())
    shape = batch.shape
    promised = memory.forward_bytes(shape, config.INTERPRETER, asked)
    with Allocations(*batch.sides) as found:
        forward = engine.forward(batch, asked, moment=False, gradient=True)
    assert promised <= found.peak <= promised + 1024
    assert forward.positive is not None
    a = torch.ones_like(forward.z)
    # What the forward left is there before the backward begins.
    left = forward.z.nbytes + forward.positive.nbytes + forward.state.saved.nbytes
    promised = memory.backward_bytes(shape, config.INTERPRETER, asked) - left
    with Allocations(*batch.sides, a, forward.state.saved) as found:
        engine.backward(forward.state, a, a, (True, True))
    assert promised <= found.peak <= promised + 1024


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
