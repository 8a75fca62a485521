"""Whether a path is exact enough, through the public functions and below them.

A fused path forms logits of size up to S in single precision, so each has an error of about one unit in the last place
of S. The exponentials turn that into a relative error of the weights, and the gradient is a sum of weighted rows whose
size before cancellation is A. Hence the bound ``A · (5e-7 + 1e-7 S)``, plus one rounding to the dtype of the output.
The exact answer, A and S come from ``truth``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import ctloss
from ctloss.kernels.problem import Batch, Forward, Problem, Shape
from ctloss.reference import contrast

from .regimes import Case
from .truth import ROW_LOSSES, Plain, Truth, arguments, length, norms, plain, truth, truth_of

# A unit in the last place, or half of one where a number is only rounded once.
OUTPUT_ROUNDING = {torch.float64: 0.0, torch.float32: 2.0**-24, torch.bfloat16: 4e-3, torch.float16: 5e-4}
HALF = (torch.bfloat16, torch.float16)
# Factors of a and b, the last like a gradient scaler's; thirty orders of magnitude below 1e-270 are still normal.
SCALES = (1.0, 1e-30, 1e-270, 2.0**17)


class Engine(Protocol):
    """A path's functions."""

    def unsupported(self, shape: Shape, problem: Problem) -> str | None: ...

    def forward(self, batch: Batch, problem: Problem, *, moment: bool, gradient: bool) -> Forward: ...

    def backward(self, state: Any, a: Tensor, b: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]: ...

    def save(self, state: Any) -> list[Tensor]: ...

    def restore(self, tensors: list[Tensor], batch: Batch, problem: Problem) -> Any: ...

    def saved_shapes(
        self, shape: Shape, problem: Problem, *, gradient: bool
    ) -> list[tuple[tuple[int, ...], torch.dtype]]: ...


def answer(case: Case, impl: str, device: str = "cpu", **options: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Run the public function on the case; the loss and the gradients of x, y, the temperature and the candidates.

    Options that a case does not know are passed on.
    """
    batch = case.batch(device)
    before = [side.clone() for side in batch.sides]
    for side, need in zip(batch.sides, case.needs, strict=True):
        side.requires_grad_(need)
    temperature, weights = case.given_temperature(device), case.row_weights()
    if isinstance(temperature, Tensor):
        temperature.requires_grad_(case.need[2])
    loss: Tensor = getattr(ctloss, case.loss)(
        batch.x,
        batch.y,
        temperature=temperature,
        negatives=case.negatives,
        directions=case.directions,
        normalize=case.normalize,
        candidates=list(batch.candidates),
        ids=batch.ids,
        candidate_ids=batch.candidate_ids or None,
        margin=case.margin_in_a_gap(),
        weights=None if weights is None else weights.to(device),
        reduction=case.reduction,
        impl=impl,
        **({"form": case.form} if case.loss == "cz_nce" else {}),
        **options,
    )
    loss.backward(case.upstream_gradient().to(device))
    for side, copy in zip(batch.sides, before, strict=True):
        assert torch.equal(side.detach(), copy), "an input was modified"
    leaves = (batch.x, batch.y, temperature, *batch.candidates)
    gradients = [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]
    return loss.detach().cpu(), [None if gradient is None else gradient.cpu() for gradient in gradients]


def check(case: Case, impl: str, device: str = "cpu", chain: int = 0) -> None:
    """Hold one path's answer through the public functions to the bounds of every quantity it returns.

    With ``chain`` logits may also have the error of that many float32 additions in a row: a random walk in steps of
    half a unit in the last place.
    """
    check_answer(case, *answer(case, impl, device), chain=chain)


def check_answer(case: Case, loss: Tensor, gradients: list[Tensor | None], chain: int = 0) -> None:
    """Hold a loss and its gradients, in the order of :func:`answer`, to the bounds."""
    wanted = plain(case)
    expected = with_chain(case, truth(case, wanted.a, wanted.b), chain)
    grad_x, grad_y, slope, *of_candidates = gradients
    check_value(case, loss, wanted, expected)
    check_gradients(case, [grad_x, grad_y, *of_candidates], expected)
    assert (slope is not None) == case.need[2]
    if slope is not None:
        check_slope(case, slope, expected)


def check_engine(case: Case, engine: Engine, device: str = "cpu", chain: int = 0) -> None:
    """Hold a path's engine to the bounds, called like the layer above calls it for z itself, with any a and b."""
    # Where only a loss's mean is returned, rows may be off by more that averages out.
    batch, problem = case.batch(device), case.problem(loss="contrast", form="log")
    assert engine.unsupported(batch.shape, problem) is None
    before = [side.clone() for side in batch.sides]
    a, b = random_factors(case)
    expected = with_chain(case, truth(case, a, b), chain)
    forward_only = engine.forward(batch, problem, moment=False, gradient=False)
    assert forward_only.moment is None
    check_forward(forward_only, expected)
    gradient = any(case.needs)
    forward = engine.forward(batch, problem, moment=True, gradient=gradient)
    check_forward(forward, expected)

    saved = engine.save(forward.state)
    promised = engine.saved_shapes(batch.shape, problem, gradient=gradient)
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in saved] == promised
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*batch.sides, *saved) if tensor.numel()]
    assert len(set(storages)) == len(storages), "what is saved shares its memory"

    if gradient:
        a, b = a.to(device), b.to(device)
        factors = a.clone(), b.clone()
        # Losses that only depend on z pass one tensor as both.
        of_z = with_chain(case, truth(case, a.cpu(), a.cpu()), chain)
        # A restored state may be computed in another way; repeated backward calls must agree exactly.
        restored = engine.restore([tensor.clone() for tensor in saved], batch, problem)
        for state in (forward.state, restored):
            first = engine.backward(state, a, b, case.needs)
            for found, exact in ((first, expected), (engine.backward(state, a, a, case.needs), of_z)):
                check_gradients(case, [None if side is None else side.cpu() for side in found], exact)
            for one, other in zip(first, engine.backward(state, a, b, case.needs), strict=True):
                # Bit for bit, except for NaN where a gradient is beyond its dtype.
                if one is not None and other is not None:
                    assert torch.equal(one.nan_to_num(), other.nan_to_num()), "the second differs"
        assert torch.equal(a, factors[0]), "a was modified"
        assert torch.equal(b, factors[1]), "b was modified"
    for side, copy in zip(batch.sides, before, strict=True):
        assert torch.equal(side, copy), "an input was modified"


def random_factors(case: Case) -> tuple[Tensor, Tensor]:
    """a and b of either sign, in half the cases over many orders of magnitude; a is 0 where there are no negatives."""
    generator = torch.Generator().manual_seed(case.seed + 6)
    float16 = torch.float16 in [side.dtype for side in case.batch().sides]
    scale = min(SCALES[case.seed % 4], 2.0**10 if float16 else SCALES[-1])
    decades = (4.0 if float16 else 30.0) * (case.seed // 4 % 2)
    size, spread = (
        sample(2, case.rows, generator=generator, dtype=torch.float64) for sample in (torch.randn, torch.rand)
    )
    a, b = size * 10 ** (-decades * spread) * scale
    z, _ = contrast(**arguments(case.batch(), case.problem()))
    return a.masked_fill(z == -torch.inf, 0.0), b


def with_chain(case: Case, expected: Truth, chain: int) -> Truth:
    """The truth, with bounds for logits that are summed product by product."""
    if not chain:
        return expected
    rows = torch.cat([side.double() for side in case.batch().sides])
    largest = 1.0 if case.normalize else (rows**2).sum(1).max().item()
    walk = chain**0.5 * 2.0**-24 * largest / case.temperature
    return expected._replace(per_logit=expected.per_logit + walk)


def check_forward(found: Forward, expected: Truth) -> None:
    """z relative to max(1, |z|), the positives' logits like any logit, the moment relative to its terms' sizes."""
    exact = ("z", "positive", "moment")
    for name in exact:
        values = getattr(found, name)
        assert values is None or (values.dtype == torch.float64 and values.shape == expected.z.shape), name
    empty = expected.z == -torch.inf
    z = found.z.cpu()
    assert torch.equal(z == -torch.inf, empty), "rows without negatives, and only they, have z = −∞"
    within("z", z[~empty], expected.z[~empty], expected.z[~empty].abs().clamp_min(1) * expected.per_logit)
    # A logit is off by units of the largest one, not of itself, because its terms may cancel.
    assert found.positive is not None
    within("positive", found.positive.cpu(), expected.positive, torch.full_like(z, expected.per_logit))
    if found.moment is not None:
        moment = found.moment.cpu()
        assert (moment[empty] == 0).all(), "moment: not 0 without negatives"
        within("moment", moment, expected.moment, expected.moment_size * expected.per_logit)


def within(name: str, found: Tensor, exact: Tensor, allowed: Tensor) -> None:
    """Every number is finite and its error within what is allowed."""
    assert torch.isfinite(found).all(), f"{name}: not finite"
    excess = (found.double() - exact).abs() - allowed
    assert (excess <= 0).all(), f"{name}: {excess.max().item():.3g} over the bound"


def check_value(case: Case, loss: Tensor, wanted: Plain, expected: Truth) -> None:
    """The loss: exactly 1 in ratio form; relative to itself for infoNCE, to max(1, |L|) for CZ-NCE."""
    assert loss.dtype == case.precise
    assert loss.shape == wanted.value.shape
    within("value", loss, wanted.value, bound_of_value(case, wanted, expected.per_logit))


def bound_of_value(case: Case, wanted: Plain, per_logit: float) -> Tensor:
    """The error that a loss may have."""
    some = wanted.z > -torch.inf
    # A float32 below 1.2e-38 has fewer digits, and so does each row of a sum; that is not the path's fault.
    floor = 2.0**-149 * some if case.precise != torch.float64 else 0.0 * some
    if case.reduction == "none":
        size = wanted.rows if case.loss == "info_nce" else wanted.rows.abs().clamp_min(1)
        return wanted.shares * size * some * per_logit + floor
    # z is off by as much as logits are, whatever its sign, so the result's size is at least the rows' shares.
    size = wanted.value.abs()
    if case.loss != "info_nce":
        size = torch.maximum(size, (wanted.shares * some).sum())
    return size * per_logit + floor.sum()


def check_slope(case: Case, slope: Tensor, expected: Truth) -> None:
    """The temperature's gradient, entry by entry; a pair's temperature serves both its rows."""
    given = case.given_temperature()
    assert isinstance(given, Tensor)
    assert (slope.shape, slope.dtype) == (given.shape, given.dtype)
    exact, size = (of_rows.reshape(-1, *given.shape).sum(0) for of_rows in (expected.slope, expected.slope_size))
    allowed = size * expected.per_logit + weight_rounding(case) * exact.abs()
    # Below its smallest normal number the accumulation dtype has fewer digits.
    within("temperature gradient", slope, exact, allowed + torch.finfo(case.precise).smallest_normal)


def weight_rounding(case: Case) -> float:
    """If all sides have the same half precision, weights may be rounded to it for their product."""
    dtype = case.batch().shape.dtype
    return OUTPUT_ROUNDING[dtype] if dtype in HALF else 0.0


def check_gradients(case: Case, gradients: Sequence[Tensor | None], expected: Truth) -> None:
    """Which sides have a gradient, in which dtype, and its error: per side, or over all sides if weights are rounded.

    The bound holds for any set of rows; the effect of weights in half precision is only bounded by the norm over all.
    """
    sides = case.batch().sides
    for side, gradient, need in zip(sides, gradients, case.needs, strict=True):
        assert (gradient is not None) == need, "a gradient that was not needed, or none where one was"
        assert gradient is None or (gradient.shape, gradient.dtype) == (side.shape, side.dtype)
    lengths = norms(*case.batch().sides) if case.normalize else torch.ones(sum(map(len, sides)), dtype=torch.float64)
    lengths = lengths.split([len(side) for side in sides])
    wanted = [
        side_rows(case, *parts)
        for parts in zip(gradients, expected.gradients, expected.cancelling, lengths, strict=True)
        if parts[0] is not None and len(parts[0])
    ]
    groups = [wanted] if weight_rounding(case) else [[side] for side in wanted]
    for group in groups:
        if group:
            check_rows(SideRows(*map(torch.cat, zip(*group, strict=True))), expected.per_logit)


class SideRows(NamedTuple):
    """The rows whose exact gradient fits their dtype: found, exact, and what bounds the error of each."""

    found: Tensor
    exact: Tensor
    cancelling: Tensor
    scale: Tensor
    rounding: Tensor
    smallest: Tensor
    underflow: Tensor


def side_rows(case: Case, found: Tensor, exact: Tensor, cancelling: Tensor, lengths: Tensor) -> SideRows:
    """One side's :class:`SideRows`; its lengths are what rows were divided by."""
    finfo = torch.finfo(found.dtype)
    # Rounding to single precision is part of the other terms, unless everything else is finer.
    exempt = found.dtype == torch.float32 and case.precise == torch.float32
    root = exact.shape[1] ** 0.5
    rows = SideRows(
        found=found.double(),
        exact=exact,
        cancelling=cancelling,
        scale=lengths,
        rounding=torch.full_like(lengths, 0.0 if exempt else OUTPUT_ROUNDING[found.dtype]),
        smallest=torch.full_like(lengths, finfo.smallest_normal * root),
        underflow=torch.full_like(lengths, finfo.smallest_normal * finfo.eps * root),
    )
    representable = (exact.abs() <= finfo.max).all(dim=1)
    return SideRows(*(part[representable] for part in rows))


def check_rows(rows: SideRows, per_logit: float) -> None:
    """The gradient's norm-wise error, as it is and with every row at unit scale; and no row may vanish."""
    assert torch.isfinite(rows.found).all(), "a representable gradient is not finite"
    size = torch.linalg.vector_norm(rows.exact, dim=1)
    for scale in (torch.ones_like(rows.scale), rows.scale):
        error = length((rows.found - rows.exact) * scale[:, None])
        allowed = length(rows.cancelling * scale) * per_logit
        allowed += length(rows.exact * (rows.rounding * scale)[:, None]) + length(rows.underflow * scale)
        assert error <= allowed, f"gradient: error {error:.3g} over {allowed:.3g}"
    certain = (size > rows.cancelling * per_logit) & (size > rows.smallest)
    lost = certain & (rows.found == 0).all(dim=1)
    assert not lost.any(), f"{int(lost.sum())} rows of the gradient vanished"


class Call(NamedTuple):
    """The exact answer to a plain call on two given sides, and what bounds an answer's error.

    Attributes:
        rows: row losses.
        gradient: of all rows, x's first.
        cancelling: the summed sizes of the terms of each row's gradient.
        slope: the temperature's gradient.
        slope_cancelling: the summed sizes of its terms.
        per_logit: the relative error that single precision causes in every weight.
    """

    rows: Tensor
    gradient: Tensor
    cancelling: Tensor
    slope: Tensor
    slope_cancelling: float
    per_logit: float


def truth_of_call(case: Case, x: Tensor, y: Tensor, upstream: Tensor) -> Call:
    """The truth of a call on given rows with a case's options."""
    x, y = x.detach().cpu(), y.detach().cpu()
    problem, batch = case.problem(), Batch(x, y, temperature=case.temperature)
    z, positive = contrast(x, y, temperature=case.temperature, negatives=case.negatives, normalize=case.normalize)
    z.requires_grad_()
    rows = ROW_LOSSES[case.loss](z, positive)
    share = 1 / len(z) if case.reduction == "mean" else 1.0
    (a,) = torch.autograd.grad((upstream.cpu().double() * share * rows).sum(), z)
    found = truth_of(batch, problem, a, a, case.precise)
    return Call(
        rows.detach(),
        torch.cat(found.gradients),
        torch.cat(found.cancelling),
        found.slope,
        found.slope_size.item(),
        found.per_logit,
    )


Answer = Sequence[Tensor | None]
"""Row losses and the gradients of x, y and the temperature; ``None`` where not compared."""


def assert_alike(
    case: Case, x: Tensor, y: Tensor, one: Answer, other: Answer, upstream: Tensor | None = None, chain: int = 0
) -> None:
    """Hold the difference of two answers to the same call to twice what :func:`check` allows for each.

    In which bits they differ depends on the processor, its number of threads and its BLAS. A tolerance tried out on one
    machine may fail on the next; the bounds hold on all.

    Args:
        case: the options of the call; its tensors are not read.
        x: the rows that both answers are for.
        y: the rows of the other side.
        one: an answer.
        other: another.
        upstream: what the gradients were multiplied by; 1 if not given.
        chain: as in :func:`check`.
    """
    x, y = x.detach().cpu(), y.detach().cpu()
    expected = truth_of_call(case, x, y, torch.ones(()) if upstream is None else upstream)
    largest = 1 if case.normalize else (torch.cat((x, y)).double() ** 2).sum(1).max().item()
    twice = 2 * (expected.per_logit + chain**0.5 * 2.0**-24 * largest / case.temperature)
    differences = [
        None if a is None or b is None else a.detach().cpu().double() - b.detach().cpu().double()
        for a, b in zip(one, other, strict=True)
    ]
    rows, grad_x, grad_y, slope = differences
    if rows is not None:
        size = expected.rows.abs() if case.loss == "info_nce" else expected.rows.abs().clamp_min(1)
        excess = (rows.abs() - twice * size).max().item()
        # A float32 below 1.2e-38 has fewer digits.
        assert excess <= 2.0**-149, f"rows: {excess:.3g} over the bound"
    _assert_gradients_alike(case, grad_x, grad_y, expected, twice)
    if slope is not None:
        allowed = expected.slope_cancelling * twice + 2 * OUTPUT_ROUNDING[case.dtype] * abs(expected.slope.item())
        assert abs(slope.item()) <= allowed, f"temperature gradient: {abs(slope.item()):.3g} over {allowed:.3g}"


def _assert_gradients_alike(
    case: Case, grad_x: Tensor | None, grad_y: Tensor | None, expected: Call, twice: float
) -> None:
    wanted = torch.tensor([grad_x is not None, grad_y is not None]).repeat_interleave(case.n)
    if not wanted.any():
        return
    difference = torch.cat([gradient for gradient in (grad_x, grad_y) if gradient is not None])
    allowed = length(expected.cancelling[wanted]) * twice
    allowed += 2 * OUTPUT_ROUNDING[case.dtype] * length(expected.gradient[wanted])
    assert length(difference) <= allowed, f"gradient: {length(difference):.3g} over {allowed:.3g}"
