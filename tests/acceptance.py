"""Whether a path is exact enough: error bounds derived from the arithmetic, not tuned to what a path does.

A fused path forms logits of size up to S in single precision, so each carries an error of about one unit in the last
place of S; the exponentials turn that into a relative error of their weights, and the gradient is a sum of weighted
rows whose size before cancellation is A. Hence ``A · (5e-7 + 1e-7 S)``, and beside it one rounding to the dtype of the
output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from regimes import Case
from torch import Tensor

import ctloss
from ctloss.reference.eager import near_one_by_powers_of_two
from ctloss.reference.gradients import closed_form, weights

OUTPUT_ROUNDING = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# Double precision is 2^29 times finer; the factor 4 is for the reference, which is no finer itself.
FINENESS = {torch.float64: 4 * 2.0**-29}


@dataclass(frozen=True)
class Truth:
    """The float64 answer to a case and the bounds on an answer's error."""

    rows: Tensor
    gradient: Tensor
    slope: Tensor
    cancelling: Tensor
    slope_cancelling: float
    per_logit: float


def truth(case: Case, x: Tensor, y: Tensor, upstream: Tensor) -> Truth:
    """Evaluate the closed form, and the sums A_i of the sizes of its terms."""
    n = case.n
    options = {
        "loss": case.loss,
        "temperature": case.temperature,
        "negatives": case.negatives,
        "normalize": case.normalize,
    }
    per_row = upstream.double().expand(2 * n) / (2 * n if case.reduction == "mean" else 1)
    gradients = closed_form(x, y, per_row, **options)
    parts = weights(x, y, **options)
    factor = (per_row * parts.weight).abs()
    weight = factor[:, None] * parts.softmax
    size = torch.linalg.vector_norm(parts.rows, dim=1)
    cancelling = (weight + weight.T) @ size + (factor + factor.roll(n)) * size.roll(n)
    if case.normalize:
        norm = norms(x, y)
        cancelling = torch.where(norm > 0, cancelling / norm, 0.0)
    slope_size = (parts.softmax * parts.logits.abs()).sum(1) + parts.positive.abs()
    return Truth(
        rows=ctloss.reference.row_losses(x, y, **options),
        gradient=torch.cat((gradients.x, gradients.y)),
        slope=gradients.temperature,
        cancelling=cancelling / case.temperature,
        slope_cancelling=((factor * slope_size).sum() / case.temperature).item(),
        per_logit=(5e-7 + 1e-7 * parts.logits.abs().max().item()) * FINENESS.get(case.dtype, 1.0),
    )


def norms(x: Tensor, y: Tensor) -> Tensor:
    """The lengths of all 2n rows in float64, which their squares need not fit."""
    near_one, first, second = near_one_by_powers_of_two(torch.cat((x.double(), y.double())))
    return torch.linalg.vector_norm(near_one, dim=1) / first[:, 0] / second[:, 0]


def length(values: Tensor) -> float:
    """The Euclidean length of all entries, whose squares need not fit."""
    largest = values.abs().amax().item()
    return largest * torch.linalg.vector_norm(values / largest).item() if largest > 0 else 0.0


def answer(case: Case, impl: str, device: str = "cpu") -> tuple[Tensor, list[Tensor | None]]:
    """Run the public function on the case; the loss and the gradients of x, y and the temperature."""
    x, y = case.embeddings(device)
    before = x.clone(), y.clone()
    x.requires_grad_(case.need[0])
    y.requires_grad_(case.need[1])
    precise = torch.float64 if case.dtype == torch.float64 else torch.float32
    tau = torch.tensor(case.temperature, dtype=torch.float64, device=device) if case.need[2] else None
    temperature: float | Tensor = case.temperature if tau is None else tau.requires_grad_()
    options = {"form": case.form} if case.loss == "cz_nce" else {}
    loss = getattr(ctloss, case.loss)(
        x,
        y,
        temperature=temperature,
        negatives=case.negatives,
        normalize=case.normalize,
        reduction=case.reduction,
        impl=impl,
        **options,
    )
    assert loss.dtype == precise
    loss.backward(case.upstream_gradient().to(device))
    for rows, copy in ((x, before[0]), (y, before[1])):
        assert torch.equal(rows.detach(), copy), "an input was modified"
    for rows in (x, y):
        assert rows.grad is None or rows.grad.dtype == case.dtype
    return loss.detach().cpu(), [None if t is None or t.grad is None else t.grad.cpu() for t in (x, y, tau)]


def check(case: Case, impl: str, device: str = "cpu", chain: int = 0) -> None:
    """Hold one path's answer to the bounds of every quantity it returns.

    With ``chain`` logits may besides have the error of that many float32 additions one after the other, which is a
    random walk in steps of half a unit in the last place.
    """
    loss, (grad_x, grad_y, slope) = answer(case, impl, device)
    x, y = case.embeddings()
    expected = truth(case, x, y, case.upstream_gradient())
    if chain:
        largest = 1 if case.normalize else (torch.cat((x, y)).double() ** 2).sum(1).max().item()
        walk = chain**0.5 * 2.0**-24 * largest / case.temperature
        expected = replace(expected, per_logit=expected.per_logit + walk)
    assert (grad_x is None, grad_y is None, slope is None) == tuple(not need for need in case.need)
    check_value(case, loss, expected)
    check_gradient(case, grad_x, grad_y, expected)
    if slope is not None:
        allowed = expected.slope_cancelling * expected.per_logit
        allowed += OUTPUT_ROUNDING[case.dtype] * abs(expected.slope.item())
        # Below its smallest normal number the accumulation dtype has fewer digits.
        allowed += torch.finfo(loss.dtype).smallest_normal
        error = abs(slope.item() - expected.slope.item())
        assert error <= allowed, f"temperature gradient: error {error:.3g} over {allowed:.3g}"


def check_value(case: Case, loss: Tensor, expected: Truth) -> None:
    """The loss: exactly 1 in ratio form; relative to itself for infoNCE, to max(1, |L|) for CZ-NCE."""
    rows = expected.rows
    if case.form == "ratio":
        rows = torch.ones_like(rows)
    size = rows.abs() if case.loss == "info_nce" else rows.abs().clamp_min(1)
    # A float32 below 1.2e-38 has fewer digits, and so has each row of a sum; how many is not the path's doing.
    floor = 2.0**-149 if case.dtype != torch.float64 else 0.0
    if case.reduction == "sum":
        floor *= case.n + 1
    if case.reduction == "mean":
        rows = rows.mean()
        size = rows.abs() if case.loss == "info_nce" else rows.abs().clamp_min(1)
    elif case.reduction == "sum":
        rows, size = rows.sum(), size.sum()
    excess = (loss.double() - rows).abs() - (size * expected.per_logit + floor)
    assert torch.isfinite(loss).all()
    assert (excess <= 0).all(), f"value: {excess.max().item():.3g} over the bound"


def check_gradient(case: Case, grad_x: Tensor | None, grad_y: Tensor | None, expected: Truth) -> None:
    """The gradient's norm-wise error, twice: as it stands, and with every row at unit scale."""
    asked = torch.tensor(case.need[:2]).repeat_interleave(case.n)
    parts = [torch.zeros_like(x) if g is None else g for g, x in zip((grad_x, grad_y), case.embeddings(), strict=True)]
    gradient = torch.cat(parts)[asked].double()
    if not asked.any():
        return
    reference, cancelling = expected.gradient[asked], expected.cancelling[asked]
    largest = torch.finfo(case.dtype).max
    representable = (reference.abs() <= largest).all(dim=1)
    if not representable.any():
        return
    gradient, reference, cancelling = gradient[representable], reference[representable], cancelling[representable]
    assert torch.isfinite(gradient).all(), "a representable gradient is not finite"
    rounding = OUTPUT_ROUNDING[case.dtype]
    finfo = torch.finfo(case.dtype)
    underflow = finfo.smallest_normal * finfo.eps * case.d**0.5
    scales = [torch.ones_like(cancelling)]
    if case.normalize:
        scales.append(norms(*case.embeddings())[asked][representable])
    for scale in scales:
        error = length((gradient - reference) * scale[:, None])
        allowed = length(cancelling * scale) * expected.per_logit
        allowed += rounding * length(reference * scale[:, None])
        allowed += underflow * length(scale)
        assert error <= allowed, f"gradient: error {error:.3g} over {allowed:.3g}"
    size = torch.linalg.vector_norm(reference, dim=1)
    certain = (size > cancelling * expected.per_logit) & (size > finfo.smallest_normal * case.d**0.5)
    lost = certain & (gradient == 0).all(dim=1)
    assert not lost.any(), f"{int(lost.sum())} rows of the gradient vanished"
