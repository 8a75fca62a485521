"""What is raced: the cells and their order, the goals, and in each cell our call and the forms written by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ctloss
from benchmarks import batches, forms
from benchmarks.cpu.comparisons import QUEUE, SIGMOID_TEMPERATURE
from benchmarks.exact import SIGMOID_BIAS, exact
from benchmarks.providers import DTYPES

Form = Callable[..., Tensor]
"""A loss of a cell's tensors, in the order of :class:`Inputs`."""

TEMPERATURE = 0.07
HARD = 4
"""Hard negatives of each pair."""
SOFTMAX_LOSSES = ("cz_nce", "info_nce")
KINDS: dict[str, dict[str, str]] = {
    "both": {"negatives": "both"},
    "cross": {"negatives": "cross"},
    "own": {"negatives": "own"},
    "documents": {"negatives": "cross", "directions": "x"},
    "hard": {"negatives": "cross", "directions": "x"},
    "queue": {"negatives": "none", "directions": "x"},
    "documents+queue": {"negatives": "cross", "directions": "x"},
}
"""Options of the softmax losses by the name that their negatives go by here: HARD for each pair, QUEUE n in a queue."""
SQUARES = {"both": 4, "cross": 1, "own": 2, "documents": 1, "hard": 1 + HARD, "queue": QUEUE,
           "documents+queue": 1 + QUEUE}  # fmt: skip
"""Logits in units of n²."""
AXES: dict[str, tuple[Any, ...]] = {
    "loss": (*SOFTMAX_LOSSES, "sup_con", "sig_lip"),
    "negatives": tuple(KINDS),
    "dtype": ("float32", "bfloat16", "float16"),
    "n": (2, 8, 32, 128, 512, 2048, 8192),
    "d": (64, 256, 768, 1536),
    "threads": (1, 2),
}
# What an eager form keeps at once, in float32 matrices of all logits, and what it may take.
EAGER_MATRICES, EAGER_BYTES = 6, 12e9
# The first batch of a loss shows which eager form is compiled: a middling size comes first, then the rest.
N_ORDER = (128, 512, 32, 8, 2, 2048, 8192)
D_ORDER = (256, 768, 64, 1536)


@dataclass(frozen=True)
class Cell:
    """One cell of the table, which is raced forward and forward + backward.

    ``negatives`` is a key of KINDS; "both" for "sup_con", which is given 2n rows, and "cross" for "sig_lip".
    """

    loss: str
    negatives: str
    dtype: str
    n: int
    d: int
    threads: int

    @property
    def temperature(self) -> float:
        """Its loss's temperature."""
        return SIGMOID_TEMPERATURE if self.loss == "sig_lip" else TEMPERATURE

    @property
    def logits(self) -> int:
        """How many logits there are."""
        return SQUARES[self.negatives] * self.n**2


FIELDS = tuple(field.name for field in fields(Cell))


GOAL, SMALL_GOAL, LARGEST_GOAL = 1.0, 0.5, 0.28
GOALS = f"{SMALL_GOAL} for up to 128 pairs in float32, {LARGEST_GOAL} from 8,192 pairs on, {GOAL} otherwise"


def goal(cell: Cell) -> float:
    """The highest ratio of times, ours over the best rival's, that meets the goal."""
    if cell.n >= 8192:
        return LARGEST_GOAL
    return SMALL_GOAL if cell.n <= 128 and cell.dtype == "float32" else GOAL


def cells(*, full: bool = False) -> list[Cell]:
    """The cells of the usual design, or every one whose eager form fits EAGER_BYTES; the most important come first."""
    everything = (Cell(*values) for values in itertools.product(*AXES.values()))
    there = (cell for cell in everything if _exists(cell) and (full or _usual(cell)))
    return sorted(there, key=_importance)


def _exists(cell: Cell) -> bool:
    if 4 * EAGER_MATRICES * cell.logits > EAGER_BYTES:
        return False
    return cell.negatives == {"sup_con": "both", "sig_lip": "cross"}.get(cell.loss, cell.negatives)


def _usual(cell: Cell) -> bool:
    """Whether a cell belongs to the usual design, which takes about 25 minutes on two quiet cores.

    - Up to 512 pairs, one thread: the softmax losses in float32 with every d and all negatives, in half precision with
      d = 256 and 768; the other losses with d = 256.
    - Two threads: d = 256; in half precision and from 2048 pairs on only "both" and "cross".
    - 2048 pairs: everything in float32 with d = 256; "both" and "cross" also with every other d, and in half precision.
    - 8192 pairs: float32, d = 256, one thread; "both" and infoNCE "cross", and the sigmoid loss.
    """
    plain, single, central = cell.dtype == "float32", cell.threads == 1, cell.d == 256
    main = cell.negatives in ("both", "cross")
    if cell.n >= 8192:
        largest = (("cz_nce", "both"), ("info_nce", "both"), ("info_nce", "cross"), ("sig_lip", "cross"))
        return plain and single and central and (cell.loss, cell.negatives) in largest
    if cell.loss not in SOFTMAX_LOSSES and not central:
        return False
    if not single:
        return central and (main or (plain and cell.n < 2048)) and (plain or cell.n < 2048)
    if cell.n >= 2048:
        return (plain and (central or main)) or (central and main and cell.loss in SOFTMAX_LOSSES)
    return plain or cell.d in (256, 768)


def _importance(cell: Cell) -> tuple[int, ...]:
    small, plain, single, central = cell.n <= 512, cell.dtype == "float32", cell.threads == 1, cell.d == 256
    stages = (
        small and plain and single and cell.d in (256, 768),
        cell.n == 2048 and plain and single and central,
        small and single and central,
        small and plain and central,
        plain and single and central,
    )
    stage = stages.index(True) if any(stages) else len(stages)
    axes = ("threads", "negatives", "loss", "dtype")
    places = (AXES[name].index(getattr(cell, name)) for name in axes)
    return stage, N_ORDER.index(cell.n), D_ORDER.index(cell.d), *places


def only(chosen: Sequence[Cell], conditions: Sequence[str]) -> list[Cell]:
    """The cells that meet every condition, such as "n=2,8" or "loss=info_nce".

    Raises:
        ValueError: for an unknown name or value, or if no cell is left.
    """
    for condition in conditions:
        name, _, values = condition.partition("=")
        if name not in AXES:
            raise ValueError(f"expected {', '.join(AXES)} before the = in --only, got {condition!r}")
        known, wanted = [str(value) for value in AXES[name]], values.split(",")
        if not set(wanted) <= set(known):
            raise ValueError(f"expected {name} among {', '.join(known)} in --only, got {condition!r}")
        chosen = [cell for cell in chosen if str(getattr(cell, name)) in wanted]
    if not chosen:
        raise ValueError(f"expected --only to leave a cell, got none with {' '.join(conditions)}; --full has more")
    return list(chosen)


@dataclass(frozen=True)
class Inputs:
    """What the calls of a cell take: first ``leaves``, which gradients are taken with respect to, then ``fixed``."""

    leaves: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...] = ()

    def double(self) -> Inputs:
        """The same numbers in float64."""
        return Inputs(*(tuple(map(_wide(torch.float64), part)) for part in (self.leaves, self.fixed)))

    def gradients(self, call: Form) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A call's value, and its gradient with respect to every leaf."""
        leaves = tuple(leaf.detach().requires_grad_() for leaf in self.leaves)
        value = call(*leaves, *self.fixed)
        return value.detach(), torch.autograd.grad(value, leaves)


def _wide(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda each: each.to(dtype) if each.is_floating_point() else each


def draw(cell: Cell) -> Inputs:
    """A seeded batch in the middle of training: raw rows x and y, and what the cell's negatives ask for besides.

    "hard" adds ``(n, HARD, d)`` that require a gradient, the queues ``(QUEUE n, d)`` that require none. "sup_con" has
    2n rows, four a label (two of them if there are only two pairs).
    """
    dtype = DTYPES[cell.dtype]
    x, y = batches.untrained(cell.n, cell.d, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(1)
    if cell.loss == "sup_con":
        labels = torch.arange(cell.n) // min(2, cell.n // 2)
        return Inputs((torch.cat((x, y)),), (labels.repeat(2),))
    if cell.negatives == "hard":
        return Inputs((x, y, torch.randn(cell.n, HARD, cell.d, generator=generator).to(dtype)))
    if "queue" in cell.negatives:
        return Inputs((x, y), (torch.randn(QUEUE * cell.n, cell.d, generator=generator).to(dtype),))
    return Inputs((x, y))


def ours(cell: Cell, impl: str = "auto") -> Form:
    """The public call that computes a cell's loss, on the path named; it raises what the call raises."""
    function: Form = getattr(ctloss, cell.loss)
    options: dict[str, Any] = {"temperature": cell.temperature, "impl": impl}
    if cell.loss == "sig_lip":
        options["bias"] = SIGMOID_BIAS
    elif cell.loss in SOFTMAX_LOSSES:
        options |= KINDS[cell.negatives]
    if cell.negatives == "hard" or "queue" in cell.negatives:
        return lambda x, y, candidates: function(x, y, candidates=candidates, **options)
    return lambda *tensors: function(*tensors, **options)


def truth(cell: Cell, inputs: Inputs) -> tuple[float, tuple[Tensor, ...]] | None:
    """Value and gradients in float64; None where only the quadratic reference knows them and it would take too long."""
    if cell.loss != "sup_con" and cell.negatives in ("both", "cross"):
        x, y = inputs.leaves
        found = exact(x, y, loss=cell.loss, negatives=cell.negatives, temperature=cell.temperature)
        return found.loss, (found.gx, found.gy)
    if cell.logits > 2**24:
        return None
    value, gradients = inputs.double().gradients(ours(cell, "reference"))
    return value.item(), gradients


def rivals(cell: Cell) -> dict[str, Form]:
    """The eager forms of a cell's loss by name, each exact up to rounding.

    In half precision each comes twice: in the inputs' dtype, and with the rows converted to float32 first.
    """
    found = dict(_forms(cell))
    if cell.dtype != "float32":
        found |= {f"{name}, in float32": _converted(form) for name, form in found.items()}
    return found


def _converted(form: Form) -> Form:
    return lambda *tensors: form(*map(_wide(torch.float32), tensors))


def _forms(cell: Cell) -> Iterator[tuple[str, Form]]:
    if cell.loss == "sup_con":
        yield "masks", _masked_labels(cell.temperature)
        yield "class sums", _class_sums(cell.temperature)
        return
    if cell.loss == "sig_lip" or cell.negatives in ("both", "cross"):
        known = (cell.loss, cell.negatives, cell.temperature)
        yield "one matrix", forms.eager(*known)
        if cell.negatives == "both" and (blocks := forms.cross_entropy(*known)) is not None:
            yield "joined blocks", blocks
    if cell.loss != "sig_lip":
        if cell.negatives == "own" and cell.loss == "info_nce":
            yield "cross_entropy", _own_cross_entropy(cell.temperature)
        if cell.negatives not in ("both", "cross", "own"):
            yield "cross_entropy" if cell.loss == "info_nce" else "one matrix", _rectangle(cell)
        yield "scaled rows", _scaled_rows(cell)


def _unit(*rows: Tensor) -> Tensor:
    return F.normalize(torch.cat([each.flatten(0, -2) for each in rows]) if len(rows) > 1 else rows[0], dim=1)


def _itself(logits: Tensor) -> Tensor:
    return torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)


def _without_diagonal(logits: Tensor) -> Tensor:
    """Minus infinity on the diagonal, in place; a mask under compilers, which would compile the other for one size."""
    if torch.compiler.is_compiling():
        return logits.masked_fill(_itself(logits), -torch.inf)
    return logits.fill_diagonal_(-torch.inf)


def _rectangle(cell: Cell) -> Form:
    """Anchors x against all columns at once, as people write it by hand; the positive is one of the columns."""
    info, temperature = cell.loss == "info_nce", cell.temperature

    def queue(x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
        x, y = _unit(x), _unit(y)
        positive = (x * y).sum(1, keepdim=True)
        logits = torch.cat((positive, x @ _unit(kept).T), dim=1) / temperature
        if info:
            return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        return (torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]).mean()

    def columns(x: Tensor, y: Tensor, *more: Tensor) -> Tensor:
        logits = _unit(x) @ _unit(y, *more).T / temperature
        if info:
            return F.cross_entropy(logits, torch.arange(len(x)))
        masked = logits.masked_fill(_itself(logits), -torch.inf)
        return (torch.logsumexp(masked, 1) - logits.diagonal()).mean()

    return queue if cell.negatives == "queue" else columns


def _own_cross_entropy(temperature: float) -> Form:
    """infoNCE against a row's own side: the positive takes the place of the row itself on the diagonal."""

    def form(x: Tensor, y: Tensor) -> Tensor:
        x, y = _unit(x), _unit(y)
        positive, target = (x * y).sum(1) / temperature, torch.arange(len(x))
        squares = (torch.diagonal_scatter(rows @ rows.T / temperature, positive) for rows in (x, y))
        first, second = (F.cross_entropy(logits, target) for logits in squares)
        return (first + second) / 2

    return form


def _scaled_rows(cell: Cell) -> Form:
    """The temperature divides rows instead of logits, and the positive's logit is a sum of its own.

    That saves passes over the matrix in both directions.
    """
    info, temperature = cell.loss == "info_nce", cell.temperature

    def finish(logits: Tensor, positive: Tensor, *, holds_positive: bool) -> Tensor:
        z = torch.logsumexp(logits, 1) - positive
        return (F.softplus(z) if info and not holds_positive else z).mean()

    def both(x: Tensor, y: Tensor) -> Tensor:
        rows = _unit(x, y)
        scaled, n = rows / temperature, len(x)
        logits = scaled @ rows.T
        if info:
            target = torch.arange(2 * n).roll(n)
            return F.cross_entropy(_without_diagonal(logits), target)
        excluded = torch.eye(n, dtype=torch.bool).repeat(2, 2)
        positive = (scaled * rows.roll(n, 0)).sum(1)
        return finish(logits.masked_fill_(excluded, -torch.inf), positive, holds_positive=False)

    def cross(x: Tensor, y: Tensor) -> Tensor:
        scaled, other = _unit(x) / temperature, _unit(y)
        logits = scaled @ other.T
        if info:
            target = torch.arange(len(x))
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        positive = (scaled * other).sum(1)
        logits = _without_diagonal(logits)
        return ((torch.logsumexp(logits, 1) + torch.logsumexp(logits, 0)) / 2 - positive).mean()

    def own(x: Tensor, y: Tensor) -> Tensor:
        sides = _unit(x), _unit(y)
        scaled = sides[0] / temperature, sides[1] / temperature
        positive = (scaled[0] * sides[1]).sum(1)
        squares = (_without_diagonal(left @ right.T) for left, right in zip(scaled, sides, strict=True))
        first, second = (finish(logits, positive, holds_positive=False) for logits in squares)
        return (first + second) / 2

    def queue(x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
        scaled = _unit(x) / temperature
        return finish(scaled @ _unit(kept).T, (scaled * _unit(y)).sum(1), holds_positive=False)

    def columns(x: Tensor, y: Tensor, *more: Tensor) -> Tensor:
        scaled, others = _unit(x) / temperature, _unit(y, *more)
        logits = scaled @ others.T
        if info:
            return F.cross_entropy(logits, torch.arange(len(x)))
        positive = (scaled * others[: len(x)]).sum(1)
        return finish(logits.masked_fill_(_itself(logits), -torch.inf), positive, holds_positive=False)

    kinds: dict[str, Form] = {"both": both, "cross": cross, "own": own, "queue": queue}
    return kinds.get(cell.negatives, columns)


def _masked_labels(temperature: float) -> Form:
    """Supervised contrast as its authors write it: a mask of positives times the matrix of log-softmax."""

    def form(rows: Tensor, labels: Tensor) -> Tensor:
        rows = _unit(rows)
        logits = rows @ rows.T / temperature
        itself = _itself(logits)
        shares = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
        positive = (labels[:, None] == labels) & ~itself
        return -((shares * positive).sum(1) / positive.sum(1)).mean()

    return form


def _class_sums(temperature: float) -> Form:
    """The same without a mask: the positives' logits add up to a product with the sum of a label's rows."""

    def form(rows: Tensor, labels: Tensor) -> Tensor:
        rows = _unit(rows)
        scaled = rows / temperature
        lse = torch.logsumexp(_without_diagonal(scaled @ rows.T), 1)
        # One slot a row, not a label: their number is then known without reading the labels.
        slots = torch.zeros_like(rows)
        sums = slots.index_add(0, labels, rows)[labels] - rows
        counts = torch.bincount(labels, minlength=len(rows))[labels] - 1
        return (lse - (scaled * sums).sum(1) / counts).mean()

    return form
