"""The comparisons of ``python -m benchmarks family``: calls of ours, what each is measured against, and the goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ctloss
from benchmarks import batches, forms
from benchmarks.exact import SIGMOID_BIAS
from ctloss import objectives

TEMPERATURE, MARGIN, SIGMOID_TEMPERATURE = 0.05, 0.1, 0.1
QUEUE = 8
"""Rows of the queue for each pair."""

info_nce: Callable[..., Tensor] = ctloss.info_nce
contrast: Callable[..., ctloss.Contrast] = ctloss.contrast
sup_con: Callable[..., Tensor] = ctloss.sup_con
sig_lip: Callable[..., Tensor] = ctloss.sig_lip


@dataclass(frozen=True)
class Inputs:
    """A batch with everything that any of the calls takes.

    Attributes:
        x, y: ``(n, d)``, leaves that require a gradient.
        candidates: hard negatives ``(n, k, d)``, a leaf too; a queue ``(m, d)`` without gradient; or ``None``.
        ids: ``(n,)``, one pair in eight a duplicate of the next.
        candidate_ids: of hard negatives, some of them duplicates of a pair; ``None`` without them.
        temperatures: ``(n,)``, around the common one.
        weights: ``(n,)``.
        labels: ``(n,)``, two pairs each.
    """

    x: Tensor
    y: Tensor
    candidates: Tensor | None
    ids: Tensor
    candidate_ids: Tensor | None
    temperatures: Tensor
    weights: Tensor
    labels: Tensor

    @property
    def embeddings(self) -> tuple[Tensor, ...]:
        """What gradients are taken with respect to."""
        learnt = self.candidates is not None and self.candidates.requires_grad
        return (self.x, self.y, self.candidates) if learnt else (self.x, self.y)  # type: ignore[return-value]

    def double(self) -> Inputs:
        """The same numbers in float64, as new leaves."""
        wide = {
            name: value.detach().double().requires_grad_(value.requires_grad)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        return replace(self, **wide)


def draw(n: int, d: int, *, hard: int = 0, queue: int = 0) -> Inputs:
    """A seeded float32 batch in the middle of training, with hard negatives or rows of a queue for each pair."""
    x, y = batches.untrained(n, d, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(n)
    candidates = candidate_ids = None
    if hard:
        candidates = torch.randn(n, hard, d, generator=generator).requires_grad_()
        candidate_ids = torch.randint(0, 8 * n, (n, hard), generator=generator)
    elif queue:
        candidates = torch.randn(queue * n, d, generator=generator)
    spread = torch.rand(2, n, generator=generator)
    return Inputs(
        x.requires_grad_(),
        y.requires_grad_(),
        candidates,
        torch.where(ids % 8 == 0, ids + 1, ids),
        candidate_ids,
        TEMPERATURE * (0.5 + spread[0]),
        spread[1],
        torch.arange(n) // 2,
    )


@dataclass(frozen=True)
class Way:
    """One way to compute a loss: its name, the loss of a batch, and the exact loss of a batch in float64."""

    name: str
    call: Callable[[Inputs], Tensor]
    truth: Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Line:
    """One comparison, on the batch of n pairs of d columns that ``draw`` makes.

    The goals are the highest ratios of times and of peak memory allowed, ours over the other's; ``None`` without one.
    """

    name: str
    n: int
    d: int
    draw: Callable[[int, int], Inputs]
    ours: Way
    other: Way
    goal: float | None = None
    memory_goal: float | None = None

    @property
    def ways(self) -> dict[str, Way]:
        """Both, by their role."""
        return {"ours": self.ours, "other": self.other}


def _ours(call: Callable[..., Tensor], name: str = "ctloss") -> Way:
    return Way(name, call, partial(call, impl="reference"))


def _eager(call: Callable[[Inputs], Tensor], name: str = "plain PyTorch") -> Way:
    return Way(name, call, call)


def _ranking(inputs: Inputs, impl: str = "auto", **options: Any) -> Tensor:
    """Queries to documents: x's rows against y's and the candidates."""
    given = {"temperature": TEMPERATURE, "candidates": inputs.candidates, **options}
    return info_nce(inputs.x, inputs.y, negatives="cross", directions="x", impl=impl, **given)


def _pairs(inputs: Inputs, impl: str = "auto", **options: Any) -> Tensor:
    """Every row against all others of both sides."""
    return info_nce(inputs.x, inputs.y, temperature=TEMPERATURE, impl=impl, **options)


def _similarities(inputs: Inputs, width: int | None = None) -> Tensor:
    """The whole rectangle of cosines, as people write it by hand."""
    documents = inputs.y
    if inputs.candidates is not None:
        documents = torch.cat((documents, inputs.candidates.flatten(0, -2)))
    return F.normalize(inputs.x[:, :width], dim=1) @ F.normalize(documents[:, :width], dim=1).T


def _cross_entropy(logits: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)), reduction=reduction)


def _rectangle(inputs: Inputs) -> Tensor:
    return _cross_entropy(_similarities(inputs) / TEMPERATURE)


def _rectangle_with_margin(inputs: Inputs) -> Tensor:
    similarities = _similarities(inputs)
    left_out = similarities.detach() > similarities.detach().diagonal()[:, None] + MARGIN
    return _cross_entropy((similarities / TEMPERATURE).masked_fill(left_out, -torch.inf))


def _rectangle_with_weights(inputs: Inputs) -> Tensor:
    losses = _cross_entropy(_similarities(inputs) / TEMPERATURE, "none")
    return (losses * inputs.weights).sum() / inputs.weights.sum()


def _rectangle_with_temperatures(inputs: Inputs) -> Tensor:
    return _cross_entropy(_similarities(inputs) / inputs.temperatures[:, None])


def _widths(d: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((d, max(1, d // 2), max(1, d // 4))))


def _rectangles_of_widths(inputs: Inputs) -> Tensor:
    losses = [_cross_entropy(_similarities(inputs, width) / TEMPERATURE) for width in _widths(inputs.x.shape[1])]
    return torch.stack(losses).sum()


def _rectangles(n: int, d: int) -> Iterator[Line]:
    """Sizes of rectangles, and the options that change what is done with one."""
    sizes: dict[str, dict[str, int]] = {
        "queries to documents": {},
        "hard negatives, k = 1": {"hard": 1},
        "hard negatives, k = 4": {"hard": 4},
        "hard negatives, k = 7": {"hard": 7},
        f"a queue of {QUEUE} n": {"queue": QUEUE},
    }
    for name, size in sizes.items():
        yield Line(name, n, d, partial(draw, **size), _ours(_ranking), _eager(_rectangle), 0.8, 0.5)

    def per_row(inputs: Inputs, impl: str = "auto") -> Tensor:
        return _ranking(inputs, impl, temperature=inputs.temperatures)

    def weighted(inputs: Inputs, impl: str = "auto") -> Tensor:
        return _ranking(inputs, impl, weights=inputs.weights)

    options: dict[str, tuple[Callable[..., Tensor], Callable[[Inputs], Tensor]]] = {
        "margin": (partial(_ranking, margin=MARGIN), _rectangle_with_margin),
        "weights": (weighted, _rectangle_with_weights),
        "a temperature a row": (per_row, _rectangle_with_temperatures),
        "dims of d, d / 2, d / 4": (partial(_ranking, dims=_widths(d)), _rectangles_of_widths),
    }
    for name, (call, form) in options.items():
        yield Line(f"queries to documents, {name}", n, d, draw, _ours(call), _eager(form))


def _ids(n: int, d: int) -> Iterator[Line]:
    def pairs(inputs: Inputs, impl: str = "auto", **options: Any) -> Tensor:
        return _pairs(inputs, impl, ids=inputs.ids, **options)

    def hard(inputs: Inputs, impl: str = "auto") -> Tensor:
        return _ranking(inputs, impl, ids=inputs.ids, candidate_ids=inputs.candidate_ids)

    without, crossed = _ours(_pairs, "without ids"), partial(_pairs, negatives="cross")
    yield Line("ids, both sides", n, d, draw, _ours(pairs), without, 1.1)
    yield Line("ids, across", n, d, draw, _ours(partial(pairs, negatives="cross")), _ours(crossed, "without ids"), 1.1)
    four = partial(draw, hard=4)
    yield Line("ids, hard negatives, k = 4", n, d, four, _ours(hard), _ours(_ranking, "without ids"), 1.1)


def _reductions(n: int, d: int) -> Iterator[Line]:
    def by_row(inputs: Inputs, impl: str = "auto") -> Tensor:
        return _pairs(inputs, impl, reduction="none").mean()

    yield Line('reduction="none", then the mean', n, d, draw, _ours(by_row), _ours(_pairs, 'reduction="mean"'), 1.0)


def _objectives(n: int, d: int) -> Iterator[Line]:
    losses: dict[str, Callable[[ctloss.Contrast], Tensor]] = {
        "softplus(z)": lambda c: F.softplus(c.z, threshold=40),
        "epsilon_nce": lambda c: objectives.epsilon_nce(c, 0.5),
        "focal_nce": lambda c: objectives.focal_nce(c, 2.0),
        "debiased_nce": lambda c: objectives.debiased_nce(c, 0.1, len(c.z) - 2, TEMPERATURE),
        "rince": lambda c: objectives.rince(c, 0.5, 0.01),
    }

    def of(loss: Callable[[ctloss.Contrast], Tensor]) -> Callable[..., Tensor]:
        def call(inputs: Inputs, impl: str = "auto") -> Tensor:
            return loss(contrast(inputs.x, inputs.y, temperature=TEMPERATURE, impl=impl)).mean()

        return call

    for name, loss in losses.items():
        yield Line(f"contrast, {name}", n, d, draw, _ours(of(loss)), _ours(_pairs, "info_nce"), 1.03)


def _sup_con(inputs: Inputs) -> Tensor:
    rows = F.normalize(torch.cat((inputs.x, inputs.y)), dim=1)
    labels = inputs.labels.repeat(2)
    itself = torch.eye(len(rows), dtype=torch.bool)
    logits = rows @ rows.T / TEMPERATURE
    shares = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    return -((shares * positive).sum(1) / positive.sum(1)).mean()


def _others(n: int, d: int) -> Iterator[Line]:
    """Losses that are not a function of z."""

    def supervised(inputs: Inputs, impl: str = "auto") -> Tensor:
        rows, labels = torch.cat((inputs.x, inputs.y)), inputs.labels.repeat(2)
        return sup_con(rows, labels, temperature=TEMPERATURE, impl=impl)

    def sigmoid(inputs: Inputs, impl: str = "auto", ids: Tensor | None = None) -> Tensor:
        x, y = inputs.x, inputs.y
        return sig_lip(x, y, temperature=SIGMOID_TEMPERATURE, bias=SIGMOID_BIAS, ids=ids, impl=impl)

    def sigmoid_with_ids(inputs: Inputs, impl: str = "auto") -> Tensor:
        return sigmoid(inputs, impl, inputs.ids)

    def by_hand(inputs: Inputs) -> Tensor:
        return forms.eager("sig_lip", "cross", SIGMOID_TEMPERATURE)(inputs.x, inputs.y)

    yield Line("sup_con, 2 n rows, 4 a label", n, d, draw, _ours(supervised), _eager(_sup_con), 0.7)
    yield Line("sig_lip", n, d, draw, _ours(sigmoid), _eager(by_hand), 0.7)
    yield Line("ids, sig_lip", n, d, draw, _ours(sigmoid_with_ids), _ours(sigmoid, "without ids"))


SIZES = {
    _rectangles: (1024,),
    _ids: (1024,),
    _reductions: (128, 512, 1024, 2048),
    _objectives: (512, 1024, 2048),
    _others: (1024,),
}


def lines(n: Sequence[int] | None = None, d: int = 256) -> Iterator[Line]:
    """Every comparison, at the sizes that the goals are for unless ``n`` gives others."""
    for group, sizes in SIZES.items():
        for size in n or sizes:
            yield from group(size, d)
