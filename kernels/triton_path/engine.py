"""The Triton path's entry points: z and the positives' logits forward, the gradients of Σ a·lse − b·s⁺ backward.

Small plain batches take three kernels and keep all their dot products. Other batches work in tiles of logits, which are
kept for the backward where they fit the workspace and reading them is faster than forming them again. Their gradient
uses panels of weights or, for narrow embeddings, weights in registers. Nothing is read back to the host, so calls can
be captured in a CUDA graph, and every sum has a fixed order, so results repeat.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch, Forward, Problem, Shape
from .plan import config, layout, memory
from .plan.layout import identities, stack_of, wanted_spans

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_ARCH = 80
OLDEST_TORCH, OLDEST_TRITON = (2, 11), (3, 6)


class State(NamedTuple):
    """What the backward needs of the forward.

    Attributes:
        saved: the statistics of all rows, then logits or products, float32.
        ids: the identity of each stacked row, or None.
        batch: the inputs.
        problem: the options.
    """

    saved: Tensor
    ids: Tensor | None
    batch: Batch
    problem: Problem


def unsupported(shape: Shape, problem: Problem) -> str | None:
    """Why this path cannot run on such inputs, or None if it can."""
    if shape.dtype not in DTYPES:
        return f"the Triton path takes float32, float16 or bfloat16 embeddings, got {shape.dtype}"
    why_not = _software()
    if why_not is not None:
        return why_not
    if _interpreted():
        if shape.device_type != "cpu":
            return f"under TRITON_INTERPRET=1 the Triton path takes CPU tensors, got {shape.device_type} ones"
        if shape.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly; use float32 or float16 there"
        return None
    if shape.device_type != "cuda":
        needed = "CUDA tensors (or TRITON_INTERPRET=1 in the environment before Triton is imported)"
        return f"the Triton path needs {needed}, got {shape.device_type} ones"
    if torch.version.hip is not None:
        return "the Triton path compiles for AMD's gfx942 but has never run there, and this is a ROCm build of torch"
    if _arch() < OLDEST_ARCH:
        return f"the Triton path needs compute capability 8.0 or later, got {_arch() / 10}"
    return None


@cache
def _software() -> str | None:
    """What is missing or too old among the packages; checked before the kernels, which need them, are imported."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'ctloss[triton]')"
    for name, oldest in (("torch", OLDEST_TORCH), ("triton", OLDEST_TRITON)):
        found = version(name)
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < oldest:
            return f"the Triton path needs {name} {oldest[0]}.{oldest[1]} or later, found {found}"
    return None


def _interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter, which is decided when Triton is imported."""
    from .tiles import INTERPRETED

    return bool(INTERPRETED.value)


def _arch() -> int:
    if _interpreted():
        return config.INTERPRETER
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def describe(shape: Shape, problem: Problem) -> dict[str, object]:
    """The configuration that would run: kernels, tiles, number formats; with panels, how many tiles are kept."""
    if layout.keeps_products(shape, problem):
        return {"kernels": "three, products kept", **asdict(config.choose_small(shape, _arch(), problem))}
    stack, chosen = stack_of(shape), config.choose(shape, _arch(), problem)
    kept = layout.kept_tiles(shape, chosen, problem)
    workspace = problem.workspace - kept * layout.tile_bytes(chosen)
    every = layout.num_tiles(layout.blocks(stack, problem, chosen.block), chosen.block)
    in_panels = {
        "kernels": "panels",
        **asdict(chosen),
        "kept_tiles": f"{kept} of {every}",
        "forward_panel": layout.forward_panel(stack, chosen.block, 2, workspace),
    }
    if config.flash_wins(shape, _arch(), problem):
        flash = config.choose_flash(shape, _arch(), problem)
        runs = layout.flash_runs(wanted_spans((True,) * (2 + len(shape.candidates)), stack), stack, problem)
        span, swept = runs[0]
        num_columns = sum(map(layout.length, swept))
        plan = layout.plan_flash(layout.length(span), num_columns, stack.width, flash.block, problem.workspace)
        return {**in_panels, "kernels": "panels, flash gradient", "flash": asdict(flash) | asdict(plan)}
    plan_of_panels = memory.plan_backward(stack, chosen.weight_bytes, workspace)
    return {**in_panels, "backward_panel": plan_of_panels.size, "backward_shared": plan_of_panels.shared}


def saved_shapes(shape: Shape, problem: Problem, *, gradient: bool) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of the tensors that :func:`save` returns.

    They include kept logits only if embeddings need a ``gradient``; evaluation keeps none.
    """
    stack = stack_of(shape)
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [((_saved_floats(shape, problem, gradient),), torch.float32)]
    return [*shapes, ((stack.num_rows,), torch.int32)] if shape.masked else shapes


def _saved_floats(shape: Shape, problem: Problem, gradient: bool) -> int:
    """float32 numbers that are kept: the rows' statistics, and a small batch's products or a larger one's logits."""
    stack = stack_of(shape)
    if layout.keeps_products(shape, problem):
        return stack.saved_floats + layout.product_floats(stack, problem)
    if not gradient:
        return stack.saved_floats
    chosen = config.choose(shape, _arch(), problem)
    return stack.saved_floats + layout.kept_tiles(shape, chosen, problem) * layout.tile_bytes(chosen) // 4


def save(state: State) -> list[Tensor]:
    """The tensors that must survive until the backward."""
    return [state.saved] if state.ids is None else [state.saved, state.ids]


def restore(tensors: list[Tensor], batch: Batch, problem: Problem) -> State:
    """The state whose tensors :func:`save` returned."""
    saved, *ids = tensors
    return State(saved, ids[0] if ids else None, batch, problem)


def forward(batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
    """z, the positives' logits and the moments (rows,), and what :func:`backward` needs."""
    from . import lse, pack, small

    shape = batch.shape
    stack = stack_of(shape)
    rows = shape.n * problem.num_directions
    with on(batch.x):
        device = batch.x.device
        saved = torch.empty(_saved_floats(shape, problem, gradient), dtype=torch.float32, device=device)
        similarity = torch.empty(stack.padded, dtype=torch.float64, device=device)
        z, positive = (torch.empty(rows, dtype=torch.float64, device=device) for _ in range(2))
        moments = torch.empty(rows, dtype=torch.float64, device=device) if moment else None
        ids = identities(batch, stack)
        if layout.keeps_products(shape, problem):
            chosen = config.choose_small(shape, _arch(), problem)
            small.forward(batch, saved, similarity, (z, positive, moments), problem, chosen, gradient)
        else:
            blocks = config.choose(shape, _arch(), problem)
            packed = pack.pack(batch, saved, ids, similarity, stack, problem, blocks)
            lse.forward(packed, similarity, (z, positive, moments), problem, blocks)
    return Forward(z, positive, moments, State(saved, ids, batch, problem))


def backward(state: State, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients of Σ a·lse − b·s⁺ with respect to the sides that need one, None for the others."""
    from . import flash, gradient, pack, small_gradient, weights

    saved, ids, batch, problem = state
    shape = batch.shape
    gradients = [
        torch.empty(side.shape, dtype=side.dtype, device=side.device) if need else None
        for side, need in zip(batch.sides, needs, strict=True)
    ]
    with on(batch.x):
        if layout.keeps_products(shape, problem):
            small_gradient.backward(
                batch, saved, a, b, gradients, problem, config.choose_small(shape, _arch(), problem)
            )
            return gradients
        stack = stack_of(shape)
        wanted = wanted_spans(needs, stack)
        if wanted:
            blocks = config.choose(shape, _arch(), problem)
            rows = pack.pack(batch, saved, ids, None, stack, problem, blocks)
            factors = weights.weigh(rows, a, b)
            if config.flash_wins(shape, _arch(), problem):
                chosen = config.choose_flash(shape, _arch(), problem)
                flash.backward(rows, factors, gradients, wanted, problem, chosen)
            else:
                gradient.backward(rows, factors, gradients, wanted, problem, blocks)
    return gradients


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one, where launches go."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
