"""The torch path's entry points: what can run, what would run, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Batch, Forward, Problem, Shape
from . import denominators, exact, square
from .denominators import Denominators, is_normal, optimistic_shift
from .gradient import Run, Weights, accumulate, runs
from .layout import FEW_ROWS, Layout, layout
from .logits import LN2, Logits, base2_scale, gather_ids
from .products import ExactProducts
from .rows import accumulation_dtype, prepare, times_power_of_two

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALE_BITS = 30
"""The largest weight is scaled to 2^30, so that even infoNCE's weights at φ = 1e-36 stay normal numbers in float32."""
LEAST_BITS = -900


def unsupported(shape: Shape, problem: Problem) -> str | None:
    """Why this path cannot run, or ``None``.

    Example:
        >>> unsupported(Shape(2, 1), Problem())
    """
    if shape.dtype not in DTYPES:
        return f"the torch path takes {', '.join(str(t).removeprefix('torch.') for t in DTYPES)}, not {shape.dtype}"
    if shape.device_type == "mps":
        return "the torch path forms row statistics in float64, which mps lacks"
    return None


def describe(shape: Shape, problem: Problem) -> dict[str, object]:
    """The configuration that would run.

    Example:
        >>> describe(Shape(512, 256), Problem())["logits"]
        '4 panels of 256 rows'
    """
    plan = layout(shape, problem)
    if plan.few:
        logits = "one square, in float64"
    elif plan.dense:
        logits = "one square"
    else:
        logits = f"{len(plan.panels)} panels of {plan.height} rows"
    return {
        "accumulated in": str(accumulation_dtype(shape.dtype)).removeprefix("torch."),
        "products": "float32 or better at every precision setting",
        "logits": logits,
        "gradient": "from logits kept" if plan.keep else "from logits formed again",
        "maximum": "none, guarded by their range" if shape.device_type == "cpu" else "running",
    }


class State(NamedTuple):
    """What the backward needs of the forward."""

    batch: Batch
    problem: Problem
    plan: Layout
    lse: Tensor
    logits: Logits | None
    sums: Denominators | None
    square: square.Square | None


class Held(NamedTuple):
    """Gradients that wait for a factor.

    Attributes:
        gradients: one per side in the accumulation dtype; ``None`` where not needed.
        exponents: the powers of two that the rows have yet to be multiplied by, one tensor per side; ``None`` if none.
        bits: the power of two that everything has yet to be multiplied by.
    """

    gradients: list[Tensor | None]
    exponents: list[Tensor] | None
    bits: int | Tensor


def forward(batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward:
    """z and the positives' logits of all anchors, exact however small e^z is.

    Args:
        batch: the sides, their temperature and ids.
        problem: the loss call's options.
        moment: also find Σ_j P_ij s_ij − s⁺_i.
        gradient: whether :func:`backward` may follow.

    Returns:
        The :class:`Forward`.

    Example:
        >>> eye = torch.eye(2)
        >>> forward(Batch(eye, eye, temperature=1.0), Problem(), moment=False, gradient=False).z
        tensor([-0.3069, -0.3069, -0.3069, -0.3069], dtype=torch.float64)
    """
    shape = batch.shape
    plan = layout(shape, problem)
    scale = base2_scale(batch.temperature)
    with ExactProducts(shape.device_type):
        found = None
        if (plan.few or plan.dense) and isinstance(scale, float):
            found = square.solve(batch, problem.normalize, plan, scale, moment=moment)
        if found is not None:
            if problem.by_row and not plan.few and accumulation_dtype(shape.dtype) == torch.float32:
                _refine(found, batch, problem, scale)
            state = State(batch, problem, plan, found.lse, None, None, found)
            base2_positive = found.rows.positive * scale
            lse, mean = found.lse, found.mean
        else:
            logits = _logits(batch, problem, plan, scale)
            sums = _sum(logits, batch, problem, plan, moment=moment, gradient=gradient)
            state = State(batch, problem, plan, sums.lse, logits, sums, None)
            base2_positive = logits.positive(problem.num_directions)
            lse, mean = sums.lse, sums.mean
    z = (lse.view(-1, len(base2_positive)) - base2_positive).view(-1).mul_(LN2)
    positive = base2_positive.repeat(len(z) // len(base2_positive)).mul_(LN2)
    if mean is not None:
        mean = torch.where(lse == -torch.inf, 0.0, mean - positive)
    return Forward(z, positive, mean, state)


def _refine(found: square.Square, batch: Batch, problem: Problem, scale: float | Tensor) -> None:
    """Sum the rows that one negative dominates again, in float64."""
    logits = Logits(found.rows, batch.x.shape[0], scale, None, None)
    if exact.may_be_dominated(found.lse, logits):
        rows = (square.largest(found.entries, logits.n) > exact.DOMINANT * found.total).nonzero().flatten()
        found.lse[rows] = exact.lse_of(rows, batch, logits, problem)


def _logits(batch: Batch, problem: Problem, plan: Layout, scale: float | Tensor) -> Logits:
    # Off the CPU nothing is read back, so nothing tells which rows need it.
    precise = plan.count <= FEW_ROWS or (problem.by_row and batch.x.device.type != "cpu")
    rows = prepare(batch.sides, problem.normalize, batch.shape.dtype, precise=precise)
    limits = None
    if problem.margin is not None:
        similarities = rows.positive.repeat(problem.num_directions)
        limits = (similarities + problem.margin) * scale
    return Logits(rows, plan.n, scale, gather_ids(batch), limits)


def _sum(logits: Logits, batch: Batch, problem: Problem, plan: Layout, *, moment: bool, gradient: bool) -> Denominators:
    """The sums over the negatives: optimistic if possible, else running, and exact where single rows matter."""
    on_cpu = batch.x.device.type == "cpu"
    by_row = problem.by_row and on_cpu and logits.rows.precise is None and logits.rows.stacked.dtype == torch.float32
    keep = plan.keep and gradient
    found = None
    shift = choose_shift(logits, problem)
    if shift is not None:
        found = denominators.optimistic(logits, plan, shift, keep=keep, moment=moment, shares=by_row and not keep)
    if found is None:
        found = denominators.running(logits, plan, keep=keep, moment=moment)
    if by_row:
        sum_dominated_again(found, batch, logits, problem, plan)
    return found


def sum_dominated_again(found: Denominators, batch: Batch, logits: Logits, problem: Problem, plan: Layout) -> None:
    """Sum the rows that one negative dominates in float64."""
    rows = exact.dominated(found, logits, plan)
    if len(rows):
        found.lse[rows] = exact.lse_of(rows, batch, logits, problem)


def choose_shift(logits: Logits, problem: Problem) -> float | Tensor | None:
    """The shift of the optimistic pass; ``None`` where that pass must not be tried."""
    if logits.rows.stacked.device.type != "cpu":
        return None
    shift = optimistic_shift(logits.scale, problem.normalize)
    # Exponentials that a shift pushes below the normal numbers matter if zero rows make every other term vanish.
    shifted = bool(shift.any()) if isinstance(shift, Tensor) else shift > 0
    return None if shifted and logits.rows.exponents is not None else shift


def backward(state: State, a: float | Tensor, b: float | Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients of ``Σ_i a_i lse_i − b_i s⁺_i`` with respect to the sides' rows.

    Args:
        state: from the forward; may be used again.
        a: ``(rows,)`` float64, 0 for rows without negatives; or a number for all rows.
        b: the same for the positives; may be ``a``.
        needs: which sides need a gradient.

    Returns:
        One tensor per side, in its dtype; ``None`` where not needed.
    """
    return release(hold(state, a, b, needs), 1.0, tuple(side.dtype for side in state.batch.sides))


def hold(
    state: State, a: float | Tensor, b: float | Tensor, needs: tuple[bool, ...], largest: float | None = None
) -> Held:
    """What :func:`backward` returns, before a factor that is only known later.

    ``largest``, if given, is a known bound on a and b.

    Example:
        >>> eye = torch.eye(2)
        >>> state = forward(Batch(eye, eye, temperature=1.0), Problem(), moment=False, gradient=True).state
        >>> ones = torch.ones(4, dtype=torch.float64)
        >>> held = hold(state, ones, ones, (True, False))
        >>> release(held, 0.5, (torch.float32, torch.float32))[0]
        tensor([[0., 1.],
                [1., 0.]])
    """
    batch, plan = state.batch, state.plan
    if not any(needs):
        return Held([None] * len(needs), None, 0)
    if not isinstance(a, Tensor) and state.square is None:
        same, a = b is a, torch.full_like(state.lse, a)
        b = a if same else b
    a, b, bits = scaled(a, b, batch.temperature, largest)
    with ExactProducts(batch.x.device.type):
        if state.square is not None:
            dtype = state.square.entries.dtype
            narrow = a.to(dtype) if isinstance(a, Tensor) else a
            pulls = narrow if b is a else b.to(dtype) if isinstance(b, Tensor) else b
            found = square.gradients(state.square, narrow, pulls, plan.n, needs)
            rows = state.square.rows
        else:
            assert state.logits is not None
            assert state.sums is not None
            rows = state.logits.rows
            assert isinstance(a, Tensor)
            assert isinstance(b, Tensor)
            found = _from_panels(state.logits, state.sums, plan, a, b, batch.sizes, needs)
    exponents = None if rows.exponents is None else list(rows.exponents.split(batch.sizes))
    return Held(found, exponents, bits)


def release(
    held: Held, factor: float | Tensor, dtypes: tuple[torch.dtype, ...], *, last: bool = False
) -> list[Tensor | None]:
    """Held gradients times a factor.

    Args:
        held: from :func:`hold`; modified only if this is the last time.
        factor: a number, or a 0-d tensor off the CPU.
        dtypes: the sides'.
        last: the held gradients may be overwritten, which saves as much fresh memory.

    Returns:
        One tensor per side; ``None`` where not needed.
    """
    mantissa: float | Tensor
    power: int | Tensor
    if isinstance(factor, Tensor) or isinstance(held.bits, Tensor):
        wide = torch.as_tensor(factor, dtype=torch.float64)
        mantissa, exponents_of_factor = torch.frexp(wide)
        power = exponents_of_factor + held.bits
    else:
        mantissa, exponent = math.frexp(factor) if math.isfinite(factor) else (factor, 0)
        power = exponent + held.bits
    if held.exponents is None and isinstance(power, int) and abs(power) < 100:
        number = mantissa * 2.0**power
        both = zip(held.gradients, dtypes, strict=True)
        # Parts of one tensor would keep each other's memory alive.
        return [
            None if one is None else (one.mul_(number) if last and not one._is_view() else one * number).to(dtype)
            for one, dtype in both
        ]
    gradients: list[Tensor | None] = []
    for index, (gradient, dtype) in enumerate(zip(held.gradients, dtypes, strict=True)):
        if gradient is None:
            gradients.append(None)
        else:
            exponents = power if held.exponents is None else held.exponents[index] + power
            if isinstance(exponents, Tensor):
                exponents = exponents.to(gradient.dtype)
            # The power of two comes last, or it would amplify the rounding of subnormal numbers.
            gradients.append(times_power_of_two(gradient * mantissa, exponents).to(dtype))
    return gradients


def scaled(
    a: float | Tensor, b: float | Tensor, temperature: float | Tensor, bound: float | None
) -> tuple[float | Tensor, float | Tensor, int | Tensor]:
    """``a / τ`` and ``b / τ``, scaled by a power of two so that the largest is 2^30; one tensor if a and b are one."""
    same = b is a
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        assert not isinstance(a, Tensor)
        assert not isinstance(b, Tensor)
        bound = max(abs(a), abs(b))
    if bound and not (isinstance(temperature, Tensor) and (temperature.dim() or temperature.device.type != "cpu")):
        divisor = float(temperature)
        bits = math.frexp(bound / divisor)[1]
        factor = 2.0 ** (SCALE_BITS - bits) / divisor
        a = a * factor
        return a, a if same else b * factor, bits - SCALE_BITS
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    if isinstance(temperature, Tensor) and (temperature.dim() or a.device.type != "cpu"):
        wide = temperature.double()
        a = a / wide
        b = a if same else b / wide
        divisor = 1.0
    else:
        divisor = float(temperature)
    largest = a.abs().amax()
    if not same:
        largest = torch.maximum(largest, b.abs().amax())
    if a.device.type == "cpu":
        size = largest.item() / divisor
        bits = max(math.frexp(size)[1], LEAST_BITS) if 0 < size < math.inf else 0
        factor = 2.0 ** (SCALE_BITS - bits) / divisor
        a = a * factor
        return a, a if same else b * factor, bits - SCALE_BITS
    exponent = torch.frexp(largest).exponent.clamp_min(LEAST_BITS)
    power = torch.where((largest > 0) & torch.isfinite(largest), exponent, 0)
    a = times_power_of_two(a.clone(), SCALE_BITS - power)
    return a, a if same else times_power_of_two(b.clone(), SCALE_BITS - power), power - SCALE_BITS


def _from_panels(
    logits: Logits, sums: Denominators, plan: Layout, a: Tensor, b: Tensor, sizes: list[int], needs: tuple[bool, ...]
) -> list[Tensor | None]:
    dtype = logits.rows.stacked.dtype
    # Kept panels are consumed; another call forms them again.
    kept, sums.kept = sums.kept, None
    weights = weigh(sums, a, plan, dtype)
    if sums.total is not None and weights.per_sum is None:
        kept = None
    wanted = runs(logits.rows, sizes, needs)
    accumulate(wanted, logits, plan, weights, of_pairs(b, plan).to(dtype), kept)
    for run in wanted:
        logits.rows.project(run.gradient, slice(run.start, run.stop))
    return of_sides(wanted, sizes, needs)


def weigh(sums: Denominators, a: Tensor, plan: Layout, dtype: torch.dtype) -> Weights:
    """What turns logits into weights: the sums of exponentials, if these and their quotients are normal numbers."""
    per_sum = None
    if sums.total is not None:
        quotient = (a / sums.total).to(dtype)
        if is_normal(torch.where(a == 0, 1.0, quotient.abs())):
            per_sum = stacked(quotient, plan)
    return Weights(
        weight=stacked(a.to(dtype), plan),
        per_sum=per_sum,
        shift=sums.shift,
        lse=stacked(torch.where(sums.lse == -torch.inf, 0.0, sums.lse).to(dtype), plan),
    )


def of_pairs(b: Tensor, plan: Layout) -> Tensor:
    """The ``b`` of each pair: the sum over its anchors."""
    return b if plan.num_anchors == plan.n else b[..., : plan.n] + b[..., plan.n :]


def of_sides(wanted: list[Run], sizes: list[int], needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Each side's part of the runs' gradients; ``None`` where not needed."""
    found: list[Tensor | None] = []
    offset = 0
    for size, need in zip(sizes, needs, strict=True):
        holders = [run for run in wanted if need and run.start <= offset and offset + size <= run.stop]
        found.append(holders[0].gradient[offset - holders[0].start :][:size] if holders else None)
        offset += size
    return found


def stacked(of_anchors: Tensor, plan: Layout) -> Tensor:
    """A vector over all stacked rows, 0 for those that are not anchors."""
    if plan.count == plan.num_anchors:
        return of_anchors
    whole = of_anchors.new_zeros(plan.count)
    whole[: plan.num_anchors] = of_anchors
    return whole


def save(state: State) -> list[Tensor]:
    """The tensors that :func:`restore` needs."""
    return [state.lse]


def restore(tensors: list[Tensor], batch: Batch, problem: Problem) -> State:
    """The state of a forward, from what :func:`save` returned and the same batch.

    Args:
        tensors: from :func:`save`.
        batch: as in the forward.
        problem: as in the forward.

    Returns:
        A state that forms its logits again.
    """
    shape = batch.shape
    plan = layout(shape, problem)
    with ExactProducts(shape.device_type):
        logits = _logits(batch, problem, plan, base2_scale(batch.temperature))
    (lse,) = tensors
    shift = choose_shift(logits, problem)
    total = None
    if shift is not None:
        plain = torch.exp2(lse - shift).to(logits.rows.stacked.dtype)
        total = plain if is_normal(plain) else None
    sums = Denominators(lse, total, 0.0 if shift is None else shift, None, None, None)
    return State(batch, problem, plan, lse, logits, sums, None)


def saved_shapes(shape: Shape, problem: Problem, *, gradient: bool) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and dtypes of what :func:`save` returns.

    Example:
        >>> saved_shapes(Shape(4, 8), Problem(directions="x"), gradient=True)
        [((4,), torch.float64)]
    """
    return [((problem.num_directions * shape.n,), torch.float64)]


def pack(held: Held, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Held gradients as an operator returns them: every side's gradient, every side's exponents, the common power.

    Args:
        held: from :func:`hold`.
        dtype: what the batch's sides promote to.
        device: where they are.

    Returns:
        Tensors that share no memory, empty where a side needs no gradient.
    """
    gradients, exponents = [], []
    for index, gradient in enumerate(held.gradients):
        if gradient is None:
            empty = torch.empty(0, dtype=accumulation_dtype(dtype), device=device)
            gradients.append(empty)
            exponents.append(empty.clone())
            continue
        gradients.append(gradient.clone(memory_format=torch.contiguous_format))
        own = None if held.exponents is None else held.exponents[index]
        exponents.append(gradient.new_zeros((gradient.shape[0], 1)) if own is None else own.clone())
    bits = torch.as_tensor(held.bits, dtype=torch.float64, device=device)
    return [*gradients, *exponents, bits.clone()]


def unpack(tensors: list[Tensor]) -> Held:
    """The held gradients that :func:`pack` was called on."""
    *both, bits = tensors
    count = len(both) // 2
    gradients = [one if one.numel() else None for one in both[:count]]
    exponents: list[Tensor] | None = both[count:]
    if bits.device.type == "cpu":
        if not any(one.any() for one in both[count:]):
            exponents = None
        return Held(gradients, exponents, int(bits.item()))
    return Held(gradients, exponents, bits)


def packed_shapes(shape: Shape, needs: Sequence[bool]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and dtypes of what :func:`pack` returns.

    Example:
        >>> [size for size, _ in packed_shapes(Shape(4, 8), (True, False))]
        [(4, 8), (0,), (4, 1), (0,), ()]
    """
    dtype = accumulation_dtype(shape.dtype)
    sizes = [shape.n, shape.n, *shape.candidates]
    gradients = [(size, shape.d) if need else (0,) for size, need in zip(sizes, needs, strict=True)]
    exponents = [(size, 1) if need else (0,) for size, need in zip(sizes, needs, strict=True)]
    return [(size, dtype) for size in gradients + exponents] + [((), torch.float64)]
