"""The definition of a row's z, one scalar at a time, in 60-digit decimal arithmetic.

Slow on purpose: nothing here is vectorised, shifted by a maximum or otherwise rearranged, so that it can be compared
with Chen et al. 2022 line by line. The eager definitions are tested against it.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from torch import Tensor

DIGITS = 60

Row = list[Decimal]


def _dot(a: Row, b: Row) -> Decimal:
    return sum((p * q for p, q in zip(a, b, strict=True)), Decimal(0))


def _similarity(a: Row, b: Row, normalize: bool) -> Decimal:
    """The cosine (0 for a zero row) or the dot product."""
    if not normalize:
        return _dot(a, b)
    norms = _dot(a, a).sqrt() * _dot(b, b).sqrt()
    return _dot(a, b) / norms if norms else Decimal(0)


def _rows(side: Tensor, ids: Tensor | Sequence[int] | None) -> list[tuple[Row, int | None]]:
    """Each row of a side with its id, or with ``None``, which equals no row's id."""
    numbers = [None] * len(side) if ids is None else [int(number) for number in ids]
    return [
        ([Decimal(float(v)) for v in row], number) for row, number in zip(side.detach().cpu(), numbers, strict=True)
    ]


def log_ratios(
    x: Tensor,
    y: Tensor,
    *,
    candidates: Sequence[Tensor] = (),
    temperature: float | Tensor = 0.07,
    negatives: Literal["both", "cross", "own", "none"] = "both",
    directions: Literal["both", "x"] = "both",
    normalize: bool = True,
    ids: Tensor | None = None,
    candidate_ids: Sequence[Tensor | None] | None = None,
    margin: float | None = None,
) -> list[tuple[Decimal | None, Decimal]]:
    """z_i, the negative log of the ratio in equation (4), and s⁺_i of every row, x's rows first.

    Arguments are those of :func:`ctloss.reference.contrast`.

    Returns:
        ``(z, s⁺)`` for every row; z is ``None`` for a row without negatives, whose z is −∞.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> [round(float(z), 4) for z, _ in log_ratios(eye, eye, temperature=1.0)]
        [-0.3069, -0.3069, -0.3069, -0.3069]
    """
    with decimal.localcontext() as context:
        context.prec = DIGITS
        n = len(x)
        pair_ids = range(n) if ids is None else ids
        xs, ys = _rows(x, pair_ids), _rows(y, pair_ids)
        extra = []
        for k, side in enumerate(candidates):
            extra += _rows(side, None if candidate_ids is None else candidate_ids[k])
        if isinstance(temperature, Tensor) and temperature.dim() == 1:
            taus = [Decimal(float(tau)) for tau in temperature]
        else:
            taus = [Decimal(float(temperature))] * (2 * n)
        results: list[tuple[Decimal | None, Decimal]] = []
        for own, other in [(xs, ys), (ys, xs)] if directions == "both" else [(xs, ys)]:
            compared = {"both": own + other, "cross": other, "own": own, "none": []}[negatives] + extra
            for i in range(n):
                row, number = own[i]
                tau = taus[len(results)]
                positive = _similarity(row, other[i][0], normalize)
                denominator = Decimal(0)
                for another, its_number in compared:
                    similarity = _similarity(row, another, normalize)
                    if its_number == number or (margin is not None and similarity > positive + Decimal(margin)):
                        continue
                    denominator += (similarity / tau).exp()
                numerator = (positive / tau).exp()
                results.append((-(numerator / denominator).ln() if denominator else None, positive / tau))
        return results
