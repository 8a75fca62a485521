"""Calls of losses, ours and other libraries', and what tests measure of them: gradients, memory, largest tensors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers import PairLoss, PeerMissing
from ctloss.core.rows import derivatives, shares, values
from ctloss.kernels.native import library
from ctloss.kernels.problem import Batch, Problem

from .regimes import Case


def since(version: str) -> pytest.MarkDecorator:
    """Skip a test where PyTorch is older than the one that can do what it asks for."""
    return pytest.mark.skipif(TorchVersion(torch.__version__) < version, reason=f"needs PyTorch {version}")


WHOLE_GRAPHS = since("2.13")
"""For tests that compile a loss without a break: docs/reference/versions.md."""


def present(make: Callable[..., Callable[..., Tensor]], *arguments: float) -> Callable[..., Tensor]:
    """Another library's loss; if it is not installed, skip the test, or fail it where CI has promised the library."""
    try:
        return make(*arguments)
    except PeerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI installs the peers: {missing}")
        pytest.skip(str(missing))


def value_and_gradients(call: PairLoss, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The loss and the gradients of x and y."""
    x, y = (side.detach().clone().requires_grad_() for side in (x, y))
    value = call(x, y)
    return (value.detach(), *torch.autograd.grad(value, (x, y)))


def autocast(call: PairLoss) -> PairLoss:
    """The same loss under autocast to bfloat16."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(x, y)

    return run


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that the allocator had handed out at any one time while the function ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept_alive = function()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    assert changes
    del kept_alive
    return max(itertools.accumulate(change for _, change in changes))


class Largest(TorchDispatchMode):
    """Finds the size of the largest tensor that any operation returns; views count with their whole memory."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple) else (result,):
            if isinstance(one, Tensor):
                self.entries = max(self.entries, one.untyped_storage().nbytes() // one.element_size())
        return result


def on_this_machine(device: str = "cpu") -> list[str]:
    """The native path's name, for tests of every path on such a device, where this installation has it."""
    return ["native"] if device == "cpu" and library.kernels is not None else []


def noisy(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0, noise: float = 1.0) -> list[Tensor]:
    """Rows and noisy copies of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = x + noise * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return [x.to(dtype), y.to(dtype)]


def factors(problem: Problem, z: Tensor, upstream: Tensor | None = None) -> Tensor:
    """What the core passes to a path's backward: the derivatives of the reduced loss times upstream."""
    if upstream is None:
        upstream = torch.ones(()) if problem.reduction == "mean" else torch.full_like(z, 1 / len(z))
    return derivatives(problem, z) * shares(problem, len(z), None) * upstream


def solved(
    engine: Any, x: Tensor, y: Tensor, problem: Problem, tau: float = 0.07, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row losses and all gradients, straight from an engine."""
    found = engine.forward(Batch(x, y, temperature=tau), problem, moment=True, gradient=True)
    a = factors(problem, found.z, upstream)
    grad_x, grad_y = engine.backward(found.state, a, a, (True, True))
    return values(problem, found.z), grad_x, grad_y, -(a * found.moment).sum() / tau


def like(problem: Problem, n: int, d: int, tau: float = 0.07) -> Case:
    """A case with the options of a call on other rows."""
    return Case(
        "random",
        n,
        d,
        temperature=tau,
        loss=problem.loss,
        negatives=problem.negatives,
        normalize=problem.normalize,
        reduction=problem.reduction,
    )
