"""Gradient error against φ: what is left of each implementation's gradient once a batch is well trained."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from benchmarks import batches, providers
from benchmarks.exact import errors
from benchmarks.peers import PairLoss
from benchmarks.providers import DTYPES, Case
from benchmarks.results import describe

PHIS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-16, 1e-20, 1e-28, 1e-36)
MODES = ("float32", "bfloat16", "autocast", "float16")
LOSSES = ("info-both", "info-cross", "cz-both")
SEEDS = 3
FLOAT16_SCALE = 32768.0
PROVIDERS = (
    "ctloss", "eager", "cross_entropy", "logsumexp", "naive", "lightly", "open_clip", "sentence-transformers",
    "metric-learning",
)  # fmt: skip


def _under_autocast(call: PairLoss, device: str) -> PairLoss:
    def run(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16):
            return call(x, y)

    return run


def measure(case: Case, mode: str, phi: float, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Errors of each provider that offers the case, medians over a few batches of mean φ.

    Args:
        case: its temperature is replaced by the one that gives φ.
        mode: a dtype of the inputs, or "autocast": float32 inputs under bfloat16 autocast. float16 gradients are taken
            of 32768 times the loss, as under a gradient scaler.
        phi: geometric mean of the rows' φ.
        names: keys of PROVIDERS.

    Returns:
        By provider: gradient_error, value_error, temperature.
    """
    found: dict[str, list[dict[str, float]]] = {}
    scale = FLOAT16_SCALE if mode == "float16" else 1.0
    for seed in range(SEEDS):
        x, y = batches.trained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device, seed=seed)
        temperature = batches.temperature_for(x, y, phi, case.parts[1])
        here = replace(case, temperature=temperature)
        truth = here.exact(x, y)
        calls, _ = providers.offered(names, here)
        for name, call in calls.items():
            used = _under_autocast(call, case.device) if mode == "autocast" else call
            with contextlib.suppress(RuntimeError):
                missed = errors(used, x, y, truth, scale=scale)
                found.setdefault(name, []).append({**missed, "temperature": temperature})
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def run(
    losses: Sequence[str] = LOSSES,
    names: Sequence[str] = PROVIDERS,
    *,
    device: str,
    n: int = 32,
    d: int = 256,
    phis: Sequence[float] = PHIS,
    modes: Sequence[str] = MODES,
) -> list[dict[str, object]]:
    """A row for each loss, mode, φ and provider."""
    rows: list[dict[str, object]] = []
    for loss in losses:
        for mode in modes:
            case = Case(loss, n, d, "float32" if mode == "autocast" else mode, device)
            for phi in phis:
                shared = {**asdict(case), "mode": mode, "phi": phi, **describe(device)}
                for name, missed in measure(case, mode, phi, names).items():
                    rows.append({"provider": name, **shared, **missed})
            print(f"{loss} {mode}: {len(phis)} values of φ", file=sys.stderr, flush=True)
    return rows
