"""Formulas for the operators in PyTorch's counter of floating-point operations.

The counter itself is not imported here, because it imports Triton where that is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..kernels.problem import Batch, Problem, Shape, parse
from .plan import holds, plan


def products(shape: Shape, problem: Problem) -> int:
    """Operations that form every pair's logit once: a multiplication and an addition per column.

    Example:
        >>> products(Shape(4, 8), Problem(negatives="cross"))
        256
    """
    square, directions = shape.n * shape.n, problem.num_directions
    # A side with itself forms half of its square; x with y forms one square, which serves both sides.
    own = directions * square // 2 if problem.negatives in ("both", "own") else 0
    cross = square if problem.negatives in ("both", "cross") else 0
    return 2 * shape.d * (own + cross + directions * shape.n * sum(shape.candidates))


def _call(sides: list[Tensor], options: str) -> tuple[Shape, Problem, bool]:
    problem = parse(options)
    shape = Batch(sides[0], sides[1], tuple(sides[2:])).shape
    return shape, problem, holds(problem, plan(shape, problem).engine)


def _forward(sides: list[Tensor], *rest: Any, **_: Any) -> int:
    """A forward, and the gradient if it holds one, where a pair's weight is multiplied by both of its rows."""
    *_others, needs, options = rest
    shape, problem, held = _call(sides, options)
    return products(shape, problem) * (3 if held and any(needs[:-1]) else 1)


def _backward(upstream: Any, upstream_positive: Any, sides: list[Tensor], *rest: Any, **_: Any) -> int:
    """A gradient that was not held: logits again, then the weights' products."""
    *_others, needs, options = rest
    shape, problem, held = _call(sides, options)
    return 0 if held or not any(needs[:-1]) else 3 * products(shape, problem)


FORMULAS: dict[str, Callable[..., int]] = {"contrastive": _forward, "contrastive_backward": _backward}
"""By operator; other modules add theirs where they define them."""


def announce() -> None:
    """Register the operators' formulas with the counter, and with any that is counting already."""
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is None or torch.compiler.is_compiling():
        return
    formulas = {getattr(torch.ops.ctloss, name): formula for name, formula in FORMULAS.items()}
    counting = [getattr(mode, "counter", None) for mode in _get_current_dispatch_mode_stack()]
    for registry in (counter.flop_registry, *(getattr(one, "flop_registry", None) for one in counting)):
        if registry is not None:
            registry.update(formulas)
