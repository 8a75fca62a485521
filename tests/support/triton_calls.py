"""Calls of the Triton path's engine, and the device that tests make them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctloss.kernels.blocks import Anchors, Sums, triton_path
from ctloss.kernels.problem import Batch, Problem, Shape
from ctloss.kernels.triton_path import engine
from ctloss.kernels.triton_path.plan import config, layout

from .acceptance import check_engine
from .regimes import Case

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if ON_GPU else (torch.float32, torch.float16)


def check(case: Case, chain: int = 0) -> None:
    """Hold the engine's answer to the case to the bounds of every quantity it returns."""
    check_engine(case, engine, DEVICE, chain)


def chain_of(case: Case) -> int:
    """The interpreter sums half-precision products one by one, worse than any GPU does."""
    dtypes = {case.dtype, *(side.dtype for side in case.candidates)}
    return 64 if torch.float16 in dtypes and not ON_GPU else 0


def both_passes(
    batch: Batch, asked: Problem, a: Tensor | None = None, needs: Sequence[bool] | None = None
) -> list[Tensor]:
    """z, the positives' logits, the moments, and the needed gradients of Σ a·z; by default all, of Σ z."""
    forward = engine.forward(batch, asked, moment=True, gradient=True)
    assert forward.moment is not None
    assert forward.positive is not None
    a = torch.ones_like(forward.z).masked_fill(forward.z == -torch.inf, 0.0) if a is None else a
    gradients = engine.backward(forward.state, a, a, tuple(needs or (True,) * len(batch.sides)))
    return [forward.z, forward.positive, forward.moment, *(each for each in gradients if each is not None)]


class Blocks:
    """The Triton path's functions of two ranks' rows, which are moved to the device of the tests and back."""

    @staticmethod
    def meet(own: Batch, other: Batch, *about: Any, **options: Any) -> tuple[Sums, Sums | None]:
        """As :func:`triton_path.meet`."""
        one, two = triton_path.meet(*_moved((own, other), DEVICE), *about, **options)
        return _moved((one, two), "cpu")

    @staticmethod
    def pull(
        own: Batch, other: Batch, about: Problem, of_own: Anchors, of_other: Anchors, needs: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """As :func:`triton_path.pull`."""
        own, other, of_own, of_other = _moved((own, other, of_own, of_other), DEVICE)
        return list(_moved(tuple(triton_path.pull(own, other, about, of_own, of_other, needs)), "cpu"))


def _moved(value: Any, device: str, known: dict[int, Tensor] | None = None) -> Any:
    """All tensors in nested tuples on a device; what was one tensor remains one, such as two ranks' temperature."""
    known = {} if known is None else known
    if isinstance(value, Tensor):
        return known.setdefault(id(value), value.to(device))
    if not isinstance(value, tuple):
        return value
    parts = [_moved(part, device, known) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def pairs(case: Case, **tensors: Any) -> Batch:
    """A case's tensors, some of them replaced."""
    return case.batch(DEVICE)._replace(**tensors)


class Counted:
    """Stands in for a kernel: notes the kernel's name at every launch, then launches it."""

    def __init__(self, kernel: Any, launched: list[str]) -> None:
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.launched.append(self.kernel.__name__)
        return self.kernel[grid]


def problem(**options: Any) -> Problem:
    """The options of most tests, some of them replaced."""
    return replace(Problem(workspace=1 << 28), **options)


def shape_of(case: Case) -> Shape:
    """What the path's choices for a case depend on."""
    return case.batch(DEVICE).shape


def in_panels(patch: pytest.MonkeyPatch) -> None:
    """Compute every batch in panels."""
    patch.setattr(config, "SMALL_PAIRS", 0)


def in_flash(patch: pytest.MonkeyPatch, wins: bool = True, least_sweep: int = 64) -> None:
    """Form every batch's gradient with its weights in registers where possible, otherwise in panels."""

    def flash_wins(shape: Shape, arch: int, asked: Problem) -> bool:
        return wins and shape.d <= 2 * config.WIDTH_PADDING and not config.has_two_sets(shape, asked)

    in_panels(patch)
    patch.setattr(config, "FEW_PAIRS", 0)
    patch.setattr(config, "flash_wins", flash_wins)
    patch.setattr(layout, "LEAST_SWEEP", least_sweep)
