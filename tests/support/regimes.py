"""Batches of pairs in every regime a contrastive loss meets, from the first step to a collapsed encoder."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ctloss.kernels.problem import Batch, Problem
from ctloss.reference.gradients import pairs

REGIMES = ("random", "trained", "hard", "collapsed", "identical", "zeros", "scaled", "big")
# Short of the dtype's own range by what a row's entries spread over.
LARGEST_EXPONENT = {torch.float32: 120, torch.bfloat16: 120, torch.float16: 10, torch.float64: 900}


@dataclass(frozen=True)
class Candidates:
    """A side of further rows: how many, whether it needs a gradient, whether it has ids, and its dtype if another."""

    m: int
    need: bool = True
    ids: bool = False
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Case:
    """One loss call and the gradients it needs; its tensors are functions of the fields.

    ``ids`` is the number of different ids among the pairs, ``margin`` the share of negatives that it leaves,
    ``temperatures`` and ``weights`` say how many numbers are given, and ``temperature`` is the smallest of them.
    """

    regime: str
    n: int
    d: int
    dtype: torch.dtype = torch.float32
    temperature: float = 0.07
    loss: str = "cz_nce"
    negatives: str = "both"
    normalize: bool = True
    reduction: str = "mean"
    form: str = "log"
    exponent: float = -20.0  # log10 of the φ aimed at when trained
    strides: str = "contiguous"
    need: tuple[bool, bool, bool] = (True, True, False)
    upstream: float = 1.0
    seed: int = 0
    directions: str = "both"
    candidates: tuple[Candidates, ...] = ()
    ids: int | None = None
    margin: float | None = None
    temperatures: str = "number"  # "number", "tensor", "pairs" or "rows"
    weights: str | None = None  # "pairs" or "rows"

    @property
    def rows(self) -> int:
        """How many rows have a loss."""
        return 2 * self.n if self.directions == "both" else self.n

    @property
    def needs(self) -> tuple[bool, ...]:
        """Which sides need a gradient."""
        return (*self.need[:2], *(side.need for side in self.candidates))

    @property
    def precise(self) -> torch.dtype:
        """The dtype of the loss: single precision, or double where any side is."""
        return functools.reduce(torch.promote_types, _dtypes(self), torch.float32)

    def batch(self, device: str = "cpu") -> Batch:
        """Every tensor as a path receives it, with a temperature for each row where there are several."""
        x, y, *candidates = (
            _laid_out(side.to(dtype).to(device), self.strides)
            for side, dtype in zip(_sides(self), _dtypes(self), strict=True)
        )
        temperature = self.given_temperature(device)
        if isinstance(temperature, Tensor) and temperature.dim():
            temperature = temperature.repeat(self.rows // len(temperature))
        ids, candidate_ids = _ids(self)
        return Batch(
            x,
            y,
            tuple(candidates),
            temperature,
            None if ids is None else ids.to(device),
            tuple(None if numbers is None else numbers.to(device) for numbers in candidate_ids),
        )

    def problem(self, **changes: Any) -> Problem:
        """Every option as a path receives it."""
        options = {
            name: getattr(self, name) for name in ("loss", "negatives", "directions", "normalize", "reduction", "form")
        }
        return Problem(**{**options, "margin": self.margin_in_a_gap(), **changes})

    def embeddings(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """x and y, rounded to the case's dtype, laid out with its strides."""
        x, y = (_laid_out(side.to(self.dtype).to(device), self.strides) for side in _sides(self)[:2])
        return x, y

    def given_temperature(self, device: str = "cpu") -> float | Tensor:
        """The temperature as a caller gives it: a number, or a tensor of one element, or one per pair or row."""
        if self.temperatures == "number" and not self.need[2]:
            return self.temperature
        if self.temperatures in ("number", "tensor"):
            return torch.tensor(self.temperature, dtype=torch.float64, device=device)
        generator = torch.Generator().manual_seed(self.seed + 3)
        count = self.n if self.temperatures == "pairs" else self.rows
        spread = torch.rand(count, generator=generator, dtype=torch.float64)
        return (self.temperature * torch.exp2(2 * spread)).to(device, self.precise)

    def row_weights(self) -> Tensor | None:
        """Weights as a caller gives them, a quarter of them zero."""
        if self.weights is None:
            return None
        generator = torch.Generator().manual_seed(self.seed + 4)
        weights = torch.rand(self.n if self.weights == "pairs" else self.rows, generator=generator) * 2 - 0.5
        weights[-1] = 1.25
        return weights.clamp_min(0.0)

    def margin_in_a_gap(self) -> float | None:
        """A margin that no negative is close to: single precision must decide about each like the truth does."""
        if self.margin is None:
            return None
        options: dict[str, Any] = {name: getattr(self, name) for name in ("negatives", "directions", "normalize")}
        calls = [pairs(**batch._replace(temperature=1.0)._asdict(), **options) for batch in self.compared()]
        excess = torch.cat([(of.logits - of.positive[:, None])[of.counts] for of in calls]).unique()
        # Summing a product cannot be off by 64 units in the last place of the largest one.
        clear = 64 * 2.0**-24 * max((of.sides**2).sum(1).max().item() for of in calls) or 1.0
        ends = torch.tensor([4 * clear], dtype=torch.float64)
        edges = torch.cat([excess[:1] - ends, excess, excess[-1:] + ends]) if len(excess) else torch.cat([-ends, ends])
        (wide,) = torch.where(edges.diff() > 2 * clear)
        gap = wide[(wide - self.margin * len(excess)).abs().argmin()]
        return edges[gap : gap + 2].mean().item()

    def compared(self) -> list[Batch]:
        """The batches that share the margin."""
        return [self.batch()]

    def upstream_gradient(self) -> Tensor:
        """The upstream gradient: a number, or one of either sign for every row."""
        if self.reduction != "none":
            return torch.tensor(self.upstream, dtype=self.precise)
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.rows, generator=generator, dtype=torch.float64).to(self.precise) * self.upstream


def _dtypes(case: Case) -> list[torch.dtype]:
    return [case.dtype, case.dtype, *(side.dtype or case.dtype for side in case.candidates)]


def _ids(case: Case) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """Ids that repeat, agree in their lower 32 bits, and include −1, which paths may use for padding."""
    generator = torch.Generator().manual_seed(case.seed + 5)

    def numbers(count: int) -> Tensor:
        # Candidates may also have ids that no pair has.
        drawn = torch.randint(0, (case.ids or case.n) + 1, (count,), generator=generator)
        return drawn if case.ids is None else drawn * 2**33 - 1

    ids = None
    if case.ids is not None:
        ids = torch.randint(0, case.ids, (case.n,), generator=generator) * 2**33 - 1
    return ids, tuple(numbers(side.m) if side.ids else None for side in case.candidates)


def _sides(case: Case) -> list[Tensor]:
    """x, y and the candidates in float64, before they are rounded."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, case.d, generator=generator, dtype=torch.float64)

    sides = [normal(case.n), normal(case.n)]
    centre = normal(1)
    sides += [normal(side.m) for side in case.candidates]
    if case.regime in ("trained", "hard"):
        # Rows around one direction, so that a negative's cosine c solves (2n - 2 + m) exp((c - 1)/τ) = φ.
        negatives = max(1, sum(map(len, sides)) - 2)
        cosine = 1 - case.temperature * (math.log(negatives) - case.exponent * math.log(10))
        cosine = min(max(cosine, 0.0), 0.999)
        centre = torch.nn.functional.normalize(centre, dim=1)
        x, noise, *rest = (torch.nn.functional.normalize(side, dim=1) for side in sides)
        x, *rest = (math.sqrt(cosine) * centre + math.sqrt(1 - cosine) * side for side in (x, *rest))
        sides = [x, x + 0.01 * noise if case.regime == "trained" else 0.1 * noise - x, *rest]
    elif case.regime == "collapsed":
        sides = [centre + 1e-3 * side for side in sides]
    elif case.regime == "identical":
        sides = [centre.repeat(len(side), 1) for side in sides]
    elif case.regime == "zeros":
        sides[0][0] = 0
        for side in sides[1:]:
            side[-1:] = 0
    elif case.regime == "scaled":
        for k, dtype in enumerate(_dtypes(case)):
            limit = LARGEST_EXPONENT[dtype]
            shifts = torch.randint(-limit, limit + 1, (len(sides[k]), 1), generator=generator)
            sides[k] = sides[k] * torch.exp2(shifts.double())
    if not case.normalize:
        # Logits up to 1e4 in the "big" regime, up to 50 elsewhere.
        rows = torch.cat(sides)
        largest = (rows @ rows.T).abs().max().item()
        target = (1e4 if case.regime == "big" else 50.0) * case.temperature
        factor = math.sqrt(target / largest) if largest > 0 else 1.0
        sides = [side * factor for side in sides]
    return sides


def _laid_out(rows: Tensor, strides: str) -> Tensor:
    n, d = rows.shape
    if strides == "transposed":
        return rows.T.contiguous().T
    if strides == "padded":
        wide = rows.new_full((n, d + 3), math.nan)
        wide[:, 1 : d + 1] = rows
        return wide[:, 1 : d + 1]
    if strides == "every other":
        wide = rows.new_full((2 * n, 2 * d), math.nan)
        wide[::2, ::2] = rows
        return wide[::2, ::2]
    return rows.contiguous()


def usual_calls(case: Case) -> Iterator[Case]:
    """The case with each usual loss, reduction and choice of negatives; in the "big" regime of dot products."""
    ordinary = case.regime != "big"
    case = replace(case, normalize=ordinary, need=(True, True, ordinary))
    for negatives, reduction, loss in itertools.product(("both", "cross"), ("mean", "none"), ("cz_nce", "info_nce")):
        yield replace(case, negatives=negatives, reduction=reduction, loss=loss)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    max_n: int,
    max_d: int,
    dtypes: tuple[torch.dtype, ...],
    fixed_form: str | None = None,
    max_sides: int = 2,
) -> Case:
    """Cases over every option; sizes are often small, or close to block sizes."""
    near_blocks = [v for v in (1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257) if v <= max_n]
    n = draw(st.one_of(st.integers(1, min(max_n, 24)), st.sampled_from(near_blocks), st.integers(1, max_n)))
    d = draw(st.one_of(st.integers(1, min(max_d, 40)), st.integers(1, max_d)))
    regime = draw(st.sampled_from(REGIMES))
    normalize = regime == "scaled" or (regime != "big" and draw(st.booleans()))
    loss = draw(st.sampled_from(["cz_nce", "info_nce"]))
    form = fixed_form or (draw(st.sampled_from(["log", "ratio"])) if loss == "cz_nce" else "log")
    side = st.builds(
        Candidates,
        st.integers(0, 2 * n),
        need=st.booleans(),
        ids=st.booleans(),
        dtype=st.sampled_from([None, *dtypes]),
    )
    candidates = tuple(draw(st.lists(side, max_size=max_sides)))
    need = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    if not any(need) and not any(side.need for side in candidates):
        need = (True, True, True)
    return Case(
        regime=regime,
        n=n,
        d=d,
        dtype=draw(st.sampled_from(dtypes)),
        temperature=draw(st.sampled_from([0.01, 0.0143, 0.02, 0.05, 0.07, 0.2, 1.0])),
        loss=loss,
        negatives=draw(st.sampled_from(["both", "cross", "own", "none"])),
        normalize=normalize,
        reduction=draw(st.sampled_from(["mean", "sum", "none"])),
        form=form,
        exponent=draw(st.sampled_from([-1.0, -5.0, -10.0, -20.0, -30.0, -36.0])),
        strides=draw(st.sampled_from(["contiguous", "transposed", "padded", "every other"])),
        need=need,
        upstream=draw(st.sampled_from([-1.0, 1.0])) * 2.0 ** draw(st.floats(-12, 17)),
        seed=draw(st.integers(0, 2**16)),
        directions=draw(st.sampled_from(["both", "x"])),
        candidates=candidates,
        ids=draw(st.one_of(st.none(), st.integers(1, n))),
        margin=draw(st.one_of(st.none(), st.floats(0, 1))),
        temperatures=draw(st.sampled_from(["number", "tensor", "pairs", "rows"])),
        weights=draw(st.sampled_from([None, "pairs", "rows"])),
    )
