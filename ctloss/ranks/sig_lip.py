"""The sigmoid loss over ranks, as one differentiable function: each rank has the row losses of its own x.

A rank's x meets its own y as in one process, and every other rank's y, none of which is a partner. In the backward all
rows travel again, with the upstream gradient of each row: from x of another rank against its own y, a rank forms that
part of y's gradient by itself. No gradient travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import rows as row_losses
from ..core import sigmoid
from ..core.ops import NO_SECOND_DERIVATIVE, Refused, WithoutAutocast, output_dtype
from ..core.plan import cached_plan
from ..kernels.problem import Batch, Problem
from ..kernels.sigmoid import SCALE, SCALE_BITS, Solved
from ..kernels.torch_path.engine import Held, release
from ..kernels.torch_path.sig_lip import oppose
from ..reference import sig_lip as reference
from .agreement import watched
from .contrast import Call, one_at_a_time
from .group import Across, Ranks
from .losses import call_of, part_of_loss, refuse_transforms
from .transport import Part, arrivals

Gradients = list[Tensor | None]
"""Of x, y, the temperature and the bias; ``None`` where not needed."""


class Rows(NamedTuple):
    """What a rank brings to a product.

    Attributes:
        x: ``(n, d)``.
        y: ``(n, d)``.
        ids: ``(n,)``, or ``None`` on every rank.
        upstream: ``(n,)`` float64, in the backward.
    """

    x: Tensor
    y: Tensor
    ids: Tensor | None
    upstream: Tensor | None


class Formula(NamedTuple):
    """The pairs' loss, and how it is computed.

    Attributes:
        path: by name.
        problem: the options.
        temperature: τ.
        bias: b.
    """

    path: str
    problem: Problem
    temperature: float | Tensor
    bias: float | Tensor

    def alone(self, own: Rows, needs: sigmoid.Needs) -> tuple[Tensor, Gradients]:
        """A rank's rows among themselves: row losses, and the gradients of their sum times ``own.upstream``."""
        x, y, ids, upstream = own
        if self.path == "reference":
            return self._defined(partial(reference.row_losses, ids=ids), x, y, upstream, needs)
        batch = Batch(x, y, (), self.temperature, ids)
        return self._solved(partial(sigmoid.solve, self.path, batch, self.bias, self.problem), x, y, upstream, needs)

    def against(self, anchors: Rows, others: Rows, needs: sigmoid.Needs) -> tuple[Tensor, Gradients]:
        """One rank's x against another's y: what they add to its row losses, and to the gradients."""
        x, y, upstream = anchors.x, others.y, anchors.upstream
        ids = None if anchors.ids is None or others.ids is None else (anchors.ids, others.ids)
        if self.path == "reference":
            return self._defined(partial(reference.opposing_losses, ids=ids), x, y, upstream, needs)
        tau, bias = sigmoid.number(self.temperature), sigmoid.number(self.bias)
        return self._solved(partial(oppose, x, y, tau, bias, ids, self.problem), x, y, upstream, needs)

    def _solved(
        self, solve: Callable[..., Solved], x: Tensor, y: Tensor, upstream: Tensor | None, needs: sigmoid.Needs
    ) -> tuple[Tensor, Gradients]:
        if upstream is None:
            return solve(weights=None, needs=(False,) * 4).rows, [None] * 4
        dtype = output_dtype(torch.promote_types(x.dtype, y.dtype))
        factor: Any = row_losses.power_of_two(upstream)
        weights = (upstream / factor).to(dtype)
        if factor.device.type == "cpu":
            factor = factor.item()
        solved = solve(weights=weights, needs=needs)
        exponents = None if solved.exponents is None else list(solved.exponents.split([len(x), len(y)]))
        held = Held(list(solved.gradients), exponents, -SCALE_BITS)
        gradients = release(held, factor / sigmoid.number(self.temperature), (dtype, dtype), last=True)
        scalars = [None if one is None else one * (factor / SCALE) for one in (solved.slope, solved.offset)]
        return solved.rows, [*gradients, *scalars]

    def _defined(
        self, losses: Callable[..., Tensor], x: Tensor, y: Tensor, upstream: Tensor | None, needs: sigmoid.Needs
    ) -> tuple[Tensor, Gradients]:
        numbers = [torch.as_tensor(one, dtype=torch.float64) for one in (self.temperature, self.bias)]
        leaves = [
            one.detach().double().to(x.device, copy=True).requires_grad_(need and upstream is not None)
            for one, need in zip((x, y, *numbers), needs, strict=True)
        ]
        with torch.enable_grad():
            tau, bias = leaves[2:]
            rows = losses(*leaves[:2], temperature=tau, bias=bias, normalize=self.problem.normalize)
        wanted = [one for one in leaves if one.requires_grad]
        found = iter(torch.autograd.grad(rows, wanted, upstream, materialize_grads=True) if wanted else ())
        return rows.detach(), [next(found) if one.requires_grad else None for one in leaves]


class Spread(torch.autograd.Function):
    """``(n,)`` float64 row losses of a rank's x over the y of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        path: str,
        ids: Any,
        temperature: Any,
        bias: Any,
        taking_part: Tensor,
        x: Tensor,
        y: Tensor,
    ) -> Tensor:
        of_temperature, of_bias, _, of_x, of_y = ctx.needs_input_grad[3:]
        ctx.call, ctx.path, ctx.needs = call, path, (of_x, of_y, of_temperature, of_bias)
        given = x, y, temperature, bias, ids
        ctx.numbers = [None if isinstance(one, Tensor) else one for one in given]
        ctx.given = [isinstance(one, Tensor) for one in given]
        # So that a change of what is read again is noticed, and a second derivative reaches the inputs.
        ctx.save_for_backward(*[one for one in given if isinstance(one, Tensor)])
        own, formula = Rows(x, y, ids, None), Formula(path, call.problem, temperature, bias)
        with WithoutAutocast(x.device.type), watched(call.ranks, call.description):
            arriving = _others(call, own)
            losses = x.new_zeros(len(x), dtype=torch.float64)
            if len(x):
                losses += formula.alone(own, (False,) * 4)[0]
            for other in arriving:
                if len(x) and len(other.y):
                    losses += formula.against(own, other, (False,) * 4)[0]
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        one_at_a_time(upstream)
        call, saved = ctx.call, iter(ctx.saved_tensors)
        x, y, temperature, bias, ids = [
            next(saved) if given else one for given, one in zip(ctx.given, ctx.numbers, strict=True)
        ]
        own, formula = Rows(x, y, ids, upstream.double()), Formula(ctx.path, call.problem, temperature, bias)
        with torch.no_grad(), WithoutAutocast(x.device.type), watched(call.ranks, call.description):
            found = _gradients(call, own, formula, ctx.needs)
        gradients: Gradients = []
        for leaf, gradient, need in zip((x, y, temperature, bias), found, ctx.needs, strict=True):
            if not need:
                gradients.append(None)
            elif gradient is None:
                gradients.append(torch.zeros_like(leaf))
            else:
                gradients.append(gradient.to(leaf.device, leaf.dtype).reshape(leaf.shape))
        if torch.is_grad_enabled():
            sources = [one for one in (upstream, x, y, temperature, bias) if isinstance(one, Tensor)]
            gradients = [
                None if one is None else Refused.apply(one, NO_SECOND_DERIVATIVE, *sources) for one in gradients
            ]
        of_x, of_y, of_temperature, of_bias = gradients
        return None, None, None, of_temperature, of_bias, None, of_x, of_y


def _others(call: Call, own: Rows) -> Iterator[Rows]:
    """The other ranks' rows, in the order of the ring: y, and x only with upstream gradients; on their way at once."""
    again = own.upstream is not None

    def parts_of(n: int) -> list[Part]:
        shape = (n, own.x.shape[1])
        parts = [Part(shape, own.y.dtype)]
        if own.ids is not None:
            parts.append(Part((n,), torch.int64))
        return [*parts, Part(shape, own.x.dtype), Part((n,), torch.float64)] if again else parts

    parts = [parts_of(one.n) for one in call.terms]
    tensors = [own.y, own.ids, own.x if again else None, own.upstream]
    given = [one.detach() for one in tensors if one is not None]
    arriving = arrivals(call.ranks, given, parts, call.problem.workspace)

    def arrive() -> Iterator[Rows]:
        for _, (y, *rest) in arriving:
            ids = rest.pop(0) if own.ids is not None else None
            x, upstream = rest if again else (y, None)
            yield Rows(x, y, ids, upstream)

    return arrive()


def _gradients(call: Call, own: Rows, formula: Formula, needs: sigmoid.Needs) -> Gradients:
    """Of all ranks' row losses times their upstream gradients, by own rows; by τ and b only of own row losses."""
    of_x, of_y, *of_scalars = needs
    total: Gradients = [None] * 4

    def add(found: Gradients) -> None:
        for index, one in enumerate(found):
            if one is not None:
                former = total[index]
                total[index] = one if former is None else former + one

    arriving = _others(call, own)
    if len(own.x) and any(needs):
        add(formula.alone(own, needs)[1])
    for other in arriving:
        if not len(own.x) or not len(other.x):
            continue
        if of_x or any(of_scalars):
            add(formula.against(own, other, (of_x, False, of_scalars[0], of_scalars[1]))[1])
        if of_y:
            add(formula.against(other, own, (False, True, False, False))[1])
    return total


def loss(problem: Problem, across: Across, ranks: Ranks, batch: Batch, bias: float | Tensor) -> Tensor:
    """A rank's part of the loss of all ranks; see :mod:`ctloss.ranks.losses`.

    Returns:
        ``()``, or ``(n,)`` row losses for the reduction "none"; float32, or float64 if x or y is.

    Raises:
        RuntimeError: on every rank, if one makes another call or does not answer.
        ValueError: on every rank, if none has any pairs.
    """
    refuse_transforms()
    if isinstance(batch.temperature, Tensor):
        batch = batch._replace(temperature=batch.temperature.reshape(()))
    # One temperature serves all pairs, however few each rank has.
    call, _ = call_of(problem, across, ranks, batch, bias=bias)
    sigmoid.temperature_of(batch)
    # A rank without need of gradients takes part in the backward of those that have it.
    taking_part = torch.zeros((), requires_grad=call.needed and torch.is_grad_enabled())
    path = cached_plan(batch.shape._replace(n=max(1, batch.x.shape[0])), problem).path
    losses = Spread.apply(call, path, batch.ids, batch.temperature, bias, taking_part, batch.x, batch.y)
    own = part_of_loss(call, across, losses, None, count=sum(one.n for one in call.terms))
    return own.to(output_dtype(batch.shape.dtype))
