"""Who takes part: ours over a ring and by a gather, what people write by hand, and other libraries' own gathers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor

import ctloss
from benchmarks import forms, peers
from benchmarks.peers import PairLoss, PeerMissing
from benchmarks.providers import NotOffered, OtherLosses
from benchmarks.ranks import streaming_ring
from ctloss.ranks import schedule
from ctloss.ranks.schedule import Transport

LOSSES = {"both": ("info_nce", "both"), "cross": ("info_nce", "cross")}
"""The negatives that are measured: all of them of infoNCE, which every library has."""
TRANSPORTS: dict[str, Transport] = {"ours, ring": "ring", "ours, gather": "gather"}
OURS = tuple(TRANSPORTS)
WHOLE = "gather, N × N"
Build = Callable[[str, float], PairLoss]


@dataclass(frozen=True)
class Contestant:
    """One way to compute the loss of a rank's rows among everybody's.

    ``build`` takes which negatives ("both" or "cross") and the temperature. ``room`` estimates the bytes that a rank
    takes for its own pairs among so many, so that a case that would exhaust the machine is not started.
    """

    name: str
    build: Build
    room: Callable[[int, int], float] = lambda own, total: 0.0
    only: str | None = None


def build(contestant: Contestant, negatives: str, temperature: float) -> PairLoss:
    """The contestant's loss; NotOffered, with the reason, if it has none."""
    if contestant.only not in (None, negatives):
        raise OtherLosses(f"computes only {contestant.only}")
    try:
        return contestant.build(negatives, temperature)
    except PeerMissing as error:
        raise NotOffered(str(error)) from error


def open_clip(temperature: float, **options: int) -> PairLoss:
    """open_clip's ``ClipLoss`` with its switches for several ranks."""
    return peers.open_clip(temperature, rank=dist.get_rank(), world_size=dist.get_world_size(), **options)


def ours(negatives: str, temperature: float, transport: Transport | None = None, **options: Any) -> PairLoss:
    """Our infoNCE over all ranks, whose rows travel as asked, or as the losses choose."""
    name, kind = LOSSES[negatives]
    loss: Callable[..., Tensor] = getattr(ctloss, name)

    def call(x: Tensor, y: Tensor) -> Tensor:
        return loss(x, y, temperature=temperature, negatives=kind, precision="highest", group="world", **options)

    def forced(x: Tensor, y: Tensor) -> Tensor:
        with mock.patch.object(schedule, "transport", return_value=transport):
            return call(x, y)

    return forced if transport else call


def whole(negatives: str, temperature: float) -> PairLoss:
    """A loss for one process on rows gathered with a gradient: every rank computes all of it."""
    form = forms.eager(*LOSSES[negatives], temperature)
    return lambda x, y: form(gathered(x), gathered(y))


def gathered(rows: Tensor) -> Tensor:
    """Everybody's rows, by PyTorch's own gather, whose backward pass adds up all ranks' gradients."""
    return torch.cat(torch.distributed.nn.functional.all_gather(rows))


def _logits(matrices: float, anchors: int, others: int) -> float:
    """Bytes of so many float32 matrices of logits, of the pairs of both sides."""
    return 4 * matrices * (2.0 * anchors) * (2.0 * others)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        *(Contestant(name, partial(ours, transport=transport)) for name, transport in TRANSPORTS.items()),
        Contestant(WHOLE, whole, lambda own, total: _logits(4, total, total)),
        Contestant("streaming ring", streaming_ring.info_nce, lambda own, total: _logits(10, own, own)),
        Contestant("open_clip", lambda _, t: open_clip(t, local_loss=True, gather_with_grad=True), lambda own, total: _logits(2, own, total), "cross"),
        Contestant("sentence-transformers",
                   lambda _, t: peers.sentence_transformers(t, gather_across_devices=True), lambda own, total: _logits(2, own, total), "cross"),
        Contestant("lightly", lambda _, t: peers.lightly_ntxent(t, gather_distributed=True), lambda own, total: _logits(6, own, total), "both"),
    )
}  # fmt: skip
