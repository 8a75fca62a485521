"""What a fused path is asked to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Loss = Literal["cz_nce", "info_nce"]
Negatives = Literal["both", "cross"]
Reduction = Literal["mean", "sum", "none"]
Precision = Literal["highest", "high", "medium"]


@dataclass(frozen=True)
class Problem:
    """The options of one loss call, without its tensors.

    Attributes:
        loss: ``"cz_nce"`` (row loss z) or ``"info_nce"`` (row loss softplus(z)).
        negatives: ``"both"`` languages' other rows, or ``"cross"``: the other language's alone.
        normalize: cosine similarity of the rows if true, else their plain dot products.
        reduction: how the caller reduces the 2n row losses.
        precision: how carefully float32 products are formed.
        workspace: bytes of temporary memory allowed beyond inputs, outputs and vectors of length 2n.
    """

    loss: Loss
    negatives: Negatives
    normalize: bool
    reduction: Reduction
    precision: Precision
    workspace: int
