"""The Triton path's entry points: value and statistics in the forward, gradients in the backward.

Small batches keep all their dot products and take three kernels. Others work in tiles of logits, kept for the backward
where they fit the workspace and are read back sooner than formed again, and in panels of weights or, where embeddings
are narrow, weights in registers. Nothing is read back to the host, so that calls can be captured in a CUDA graph, and
every sum has a fixed order, so that results repeat.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..problem import Problem
from . import config, schedule, stats

if TYPE_CHECKING:
    from .rows import Pull, Rows

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_ARCH = 80
OLDEST_TORCH, OLDEST_TRITON = (2, 11), (3, 6)


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
        return "the Triton path compiles for AMD's gfx942 but was never run there, and this is a ROCm build of torch"
    if _arch() < OLDEST_ARCH:
        return f"the Triton path needs compute capability 8.0 or later, got {_arch() / 10}"
    return None


@cache
def _software() -> str | None:
    """What is missing or too old among the packages; asked before the kernels are imported, which need it."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'ctloss[triton]')"
    for name, oldest in (("torch", OLDEST_TORCH), ("triton", OLDEST_TRITON)):
        found = version(name)
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
    """The configuration that would run: kernels, tiles, number formats; with panels, how many tiles are kept."""
    if schedule.keeps_products(n, problem):
        small = config.choose_small(n, dtype, _arch(), problem)
        return {"kernels": "three, products kept", **asdict(small)}
    chosen = config.choose(n, d, dtype, _arch(), problem)
    kept = schedule.kept_tiles(n, d, chosen, problem)
    workspace = problem.workspace - kept * schedule.tile_bytes(chosen)
    in_panels = {
        "kernels": "panels",
        **asdict(chosen),
        "kept_tiles": f"{kept} of {schedule.num_tiles(n, chosen.block, problem)}",
        "forward_panel": schedule.forward_panel(n, chosen.block, 2, workspace),
    }
    if config.flash_wins(n, d, dtype, _arch(), problem):
        flash = config.choose_flash(n, dtype, _arch(), problem)
        plan_of_flash = schedule.plan_flash(n, d, flash.block, problem)
        return {**in_panels, "kernels": "panels, flash gradient", "flash": asdict(flash) | asdict(plan_of_flash)}
    plan = schedule.plan_backward(n, d, chosen.weight_bytes, workspace)
    return {**in_panels, "backward_panel": plan.size, "backward_shared": plan.shared}


def stats_shape(dtype: torch.dtype, n: int, d: int, problem: Problem, *, differentiated: bool) -> tuple[int, ...]:
    """Shape of the float32 statistics that the forward saves, with a small batch's products or a larger one's logits.

    The latter only if embeddings are ``differentiated``: evaluation keeps none.
    """
    if schedule.keeps_products(n, problem):
        return (stats.floats_with_products(n, problem),)
    chosen = config.choose(n, d, dtype, _arch(), problem)
    return (stats.floats(n) + _kept_floats(n, d, chosen, problem, differentiated),)


def holds_gradient(problem: Problem) -> bool:
    """Whether the forward already forms gradients: never, the backward does."""
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
    from . import launch, small
    from . import rows as by_row

    n, d = x.shape
    with _on(x):
        if schedule.keeps_products(n, problem):
            shapes = config.choose_small(n, x.dtype, _arch(), problem)
            losses, saved = small.forward(x, y, temperature, problem, need_temperature, shapes)
            return losses, saved, saved.new_empty(0), saved.new_empty(0), saved.new_empty(0)
        chosen = config.choose(n, d, x.dtype, _arch(), problem)
        kept = _kept_floats(n, d, chosen, problem, need_x or need_y)
        saved = torch.empty(stats.floats(n) + kept, dtype=torch.float32, device=x.device)
        positive = torch.empty(schedule.padded_rows(n), dtype=torch.float64, device=x.device)
        losses = torch.empty(2 * n, dtype=torch.float32, device=x.device)
        rows = by_row.pack(x, y, temperature, saved, positive, problem, chosen)
        size = schedule.forward_panel(n, chosen.block, 3 if need_temperature else 2, problem.workspace - 4 * kept)
        panels = list(schedule.unordered_panels(n, size, problem))
        needed = [launch.slots_for(panel, 3 if need_temperature else 2, chosen) for panel in panels]
        slots = torch.empty(max(needed), dtype=torch.float32, device=x.device)
        close = positive, losses, problem.loss == "info_nce"
        for panel in panels:
            of_rows, of_columns = launch.panel_lse(rows, panel, slots, need_temperature, chosen)
            last = close if len(panels) == 1 else None
            by_row.fold(rows, of_rows, panel.a_start, last)
            if not panel.diagonal:
                by_row.fold(rows, of_columns, panel.b_start, last)
        if len(panels) > 1:
            by_row.fold(rows, slots.new_empty((3 if need_temperature else 2, 0, 2 * rows.padded)), 0, close)
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
    from . import flash, small
    from . import rows as by_row

    n, d = x.shape
    with _on(x):
        if schedule.keeps_products(n, problem):
            shapes = config.choose_small(n, x.dtype, _arch(), problem)
            needs = need_x, need_y, need_temperature
            return small.backward(upstream, x, y, temperature, saved, problem, needs, shapes)
        chosen = config.choose(n, d, x.dtype, _arch(), problem)
        rows = by_row.pack(x, y, temperature, saved, None, problem, chosen)
        learnt = temperature if need_temperature else None
        weighed = by_row.weigh(rows, upstream, problem.loss == "info_nce", problem.reduction == "mean", learnt)
        slope = None
        if weighed.slope is not None:
            slope = weighed.slope.sum() if weighed.slope.numel() > 1 else weighed.slope[0]
        sides = [side for side, need in enumerate((need_x, need_y)) if need]
        gradients = {side: torch.empty((n, d), dtype=x.dtype, device=x.device) for side in sides}
        if gradients and config.flash_wins(n, d, x.dtype, _arch(), problem):
            flash.fill(gradients, rows, weighed, problem, config.choose_flash(n, x.dtype, _arch(), problem))
        elif gradients:
            _fill(gradients, rows, weighed, chosen, problem)
        return gradients.get(schedule.X), gradients.get(schedule.Y), slope


def _kept_floats(n: int, d: int, chosen: config.BlockConfig, problem: Problem, differentiated: bool) -> int:
    """float32 numbers that kept logits take the memory of."""
    return schedule.kept_tiles(n, d, chosen, problem) * schedule.tile_bytes(chosen) // 4 if differentiated else 0


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _fill(
    gradients: dict[int, Tensor], rows: Rows, weighed: Pull, chosen: config.BlockConfig, problem: Problem
) -> None:
    """Gradients of the sides asked for, from panels of weights that serve both sides or one run of rows at a time."""
    from . import launch
    from . import rows as by_row

    n, packed = rows.n, rows.packed
    workspace = problem.workspace - (0 if rows.kept is None else rows.kept.nbytes)
    plan = schedule.plan_backward(n, rows.d, chosen.weight_bytes, workspace)
    assert rows.kept is None or plan.shared, "kept tiles are found by their place above the diagonal alone"
    memory = torch.empty(plan.size**2 * chosen.weight_terms, dtype=chosen.weight_dtype, device=packed.device)
    if plan.shared:
        sums = torch.empty(packed.shape, dtype=torch.float32, device=packed.device)
        wanted = (min(gradients) * rows.padded, (max(gradients) + 1) * rows.padded)
        begun: set[int] = set()

        def add(weights: Tensor, start: int, stop: int, columns: Tensor) -> None:
            """Add to the sums of those rows start:stop that are wanted."""
            first, last = max(start, wanted[0]), min(stop, wanted[1])
            if first < last:
                part = weights[:, first - start : last - start]
                launch.add_gradient(part, columns, sums[first:last], start not in begun, chosen)
                begun.add(start)

        for panel in schedule.unordered_panels(n, plan.size, problem):
            ends = [(panel.a_start, panel.a_stop), (panel.b_start, panel.b_stop)]
            if all(stop <= wanted[0] or start >= wanted[1] for start, stop in ends):
                continue
            block = launch.panel_weights(rows, panel, weighed.coefficient, memory, chosen)
            add(block, *ends[0], packed[panel.b_start : panel.b_stop])
            if not panel.diagonal:
                add(block.mT, *ends[1], packed[panel.a_start : panel.a_stop])
        by_row.finish(sums[None, wanted[0] : wanted[1]], rows, wanted[0], weighed, gradients, chosen)
        return
    run_sums = torch.empty((plan.size, packed.shape[1]), dtype=torch.float32, device=packed.device)
    for side in gradients:
        for start, stop in schedule.side_runs(n, plan.size, side):
            sums = run_sums[: stop - start]
            for position, panel in enumerate(schedule.row_panels(n, plan.size, side, (start, stop), problem)):
                block = launch.panel_weights(rows, panel, weighed.coefficient, memory, chosen)
                launch.add_gradient(block, packed[panel.b_start : panel.b_stop], sums, position == 0, chosen)
            by_row.finish(sums[None], rows, start, weighed, gradients, chosen)
