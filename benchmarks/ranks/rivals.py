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


def _rectangle(matrices: float) -> Callable[[int, int], float]:
    """The room of so many float32 matrices of a rank's logits, of the pairs of both sides."""
    return lambda own, total: 4 * matrices * (2.0 * own) * (2.0 * total)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        *(Contestant(name, partial(ours, transport=transport)) for name, transport in TRANSPORTS.items()),
        Contestant(WHOLE, whole, lambda own, total: _rectangle(4)(total, total)),
        Contestant("streaming ring", streaming_ring.info_nce, lambda own, total: _rectangle(10)(own, own)),
        Contestant(
            "open_clip",
            lambda _, temperature: open_clip(temperature, local_loss=True, gather_with_grad=True),
            _rectangle(2),
            "cross",
        ),
        Contestant(
            "sentence-transformers",
            lambda _, temperature: peers.sentence_transformers(temperature, gather_across_devices=True),
            _rectangle(2),
            "cross",
        ),
        Contestant(
            "lightly",
            lambda _, temperature: peers.lightly_ntxent(temperature, gather_distributed=True),
            _rectangle(6),
            "both",
        ),
    )
}
