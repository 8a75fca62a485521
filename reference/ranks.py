"""Losses over the batches of several ranks, written plainly: what one process with all rows would compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .eager import _poisoned, _temperatures, unit_rows


def block(
    x: Tensor,
    y: Tensor,
    others: Sequence[Tensor],
    *,
    temperature: float | Tensor = 0.07,
    negatives: Literal["both", "cross", "own", "none"] = "both",
    directions: Literal["both", "x"] = "both",
    normalize: bool = True,
    ids: Tensor | None = None,
    other_ids: Sequence[Tensor | None] | None = None,
    margin: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The logits of one rank's anchors against another rank's rows, of which none is left out for its place.

    Args:
        x: ``(n, d)``.
        y: ``(n, d)``; row i is the positive of row i of x.
        others: the other rank's x and y, ``(m, d)``, then its candidates.
        temperature: τ > 0, one or one per anchor.
        negatives: the other rank's rows that an anchor is compared with, besides all candidates, as within one batch.
        directions: anchors are the rows of ``"both"`` sides, or only of ``"x"``.
        normalize: cosine similarity if true, dot products otherwise.
        ids: ``(n,)`` integers.
        other_ids: those of each of the others, ``None`` for rows without; equal ones are left out.
        margin: leave out similarities that exceed the positive's by more than this.
        dtype: what to compute in.

    Returns:
        ``(anchors, all others)`` logits, −∞ where a pair is left out, and the ``(anchors,)`` positives' logits.

    Example:
        >>> import torch
        >>> x, y = torch.eye(3)[:1], torch.eye(3)[1:2]
        >>> block(x, x, [x, y], temperature=1.0, negatives="cross")
        (tensor([[-inf, 0.],
                [1., -inf]], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """
    x, y, *others = (_poisoned(side.to(dtype)) for side in (x, y, *others))
    if normalize:
        x, y, *others = (unit_rows(side) for side in (x, y, *others))
    similarity_of_pairs = (x * y).sum(1)
    directed = (x, y) if directions == "both" else (x,)
    logits, positives = [], []
    for side, (own, tau) in enumerate(zip(directed, _temperatures(temperature, x, len(directed)), strict=True)):
        met = {"both": (0, 1), "cross": (1 - side,), "own": (side,), "none": ()}[negatives]
        for k, other in enumerate(others):
            similarity = own @ other.T
            left_out = torch.full_like(similarity, k < 2 and k not in met, dtype=torch.bool)
            its_ids = None if other_ids is None else other_ids[k]
            if ids is not None and its_ids is not None:
                left_out |= ids[:, None] == its_ids
            if margin is not None:
                left_out |= similarity > similarity_of_pairs[:, None] + margin
            logits.append((similarity / tau[:, None]).masked_fill(left_out, -torch.inf))
        positives.append(similarity_of_pairs / tau)
    rows = [torch.cat(logits[k : k + len(others)], dim=1) for k in range(0, len(logits), len(others))]
    return torch.cat(rows), torch.cat(positives)
