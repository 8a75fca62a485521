"""The fused paths as PyTorch operators: schemas, fakes and autograd.

The path is chosen inside the operator: what the choice rests on (is Triton installed, which GPU is this) cannot be
asked while ``torch.compile`` traces.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .dispatch import ENGINES, choose
from .kernels.problem import Loss, Negatives, Precision, Problem, Reduction


class Options(NamedTuple):
    """What an operator takes after its tensors, in the schema's order."""

    tau: float
    loss: Loss
    negatives: Negatives
    normalize: bool
    reduction: Reduction
    form: str
    precision: Precision
    impl: str
    workspace: int
    need_x: bool
    need_y: bool
    need_temperature: bool

    @property
    def problem(self) -> Problem:
        """The part that the paths see."""
        return _problem(self.loss, self.negatives, self.normalize, self.reduction, self.precision, self.workspace)

    @property
    def needs(self) -> dict[str, bool]:
        """Which gradients are asked for, as the paths' keyword arguments."""
        return {"need_x": self.need_x, "need_y": self.need_y, "need_temperature": self.need_temperature}


_problem = lru_cache(maxsize=256)(Problem)

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


def _contrastive(x: Tensor, y: Tensor, temperature: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    given = Options(*options)
    problem = given.problem
    with _WithoutAutocast(x.device.type):
        engine = ENGINES[choose(x, problem, given.impl)[0]]
        rows, *rest = engine.forward(x, y, _temperature(temperature, given.tau), problem, **given.needs)
        return _reduce(rows, given.reduction, given.form), *rest


def _contrastive_fake(x: Tensor, y: Tensor, temperature: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    given = Options(*options)
    problem = given.problem
    engine = ENGINES[choose(x, problem, given.impl)[0]]
    n, d = x.shape
    new = x.new_empty
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    held = engine.holds_gradient(problem)
    return (
        new((2 * n,) if given.reduction == "none" else (), dtype=dtype),
        new(engine.stats_shape(n, d, problem), dtype=dtype),
        new((n, d) if held and given.need_x else (0,), dtype=dtype),
        new((n, d) if held and given.need_y else (0,), dtype=dtype),
        new(() if held and given.need_temperature else (0,), dtype=dtype),
    )


def _contrastive_backward(
    upstream: Tensor, x: Tensor, y: Tensor, temperature: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    intermediate, given = rest[:4], Options(*rest[4:])
    problem = given.problem
    with _WithoutAutocast(x.device.type):
        engine = ENGINES[choose(x, problem, given.impl)[0]]
        tau = _temperature(temperature, given.tau)
        grad_x, grad_y, slope = engine.backward(upstream, x, y, tau, *intermediate, problem, **given.needs)
    if slope is not None and temperature is not None:
        slope = slope.to(device=temperature.device, dtype=temperature.dtype).reshape(temperature.shape)
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        y.new_empty(0) if grad_y is None else grad_y,
        x.new_empty(0) if slope is None else slope,
    )


def _contrastive_backward_fake(
    upstream: Tensor, x: Tensor, y: Tensor, temperature: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    given = Options(*rest[4:])
    return (
        x.new_empty(x.shape if given.need_x else 0),
        y.new_empty(y.shape if given.need_y else 0),
        torch.empty_like(temperature) if given.need_temperature and temperature is not None else x.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, temperature, *options = inputs
    _, *intermediate = output
    # Nothing is differentiated through the intermediates: zeros of their size would be made for it on every backward.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, temperature, *intermediate)
    ctx.options = Options(*options)


def _differentiate(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * (3 + len(ctx.options))
    x, y, temperature, *intermediate = ctx.saved_tensors
    given = ctx.options
    grad_x, grad_y, slope = torch.ops.ctloss.contrastive_backward(upstream, x, y, temperature, *intermediate, *given)
    return (
        grad_x if given.need_x else None,
        grad_y if given.need_y else None,
        slope if given.need_temperature else None,
        *[None] * len(given),
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
    recording = torch.is_grad_enabled()
    if torch.compiler.is_compiling() and not isinstance(temperature, Tensor):
        # A number is compiled in, and an annealed one compiled anew at every step; a product with a tensor is not.
        temperature = torch.ones((), dtype=torch.float64) * temperature
    learnable = temperature if isinstance(temperature, Tensor) else None
    options = Options(
        tau=math.nan if isinstance(temperature, Tensor) else float(temperature),
        loss=problem.loss,
        negatives=problem.negatives,
        normalize=problem.normalize,
        reduction=problem.reduction,
        form=form,
        precision=problem.precision,
        impl=impl,
        workspace=problem.workspace,
        need_x=recording and x.requires_grad,
        need_y=recording and y.requires_grad,
        need_temperature=recording and learnable is not None and learnable.requires_grad,
    )
    loss: Tensor = torch.ops.ctloss.contrastive(x, y, learnable, *options)[0]
    return loss
