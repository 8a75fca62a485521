"""Calls of the sigmoid loss on real ranks: a question's batch cut into ranks, and what they return put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import ctloss
from ctloss.ranks import schedule

from ..sig_lip import Question
from .calls import share
from .pool import Pool

Answer = tuple[Tensor, list[Tensor | None]]


def answer_of_rank(
    group: Any, question: Question, cuts: Sequence[float], transport: str, options: dict[str, Any]
) -> Answer:
    """One rank's loss and gradients of x, y, the temperature and the bias; runs in the rank's process."""
    case = question.case
    own = share(case.n, cuts, torch.distributed.get_rank(group))
    x, y = (side[own] for side in case.embeddings())
    before = [x.clone(), y.clone()]
    leaves = [x.requires_grad_(case.need[0]), y.requires_grad_(case.need[1])]
    for value, need in ((case.temperature, case.need[2]), (question.bias, question.need_bias)):
        leaves.append(torch.tensor(value, dtype=torch.float64, requires_grad=need))
    ids, upstream = question.ids_tensor("cpu"), question.upstream()
    before_sharing = schedule.GATHERED_SHARE
    schedule.GATHERED_SHARE = 0 if transport == "gather" else 1 << 60
    try:
        loss = ctloss.sig_lip(
            x,
            y,
            temperature=leaves[2],
            bias=leaves[3],
            reduction=case.reduction,
            normalize=case.normalize,
            ids=None if ids is None else ids[own],
            group=group,
            **options,
        )
        if loss.requires_grad:
            loss.backward(upstream[own] if upstream.dim() else upstream)
    finally:
        schedule.GATHERED_SHARE = before_sharing
    assert all(torch.equal(one.detach(), copy) for one, copy in zip((x, y), before, strict=True))
    return loss.detach(), [leaf.grad for leaf in leaves]


def answer(pool: Pool, world: int, question: Question, cuts: Sequence[float], transport: str, **options: Any) -> Answer:
    """The loss and gradients of one process with the whole batch, from those of its ranks."""
    every = [(question, cuts, transport, options)] * world
    of_ranks = pool.run(world, answer_of_rank, *map(list, zip(*every, strict=True)))
    single = question.case.reduction != "none"
    divisor = world if single and options.get("average", "mean") == "mean" else 1
    losses = [loss for loss, _ in of_ranks]
    loss = torch.stack(losses).sum() / divisor if single else torch.cat(losses)
    gradients: list[Tensor | None] = []
    for index, parts in enumerate(zip(*(found for _, found in of_ranks), strict=True)):
        some = [part for part in parts if part is not None]
        whole = torch.cat(some) if some and index < 2 else torch.stack(some).sum(0) if some else None
        gradients.append(None if whole is None else whole / divisor)
    return loss, gradients
