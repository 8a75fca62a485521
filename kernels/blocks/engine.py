"""The Triton path's entry points: value and statistics in the forward, gradients recomputed in the backward.

No N x N matrix is stored: logits live in tiles, weights in panels of a bounded workspace. Nothing is read back to the
host, so that calls can be captured in a CUDA graph, and every sum has a fixed order, so that results repeat exactly.
"""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..problem import Problem
from . import config, schedule, stats

if TYPE_CHECKING:
    from .launch import Rows

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_ARCH = 80
OLDEST_TORCH, OLDEST_TRITON = (2, 11), (3, 6)
LOG2_E = 1 / math.log(2)


def unsupported(dtype: torch.dtype, device_type: str, n: int, d: int, problem: Problem) -> str | None:
    """Why this path cannot run on such inputs, or None if it can."""
    if dtype not in DTYPES:
        return f"the Triton path takes float32, float16 or bfloat16 embeddings, got {dtype}"
    why_not = _software()
    if why_not is not None:
        return why_not
    from .launch import interpreted

    if interpreted():
        if device_type != "cpu":
            return f"under TRITON_INTERPRET=1 the Triton path takes CPU tensors, got {device_type} ones"
        if dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly; use float32 or float16 there"
        return None
    if device_type != "cuda":
        needed = "CUDA tensors (or TRITON_INTERPRET=1 in the environment before Triton is imported)"
        return f"the Triton path needs {needed}, got {device_type} ones"
    if torch.version.hip is not None:
        return "the Triton path's configurations are for NVIDIA GPUs, and this is a ROCm build of torch"
    if _arch() < OLDEST_ARCH:
        return f"the Triton path needs compute capability 8.0 or later, got {_arch() / 10}"
    return None


@cache
def _software() -> str | None:
    """What is missing or too old among the packages; asked before the kernels are imported, which need it."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'ctloss[triton]')"
    import triton

    for name, found, oldest in (
        ("torch", torch.__version__, OLDEST_TORCH),
        ("triton", triton.__version__, OLDEST_TRITON),
    ):
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < oldest:
            return f"the Triton path needs {name} {oldest[0]}.{oldest[1]} or later, found {found}"
    return None


def _arch() -> int:
    from .launch import interpreted

    if interpreted():
        return config.INTERPRETER
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def describe(dtype: torch.dtype, device_type: str, n: int, d: int, problem: Problem) -> dict[str, object]:
    """The configuration that would run: tiles, number formats, panels."""
    chosen = config.choose(n, d, dtype, _arch(), problem)
    plan = _plan(n, d, dtype, 2, chosen, problem)
    return {
        **asdict(chosen),
        "forward_panel": schedule.forward_panel(n, chosen.block, 2, problem.workspace),
        "backward_panel": plan.size,
        "backward_shared": plan.shared,
    }


def stats_shape(n: int, d: int, problem: Problem) -> tuple[int, ...]:
    """Shape of the float32 statistics that the forward saves."""
    return stats.shape(n)


def holds_gradient(problem: Problem) -> bool:
    """Whether the forward already forms gradients: never, the backward recomputes."""
    return False


def forward(
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    problem: Problem,
    *,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row losses (2n,), the statistics that :func:`backward` needs, and three empty tensors."""
    from . import launch

    n, d = x.shape
    with _on(x):
        chosen = config.choose(n, d, x.dtype, _arch(), problem)
        saved = torch.zeros(stats.shape(n), dtype=torch.float32, device=x.device)
        saved[stats.PEAK] = stats.LOWEST
        if problem.normalize:
            for side, source in enumerate((x, y)):
                launch.norms(
                    source, saved[stats.SCALE, side], saved[stats.INVERSE, side], saved[stats.RESIDUE, side], chosen
                )
        rows = _rows(x, y, temperature, saved, problem)
        positive = torch.empty(n, dtype=torch.float64, device=x.device)
        launch.positives(rows, positive, chosen)
        planes = 3 if need_temperature else 2
        running = saved[stats.PEAK : stats.PEAK + planes]
        size = schedule.forward_panel(n, chosen.block, planes, problem.workspace)
        slots = torch.empty(2 * planes * size * (size // chosen.block), dtype=torch.float32, device=x.device)
        for panel in schedule.unordered_panels(n, size, problem):
            launch.panel_lse(rows, panel, running, slots, chosen)
        z = stats.log_phi(saved, positive, n)
        if need_temperature:
            saved[stats.MOMENT, :, :n] = stats.spread(saved, positive, n)
        saved[stats.LOSS, :, :n] = z
        losses = stats.row_losses(z, problem).reshape(2 * n).float()
        return losses, saved, saved.new_empty(0), saved.new_empty(0), saved.new_empty(0)


def backward(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    saved: Tensor,
    held_x: Tensor,
    held_y: Tensor,
    held_temperature: Tensor,
    problem: Problem,
    *,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of upstream · reduced loss with respect to x, y and the temperature, None where not needed."""
    n = x.shape[0]
    with _on(x):
        rows = _rows(x, y, temperature, saved, problem)
        weights, exponent = stats.row_weights(saved, upstream, n, problem)
        slope = stats.temperature_gradient(saved, weights, exponent, rows.rate, n) if need_temperature else None
        sides = [side for side, need in enumerate((need_x, need_y)) if need]
        gradients = _gradients(rows, saved, weights, exponent, sides, problem) if sides else {}
        return gradients.get(schedule.X), gradients.get(schedule.Y), slope


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _rows(x: Tensor, y: Tensor, temperature: float | Tensor, saved: Tensor, problem: Problem) -> Rows:
    from .launch import Rows

    if isinstance(temperature, Tensor):
        # A value that cannot be read on the host cannot be refused there: it shows as NaN.
        tau = temperature.to(device=x.device, dtype=torch.float64)
        rate = torch.where(tau > 0, LOG2_E / tau, math.nan).float()
    else:
        rate = torch.full((), LOG2_E / temperature, dtype=torch.float32, device=x.device)
    return Rows(
        sides=(x, y),
        inverse=saved[stats.INVERSE],
        residue=saved[stats.RESIDUE],
        scale=saved[stats.SCALE],
        rescaled=(saved[stats.SCALE] != 1).any().int(),
        rate=rate,
        normalize=problem.normalize,
    )


def _plan(
    n: int, d: int, dtype: torch.dtype, sides: int, chosen: config.BlockConfig, problem: Problem
) -> schedule.BackwardPlan:
    in_place = dtype == torch.float32
    return schedule.plan_backward(n, d, chosen.weight_dtype.itemsize, in_place, sides, problem.workspace)


def _gradients(
    rows: Rows, saved: Tensor, weights: Tensor, exponent: Tensor, sides: list[int], problem: Problem
) -> dict[int, Tensor]:
    """Gradients of the sides asked for, from panels of weights that serve both sides or one run of rows at a time."""
    from . import launch

    n, d = rows.shape
    source = rows.sides[0]
    device, dtype = source.device, source.dtype
    chosen = config.choose(n, d, dtype, _arch(), problem)
    plan = _plan(n, d, dtype, len(sides), chosen, problem)
    coefficient = torch.zeros_like(rows.inverse)
    coefficient[:, :n] = weights / saved[stats.TOTAL, :, :n]
    pull = weights.sum(0).float()
    gain = torch.exp2(exponent) * rows.rate * stats.LN2
    memory = torch.empty(plan.size**2, dtype=chosen.weight_dtype, device=device)
    gradients = {side: torch.zeros((n, d), dtype=dtype, device=device) for side in sides}
    if plan.shared:
        in_place = dtype == torch.float32
        sums = {
            s: g if in_place else torch.zeros((n, d), dtype=torch.float32, device=device) for s, g in gradients.items()
        }
        for panel in schedule.unordered_panels(n, plan.size, problem):
            if panel.a not in sums and panel.b not in sums:
                continue
            block = launch.panel_weights(rows, panel, coefficient, saved[stats.PEAK], memory, chosen)
            if panel.a in sums:
                part = sums[panel.a][panel.a_start : panel.a_stop]
                launch.add_gradient(block, rows, panel.b, panel.b_start, panel.b_stop, part, False, chosen)
            if panel.b in sums and not panel.diagonal:
                part = sums[panel.b][panel.b_start : panel.b_stop]
                launch.add_gradient(block, rows, panel.a, panel.a_start, panel.a_stop, part, True, chosen)
        for side, gradient in gradients.items():
            launch.finish(sums[side], rows, side, 0, n, pull, gain, gradient, chosen)
        return gradients
    for side, gradient in gradients.items():
        for start, stop in schedule.ranges(n, plan.size):
            run = torch.zeros((stop - start, d), dtype=torch.float32, device=device)
            for panel in schedule.row_panels(n, plan.size, side, (start, stop), problem):
                block = launch.panel_weights(rows, panel, coefficient, saved[stats.PEAK], memory, chosen)
                launch.add_gradient(block, rows, panel.b, panel.b_start, panel.b_stop, run, False, chosen)
            launch.finish(run, rows, side, start, stop, pull, gain, gradient, chosen)
    return gradients
