"""The kinds of calls whose kernels are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ctloss.kernels.problem import Batch, Problem
from ctloss.kernels.triton_path.plan.config import can_specialise


@dataclass(frozen=True)
class Shipped:
    """A kind of call whose configuration is shipped: the inputs' dtype and the options that change the kernels.

    Attributes:
        temperature: "number", or read on the device: a "scalar" or one for each of the "rows".
        transposed: whether y is stored column by column.
        moment: whether the temperature requires a gradient.
        candidates: rows of each candidate side; the last side has ids if any row has.
        ids: whether the pairs have ids.
        margin: whether negatives beyond a margin are left out.
        mixed: whether the other sides are float32.
        sigmoid: whether the loss is that of pairs each by itself, ``ctloss.sig_lip``.
        ranks: whether two ranks' rows are compared with each other.
        specialised: whether Hopper's warp-specialised kernels are switched on; of such a call only they are compiled.
    """

    dtype: torch.dtype
    normalize: bool
    precision: str
    d: int
    n: int = 1500
    negatives: str = "both"
    directions: str = "both"
    temperature: str = "number"
    transposed: bool = False
    moment: bool = True
    candidates: tuple[int, ...] = ()
    ids: bool = False
    margin: bool = False
    mixed: bool = False
    sigmoid: bool = False
    ranks: bool = False
    specialised: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        words = [dtype, *["specialised"] * self.specialised, f"n={self.n}", f"d={self.d}"]
        words += ["cosine" if self.normalize else "dot", self.precision]
        given = ((self.negatives, "both"), (self.directions, "both"), (self.temperature, "number"))
        words += [option for option, usual in given if option != usual]
        words += [f"+{count}" for count in self.candidates]
        words += [name for name in ("transposed", "ids", "margin", "mixed", "sigmoid", "ranks") if getattr(self, name)]
        return " ".join(words + ["constant"] * (not self.moment))

    @property
    def problem(self) -> Problem:
        """Its options."""
        return Problem(
            negatives=self.negatives,  # type: ignore[arg-type]
            directions=self.directions,  # type: ignore[arg-type]
            normalize=self.normalize,
            precision=self.precision,  # type: ignore[arg-type]
            margin=0.1 if self.margin else None,
            workspace=2**28,
        )

    @property
    def batch(self) -> Batch:
        """Tensors of its kind."""
        other = torch.float32 if self.mixed else self.dtype
        x, y, *candidates = (
            torch.zeros(count, self.d, dtype=dtype)
            for count, dtype in ((self.n, self.dtype), *((count, other) for count in (self.n, *self.candidates)))
        )
        temperature: float | Tensor = 0.07
        if self.temperature != "number":
            rows = self.n * self.problem.num_directions
            temperature = torch.tensor(0.07).expand(rows if self.temperature == "rows" else ()).contiguous()
        candidate_ids: list[Tensor | None] = [None for _ in candidates]
        if self.ids and candidates:
            candidate_ids[-1] = torch.zeros(self.candidates[-1], dtype=torch.int64)
        ids = torch.zeros(self.n, dtype=torch.int64) if self.ids else None
        y = y.T.contiguous().T if self.transposed else y
        return Batch(x, y, tuple(candidates), temperature, ids, tuple(candidate_ids))


HALVES, FLOATS = (torch.bfloat16, torch.float16), (torch.bfloat16, torch.float16, torch.float32)
BOTH = (True, False)
# Half-precision rows have one precision, float32 rows three.
HALF_FORMATS = [(dtype, "highest") for dtype in HALVES]
SINGLE_FORMATS = [(torch.float32, precision) for precision in ("highest", "high", "medium")]
FORMATS = SINGLE_FORMATS + HALF_FORMATS


def plain(n: int) -> Iterator[Shipped]:
    """Calls without options; 768 columns are aligned and fill whole tiles, 75 do neither."""
    for formats in ([HALF_FORMATS[0]], [HALF_FORMATS[1]], SINGLE_FORMATS):
        for normalize, (dtype, precision), d in product(BOTH, formats, (768, 75)):
            yield Shipped(dtype, normalize, precision, d, n=n)


SHIPPED = [*plain(1500)]
# Below 1,024 pairs half-precision batches keep more digits of their weights.
SHIPPED += [Shipped(dtype, True, "highest", 768, n=600) for dtype in HALVES]
# Small batches have kernels of their own, in tiles that become smaller with them.
SHIPPED += plain(300)
# The smallest compute their products in float64.
SHIPPED += [Shipped(*call, "highest", 768, n=n) for n in (200, 100, 50) for call in product(FLOATS, BOTH)]
# Several panels need kernels that a single one does not.
SHIPPED += [Shipped(dtype, True, "highest", 512, n=30000) for dtype in FLOATS]
# Narrow rows keep weights in registers where that is expected to win, from bfloat16's three terms to one tf32 product.
SHIPPED += [Shipped(*call, "highest", 64, n=n) for n in (1500, 600) for call in product(HALVES, BOTH)]
SHIPPED += [Shipped(torch.float16, True, "highest", 128)]
# Each option that kernels are compiled for, in another way than in the calls above.
OTHERWISE: dict[str, Any] = {"negatives": "cross", "temperature": "scalar", "transposed": True}
SHIPPED += [
    Shipped(dtype, True, precision, 75, n=n, **options)
    for n, choices in ((1500, [OTHERWISE]), (300, [OTHERWISE]), (60, [OTHERWISE, {"transposed": True}]))
    for options in choices
    for dtype, precision in FORMATS
]
# A constant temperature needs no moments.
SHIPPED += [Shipped(dtype, True, precision, 768, n=300, moment=False) for dtype, precision in FORMATS]
# What goes through panels in a batch of any size: candidates, ids, margins, a temperature per row, several dtypes.
IN_PANELS: list[dict[str, Any]] = [
    {"candidates": (8192,)},
    {"candidates": (1500, 4096), "ids": True, "negatives": "cross", "directions": "x"},
    {"margin": True, "ids": True},
    {"temperature": "rows"},
    {"temperature": "rows", "margin": True, "candidates": (1500,), "mixed": True, "negatives": "own"},
]
SHIPPED += [
    Shipped(dtype, normalize, precision, 768, n=n, **options)
    for n, options in [*((1500, options) for options in IN_PANELS), (300, IN_PANELS[4]), (30, IN_PANELS[3])]
    for dtype, precision in FORMATS
    for normalize in BOTH
]
SHIPPED += [Shipped(dtype, True, "highest", 64, candidates=(4096,), ids=True) for dtype in HALVES]
SHIPPED += [
    Shipped(dtype, normalize, precision, 768, n=n, ids=ids, sigmoid=True)
    for n, ids in product((1500, 300), BOTH)
    for dtype, precision in FORMATS
    for normalize in BOTH
]
# Another rank's rows stand where candidates do. All else is as in one batch, so few calls have kernels of their own.
SHIPPED += [
    Shipped(*call, "highest", 768, n=n, ranks=True, **options)
    for n, options in ((1500, {}), (1500, IN_PANELS[1]), (1500, IN_PANELS[4]), (300, {}), (30, {}))
    for call in product(FLOATS, BOTH)
]
# What the warp-specialised kernels can do, once they are switched on.
SHIPPED += [
    replace(shipped, specialised=True)
    for shipped in SHIPPED
    if not (shipped.sigmoid or shipped.ranks) and can_specialise(shipped.batch.shape, 90, shipped.problem)
]
# What the documentation shows.
TABLED = [
    shipped
    for shipped in SHIPPED
    if shipped.n in (1500, 300, 50)
    and shipped.candidates in ((), (8192,))
    and replace(shipped, sigmoid=False, specialised=False)
    == Shipped(shipped.dtype, True, "highest", 768, n=shipped.n, candidates=shipped.candidates)
]
