"""The fused paths of ``ctloss.sig_lip`` as a PyTorch operator: schema, fakes and autograd."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .kernels.problem import Batch, Problem, parse
from .kernels.sigmoid import SCALE, Solved
from .kernels.torch_path import sig_lip as torch_path
from .kernels.torch_path.sig_lip import unscaled
from .kernels.triton_path import sig_lip as triton_path
from .ops import output_dtype

ONLY_FIRST_DERIVATIVES = (
    "ctloss: the fused paths of sig_lip have a first derivative alone, by reverse mode; impl='reference' can be "
    "differentiated any number of times, in any mode"
)


class Call(NamedTuple):
    """What the operator is asked for beside its tensors; it travels as one string."""

    problem: Problem
    needs: tuple[bool, bool, bool, bool]

    @property
    def holds_gradient(self) -> bool:
        """Whether the forward forms the gradient: one upstream number for all rows can be multiplied in afterwards."""
        return self.problem.reduction != "none" and any(self.needs)


class Inputs(NamedTuple):
    """The operator's tensors."""

    x: Tensor
    y: Tensor
    temperature: Tensor
    bias: Tensor
    ids: Tensor | None


def _loss_dtype(inputs: Inputs) -> torch.dtype:
    return output_dtype(torch.promote_types(inputs.x.dtype, inputs.y.dtype))


def fused(batch: Batch, bias: float | Tensor, problem: Problem) -> Tensor:
    """Call the operator for checked arguments.

    Args:
        batch: x, y, temperature and ids.
        bias: b, a number or a tensor of one element.
        problem: the call's options.

    Returns:
        The loss, attached to autograd.

    Example:
        >>> fused(Batch(torch.eye(2), torch.eye(2), temperature=1.0), -1.0, Problem())
        tensor(1.0064)
    """
    inputs = Inputs(batch.x, batch.y, _as_tensor(batch.temperature), _as_tensor(bias), batch.ids)
    recording = torch.is_grad_enabled()
    needs = "".join(str(int(recording and tensor.requires_grad)) for tensor in inputs[:4])  # type: ignore[union-attr]
    loss: Tensor = torch.ops.ctloss.sig_lip(*inputs, f"{problem.spell()}|{needs}")[0]
    return loss


def _as_tensor(number: float | Tensor) -> Tensor:
    if isinstance(number, Tensor):
        return number
    # A number would be compiled in, and an annealed one compiled anew at every step; a product with it is not.
    return torch.ones((), dtype=torch.float64) * number


@lru_cache(maxsize=1024)
def _parse(options: str) -> Call:
    spelled, needs = options.rsplit("|", 1)
    need_x, need_y, need_temperature, need_bias = (need == "1" for need in needs)
    return Call(parse(spelled), (need_x, need_y, need_temperature, need_bias))


def reduced(rows: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of row losses, or the rows themselves.

    Example:
        >>> reduced(torch.tensor([1.0, 2.0]), "sum")
        tensor(3.)
    """
    if reduction == "none":
        return rows
    return rows.mean() if reduction == "mean" else rows.sum()


def engine_of(batch: Batch, impl: str) -> ModuleType:
    """The path's module, a named one being taken or refused, never replaced.

    Raises:
        RuntimeError: if the named path cannot run, saying why.

    Example:
        >>> engine_of(Batch(torch.eye(2), torch.eye(2)), "auto").__name__
        'ctloss.kernels.torch_path.sig_lip'
    """
    if impl == "auto":
        on_cpu = batch.x.device.type == "cpu"
        return torch_path if on_cpu or triton_path.unsupported(batch) is not None else triton_path
    engine = torch_path if impl == "torch" else triton_path
    why_not = engine.unsupported(batch)
    if why_not is not None:
        raise RuntimeError(f"impl={impl!r} cannot run here: {why_not}; impl='auto' takes a path that can")
    return engine


def _number(tensor: Tensor) -> float | Tensor:
    """A number where it can be read on the host, else a 0-d tensor."""
    return float(tensor) if tensor.device.type == "cpu" else tensor.detach().reshape(())


def _solve(inputs: Inputs, call: Call, *, needs: tuple[bool, ...], weights: Tensor | None = None) -> Solved:
    tau = _number(inputs.temperature)
    if isinstance(tau, float):
        checks.positive(tau)
    batch = Batch(inputs.x, inputs.y, (), tau, inputs.ids)
    engine = engine_of(batch, call.problem.impl)
    with torch.autocast(inputs.x.device.type, enabled=False):
        solved: Solved = engine.solve(batch, _number(inputs.bias), call.problem, weights=weights, needs=needs)
    return solved


def _forward(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    *tensors, options = arguments
    inputs, call = Inputs(*tensors), _parse(options)
    x, dtype = inputs.x, _loss_dtype(inputs)
    solved = _solve(inputs, call, needs=call.needs if call.holds_gradient else (False,) * 4)
    loss = reduced(solved.rows, call.problem.reduction).to(dtype)
    if not call.holds_gradient:
        return loss, []
    exponents = x.new_zeros((2 * x.shape[0], 1), dtype=dtype) if solved.exponents is None else solved.exponents
    held = (*solved.gradients, exponents.to(dtype), solved.slope, solved.offset)
    return loss, [x.new_empty(0) if tensor is None else tensor for tensor in held]


def _forward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    *tensors, options = arguments
    inputs, call = Inputs(*tensors), _parse(options)
    x, dtype = inputs.x, _loss_dtype(inputs)
    n, d = x.shape
    loss = x.new_empty((n,) if call.problem.reduction == "none" else (), dtype=dtype)
    if not call.holds_gradient:
        return loss, []
    shapes = ((n, d), (n, d), (2 * n, 1), (), ())
    dtypes = (dtype, dtype, dtype, torch.float64, torch.float64)
    needs = (*call.needs[:2], True, *call.needs[2:])
    return loss, [
        x.new_empty(shape, dtype=dtype) if need else x.new_empty(0)
        for shape, dtype, need in zip(shapes, dtypes, needs, strict=True)
    ]


def _backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, held, options = arguments
    inputs, call = Inputs(*tensors), _parse(options)
    if call.holds_gradient:
        grad_x, grad_y, exponents, slope, offset = held
        solved = Solved(upstream, (grad_x, grad_y), exponents, slope, offset)
        factor = upstream.double() / (inputs.x.shape[0] if call.problem.reduction == "mean" else 1)
    else:
        factor = _power_of_two(upstream.double())
        weights = (upstream.double() / factor).to(_loss_dtype(inputs))
        solved = _solve(inputs, call, needs=call.needs, weights=weights)
    return _unscaled(solved, factor, inputs, call)


def _power_of_two(weights: Tensor) -> Tensor:
    """What brings the largest weight between 1 and 2, whatever the upstream gradient's scale."""
    largest = torch.cat((weights.abs(), weights.new_zeros(1))).amax()
    ordinary = (largest > 0) & torch.isfinite(largest)
    return torch.exp2(torch.floor(torch.log2(torch.where(ordinary, largest, 1.0))))


def _unscaled(solved: Solved, factor: Tensor, inputs: Inputs, call: Call) -> tuple[Tensor, ...]:
    """Gradients of x, y, the temperature and the bias as they stand; empty where not needed."""
    n, exponents = inputs.x.shape[0], solved.exponents
    if exponents is not None and exponents.device.type == "cpu" and not exponents.any():
        exponents = None
    powers = (None, None) if exponents is None else (exponents[:n], exponents[n:])
    over_tau = factor / inputs.temperature.double().reshape(()).to(factor.device)
    results = []
    for side, gradient, power, need in zip(inputs[:2], solved.gradients, powers, call.needs[:2], strict=True):
        assert side is not None
        done = unscaled(gradient, power, over_tau, side.dtype) if need and gradient is not None else None
        results.append(inputs.x.new_empty(0) if done is None else done)
    for scalar, gradient, need in zip(inputs[2:4], (solved.slope, solved.offset), call.needs[2:], strict=True):
        assert scalar is not None
        done = (gradient * (factor / SCALE)).to(scalar.device, scalar.dtype) if need and gradient is not None else None
        results.append(inputs.x.new_empty(0) if done is None else done.reshape(scalar.shape))
    return tuple(results)


def _backward_fake(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _, options = arguments
    inputs, call = Inputs(*tensors), _parse(options)
    return tuple(
        tensor.new_empty(tensor.shape) if need else inputs.x.new_empty(0)  # type: ignore[union-attr]
        for tensor, need in zip(inputs[:4], call.needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    *tensors, ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1])


def _differentiate(ctx: Any, upstream: Tensor | None, held: object) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 6
    inputs, held_tensors = ctx.saved_tensors[:5], list(ctx.saved_tensors[5:])
    gradients = torch.ops.ctloss.sig_lip_backward(upstream, *inputs, held_tensors, ctx.options)
    needs = _parse(ctx.options).needs
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), None, None


def _refuse(ctx: Any, *upstream: Tensor) -> None:
    raise RuntimeError(ONLY_FIRST_DERIVATIVES)


library = torch.library.Library("ctloss", "FRAGMENT")
library.define(
    "sig_lip(Tensor x, Tensor y, Tensor temperature, Tensor bias, Tensor? ids, str options) -> "
    "(Tensor loss, Tensor[] held)"
)
library.define(
    "sig_lip_backward(Tensor upstream, Tensor x, Tensor y, Tensor temperature, Tensor bias, Tensor? ids, "
    "Tensor[] held, str options) -> (Tensor, Tensor, Tensor, Tensor)"
)
library.impl("sig_lip", _forward, "CompositeExplicitAutograd")
library.impl("sig_lip_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("ctloss::sig_lip", _forward_fake, lib=library)
torch.library.register_fake("ctloss::sig_lip_backward", _backward_fake, lib=library)
torch.library.register_autograd("ctloss::sig_lip", _differentiate, setup_context=_save, lib=library)
torch.library.register_autograd("ctloss::sig_lip_backward", _refuse, lib=library)
