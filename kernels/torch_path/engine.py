"""The torch path behind one protocol: what can run, what would run, forward and backward, tensors in and out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem
from . import denominators, dense, few
from .denominators import SCALE_BITS, Denominators, is_normal, optimistic_shift, softplus
from .gradient import accumulate
from .layout import Layout, layout
from .logits import FEW_ROWS, LN2, Logits, base2_scale, needs_double
from .products import ExactProducts
from .rows import accumulation_dtype, prepare, row_exponents, times_power_of_two

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unsupported(dtype: torch.dtype, device_type: str, n: int, d: int, problem: Problem) -> str | None:
    """Why this path cannot run, or ``None``.

    Example:
        >>> unsupported(torch.float32, "cpu", 2, 1, Problem("cz_nce", "both", True, "mean", "highest", 1 << 28))
    """
    if dtype not in DTYPES:
        return f"the torch path takes {', '.join(str(t).removeprefix('torch.') for t in DTYPES)}, not {dtype}"
    if device_type == "mps":
        return "the torch path forms row statistics in float64, which mps lacks"
    return None


def describe(dtype: torch.dtype, device_type: str, n: int, d: int, problem: Problem) -> dict[str, object]:
    """The configuration that would run.

    Example:
        >>> problem = Problem("cz_nce", "both", True, "mean", "highest", 1 << 28)
        >>> describe(torch.float32, "cpu", 512, 256, problem)["logits"]
        '4 panels of 256 rows'
    """
    plan = layout(n, d, dtype, device_type, problem)
    return {
        "accumulated in": str(accumulation_dtype(dtype)).removeprefix("torch."),
        "products": "float32 or better at every precision setting",
        "logits": "one square" if plan.dense else f"{sum(1 for _ in plan.panels())} panels of {plan.height} rows",
        "gradient": "from logits kept" if plan.keep else "from logits formed again",
        "maximum": "none, guarded by their range" if device_type == "cpu" else "running",
    }


def stats_shape(dtype: torch.dtype, n: int, d: int, problem: Problem, *, differentiated: bool) -> tuple[int, ...]:
    """Shape of ``stats``: lse, z and tilt of all rows if the gradient is formed later, else whether rows were rescaled.

    Example:
        >>> stats_shape(torch.float32, 4, 8, Problem("cz_nce", "both", True, "none", "highest", 1), differentiated=True)
        (3, 8)
    """
    return (1,) if holds_gradient(problem) else (3, 2 * n)


def holds_gradient(problem: Problem) -> bool:
    """Whether the forward forms the gradient: one upstream number for all rows can be multiplied in afterwards.

    Example:
        >>> holds_gradient(Problem("cz_nce", "both", True, "mean", "highest", 1 << 28))
        True
    """
    return problem.reduction != "none"


def forward(
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    problem: Problem,
    *,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row losses of Chen et al. 2022 (arXiv 2202.13083), eqs. (1) and (4), and with them the gradient of their sum.

    Args:
        x: ``(n, d)`` anchors.
        y: ``(n, d)`` translations, the same dtype and device.
        temperature: a positive float, or a 0-d tensor, which is read only on the CPU.
        problem: the loss call's options.
        need_x: hold the gradient of x, if the reduction allows.
        need_y: the same for y.
        need_temperature: the same for the temperature.

    Returns:
        ``(rows, stats, held_x, held_y, held_temperature)``: ``(2n,)`` row losses, statistics for the backward, and
        gradients times ``2nτ · 2^30``, empty where not needed; float32, or float64 for float64 inputs.

    Example:
        >>> problem = Problem("cz_nce", "both", True, "mean", "highest", 1 << 28)
        >>> eye = torch.eye(2)
        >>> forward(eye, eye, 1.0, problem, need_x=False, need_y=False, need_temperature=False)[0]
        tensor([-0.3069, -0.3069, -0.3069, -0.3069])
    """
    n, d = x.shape
    held, scale = holds_gradient(problem), base2_scale(temperature)
    with ExactProducts(x.device.type):
        if held and 2 * n <= FEW_ROWS and x.device.type == "cpu":
            asked = {"need_x": need_x, "need_y": need_y, "need_temperature": need_temperature}
            solved = few.solve(x, y, scale, problem, **asked)
            if solved is not None:
                # Zero: no row was rescaled.
                flag = solved.rows.new_zeros(1)
                return solved.rows, flag, *_held(x, solved.grad_x, solved.grad_y, solved.slope)
        plan = layout(n, d, x.dtype, x.device.type, problem)
        rows = prepare(x, y, problem.normalize, precise=needs_double(n, problem.reduction))
        logits = Logits(rows, n, plan.symmetric, scale)
        found, grad_x, grad_y = _solve(
            logits,
            plan,
            problem,
            tilt=need_temperature,
            need_x=need_x and held,
            need_y=need_y and held,
        )
    stacked = rows.stacked
    if held:
        stats = stacked.new_full((1,), float(rows.exponents is not None))
    else:
        tilt = torch.zeros_like(found.z) if found.tilt is None else found.tilt
        stats = torch.stack((_lse(found, logits), found.z, tilt))
    slope = None if found.tilt is None or not held else (found.weight * found.tilt).sum().neg_()
    return found.rows, stats, *_held(x, grad_x, grad_y, slope)


def backward(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    stats: Tensor,
    held_x: Tensor,
    held_y: Tensor,
    held_temperature: Tensor,
    problem: Problem,
    *,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the reduced loss times ``upstream``.

    Args:
        upstream: ``()`` for mean and sum, ``(2n,)`` for none.
        x: as in the forward.
        y: as in the forward.
        temperature: as in the forward.
        stats: from the forward.
        held_x: from the forward.
        held_y: from the forward.
        held_temperature: from the forward.
        problem: as in the forward.
        need_x: return the gradient of x.
        need_y: return the gradient of y.
        need_temperature: return the gradient of the temperature.

    Returns:
        ``(grad_x, grad_y, grad_temperature)`` in the dtypes of x, y and stats; ``None`` where not needed.
    """
    if not holds_gradient(problem):
        return _backward_by_row(
            upstream, x, y, temperature, stats, problem, need_x=need_x, need_y=need_y, need_temperature=need_temperature
        )
    tau = float(temperature) if x.device.type == "cpu" else temperature
    factor = upstream * (2.0**-SCALE_BITS / (2 * x.shape[0] if problem.reduction == "mean" else 1) / tau)
    # Off the CPU the flag is not read back: multiplying by 2^0 costs less than waiting.
    rescaled = problem.normalize and (x.device.type != "cpu" or stats.item() != 0)
    gradients: list[Tensor | None] = []
    for need, raw, held in ((need_x, x, held_x), (need_y, y, held_y)):
        if not need:
            gradients.append(None)
        elif rescaled:
            exponents = row_exponents(raw)
            half = torch.trunc(exponents * 0.5)
            scaled = (held * torch.exp2(half)).mul_(factor).mul_(torch.exp2(exponents - half))
            gradients.append(scaled.to(raw.dtype))
        else:
            gradients.append((held * factor).to(raw.dtype))
    return gradients[0], gradients[1], held_temperature * factor if need_temperature else None


def _backward_by_row(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    temperature: float | Tensor,
    stats: Tensor,
    problem: Problem,
    *,
    need_x: bool,
    need_y: bool,
    need_temperature: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    n, d = x.shape
    tau = float(temperature) if x.device.type == "cpu" else temperature
    lse, z, tilt = stats.unbind()
    weight = (
        torch.exp(-softplus(-z.double())) if problem.loss == "info_nce" else torch.ones_like(z, dtype=torch.float64)
    )
    weight = (weight + 0 * z) * upstream
    slope = -(weight * tilt).sum().to(stats.dtype) / tau if need_temperature else None
    if not (need_x or need_y):
        return None, None, slope
    # The largest weight becomes 2^30, whatever the upstream gradient's scale.
    largest = weight.abs().amax()
    bits = torch.where((largest > 0) & torch.isfinite(largest), torch.floor(torch.log2(largest)), 0.0)
    weight = times_power_of_two(weight, SCALE_BITS - bits).to(stats.dtype)
    with ExactProducts(x.device.type):
        rows = prepare(x, y, problem.normalize, precise=needs_double(n, "sum"))
        plan = layout(n, d, x.dtype, x.device.type, problem)
        logits = Logits(rows, n, plan.symmetric, base2_scale(temperature))
        per_sum, shift = _per_sum(logits, weight, lse, problem)
        grad_x, grad_y = accumulate(
            logits, plan, weight, per_sum=per_sum, lse=lse, shift=shift, kept=None, need_x=need_x, need_y=need_y
        )
        rows.project(grad_x, grad_y)
    exponents = (bits - SCALE_BITS).to(stats.dtype)
    gradients: list[Tensor | None] = []
    for side, gradient in enumerate((grad_x, grad_y)):
        if gradient is not None:
            power = exponents if rows.exponents is None else rows.exponents[side * n : (side + 1) * n] + exponents
            # The power last: a subnormal number's rounding would be divided by τ too.
            gradient = times_power_of_two(gradient / tau, power).to(x.dtype)
        gradients.append(gradient)
    return gradients[0], gradients[1], slope


def _solve(
    logits: Logits, plan: Layout, problem: Problem, *, tilt: bool, need_x: bool, need_y: bool
) -> tuple[Denominators, Tensor | None, Tensor | None]:
    """Statistics and gradients: all at once, else optimistically, else carefully."""
    loss, keep = problem.loss, plan.keep and (need_x or need_y)
    shift = _shift(logits, problem)
    if shift is not None and plan.dense:
        solved = dense.solve(logits, loss, shift, tilt=tilt, need_x=need_x, need_y=need_y)
        if solved is not None:
            return solved
    found = None
    if shift is not None and not plan.dense:
        found = denominators.optimistic(logits, plan, loss, shift, keep=keep, tilt=tilt)
    if found is None:
        found = denominators.running(logits, plan, loss, keep=keep, tilt=tilt)
    if not (need_x or need_y):
        return found, None, None
    grad_x, grad_y = accumulate(
        logits,
        plan,
        found.weight,
        per_sum=found.per_sum,
        lse=found.lse,
        shift=found.shift,
        kept=found.kept,
        need_x=need_x,
        need_y=need_y,
    )
    logits.rows.project(grad_x, grad_y)
    return found, grad_x, grad_y


def _held(
    x: Tensor, grad_x: Tensor | None, grad_y: Tensor | None, slope: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients as an operator returns them: empty where not needed, and no two of them the same tensor."""
    dtype = accumulation_dtype(x.dtype)
    return (
        x.new_empty(0, dtype=dtype) if grad_x is None else grad_x,
        x.new_empty(0, dtype=dtype) if grad_y is None else grad_y,
        x.new_empty(0, dtype=dtype) if slope is None else slope,
    )


def _lse(found: Denominators, logits: Logits) -> Tensor:
    """Base-2 log-sum-exps over the negatives."""
    if found.lse is not None:
        return found.lse
    return (found.z.double() / LN2 + logits.positive().repeat(2)).to(found.z.dtype)


def _shift(logits: Logits, problem: Problem) -> float | None:
    """The optimistic pass's shift; ``None`` where it must not be tried."""
    if logits.rows.stacked.device.type != "cpu":
        return None
    shift = optimistic_shift(logits.scale, problem.normalize)
    # Exponentials that a shift pushes below the normal numbers count after all if zero rows zero every other term.
    return None if shift and logits.rows.exponents is not None else shift


def _per_sum(logits: Logits, weight: Tensor, lse: Tensor, problem: Problem) -> tuple[Tensor | None, float]:
    """Weights over sums of plain exponentials, where all of those are normal numbers."""
    shift = _shift(logits, problem)
    if shift is None:
        return None, 0.0
    total = torch.exp2(lse - shift)
    per_sum = weight / total
    sizes = torch.where(weight == 0, 1.0, per_sum.abs())
    return (per_sum, shift) if is_normal(torch.stack((total, sizes))) else (None, 0.0)
