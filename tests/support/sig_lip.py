"""The sigmoid loss in float64, and error bounds that are derived like those of the other losses.

A path forms logits of size up to S = max |s| + |b| in single precision, each with an error of about a unit in the last
place. A pair's weight σ(s) changes by at most that error times itself, and so does its loss, which is no smaller than
its weight. Hence ``L (5e-7 + 1e-7 S)`` for a row loss and ``A (5e-7 + 1e-7 S)`` for the gradient, with A the summed
sizes of its terms, plus one rounding to the dtype of the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from ctloss import sig_lip
from ctloss.reference.eager import unit_rows
from ctloss.reference.sig_lip import row_losses

from .acceptance import check_rows, side_rows
from .regimes import REGIMES, Case
from .truth import FINENESS, norms

# Of one pair's loss in float32: below the smallest normal number all have units of 2^-149, of which the exponential
# rounds by half a one, and the logarithm by one.
FLOOR = 1.5 * 2.0**-149


@dataclass(frozen=True)
class Question:
    """A batch, the options, and which gradients are needed."""

    case: Case
    bias: float = -10.0
    ids: tuple[int, ...] | None = None
    need_bias: bool = True

    def ids_tensor(self, device: str) -> Tensor | None:
        return None if self.ids is None else torch.tensor(self.ids, device=device)

    def upstream(self) -> Tensor:
        upstream = self.case.upstream_gradient()
        return upstream[: self.case.n] if upstream.dim() else upstream


def check(question: Question, impl: str, device: str = "cpu") -> None:
    """Hold one path's answer to the bounds of every quantity it returns."""
    case = question.case
    x, y = case.embeddings(device)
    upstream, ids = question.upstream().to(device), question.ids_tensor(device)
    leaves = [x.requires_grad_(case.need[0]), y.requires_grad_(case.need[1])]
    for value, need in ((case.temperature, case.need[2]), (question.bias, question.need_bias)):
        leaves.append(torch.tensor(value, dtype=torch.float64, requires_grad=need))
    options = {"normalize": case.normalize, "ids": ids}
    loss = sig_lip(
        x,
        y,
        temperature=leaves[2],
        bias=leaves[3],
        reduction=case.reduction,
        impl=impl,
        **options,  # type: ignore[arg-type]
    )
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(loss, wanted, upstream))
    gradients = [next(found).cpu() if leaf.requires_grad else None for leaf in leaves]
    precise = torch.float64 if case.dtype == torch.float64 else torch.float32
    assert loss.dtype == precise
    assert all(g is None or g.dtype == leaf.dtype for g, leaf in zip(gradients, leaves, strict=True))
    check_answer(question, loss.detach().cpu(), gradients)


def check_answer(question: Question, loss: Tensor, gradients: list[Tensor | None]) -> None:
    """Hold a loss and the gradients of x, y, the temperature and the bias to the bounds."""
    case = question.case
    x, y = case.embeddings()
    n, tau = case.n, case.temperature
    wide = [side.double().requires_grad_() for side in (x, y)]
    rows = row_losses(
        *wide, temperature=tau, bias=question.bias, normalize=case.normalize, ids=question.ids_tensor("cpu")
    )
    per_row = question.upstream().double().expand(n) / (n if case.reduction == "mean" else 1)
    truths = torch.autograd.grad((rows * per_row).sum(), wide)
    rows = rows.detach()
    units = [unit_rows(side.double()) if case.normalize else side.double() for side in (x, y)]
    similar = units[0] @ units[1].T / tau
    logits, same = similar + question.bias, torch.eye(n, dtype=torch.bool)
    weight = torch.where(same, -torch.sigmoid(-logits), torch.sigmoid(logits))
    if question.ids is not None:
        ids = torch.tensor(question.ids)
        weight = torch.where((ids[:, None] == ids) & ~same, 0.0, weight)
    weight = weight * per_row[:, None]
    largest = similar.abs().max().item() + abs(question.bias)
    per_logit = (5e-7 + 1e-7 * largest) * FINENESS.get(case.dtype, 1.0)
    _compare_value(case, loss, rows, per_logit)
    for index, side in enumerate((x, y)):
        mine = gradients[index]
        if mine is None:
            continue
        sizes = (weight.abs() if index == 0 else weight.abs().T) @ torch.linalg.vector_norm(units[1 - index], dim=1)
        norm = norms(side) if case.normalize else torch.ones(n, dtype=torch.float64)
        cancelling = torch.where(norm > 0, sizes / norm, 0.0) / tau
        check_rows(side_rows(case, mine, truths[index], cancelling, norm), per_logit)
    floor = torch.finfo(torch.float32).smallest_normal * (1 + abs(per_row).sum().item())
    for mine, share, scale in ((gradients[2], weight * similar, -1 / tau), (gradients[3], weight, 1.0)):
        if mine is not None:
            error = abs(mine.item() - share.sum().item() * scale)
            allowed = (share.abs().sum().item() * per_logit + floor) * abs(scale)
            assert error <= allowed, f"slope: error {error:.3g} over {allowed:.3g}"


def _compare_value(case: Case, loss: Tensor, rows: Tensor, per_logit: float) -> None:
    floor = case.n * FLOOR if case.dtype != torch.float64 else 0.0
    wanted = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[case.reduction]
    excess = (loss.double() - wanted).abs() - (wanted * per_logit + floor * (case.n if case.reduction == "sum" else 1))
    assert torch.isfinite(loss).all()
    assert (excess <= 0).all(), f"value: {excess.max().item():.3g} over the bound"


def pairs(n: int = 7, d: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, d, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    return x, y


@st.composite
def questions(draw: st.DrawFn, *, max_n: int, max_d: int, dtypes: tuple[torch.dtype, ...]) -> Question:
    n = draw(st.one_of(st.integers(2, min(max_n, 24)), st.integers(2, max_n)))
    regime = draw(st.sampled_from(REGIMES))
    case = Case(
        regime=regime,
        n=n,
        d=draw(st.integers(1, max_d)),
        dtype=draw(st.sampled_from(dtypes)),
        temperature=draw(st.sampled_from([0.01, 0.0143, 0.05, 0.1, 1.0])),
        normalize=regime == "scaled" or (regime != "big" and draw(st.booleans())),
        reduction=draw(st.sampled_from(["mean", "sum", "none"])),
        strides=draw(st.sampled_from(["contiguous", "transposed", "padded", "every other"])),
        need=draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any)),
        upstream=draw(st.sampled_from([-1.0, 1.0])) * 2.0 ** draw(st.floats(-12, 17)),
        seed=draw(st.integers(0, 2**16)),
    )
    ids = draw(st.none() | st.lists(st.integers(0, n), min_size=n, max_size=n).map(tuple))
    return Question(case, draw(st.sampled_from([-100.0, -10.0, -1.5, 0.0, 12.0])), ids, draw(st.booleans()))
