"""Loss calls on real ranks: a case's batch cut into ranks, and what they return put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import ctloss
from ctloss.ranks import schedule

from ..regimes import Case
from .pool import Pool

Answer = tuple[Tensor, list[Tensor | None]]


def share(count: int, cuts: Sequence[float], rank: int) -> slice:
    """A rank's rows of so many, cut at some fractions of them."""
    bounds = [0, *(int(cut * count) for cut in cuts), count]
    return slice(bounds[rank], bounds[rank + 1])


def of_pairs(rows: Tensor, n: int, own: slice) -> Tensor:
    """A rank's part of numbers for all pairs, or for all anchors."""
    return rows.view(-1, n)[:, own].flatten()


def answer_of_rank(group: Any, case: Case, cuts: Sequence[float], transport: str, options: dict[str, Any]) -> Answer:
    """One rank's loss and gradients of x, y, the temperature and the candidates; runs in the rank's process."""
    rank = torch.distributed.get_rank(group)
    batch = case.batch()
    own = share(case.n, cuts, rank)
    shared = options.get("shared_candidates", False)
    parts = [slice(None) if shared else share(len(side), cuts, rank) for side in batch.candidates]
    x, y = batch.x.detach()[own], batch.y.detach()[own]
    candidates = [side.detach()[part] for side, part in zip(batch.candidates, parts, strict=True)]
    candidate_ids = [None if one is None else one[part] for one, part in zip(batch.candidate_ids, parts, strict=True)]
    before = [side.clone() for side in (x, y, *candidates)]
    for side, need in zip((x, y, *candidates), case.needs, strict=True):
        side.requires_grad_(need)
    temperature, weights = case.given_temperature(), case.row_weights()
    if isinstance(temperature, Tensor):
        if temperature.dim():
            temperature = of_pairs(temperature, case.n, own)
        temperature.requires_grad_(case.need[2])
    before_sharing = schedule.GATHERED_SHARE
    schedule.GATHERED_SHARE = 0 if transport == "gather" else 1 << 60
    try:
        loss = getattr(ctloss, case.loss)(
            x,
            y,
            temperature=temperature,
            negatives=case.negatives,
            directions=case.directions,
            normalize=case.normalize,
            candidates=candidates,
            ids=None if batch.ids is None else batch.ids[own],
            candidate_ids=candidate_ids or None,
            margin=case.margin_in_a_gap(),
            weights=None if weights is None else of_pairs(weights, case.n, own),
            reduction=case.reduction,
            group=group,
            **({"form": case.form} if case.loss == "cz_nce" else {}),
            **options,
        )
        upstream = case.upstream_gradient()
        if upstream.dim():
            upstream = of_pairs(upstream, case.n, own)
        if loss.requires_grad:
            loss.backward(upstream)
    finally:
        schedule.GATHERED_SHARE = before_sharing
    for side, copy in zip((x, y, *candidates), before, strict=True):
        assert torch.equal(side.detach().nan_to_num(), copy.nan_to_num()), "an input was modified"
    leaves = (x, y, temperature, *candidates)
    return loss.detach(), [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]


def answer(pool: Pool, world: int, case: Case, cuts: Sequence[float], transport: str, **options: Any) -> Answer:
    """The loss and gradients of one process with the whole batch, from those of its ranks."""
    every = [(case, cuts, transport, options)] * world
    of_ranks = pool.run(world, answer_of_rank, *map(list, zip(*every, strict=True)))
    single = case.reduction != "none"
    divisor = world if single and options.get("average", "mean") == "mean" else 1

    def together(parts: list[Tensor | None], *, add: bool) -> Tensor | None:
        some = [part for part in parts if part is not None]
        if not some:
            return None
        whole = torch.stack(some).sum(0) if add else torch.cat(some)
        return whole / divisor

    losses = [loss for loss, _ in of_ranks]
    if single:
        loss = torch.stack(losses).sum() / divisor
    else:
        loss = torch.cat([one.view(case.rows // case.n, -1) for one in losses], dim=1).flatten()
    gradients = []
    for index, of_leaf in enumerate(zip(*(found for _, found in of_ranks), strict=True)):
        parts = list(of_leaf)
        if index == 2 and case.temperatures == "rows":
            parts = [None if part is None else part.view(case.rows // case.n, -1) for part in parts]
            some = [part for part in parts if part is not None]
            gradients.append(torch.cat(some, dim=1).flatten() / divisor if some else None)
            continue
        add = (index == 2 and case.temperatures != "pairs") or (index > 2 and options.get("shared_candidates", False))
        gradients.append(together(parts, add=add))
    return loss, gradients
