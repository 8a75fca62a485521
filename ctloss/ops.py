"""The fused paths as PyTorch operators: schemas, fakes and autograd.

The path is chosen inside the operator: what the choice rests on (is Triton installed, which GPU is this) cannot be
asked while ``torch.compile`` traces.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import checks
from .dispatch import ENGINES, choose
from .kernels.problem import Problem

OPTIONS = (
    "float tau, str loss, str negatives, bool normalize, str reduction, str form, str precision, str impl, "
    "int workspace, bool need_x, bool need_y, bool need_temperature"
)
NO_SECOND_DERIVATIVE = (
    "ctloss: the fused paths have no second derivative; call the loss with impl='reference' and form='log', "
    "which can be differentiated any number of times"
)

library = torch.library.Library("ctloss", "DEF")
library.define(
    f"contrastive(Tensor x, Tensor y, Tensor? temperature, {OPTIONS}) -> "
    "(Tensor loss, Tensor stats, Tensor held_x, Tensor held_y, Tensor held_temperature)"
)
library.define(
    "contrastive_backward(Tensor upstream, Tensor x, Tensor y, Tensor? temperature, Tensor stats, Tensor held_x, "
    f"Tensor held_y, Tensor held_temperature, {OPTIONS}) -> (Tensor, Tensor, Tensor)"
)

problem_of = lru_cache(maxsize=256)(Problem)


def _temperature(temperature: Tensor | None, tau: float) -> float | Tensor:
    if temperature is None:
        return tau
    scalar = temperature.detach().reshape(())
    if scalar.device.type == "cpu":
        value = float(scalar)
        checks.positive(value)
        return value
    return scalar


class _WithoutAutocast:
    """Leave autocast only if it is on: entering its context costs more than the products of a small batch."""

    def __init__(self, device_type: str) -> None:
        self.context = torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else None

    def __enter__(self) -> None:
        if self.context is not None:
            self.context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self.context is not None:
            self.context.__exit__(*exception)


def _reduce(rows: Tensor, reduction: str, form: str) -> Tensor:
    if form == "ratio":
        # The ratio of a number to itself, NaN where that is undefined.
        rows = rows - rows + 1
    if reduction == "mean":
        return rows.mean()
    if reduction == "sum":
        return rows.sum()
    return rows


def _contrastive(
    x: Tensor,
    y: Tensor,
    temperature: Tensor | None,
    tau: float,
    loss: str,
    negatives: str,
    normalize: bool,
    reduction: str,
    form: str,
    precision: str,
    impl: str,
    workspace: int,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = problem_of(loss, negatives, normalize, reduction, precision, workspace)
    with _WithoutAutocast(x.device.type):
        rows, stats, held_x, held_y, held_temperature = ENGINES[choose(x, problem, impl)[0]].forward(
            x,
            y,
            _temperature(temperature, tau),
            problem,
            need_x=need_x,
            need_y=need_y,
            need_temperature=need_temperature,
        )
        return _reduce(rows, reduction, form), stats, held_x, held_y, held_temperature


def _contrastive_fake(
    x: Tensor,
    y: Tensor,
    temperature: Tensor | None,
    tau: float,
    loss: str,
    negatives: str,
    normalize: bool,
    reduction: str,
    form: str,
    precision: str,
    impl: str,
    workspace: int,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = problem_of(loss, negatives, normalize, reduction, precision, workspace)
    engine = ENGINES[choose(x, problem, impl)[0]]
    n, d = x.shape
    new = x.new_empty
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    held = engine.holds_gradient(problem)
    return (
        new((2 * n,) if reduction == "none" else (), dtype=dtype),
        new(engine.stats_shape(n, d, problem), dtype=dtype),
        new((n, d) if held and need_x else (0,), dtype=dtype),
        new((n, d) if held and need_y else (0,), dtype=dtype),
        new(() if held and need_temperature else (0,), dtype=dtype),
    )


def _contrastive_backward(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    temperature: Tensor | None,
    stats: Tensor,
    held_x: Tensor,
    held_y: Tensor,
    held_temperature: Tensor,
    tau: float,
    loss: str,
    negatives: str,
    normalize: bool,
    reduction: str,
    form: str,
    precision: str,
    impl: str,
    workspace: int,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = problem_of(loss, negatives, normalize, reduction, precision, workspace)
    with _WithoutAutocast(x.device.type):
        grad_x, grad_y, slope = ENGINES[choose(x, problem, impl)[0]].backward(
            upstream,
            x,
            y,
            _temperature(temperature, tau),
            stats,
            held_x,
            held_y,
            held_temperature,
            problem,
            need_x=need_x,
            need_y=need_y,
            need_temperature=need_temperature,
        )
    if slope is not None and temperature is not None:
        slope = slope.to(device=temperature.device, dtype=temperature.dtype).reshape(temperature.shape)
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        y.new_empty(0) if grad_y is None else grad_y,
        x.new_empty(0) if slope is None else slope,
    )


def _contrastive_backward_fake(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    temperature: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_y, need_temperature = rest[-3:]
    return (
        x.new_empty(x.shape if need_x else 0),
        y.new_empty(y.shape if need_y else 0),
        torch.empty_like(temperature) if need_temperature and temperature is not None else x.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, temperature, *options = inputs
    _, *intermediate = output
    ctx.save_for_backward(x, y, temperature, *intermediate)
    ctx.options = options


def _differentiate(ctx: Any, upstream: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    x, y, temperature, *intermediate = ctx.saved_tensors
    need_x, need_y, need_temperature = ctx.options[-3:]
    grad_x, grad_y, slope = torch.ops.ctloss.contrastive_backward(
        upstream, x, y, temperature, *intermediate, *ctx.options
    )
    return (
        grad_x if need_x else None,
        grad_y if need_y else None,
        slope if need_temperature else None,
        *[None] * len(ctx.options),
    )


def _refuse(ctx: Any, *upstream: Tensor) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


library.impl("contrastive", _contrastive, "CompositeExplicitAutograd")
library.impl("contrastive_backward", _contrastive_backward, "CompositeExplicitAutograd")
torch.library.register_fake("ctloss::contrastive", _contrastive_fake, lib=library)
torch.library.register_fake("ctloss::contrastive_backward", _contrastive_backward_fake, lib=library)
torch.library.register_autograd("ctloss::contrastive", _differentiate, setup_context=_save, lib=library)
torch.library.register_autograd("ctloss::contrastive_backward", _refuse, lib=library)


def fused(x: Tensor, y: Tensor, temperature: float | Tensor, problem: Problem, form: str, impl: str) -> Tensor:
    """Call the operator for a checked problem.

    Args:
        x: ``(n, d)`` anchors.
        y: ``(n, d)`` translations.
        temperature: a float, or a tensor of one element.
        problem: the loss call's options.
        form: ``"log"`` or ``"ratio"``.
        impl: ``"auto"``, ``"torch"`` or ``"triton"``.

    Returns:
        The loss, attached to autograd.

    Example:
        >>> problem = Problem("cz_nce", "both", True, "sum", "highest", 1 << 28)
        >>> fused(torch.eye(2), torch.eye(2), 1.0, problem, "log", "torch")
        tensor(-1.2274)
    """
    learnable = temperature if isinstance(temperature, Tensor) else None
    recording = torch.is_grad_enabled()
    loss: Tensor = torch.ops.ctloss.contrastive(
        x,
        y,
        learnable,
        float(temperature) if learnable is None else math.nan,
        problem.loss,
        problem.negatives,
        problem.normalize,
        problem.reduction,
        form,
        problem.precision,
        impl,
        problem.workspace,
        recording and x.requires_grad,
        recording and y.requires_grad,
        recording and learnable is not None and learnable.requires_grad,
    )[0]
    return loss
