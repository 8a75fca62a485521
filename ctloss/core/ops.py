"""The fused paths as one differentiable function and as PyTorch operators: schemas, fakes and autograd.

Where nothing watches the dispatcher, calls bypass it, which halves their overhead. Compilers, transforms, dispatch
modes and tensor subclasses get the operators instead, which take their options as one string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.problem import Batch, Problem, parse
from . import checks, flops, rows
from .plan import Plan, cached_plan, holds, plan

PLAIN = (Tensor, torch.nn.Parameter)
NO_SECOND_DERIVATIVE = (
    "ctloss: the fused paths have no second derivative; call the loss with impl='reference' and form='log', "
    "which can be differentiated any number of times"
)


Ids = Sequence[Any]
"""The last two fields of a batch."""


class Refused(torch.autograd.Function):
    """A gradient as it is, whose own gradient is an error; ``sources`` are the tensors it depends on."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, message: str, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError(ctx.message)


class Found(NamedTuple):
    """What a forward leaves for its backward.

    Attributes:
        unit: ``(rows,)`` float64, the ``a`` of an upstream gradient of 1 apart from ``share``; 0 without negatives. Or
            one number for all rows, or ``None`` if neither the temperature nor a path needs it. With ``dims`` the
            tensors may have one row per width.
        share: what all upstream gradients have yet to be multiplied by, a number or a 0-d tensor.
        positive: ``(rows,)`` float64, for z itself, whose ``a`` and ``b`` differ; else ``None``.
        moment: ``(rows,)`` float64; ``None`` unless the temperature needs a gradient.
        state: the path's state; or the held gradient, if that only waits for one number.
    """

    unit: float | Tensor | None
    share: Any
    positive: Tensor | None
    moment: Tensor | None
    state: Any


class WithoutAutocast:
    """Disable autocast only if it is on: entering its context costs more than the products of a small batch."""

    def __init__(self, device_type: str) -> None:
        # The meta device has none that one could ask for.
        enabled = device_type != "meta" and torch.is_autocast_enabled(device_type)
        self.context = torch.autocast(device_type, enabled=False) if enabled else None

    def __enter__(self) -> None:
        if self.context is not None:
            self.context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self.context is not None:
            self.context.__exit__(*exception)


def output_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses: float64 for float64 embeddings, else float32.

    Example:
        >>> output_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def _forward(
    batch: Batch, weights: Tensor | None, chosen: Plan, needs: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, Found]:
    """The loss, or z and the positives' logits; ``needs`` says which sides and, last, whether τ needs a gradient."""
    if chosen.solves:
        solved = _solved(batch, weights, chosen, needs)
        if solved is not None:
            return solved
    *of_sides, of_temperature = needs
    problem, engine = chosen.problem, chosen.engine
    with torch.no_grad(), WithoutAutocast(batch.x.device.type):
        found = engine.forward(batch, problem, moment=of_temperature, gradient=any(of_sides))
        dtype = output_dtype(chosen.shape.dtype)
        z, filled = found.z, chosen.shape.fills(problem)
        if problem.loss == "contrast":
            unit = (z != -torch.inf).to(z.dtype)
            left = Found(unit, 1.0, found.positive, found.moment, found.state)
            return z.to(dtype), found.positive.to(dtype), left
        losses = rows.over_widths(problem, rows.values(problem, z, filled=filled))
        loss = rows.reduce(problem, losses, None if weights is None else weights.double()).to(dtype)
        if not any(needs):
            return loss, None, Found(z, 1.0, None, None, None)
        unit, share = rows.derivatives(problem, z, filled=filled), rows.shares(problem, z.shape[-1], weights)
        largest = None if isinstance(share, Tensor) else 1.0
        if isinstance(share, Tensor):
            unit, share = unit * share, 1.0
        state = found.state
        if holds(problem, engine):
            state = engine.hold(state, unit, unit, tuple(of_sides), largest)
        elif not isinstance(unit, Tensor):
            unit = torch.full_like(z, unit)
    return loss, None, Found(unit, share, None, found.moment, state)


def _solved(
    batch: Batch, weights: Tensor | None, chosen: Plan, needs: tuple[bool, ...]
) -> tuple[Tensor, None, Found] | None:
    """What :func:`_forward` returns, from an engine that finds a loss and its gradient in one call; ``None`` if not."""
    problem, of_temperature = chosen.problem, needs[-1]
    num_rows = problem.num_directions * chosen.shape.n
    share = rows.shares(problem, num_rows, weights)
    solved = chosen.engine.solve(batch, problem, share, needs[:-1], moment=of_temperature)
    if solved is None:
        return None
    loss, unit = solved.loss, None
    if of_temperature:
        unit = rows.derivatives(problem, solved.z, filled=True)
    if weights is not None:
        unit, share = None if unit is None else unit * share, 1.0
    if problem.form == "ratio":
        # φ/sg(φ) of every row is 1.
        ones = loss.new_ones(num_rows)
        loss = rows.reduce(problem, ones, None if weights is None else weights.float())
    return loss, None, Found(unit, share, None, solved.moment, solved.held)


def _backward(
    found: Found,
    dtypes: tuple[torch.dtype, ...],
    temperature: float | Tensor,
    problem: Problem,
    engine: Any,
    needs: tuple[bool, ...],
    last: bool,
    upstream: Tensor | None,
    upstream_positive: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of the sides, in the given dtypes, then of the temperature; ``None`` where not needed.

    ``last`` says that nothing will ask for them again, so that what the forward left may be overwritten.
    """
    of_sides, of_temperature = needs[:-1], needs[-1]
    unit: Any = found.unit
    slope = None
    gradients: list[Tensor | None] = [None] * len(of_sides)
    some = upstream if upstream is not None else upstream_positive
    assert some is not None
    with WithoutAutocast(some.device.type):
        held = holds(problem, engine)
        if held and any(of_sides):
            assert upstream is not None
            factor = upstream.item() if upstream.device.type == "cpu" else upstream
            gradients = engine.release(found.state, factor * found.share, dtypes, last=last)
        if of_temperature or not held:
            if problem.loss == "contrast":
                # Whatever a loss makes of −inf, a row without negatives has no gradient.
                a = torch.zeros_like(unit) if upstream is None else torch.where(unit == 0, 0.0, upstream.double())
            else:
                a = some.double() * unit * found.share
            b = a if upstream_positive is None else a - upstream_positive
            if not held and any(of_sides):
                gradients = engine.backward(found.state, a, b, of_sides)
            if of_temperature:
                slope = slope_of(found, a, b, temperature)
    return [*gradients, slope]


def slope_of(found: Found, a: Tensor, b: Tensor, temperature: float | Tensor) -> Tensor:
    """The temperature's gradient, ``−Σ_i [a_i (Σ_j P_ij s_ij − s⁺_i) + (a_i − b_i) s⁺_i] / τ_i``."""
    assert isinstance(temperature, Tensor)
    assert found.moment is not None
    # a may be one number for all rows.
    slopes = a * found.moment
    if b is not a:
        assert found.positive is not None
        slopes = slopes + (a - b) * found.positive
    if found.moment.dim() > 1:
        # All widths share the rows' temperatures.
        slopes = slopes.sum(0)
    slopes = slopes if temperature.dim() else slopes.sum()
    return -(slopes / temperature.detach().to(slopes.device, torch.float64)).to(temperature.device, temperature.dtype)


class Contrastive(torch.autograd.Function):
    """A loss, or z and the positives' logits, called directly."""

    @staticmethod
    def forward(
        ctx: Any, chosen: Plan, ids: Ids, weights: Tensor | None, temperature: float | Tensor, *sides: Tensor
    ) -> Any:
        needed = ctx.needs_input_grad
        needs = (*needed[4:], needed[3])
        batch = Batch(sides[0], sides[1], sides[2:], temperature, *ids)
        first, second, found = _forward(batch, weights, chosen, needs)
        ctx.set_materialize_grads(False)
        learnt = isinstance(temperature, Tensor)
        ctx.call = chosen, None if learnt else temperature
        ctx.needs, ctx.found = needs, found
        # So that a change of what is read again is noticed, and a second derivative reaches the inputs.
        read_again = () if holds(chosen.problem, chosen.engine) else (ids[0], *ids[1])
        ctx.save_for_backward(*sides, *((temperature,) if learnt else ()), *read_again)
        return first if second is None else (first, second)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        first, second = upstream if len(upstream) == 2 else (upstream[0], None)
        needs = ctx.needs
        if first is None and second is None:
            return (None,) * (3 + len(needs))
        chosen, temperature = ctx.call
        inputs = ctx.saved_tensors[: len(needs) - (temperature is not None)]
        if temperature is None:
            temperature = inputs[-1]
        # Freed like saved tensors: a loss that is kept for its value keeps nothing else.
        found, last = ctx.found, not torch._C._autograd._get_current_graph_task_keep_graph()
        if last:
            ctx.found = None
        dtypes = tuple([side.dtype for side in inputs[: len(needs) - 1]])
        plain = unwatched(first, second)
        if chosen.solves and plain and last and first is not None and not needs[-1] and not torch.is_grad_enabled():
            # The usual call, in few steps, like all the rest: only the single upstream number is missing.
            factor = first.item() * found.share
            return None, None, None, None, *chosen.engine.release(found.state, factor, dtypes, last=True)
        run = partial(_backward, found, dtypes, temperature, chosen.problem, chosen.engine, needs, last and plain)
        if not torch.is_grad_enabled():
            gradients = run(first, second) if plain else batched(run, ctx, first, second)
        else:
            # The gradient is to be differentiated. Batched gradients would lose the refusal of second derivatives.
            if not all(one is None or is_plain(one) for one in upstream):
                raise RuntimeError(NO_SECOND_DERIVATIVE)
            with torch.no_grad():
                gradients = run(first, second) if plain else batched(run, ctx, first, second)
            sources = NO_SECOND_DERIVATIVE, *(one for one in upstream if one is not None), *inputs
            gradients = [None if one is None else Refused.apply(one, *sources) for one in gradients]
        return None, None, None, gradients[-1], *gradients[:-1]


def unwatched(*tensors: object) -> bool:
    """Whether no compiler, transform, batching, dispatch mode or tensor subclass needs operators here.

    Example:
        >>> unwatched(torch.zeros(2), None)
        True
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() != 0
    ):
        return False
    for tensor in tensors:  # noqa: SIM110 (a generator takes as long as the rest)
        if isinstance(tensor, Tensor) and not is_plain(tensor):
            return False
    return True


def transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is active here.

    Example:
        >>> transformed(), torch.vmap(lambda x: x * transformed())(torch.ones(2))
        (False, tensor([1., 1.]))
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_mode()


def forward_mode() -> bool:
    """Whether forward-mode differentiation is active here."""
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is neither batched nor of a subclass.

    Example:
        >>> is_plain(torch.zeros(2))
        True
    """
    if type(tensor) not in PLAIN:
        return False
    # A batched tensor has the type and the device of the tensors in the batch, but not their dispatch key.
    keys, dense = torch._C._dispatch_keys(tensor), torch._C.DispatchKey
    return keys.has(dense.CPU) or keys.has(dense.CUDA)


def fused(batch: Batch, weights: Tensor | None, chosen: Plan) -> Any:
    """Run the planned path, a fused one, on a checked batch; weights are ``(rows,)`` without gradient, or ``None``.

    Returns:
        The loss, or the pair (z, positive) for the problem ``"contrast"``; attached to autograd.

    Example:
        >>> from ..kernels.problem import Problem
        >>> eye = torch.eye(2)
        >>> batch = Batch(eye, eye, temperature=1.0)
        >>> fused(batch, None, plan(batch.shape, Problem(loss="cz_nce", reduction="sum")))
        tensor(-1.2274)
    """
    x, y, candidates, temperature, *ids = batch
    tensors = (x, y, *candidates, temperature)
    needs = (False,) * len(tensors)
    if torch.is_grad_enabled():
        needs = tuple([isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors])
    if unwatched(*tensors, weights):
        if True in needs:
            return Contrastive.apply(chosen, ids, weights, temperature, x, y, *candidates)
        first, second, _ = _forward(batch, weights, chosen, needs)
    else:
        flops.announce()
        arguments, *rest = _arguments(batch, needs, chosen.problem)
        first, second, _ = torch.ops.ctloss.contrastive(*arguments, weights, *rest)
    return first if second is None or chosen.problem.loss != "contrast" else (first, second)


def once(
    run: Callable[..., list[Tensor | None]], ctx: Any, upstream: Tensor, inputs: Sequence[Tensor], message: str
) -> list[Tensor | None]:
    """The gradients that ``run`` forms from one upstream gradient or a batch of them; theirs in turn are an error."""
    plain = unwatched(upstream)
    if not torch.is_grad_enabled():
        return run(upstream, None) if plain else batched(run, ctx, upstream, None)
    if not is_plain(upstream):
        # Batching drops the graph of results of plain tensors, and with it the refusal later on.
        raise RuntimeError(f"{message}; or leave out create_graph=True")
    with torch.no_grad():
        gradients = run(upstream, None) if plain else batched(run, ctx, upstream, None)
    return [None if one is None else Refused.apply(one, message, upstream, *inputs) for one in gradients]


_backwards: dict[int, Callable[..., list[Tensor | None]]] = {}


def batched(
    backward: Callable[..., list[Tensor | None]], ctx: Any, first: Tensor | None, second: Tensor | None
) -> list[Tensor | None]:
    """The backward of several upstream gradients at once, run one after the other.

    Batching loops over an operator that takes and returns single tensors, so a handle stands for everything else.
    """
    handle = id(ctx)
    _backwards[handle] = backward
    try:
        run = torch.ops.ctloss.gradient_by_handle
        return [run(first, second, handle, index) if need else None for index, need in enumerate(ctx.needs)]
    finally:
        del _backwards[handle]


def _gradient_by_handle(first: Tensor | None, second: Tensor | None, handle: int, index: int) -> Tensor:
    gradient = _backwards[handle](first, second)[index]
    assert gradient is not None
    return gradient


library = torch.library.Library("ctloss", "DEF")
library.define("gradient_by_handle(Tensor? upstream, Tensor? upstream_positive, int handle, int index) -> Tensor")
library.impl("gradient_by_handle", _gradient_by_handle, "CompositeExplicitAutograd")
library.define(
    "contrastive(Tensor[] sides, Tensor? temperature, Tensor? ids, Tensor? weights, bool[] masked, float? tau, "
    "bool[] needs, str options) -> (Tensor first, Tensor positive, Tensor[] saved)"
)
library.define(
    "contrastive_backward(Tensor? upstream, Tensor? upstream_positive, Tensor[] sides, Tensor? temperature, "
    "Tensor? ids, Tensor[] saved, bool[] masked, float? tau, bool[] needs, str options) -> Tensor[]"
)


def _arguments(batch: Batch, needs: tuple[bool, ...], problem: Problem) -> tuple[Any, ...]:
    """The operators' arguments: sides, temperature, all ids in one tensor; then who has ids, τ, needs and options."""
    temperature = batch.temperature
    given = (batch.ids, *batch.candidate_ids)
    present = [own for own in given if own is not None]
    ids = torch.cat(present) if present else None
    is_tensor = isinstance(temperature, Tensor)
    tensors = list(batch.sides), temperature if is_tensor else None, ids
    masked = [own is not None for own in given]
    return tensors, masked, None if is_tensor else temperature, list(needs), problem.spell()


def _batch(
    sides: Sequence[Tensor], temperature: Tensor | None, ids: Tensor | None, masked: Sequence[bool], tau: float | None
) -> Batch:
    sizes = [side.shape[0] if one else 0 for side, one in zip(sides[1:], masked, strict=False)]
    parts = () if ids is None else ids.split(sizes)
    own, *others = (
        [part if one else None for part, one in zip(parts, masked, strict=True)] if parts else [None] * len(masked)
    )
    value: float | Tensor
    if temperature is None:
        assert tau is not None
        value = tau
    else:
        value = temperature
        if value.device.type == "cpu":
            checks.positive(value.amin().item())
    return Batch(sides[0], sides[1], tuple(sides[2:]), value, own, tuple(others))


def _serialised(found: Found, batch: Batch, problem: Problem, engine: Any) -> list[Tensor]:
    if holds(problem, engine):
        state = engine.pack(found.state, batch.shape.dtype, batch.x.device)
    else:
        state = engine.save(found.state)
    unit = found.unit
    if not isinstance(unit, Tensor):
        num_rows = problem.num_directions * batch.x.shape[0]
        unit = torch.full((num_rows,), 1.0 if unit is None else unit, dtype=torch.float64, device=batch.x.device)
    of_temperature = [unit.new_empty(0) if one is None else one.clone() for one in (found.positive, found.moment)]
    return [unit.clone(), unit.new_tensor(found.share), *of_temperature, *state]


def _contrastive(
    sides: list[Tensor],
    temperature: Tensor | None,
    ids: Tensor | None,
    weights: Tensor | None,
    masked: list[bool],
    tau: float | None,
    needs: list[bool],
    options: str,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    batch = _batch(sides, temperature, ids, masked, tau)
    chosen = cached_plan(batch.shape, parse(options))
    first, second, found = _forward(batch, weights, chosen, tuple(needs))
    saved = _serialised(found, batch, chosen.problem, chosen.engine) if any(needs) else []
    return first, first.new_empty(0) if second is None else second, saved


def _contrastive_fake(
    sides: list[Tensor],
    temperature: Tensor | None,
    ids: Tensor | None,
    weights: Tensor | None,
    masked: list[bool],
    tau: float | None,
    needs: list[bool],
    options: str,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    problem = parse(options)
    shape = Batch(sides[0], sides[1], tuple(sides[2:]), 1.0 if temperature is None else temperature).shape
    shape = shape._replace(masked=ids is not None)
    engine = plan(shape, problem).engine
    num_rows = problem.num_directions * shape.n
    new, dtype = sides[0].new_empty, output_dtype(shape.dtype)
    first = new((num_rows,) if problem.by_row else (), dtype=dtype)
    second = new((num_rows,) if problem.loss == "contrast" else (0,), dtype=dtype)
    if not any(needs):
        return first, second, []
    if holds(problem, engine):
        shapes = engine.packed_shapes(shape, needs[:-1])
    else:
        shapes = engine.saved_shapes(shape, problem, gradient=any(needs[:-1]))
    positive = (num_rows,) if problem.loss == "contrast" else (0,)
    vectors = [(num_rows,), (), positive, (num_rows,) if needs[-1] else (0,)]
    saved = [new(size, dtype=torch.float64) for size in vectors] + [new(size, dtype=kind) for size, kind in shapes]
    return first, second, saved


def _contrastive_backward(
    upstream: Tensor | None,
    upstream_positive: Tensor | None,
    sides: list[Tensor],
    temperature: Tensor | None,
    ids: Tensor | None,
    saved: list[Tensor],
    masked: list[bool],
    tau: float | None,
    needs: list[bool],
    options: str,
) -> list[Tensor]:
    batch = _batch(sides, temperature, ids, masked, tau)
    problem = parse(options)
    unit, share, positive, moment, *rest = saved
    engine = plan(batch.shape, problem).engine
    state = engine.unpack(rest) if holds(problem, engine) else engine.restore(rest, batch, problem)
    shared = share.item() if share.device.type == "cpu" else share
    found = Found(unit, shared, positive if positive.numel() else None, moment if moment.numel() else None, state)
    dtypes = tuple(side.dtype for side in sides)
    gradients = _backward(
        found, dtypes, batch.temperature, problem, engine, tuple(needs), False, upstream, upstream_positive
    )
    return [unit.new_empty(0) if gradient is None else gradient for gradient in gradients]


def _contrastive_backward_fake(
    upstream: Tensor | None,
    upstream_positive: Tensor | None,
    sides: list[Tensor],
    temperature: Tensor | None,
    ids: Tensor | None,
    saved: list[Tensor],
    masked: list[bool],
    tau: float | None,
    needs: list[bool],
    options: str,
) -> list[Tensor]:
    empty = saved[0].new_empty(0)
    gradients = [
        side.new_empty(side.shape) if need else empty.clone() for side, need in zip(sides, needs, strict=False)
    ]
    learnt = None if temperature is None or not needs[-1] else torch.empty_like(temperature)
    return [*gradients, empty.clone() if learnt is None else learnt]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    sides, temperature, ids, _, *ctx.rest = inputs
    # Nothing is differentiated through what is saved: zeros of its size would be made for it on every backward.
    ctx.set_materialize_grads(False)
    ctx.num_sides = len(sides)
    ctx.save_for_backward(*sides, temperature, ids, *output[2])


def _differentiate(ctx: Any, upstream: Tensor | None, upstream_positive: Tensor | None, _: Any) -> tuple[Any, ...]:
    tensors = list(ctx.saved_tensors)
    sides, (temperature, ids, *saved) = tensors[: ctx.num_sides], tensors[ctx.num_sides :]
    nothing = None, None, None, None, None, None
    if upstream is None and upstream_positive is None:
        return [None] * ctx.num_sides, None, *nothing
    *_, needs, options = ctx.rest
    if parse(options).loss != "contrast":
        upstream_positive = None
    found = torch.ops.ctloss.contrastive_backward(
        upstream, upstream_positive, sides, temperature, ids, saved, *ctx.rest
    )
    *of_sides, of_temperature = [one if need else None for one, need in zip(found, needs, strict=True)]
    return of_sides, of_temperature, *nothing


def _refuse(ctx: Any, *upstream: Any) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


library.impl("contrastive", _contrastive, "CompositeExplicitAutograd")
library.impl("contrastive_backward", _contrastive_backward, "CompositeExplicitAutograd")
torch.library.register_fake("ctloss::contrastive", _contrastive_fake, lib=library)
torch.library.register_fake("ctloss::contrastive_backward", _contrastive_backward_fake, lib=library)
torch.library.register_autograd("ctloss::contrastive", _differentiate, setup_context=_save, lib=library)
torch.library.register_autograd("ctloss::contrastive_backward", _refuse, lib=library)
