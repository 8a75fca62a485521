"""The fused paths as PyTorch operators: schemas, fakes and autograd.

The path is chosen inside the operator: what the choice rests on (is Triton installed, which GPU is this) cannot be
asked while ``torch.compile`` traces. Where nothing watches the dispatcher the work is done without it, which halves
what a call costs beside its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import checks
from .dispatch import ENGINES, choose
from .kernels.problem import Problem


@dataclass(frozen=True)
class Call:
    """What an operator is asked for beside its tensors and τ.

    It travels as one string: a dozen arguments cost the dispatcher more than a small batch's arithmetic.
    """

    problem: Problem
    form: str
    impl: str
    needs: dict[str, bool]


def spell(problem: Problem, form: str, impl: str, need_x: bool, need_y: bool, need_temperature: bool) -> str:
    """What an operator is asked for, as the words and numbers that :func:`parse` reads.

    Example:
        >>> spell(Problem("cz_nce", "both", True, "mean", "highest", 1 << 28), "log", "auto", True, True, False)
        'cz_nce both 1 mean highest 268435456 log auto 1 1 0'
    """
    return (
        f"{problem.loss} {problem.negatives} {problem.normalize:d} {problem.reduction} {problem.precision} "
        f"{problem.workspace} {form} {impl} {need_x:d} {need_y:d} {need_temperature:d}"
    )


@lru_cache(maxsize=1024)
def parse(options: str) -> Call:
    """The call that :func:`spell` was given.

    Example:
        >>> parse("cz_nce both 1 mean highest 268435456 log auto 1 1 0").needs
        {'need_x': True, 'need_y': True, 'need_temperature': False}
    """
    loss, negatives, normalize, reduction, precision, workspace, form, impl, *flags = options.split()
    problem = Problem(loss, negatives, normalize == "1", reduction, precision, int(workspace))  # type: ignore[arg-type]
    need_x, need_y, need_temperature = (flag == "1" for flag in flags)
    return Call(problem, form, impl, {"need_x": need_x, "need_y": need_y, "need_temperature": need_temperature})


PLAIN = (Tensor, torch.nn.Parameter)
NO_SECOND_DERIVATIVE = (
    "ctloss: the fused paths have no second derivative; call the loss with impl='reference' and form='log', "
    "which can be differentiated any number of times"
)

library = torch.library.Library("ctloss", "DEF")
library.define(
    "contrastive(Tensor x, Tensor y, Tensor? temperature, float tau, str options) -> "
    "(Tensor loss, Tensor stats, Tensor held_x, Tensor held_y, Tensor held_temperature)"
)
library.define(
    "contrastive_backward(Tensor upstream, Tensor x, Tensor y, Tensor? temperature, Tensor stats, Tensor held_x, "
    "Tensor held_y, Tensor held_temperature, float tau, str options) -> (Tensor, Tensor, Tensor)"
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


def _contrastive(x: Tensor, y: Tensor, temperature: Tensor | None, tau: float, options: str) -> tuple[Tensor, ...]:
    call = parse(options)
    problem = call.problem
    with _WithoutAutocast(x.device.type):
        engine = ENGINES[choose(x, problem, call.impl)[0]]
        rows, *rest = engine.forward(x, y, _temperature(temperature, tau), problem, **call.needs)
        return _reduce(rows, problem.reduction, call.form), *rest


def _contrastive_fake(x: Tensor, y: Tensor, temperature: Tensor | None, tau: float, options: str) -> tuple[Tensor, ...]:
    call = parse(options)
    problem = call.problem
    engine = ENGINES[choose(x, problem, call.impl)[0]]
    n, d = x.shape
    new = x.new_empty
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    held = engine.holds_gradient(problem)
    differentiated = call.needs["need_x"] or call.needs["need_y"]
    return (
        new((2 * n,) if problem.reduction == "none" else (), dtype=dtype),
        new(engine.stats_shape(x.dtype, n, d, problem, differentiated=differentiated), dtype=dtype),
        new((n, d) if held and call.needs["need_x"] else (0,), dtype=dtype),
        new((n, d) if held and call.needs["need_y"] else (0,), dtype=dtype),
        new(() if held and call.needs["need_temperature"] else (0,), dtype=dtype),
    )


def _contrastive_backward(
    upstream: Tensor, x: Tensor, y: Tensor, temperature: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *intermediate, tau, options = rest
    call = parse(options)
    with _WithoutAutocast(x.device.type):
        engine = ENGINES[choose(x, call.problem, call.impl)[0]]
        tau = _temperature(temperature, tau)
        grad_x, grad_y, slope = engine.backward(upstream, x, y, tau, *intermediate, call.problem, **call.needs)
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
    needs = parse(rest[-1]).needs
    return (
        x.new_empty(x.shape if needs["need_x"] else 0),
        y.new_empty(y.shape if needs["need_y"] else 0),
        torch.empty_like(temperature) if needs["need_temperature"] and temperature is not None else x.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the backward needs, of the operator or of :class:`Contrastive`."""
    x, y, temperature, ctx.tau, ctx.options = inputs
    ctx.needs = tuple(parse(ctx.options).needs.values())
    _, *intermediate = output
    # Nothing is differentiated through the intermediates: zeros of their size would be made for it on every backward.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, temperature, *intermediate)


def _differentiate(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, upstream, torch.ops.ctloss.contrastive_backward)


def _gradients(ctx: Any, upstream: Tensor | None, run: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 5
    gradients = run(upstream, *ctx.saved_tensors, ctx.tau, ctx.options)
    return *(gradient if need else None for gradient, need in zip(gradients, ctx.needs, strict=True)), None, None


def _refuse(ctx: Any, *upstream: Tensor) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


library.impl("contrastive", _contrastive, "CompositeExplicitAutograd")
library.impl("contrastive_backward", _contrastive_backward, "CompositeExplicitAutograd")
torch.library.register_fake("ctloss::contrastive", _contrastive_fake, lib=library)
torch.library.register_fake("ctloss::contrastive_backward", _contrastive_backward_fake, lib=library)
torch.library.register_autograd("ctloss::contrastive", _differentiate, setup_context=_save, lib=library)
torch.library.register_autograd("ctloss::contrastive_backward", _refuse, lib=library)


class Contrastive(torch.autograd.Function):
    """The operator ``contrastive`` and its gradient, called directly."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _contrastive(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        # Grad mode is on if the gradient is to be differentiated: the operator refuses that.
        direct = not torch.is_grad_enabled() and (upstream is None or _unwatched(upstream))
        return _gradients(ctx, upstream, _contrastive_backward if direct else torch.ops.ctloss.contrastive_backward)


def _unwatched(*tensors: Tensor | None) -> bool:
    """Whether no compiler, transform, batching, dispatch mode or subclass of tensors looks for operators here."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and all(tensor is None or _is_plain(tensor) for tensor in tensors)
    )


def _is_plain(tensor: Tensor) -> bool:
    if type(tensor) not in PLAIN:
        return False
    # A batched tensor has the type and the device of what it is a batch of, but not the key.
    keys = torch._C._dispatch_keys(tensor)
    return any(keys.has(key) for key in (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA))


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
    tau = math.nan if isinstance(temperature, Tensor) else float(temperature)
    options = spell(
        problem,
        form,
        impl,
        need_x=recording and x.requires_grad,
        need_y=recording and y.requires_grad,
        need_temperature=recording and learnable is not None and learnable.requires_grad,
    )
    loss: Tensor
    if _unwatched(x, y, learnable):
        loss = Contrastive.apply(x, y, learnable, tau, options)
    else:
        loss = torch.ops.ctloss.contrastive(x, y, learnable, tau, options)[0]
    return loss
