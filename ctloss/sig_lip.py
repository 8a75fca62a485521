"""The sigmoid loss, ``ctloss.sig_lip``: classifies every pair of rows on its own and keeps no pair's logit.

First the public function, then its fused paths called directly, then their operator: schema, fakes and autograd.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .core import checks, flops, ops, rows, sigmoid
from .core.graphs import in_graphs, outside_graphs
from .core.keywords import only, unknown_to
from .core.ops import output_dtype, unwatched
from .core.plan import Plan, cached_plan, problem_for
from .core.sigmoid import Needs
from .kernels.native import engine as native_engine
from .kernels.problem import Batch, Impl, Precision, Problem, Reduction, Shape, parse
from .kernels.sigmoid import SCALE_BITS, Solved
from .kernels.torch_path import engine as torch_engine
from .kernels.torch_path.engine import Held
from .losses import choose
from .ranks import sig_lip as of_ranks
from .ranks.group import Across, Average, Group, Ranks, is_sharded, local_rows
from .reference.sig_lip import row_losses

ONLY_FIRST_DERIVATIVES = (
    "ctloss: the fused paths of sig_lip have no second derivative; impl='reference' can be differentiated any number "
    "of times, in any mode"
)


@in_graphs
@only
def sig_lip(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    ids: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    precision: Precision = "highest",
    impl: Impl = "auto",
    group: Group = None,
    average: Average = "mean",
    even: bool = False,
    **others: NoReturn,
) -> Tensor:
    r"""The sigmoid loss of pairs: for each of all n² pairs, is y_j the partner of x_i?

    .. math:: L = -\frac{1}{n} \sum_{ij} \log \sigma(\pm_{ij} (s_{ij} + b)), \qquad
              s_{ij} = \frac{\cos(x_i, y_j)}{\tau}

    with + for i = j and − for all others. Source: SigLIP, arXiv 2303.15343, algorithm 1, whose t is 1/τ.

    Value and gradient come from one pass over the logits, a panel of rows at a time: memory grows with n, not n². Only
    the native path, up to 4096 pairs, keeps the pairs' weights.
    Logits, losses and weights are float32 or better whatever the rows' dtype. A positive's logit is formed in float64,
    and no weight is one minus a probability, so the gradient of a nearly certain pair does not vanish. With S the
    largest |s| + |b| and A_i = Σ_j |W_ij| ‖u_j‖ / (n τ ‖x_i‖), W being the pairs' weights and u the unit rows (without
    ``normalize`` the raw ones, and ‖x_i‖ = 1), the gradient's error is at most ‖A‖ (5e-7 + 1e-7 S) plus one rounding to
    the rows' dtype; that of a row loss is at most L (5e-7 + 1e-7 S).

    Args:
        x: ``(n, d)`` float32, float64, bfloat16 or float16.
        y: ``(n, d)``; row i is the partner of row i of x.
        temperature: τ, a positive number or a tensor of one element, which may require a gradient.
        bias: b, a number or a tensor of one element, which may require a gradient.
        ids: ``(n,)`` integers; pairs i ≠ j whose ids are equal are left out, neither positive nor negative.
        normalize: cosines if true, else dot products.
        reduction: ``"mean"`` over the n rows of x, ``"sum"``, or ``"none"`` for ``(n,)`` row losses, whose
            gradient needs a second pass over the logits, because each row's upstream gradient is only known then.
        precision: as for :func:`ctloss.info_nce`; the bounds above hold for ``"highest"``.
        impl: ``"auto"``, or the path to take: ``"native"``, ``"torch"``, ``"triton"`` or ``"reference"``. Under
            transforms of ``torch.func`` and forward-mode differentiation ``"auto"`` takes the reference.
        group: ranks whose rows are compared with this one's: each passes its own x, y and ids, which are global, and
            gets its part of the loss, as for :func:`ctloss.info_nce`. A rank's row losses are those of its own x, over
            the y of all ranks; with "none" it gets these. The gradients of the temperature and the bias are those of
            its own row losses, those of x and y of every rank's.
        average: whether the ranks' gradients are averaged, ``"mean"``, or added up, ``"sum"``.
        even: the promise that all ranks always have as many rows, and need the same gradients.

    Returns:
        The loss: ``()``, or ``(n,)`` for ``reduction="none"``; float32, or float64 if x or y is.

    Raises:
        TypeError, ValueError: for arguments of another type, shape, device or value.
        RuntimeError: if the path named by ``impl`` cannot run; in the backward of a backward, on a fused path; with a
            group, on every rank, if one makes another call or does not answer.

    Example:
        >>> import torch, ctloss
        >>> ctloss.sig_lip(torch.eye(2), torch.eye(2), temperature=1.0, bias=-1.0)
        tensor(1.0064)
    """
    if others:
        raise unknown_to(sig_lip, others)
    given = {"normalize": normalize, "reduction": reduction, "precision": precision, "impl": impl}
    across = Across(group=group, average=average, even=even)
    if group is not None or is_sharded(x):
        return _spread(x, y, ids, temperature, bias, given, across)
    return _sig_lip(_checked(x, y, ids, temperature, bias, given), bias)


@outside_graphs
def _spread(
    x: Any, y: Any, ids: Any, temperature: float | Tensor, bias: float | Tensor, given: dict[str, Any], across: Across
) -> Tensor:
    x, group = local_rows("x", x, across.group)
    y, _ = local_rows("y", y, group)
    ids, _ = local_rows("ids", ids, group)
    ranks = Ranks.of(group)
    batch, problem = _checked(x, y, ids, temperature, bias, given, empty=ranks.world > 1)
    if ranks.world == 1:
        return _sig_lip((batch, problem), bias)
    return of_ranks.loss(problem, across, ranks, batch, bias)


def _checked(
    x: Tensor,
    y: Tensor,
    ids: Tensor | None,
    temperature: float | Tensor,
    bias: float | Tensor,
    given: dict[str, Any],
    *,
    empty: bool = False,
) -> tuple[Batch, Problem]:
    problem = problem_for("sig_lip", x.device.type if isinstance(x, Tensor) else "cpu", given)
    batch = checks.batch(
        x,
        y,
        problem,
        temperature_given=temperature,
        candidates_given=None,
        ids_given=ids,
        candidate_ids_given=None,
        read=not isinstance(temperature, Tensor) or unwatched(temperature),
        empty=empty,
    )
    if isinstance(temperature, Tensor):
        _check_scalar("temperature", temperature, x)
    if type(bias) is not float or not -math.inf < bias < math.inf:
        _check_scalar("bias", bias, x)
    return batch, problem


def _sig_lip(checked: tuple[Batch, Problem], bias: float | Tensor) -> Tensor:
    batch, problem = checked
    chosen = choose(batch, problem)
    if chosen.path == "reference":
        options = batch._asdict() | {"bias": bias, "normalize": problem.normalize}
        del options["candidates"], options["candidate_ids"]
        with torch.autocast(batch.x.device.type, enabled=False):
            return rows.reduce(problem, row_losses(**options), None).to(output_dtype(batch.shape.dtype))
    return fused(batch, bias, chosen)


def _check_scalar(name: str, value: object, x: Tensor) -> None:
    if isinstance(value, Tensor):
        if value.dtype not in checks.DTYPES:
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}; convert it with .float()")
        if value.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(value.shape)}; one serves all pairs")
        if value.device.type != "cpu":
            checks.same_device(name, value, x)
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a float or a tensor, got {type(value).__name__}; convert it with float()")
    elif not -math.inf < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a finite number, got {value}; the defaults are 0.1 and -10")


class Call(NamedTuple):
    """What the operator takes besides its tensors, passed as one string."""

    problem: Problem
    needs: Needs

    @property
    def holds_gradient(self) -> bool:
        """Whether the forward forms the gradient; a single upstream number for all rows can be multiplied in later."""
        return self.problem.reduction != "none" and any(self.needs)


class Inputs(NamedTuple):
    """The operator's tensors; called directly, temperature and bias may be numbers."""

    x: Tensor
    y: Tensor
    temperature: float | Tensor
    bias: float | Tensor
    ids: Tensor | None


def _loss_dtype(inputs: Inputs) -> torch.dtype:
    dtype = inputs.x.dtype
    return output_dtype(dtype if inputs.y.dtype == dtype else torch.promote_types(dtype, inputs.y.dtype))


def fused(batch: Batch, bias: float | Tensor, chosen: Plan) -> Tensor:
    """The loss of checked arguments, attached to autograd; ``bias`` is a number or a tensor of one element.

    Example:
        >>> batch = Batch(torch.eye(2), torch.eye(2), temperature=1.0)
        >>> fused(batch, -1.0, cached_plan(batch.shape, Problem(loss="sig_lip")))
        tensor(1.0064)
    """
    tensors = batch.x, batch.y, batch.temperature, bias
    needs = (False,) * 4
    if torch.is_grad_enabled():
        needs = tuple([isinstance(one, Tensor) and one.requires_grad for one in tensors])  # type: ignore[assignment]
    call = Call(chosen.problem, needs)
    loss: Tensor
    if unwatched(*tensors):
        if True in needs:
            loss = Sigmoid.apply(chosen, batch.ids, *tensors)
        else:
            loss, _ = _loss(Inputs(batch.x, batch.y, batch.temperature, bias, batch.ids), call, chosen)
        return loss
    flops.announce()
    inputs = Inputs(batch.x, batch.y, _as_tensor(batch.temperature), _as_tensor(bias), batch.ids)
    spelled = "".join(str(int(need)) for need in needs)
    loss = torch.ops.ctloss.sig_lip(*inputs, f"{chosen.problem.spell()}|{spelled}")[0]
    return loss


def _as_tensor(number: float | Tensor) -> Tensor:
    if isinstance(number, Tensor):
        return number
    # A number would be compiled in, so an annealed one would recompile at every step; a product with a tensor does not.
    return torch.ones((), dtype=torch.float64) * number


class Sigmoid(torch.autograd.Function):
    """The loss called directly."""

    @staticmethod
    def forward(ctx: Any, chosen: Plan, ids: Tensor | None, *tensors: Any) -> Tensor:
        ctx.needs = ctx.needs_input_grad[2:]
        ctx.set_materialize_grads(False)
        x, y, temperature, bias = tensors
        inputs = Inputs(x, y, temperature, bias, ids)
        loss, solved = _loss(inputs, Call(chosen.problem, ctx.needs), chosen)
        # Without the losses: they lead to this node, and would keep it and themselves alive.
        ctx.held = None if solved is None else solved[1:]
        ctx.rest = chosen, [None if isinstance(one, Tensor) else one for one in tensors]
        # So that a change of what is read again is noticed, and a second derivative reaches the inputs.
        read_again = ids if solved is None else None
        ctx.save_for_backward(read_again, *[one for one in tensors if isinstance(one, Tensor)])
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 6
        chosen, numbers = ctx.rest
        ids, *given = ctx.saved_tensors
        saved = iter(given)
        x, y, temperature, bias = [next(saved) if one is None else one for one in numbers]
        inputs = Inputs(x, y, temperature, bias, ids)
        # Freed like saved tensors: a loss that is kept for its value keeps nothing else.
        solved = None if ctx.held is None else Solved(upstream, *ctx.held)
        last = not torch._C._autograd._get_current_graph_task_keep_graph()
        if last:
            ctx.held = None
        if last and unwatched(upstream) and not torch.is_grad_enabled():
            # The usual call, in few steps.
            found = _direct_gradients(solved, inputs, Call(chosen.problem, ctx.needs), chosen, True, upstream)
            return None, None, *found
        run = partial(_direct_gradients, solved, inputs, Call(chosen.problem, ctx.needs), chosen, False)
        return None, None, *ops.once(run, ctx, upstream, given, ONLY_FIRST_DERIVATIVES)


def _direct_gradients(
    solved: Solved | None, inputs: Inputs, call: Call, chosen: Plan, last: bool, upstream: Tensor, _: None = None
) -> list[Tensor | None]:
    factor = upstream
    if solved is None:
        factor, solved = _solve_again(upstream, inputs, call, chosen)
    return _gradients(solved, factor, inputs, call, last=last)


@lru_cache(maxsize=1024)
def _parse(options: str) -> Call:
    spelled, needs = options.rsplit("|", 1)
    need_x, need_y, need_temperature, need_bias = (need == "1" for need in needs)
    return Call(parse(spelled), (need_x, need_y, need_temperature, need_bias))


def _solve(
    inputs: Inputs,
    call: Call,
    chosen: Plan,
    *,
    needs: Needs,
    weights: Tensor | None = None,
    share: float | None = None,
) -> Solved:
    x, y, temperature, bias, ids = inputs
    batch = Batch(x, y, (), temperature, ids)
    return sigmoid.solve(chosen.path, batch, bias, call.problem, needs=needs, weights=weights, share=share)


def _loss(inputs: Inputs, call: Call, chosen: Plan) -> tuple[Tensor, Solved | None]:
    """The loss, and the gradient if the forward forms it."""
    problem, holds = call.problem, call.holds_gradient
    needs = call.needs if holds else (False,) * 4
    if chosen.path == "native" and problem.reduction != "none":
        share = 1.0 / inputs.x.shape[0] if problem.reduction == "mean" else 1.0
        solved = _solve(inputs, call, chosen, needs=needs, share=share)
        return solved.rows, solved if holds else None
    solved = _solve(inputs, call, chosen, needs=needs)
    return rows.reduce(problem, solved.rows, None).to(_loss_dtype(inputs)), solved if holds else None


def _planned(inputs: Inputs, call: Call) -> Plan:
    return cached_plan(Batch(inputs.x, inputs.y, (), 1.0, inputs.ids).shape, call.problem)


def _forward(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    *tensors, options = arguments
    inputs, call = Inputs(*tensors), _parse(options)
    x, dtype = inputs.x, _loss_dtype(inputs)
    loss, solved = _loss(inputs, call, _planned(inputs, call))
    if solved is None:
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
        factor = upstream
    else:
        factor, solved = _solve_again(upstream, inputs, call, _planned(inputs, call))
    gradients = _gradients(solved, factor, inputs, call)
    return tuple([inputs.x.new_empty(0) if one is None else one for one in gradients])


def _solve_again(upstream: Tensor, inputs: Inputs, call: Call, chosen: Plan) -> tuple[Tensor, Solved]:
    """The gradient of rows that each have an upstream number of their own, and what it has yet to be multiplied by."""
    factor = rows.power_of_two(upstream.double())
    weights = (upstream.double() / factor).to(_loss_dtype(inputs))
    return factor, _solve(inputs, call, chosen, needs=call.needs, weights=weights)


def _gradients(
    solved: Solved, upstream: Tensor, inputs: Inputs, call: Call, *, last: bool = False
) -> list[Tensor | None]:
    """The final gradients of x, y, the temperature and the bias; ``None`` where not needed.

    ``last`` says that nothing will ask for them again, so that what was solved may be overwritten.
    """
    x, y, temperature, bias, _ = inputs
    need_x, need_y, *need_scalars = call.needs
    n, exponents = x.shape[0], solved.exponents
    factor: Any
    if upstream.device.type == "cpu":
        factor = upstream.item()
        if exponents is not None and not exponents.any():
            exponents = None
    else:
        factor = upstream.double()
    if call.problem.reduction == "mean":
        factor = factor / n
    over_tau = factor / sigmoid.number(temperature)
    if isinstance(over_tau, Tensor):
        over_tau = over_tau.double().to(upstream.device)
    grad_x, grad_y = solved.gradients
    held = Held([grad_x if need_x else None, grad_y if need_y else None], None, -SCALE_BITS)
    if exponents is not None:
        held = held._replace(exponents=[exponents[:n], exponents[n:]])
    release = native_engine.release if last and x.device.type == "cpu" else torch_engine.release
    results = release(held, over_tau, (x.dtype, y.dtype), last=last)
    if True not in need_scalars:
        return [*results, None, None]
    for scalar, slope, need in zip((temperature, bias), (solved.slope, solved.offset), need_scalars, strict=True):
        results.append(sigmoid.slope_of_scalar(scalar, slope, factor) if need else None)
    return results


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
    needs = _parse(ctx.options).needs

    def run(weights: Tensor, _: object) -> list[Tensor | None]:
        gradients = torch.ops.ctloss.sig_lip_backward(weights, *inputs, held_tensors, ctx.options)
        return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]

    # A batched tensor has the type of the tensors in the batch, but not their dispatch key.
    if upstream.is_meta or type(upstream) not in ops.PLAIN or ops.is_plain(upstream):
        return *run(upstream, None), None, None
    # Several upstream gradients at once: there is no batching rule for an operator that takes a list.
    if torch.is_grad_enabled():
        # Batching drops the graph of results of plain tensors, and with it the refusal later on.
        raise RuntimeError(f"{ONLY_FIRST_DERIVATIVES}; or leave out create_graph=True")
    ctx.needs = needs
    return *ops.batched(run, ctx, upstream, None), None, None


def _refuse(ctx: Any, *upstream: Tensor) -> None:
    raise RuntimeError(ONLY_FIRST_DERIVATIVES)


def _count_forward(x: Tensor, y: Tensor, *rest: Any, **_: Any) -> int:
    call = _parse(rest[-1])
    return _operations(x, call, weighs=call.holds_gradient)


def _count_backward(upstream: Tensor, x: Tensor, *rest: Any, **_: Any) -> int:
    call = _parse(rest[-1])
    return 0 if call.holds_gradient else _operations(x, call, weighs=True)


def _operations(x: Tensor, call: Call, *, weighs: bool) -> int:
    """Operations that form every logit once and, where they become weights, multiply these by the rows of each side."""
    of_x, of_y, of_temperature, _ = call.needs
    times = 1 + (of_x or of_temperature) + of_y if weighs else 1
    return times * flops.products(Shape(*x.shape), Problem(negatives="cross", directions="x"))


flops.FORMULAS.update(sig_lip=_count_forward, sig_lip_backward=_count_backward)
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
