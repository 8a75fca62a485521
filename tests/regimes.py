"""Batches of pairs in every regime a contrastive loss meets, from the first step to a collapsed encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

REGIMES = ("random", "trained", "hard", "collapsed", "identical", "zeros", "scaled", "big")
# Short of the dtype's own range by what a row's entries spread over.
LARGEST_EXPONENT = {torch.float32: 120, torch.bfloat16: 120, torch.float16: 10, torch.float64: 900}


@dataclass(frozen=True)
class Case:
    """One loss call and what is asked of its gradient; its tensors are functions of the fields."""

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

    def embeddings(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """x and y, rounded to the case's dtype, laid out with its strides."""
        x, y = (rows.to(self.dtype).to(device) for rows in _float64(self))
        return _laid_out(x, self.strides), _laid_out(y, self.strides)

    def upstream_gradient(self) -> Tensor:
        """What the loss's gradient is multiplied by: a number, or one of either sign for every row."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        if self.reduction != "none":
            return torch.tensor(self.upstream, dtype=dtype)
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(2 * self.n, generator=generator, dtype=torch.float64).to(dtype) * self.upstream


def _float64(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(case.seed)

    def normal(rows: int = case.n) -> Tensor:
        return torch.randn(rows, case.d, generator=generator, dtype=torch.float64)

    x, y = normal(), normal()
    if case.regime in ("trained", "hard"):
        # Rows around one direction, so that a negative's cosine c solves (2n - 2) exp((c - 1)/τ) = φ.
        cosine = 1 - case.temperature * (math.log(2 * case.n - 2) - case.exponent * math.log(10))
        cosine = min(max(cosine, 0.0), 0.999)
        centre = torch.nn.functional.normalize(normal(1), dim=1)
        spread = torch.nn.functional.normalize(x, dim=1)
        x = math.sqrt(cosine) * centre + math.sqrt(1 - cosine) * spread
        noise = torch.nn.functional.normalize(y, dim=1)
        y = x + 0.01 * noise if case.regime == "trained" else 0.1 * noise - x
    elif case.regime == "collapsed":
        centre = normal(1)
        x, y = centre + 1e-3 * x, centre + 1e-3 * y
    elif case.regime == "identical":
        x = normal(1).repeat(case.n, 1)
        y = x.clone()
    elif case.regime == "zeros":
        x[0] = 0
        y[-1] = 0
    elif case.regime == "scaled":
        limit = LARGEST_EXPONENT[case.dtype]
        shifts = torch.randint(-limit, limit + 1, (2, case.n, 1), generator=generator)
        x, y = x * torch.exp2(shifts[0].double()), y * torch.exp2(shifts[1].double())
    if not case.normalize:
        # Logits up to 1e4 in the "big" regime, up to 50 elsewhere.
        rows = torch.cat((x, y))
        largest = (rows @ rows.T).abs().max().item()
        target = (1e4 if case.regime == "big" else 50.0) * case.temperature
        factor = math.sqrt(target / largest) if largest > 0 else 1.0
        x, y = x * factor, y * factor
    return x, y


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


@st.composite
def cases(
    draw: st.DrawFn, *, max_n: int, max_d: int, dtypes: tuple[torch.dtype, ...], fixed_form: str | None = None
) -> Case:
    """Cases over every option; the sizes lean towards small ones and towards the block sizes' neighbours."""
    near_blocks = [v for v in (2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257) if v <= max_n]
    n = draw(st.one_of(st.integers(2, min(max_n, 24)), st.sampled_from(near_blocks), st.integers(2, max_n)))
    d = draw(st.one_of(st.integers(1, min(max_d, 40)), st.integers(1, max_d)))
    regime = draw(st.sampled_from(REGIMES))
    normalize = regime == "scaled" or (regime != "big" and draw(st.booleans()))
    loss = draw(st.sampled_from(["cz_nce", "info_nce"]))
    need = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    form = fixed_form or (draw(st.sampled_from(["log", "ratio"])) if loss == "cz_nce" else "log")
    return Case(
        regime=regime,
        n=n,
        d=d,
        dtype=draw(st.sampled_from(dtypes)),
        temperature=draw(st.sampled_from([0.01, 0.0143, 0.02, 0.05, 0.07, 0.2, 1.0])),
        loss=loss,
        negatives=draw(st.sampled_from(["both", "cross"])),
        normalize=normalize,
        reduction=draw(st.sampled_from(["mean", "sum", "none"])),
        form=form,
        exponent=draw(st.sampled_from([-1.0, -5.0, -10.0, -20.0, -30.0, -36.0])),
        strides=draw(st.sampled_from(["contiguous", "transposed", "padded", "every other"])),
        need=need,
        upstream=draw(st.sampled_from([-1.0, 1.0])) * 2.0 ** draw(st.floats(-12, 17)),
        seed=draw(st.integers(0, 2**16)),
    )
