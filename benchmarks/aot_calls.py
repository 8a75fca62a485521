"""The kinds of calls whose kernels are compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shipped:
    """A kind of call whose configuration is shipped: the inputs' dtype and the options that change the kernels.

    Attributes:
        on_device: whether the temperature is a tensor that is read on the device.
        transposed: whether y's columns lie behind one another, not its rows.
        slope: whether the temperature's gradient is asked for.
    """

    dtype: torch.dtype
    normalize: bool
    precision: str
    d: int
    n: int = 1500
    loss: str = "cz_nce"
    negatives: str = "both"
    reduction: str = "mean"
    on_device: bool = False
    transposed: bool = False
    slope: bool = True

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        words = [dtype, f"n={self.n}", f"d={self.d}", "cosine" if self.normalize else "dot", self.precision]
        given = ((self.loss, "cz_nce"), (self.negatives, "both"), (self.reduction, "mean"))
        words += [option for option, usual in given if option != usual]
        words += ["on_device"] * self.on_device + ["transposed"] * self.transposed + ["constant"] * (not self.slope)
        return " ".join(words)


# Halves have one precision; 768 columns are aligned and whole tiles, 75 neither.
SHIPPED = [
    Shipped(dtype, normalize, precision, d)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for normalize in (True, False)
    for precision in (("highest", "high", "medium") if dtype == torch.float32 else ("highest",))
    for d in (768, 75)
]
# Below 1,024 pairs half-precision batches keep more digits of their weights.
SHIPPED += [Shipped(dtype, True, "highest", 768, n=600) for dtype in (torch.bfloat16, torch.float16)]
# Small ones take kernels of their own, in tiles that become smaller with them.
SHIPPED += [
    Shipped(dtype, normalize, precision, d, n=300)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for normalize in (True, False)
    for precision in (("highest", "high", "medium") if dtype == torch.float32 else ("highest",))
    for d in (768, 75)
]
# The smallest form their products in float64.
SHIPPED += [
    Shipped(dtype, normalize, "highest", 768, n=n)
    for n in (200, 100, 50)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for normalize in (True, False)
]
# Several panels take kernels that a single one does not.
SHIPPED += [Shipped(dtype, True, "highest", 512, n=30000) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
# Narrow rows take weights in registers where that is expected to win, from bfloat16's three terms to one tf32 product.
SHIPPED += [
    Shipped(dtype, normalize, "highest", 64, n=n)
    for n in (1500, 600)
    for dtype in (torch.bfloat16, torch.float16)
    for normalize in (True, False)
]
SHIPPED += [Shipped(torch.float16, True, "highest", 128)]
# Each option that kernels are compiled for, away from what the calls above have.
OTHERWISE: dict[str, Any] = {
    "loss": "info_nce",
    "negatives": "cross",
    "reduction": "none",
    "on_device": True,
    "transposed": True,
}
FORMATS = [(torch.float32, precision) for precision in ("highest", "high", "medium")]
FORMATS += [(torch.bfloat16, "highest"), (torch.float16, "highest")]
SHIPPED += [
    Shipped(dtype, True, precision, 75, n=n, **options)
    for n, choices in ((1500, [OTHERWISE]), (300, [OTHERWISE]), (60, [OTHERWISE, {"transposed": True}]))
    for options in choices
    for dtype, precision in FORMATS
]
# What is not learnt has no gradient.
SHIPPED += [Shipped(dtype, True, precision, 768, n=300, slope=False) for dtype, precision in FORMATS]
# What the documentation tables.
TABLED = [
    shipped
    for shipped in SHIPPED
    if shipped.n in (1500, 300, 50) and shipped == Shipped(shipped.dtype, True, "highest", 768, n=shipped.n)
]
