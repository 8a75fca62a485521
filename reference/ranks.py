"""Losses over the batches of several ranks, written plainly: what one process with all rows would compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import eager
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


class Rows(NamedTuple):
    """What one rank brings to a call.

    Attributes:
        x: ``(n, d)``; n may be 0.
        y: ``(n, d)``.
        candidates: ``(m, d)`` each.
        temperature: τ > 0, one or one per anchor of this rank.
        ids: ``(n,)``, or ``None`` on every rank.
        candidate_ids: ``(m,)`` for each set, or ``None`` for a set without.
    """

    x: Tensor
    y: Tensor
    candidates: Sequence[Tensor] = ()
    temperature: float | Tensor = 0.07
    ids: Tensor | None = None
    candidate_ids: Sequence[Tensor | None] = ()


def contrast(
    ranks: Sequence[Rows],
    *,
    negatives: Literal["both", "cross", "own", "none"] = "both",
    directions: Literal["both", "x"] = "both",
    normalize: bool = True,
    margin: float | None = None,
    shared_candidates: bool = False,
    dtype: torch.dtype = torch.float64,
) -> list[tuple[Tensor, Tensor]]:
    """z and the positives' logits of every rank's anchors, from one batch of all ranks' rows.

    Args:
        ranks: what each brings.
        shared_candidates: every rank compares its own anchors with its own candidates, instead of everybody's.
        negatives, directions, normalize, margin, dtype: as for :func:`ctloss.reference.contrast`.

    Returns:
        For each rank z and s⁺, ``(2n,)`` each, or ``(n,)`` with ``directions="x"``.

    Example:
        >>> import torch
        >>> of_ranks = contrast([Rows(torch.eye(2)[:1], torch.eye(2)[:1]), Rows(torch.eye(2)[1:], torch.eye(2)[1:])])
        >>> torch.equal(of_ranks[0][0], eager.contrast(torch.eye(2), torch.eye(2))[0][[0, 2]])
        True
    """
    options = {"negatives": negatives, "directions": directions, "normalize": normalize, "margin": margin}
    num_directions = 2 if directions == "both" else 1
    x, y = torch.cat([one.x for one in ranks]), torch.cat([one.y for one in ranks])
    ids = None if ranks[0].ids is None else torch.cat([one.ids for one in ranks if one.ids is not None])
    temperatures = [
        torch.as_tensor(one.temperature, dtype=dtype, device=x.device)
        .expand(num_directions * len(one.x))
        .view(num_directions, -1)
        for one in ranks
    ]
    temperature = torch.cat(temperatures, dim=1).flatten()

    def with_candidates(rows: Sequence[Rows]) -> tuple[Tensor, Tensor]:
        sets = [torch.cat(of_set) for of_set in zip(*(one.candidates for one in rows), strict=True)]
        their_ids = []
        for of_set in zip(*(one.candidate_ids or [None] * len(sets) for one in rows), strict=True):
            given = [one for one in of_set if one is not None]
            their_ids.append(torch.cat(given) if given else None)
        return eager.contrast(
            x,
            y,
            candidates=sets,
            temperature=temperature,
            ids=ids,
            candidate_ids=their_ids,
            dtype=dtype,
            **options,  # type: ignore[arg-type]
        )

    everywhere = None if shared_candidates else with_candidates(ranks)
    found, offset = [], 0
    for one in ranks:
        z, positive = everywhere or with_candidates([one])
        own = slice(offset, offset + len(one.x))
        found.append(
            (z.view(num_directions, -1)[:, own].flatten(), positive.view(num_directions, -1)[:, own].flatten())
        )
        offset = own.stop
    return found
