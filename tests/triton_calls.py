"""Calls of the Triton path's engine, and where the tests make them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from regimes import Case

from ctloss.kernels.problem import Problem
from ctloss.kernels.triton_path import config, engine, schedule

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if ON_GPU else (torch.float32, torch.float16)


def chain_of(case: Case) -> int:
    """The interpreter sums half-precision products one by one, worse than any GPU does."""
    return 64 if case.dtype == torch.float16 and not ON_GPU else 0


def both_passes(
    x: torch.Tensor, y: torch.Tensor, asked: Problem, tau: float | torch.Tensor = 0.07
) -> list[torch.Tensor]:
    """Row losses and every gradient of the engine, called below the public functions."""
    needs = {"need_x": True, "need_y": True, "need_temperature": True}
    rows, saved, held_x, held_y, held_tau = engine.forward(x, y, tau, asked, **needs)
    upstream = torch.ones((), device=DEVICE)
    gradients = engine.backward(upstream, x, y, tau, saved, held_x, held_y, held_tau, asked, **needs)
    return [rows, *(gradient for gradient in gradients if gradient is not None)]


def problem(**options: object) -> Problem:
    defaults = Problem("cz_nce", "both", True, "mean", "highest", 1 << 28)
    return replace(defaults, **options)


def in_flash(patch: pytest.MonkeyPatch, wins: bool = True, least_sweep: int = 32) -> None:
    """Have every batch's gradient formed with its weights in registers, or else in panels."""
    patch.setattr(config, "FEW_PAIRS", 0)
    patch.setattr(config, "SMALL_PAIRS", 0)
    patch.setattr(config, "flash_wins", lambda *about: wins)
    patch.setattr(schedule, "LEAST_SWEEP", least_sweep)
