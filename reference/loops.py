"""The paper's equations, one scalar at a time, in 60-digit decimal arithmetic.

Slow on purpose: nothing here is vectorised, shifted by a maximum or otherwise rearranged, so that it can be read
against Chen et al. 2022 line by line. It is the oracle that the eager definitions are themselves tested against.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Literal

from torch import Tensor

DIGITS = 60


def _dot(a: list[Decimal], b: list[Decimal]) -> Decimal:
    return sum((p * q for p, q in zip(a, b, strict=True)), Decimal(0))


def _similarity(a: list[Decimal], b: list[Decimal], temperature: Decimal, normalize: bool) -> Decimal:
    """s(a, b): the cosine (zero where a row is zero) or the dot product, over the temperature."""
    if not normalize:
        return _dot(a, b) / temperature
    norms = _dot(a, a).sqrt() * _dot(b, b).sqrt()
    return _dot(a, b) / norms / temperature if norms else Decimal(0)


def row_losses(
    x: Tensor,
    y: Tensor,
    *,
    loss: Literal["cz_nce", "info_nce"],
    temperature: float = 0.07,
    negatives: Literal["both", "cross"] = "both",
    normalize: bool = True,
) -> list[Decimal]:
    """The 2n row losses of equation (1) or (4), x's rows first.

    Args:
        x: anchors, ``(n, d)``.
        y: their translations, ``(n, d)``.
        loss: ``"info_nce"`` for equation (1), ``"cz_nce"`` for equation (4).
        temperature: τ > 0.
        negatives: every other row of both languages, or of the other language alone.
        normalize: cosine similarity if true, dot product otherwise.

    Returns:
        A list of 2n decimals.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> [round(float(v), 4) for v in row_losses(eye, eye, loss="cz_nce", temperature=1.0)]
        [-0.3069, -0.3069, -0.3069, -0.3069]
    """
    with decimal.localcontext() as context:
        context.prec = DIGITS
        rows = [[Decimal(float(v)) for v in row] for row in [*x.detach().cpu(), *y.detach().cpu()]]
        tau = Decimal(float(temperature))
        n = len(rows) // 2
        losses = []
        for i in range(2 * n):
            positive = (i + n) % (2 * n)
            numerator = _similarity(rows[i], rows[positive], tau, normalize).exp()
            denominator = Decimal(0)
            for j in range(2 * n):
                same_language = (i < n) == (j < n)
                if j in (i, positive) or (negatives == "cross" and same_language):
                    continue
                denominator += _similarity(rows[i], rows[j], tau, normalize).exp()
            if loss == "info_nce":
                denominator += numerator
            losses.append(-(numerator / denominator).ln())
        return losses
