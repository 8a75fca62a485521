"""The sigmoid loss on the planned path, called with tensors that may be numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.native.sig_lip import solve as native_solve
from ..kernels.problem import Batch, Problem
from ..kernels.sigmoid import SCALE, Solved
from ..kernels.torch_path.sig_lip import solve as torch_solve
from . import checks, ops

Needs = tuple[bool, bool, bool, bool]
"""Whether x, y, the temperature and the bias need a gradient."""


def number(value: float | Tensor) -> float | Tensor:
    """A number where the host can read it, else a 0-d tensor.

    Example:
        >>> import torch
        >>> number(torch.tensor([0.5]))
        0.5
    """
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.device.type == "cpu" else value.detach().reshape(())


def temperature_of(batch: Batch) -> float | Tensor:
    """The temperature as a number, if it can be read, and then a positive one.

    Raises:
        ValueError: for a tensor on the CPU that is not positive.
    """
    tau: Any = number(batch.temperature)
    if tau is not batch.temperature and isinstance(tau, float):
        checks.positive(tau)
    return tau


def solve(
    path: str,
    batch: Batch,
    bias: float | Tensor,
    problem: Problem,
    *,
    needs: Needs,
    weights: Tensor | None = None,
    share: float | None = None,
) -> Solved:
    """Row losses and gradients on a path; see the torch path's ``solve``, and the native path's for ``share``."""
    batch = batch._replace(temperature=temperature_of(batch))
    with ops.WithoutAutocast(batch.x.device.type):
        if path == "native":
            return native_solve(batch, number(bias), problem, weights=weights, needs=needs, share=share)
        on_path = torch_solve
        if path == "triton":
            # Imported only where Triton is known to be installed.
            from ..kernels.triton_path.sig_lip import solve as on_path
        return on_path(batch, number(bias), problem, weights=weights, needs=needs)


def slope_of_scalar(scalar: float | Tensor, slope: Tensor | None, factor: float | Tensor) -> Tensor:
    """The gradient of the temperature or the bias, as its tensor is, from a solved one and what it is multiplied by."""
    assert isinstance(scalar, Tensor)
    assert slope is not None
    if isinstance(factor, float) and slope.device.type == "cpu":
        # Operations on single numbers cost a small batch more than its pairs do.
        return torch.full(scalar.shape, slope.item() * (factor / SCALE), dtype=scalar.dtype, device=scalar.device)
    return (slope * (factor / SCALE)).to(scalar.device, scalar.dtype).reshape(scalar.shape)
