"""What each library's gradient is over several ranks, next to that of one process with the whole batch.

Every rank has a copy of a small encoder in ``DistributedDataParallel``, which averages gradients over the ranks, and an
equal part of the batch. The scale is that of the least squares: what the gradient of one process is to be multiplied by
to come closest. The residual is the part of the gradient that no scale explains, relative to its length: 0 for the
right direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import batches, forms, peers
from benchmarks.peers import PairLoss, PeerMissing
from benchmarks.ranks.rivals import LOSSES, open_clip, ours, whole

ROWS, COLUMNS, D = 32, 24, 16
TEMPERATURE = 0.1
ENGINE_ADDS = 'ours, average="sum"'
"""The setting that is meant for engines that add gradients; its gradient is taken as they would."""

Row = dict[str, object]
# By library and setting: which negatives, and the loss.
SETTINGS: dict[str, tuple[str, Callable[[], PairLoss]]] = {
    'ours, average="mean"': ("both", lambda: ours("both", TEMPERATURE)),
    ENGINE_ADDS: ("both", lambda: ours("both", TEMPERATURE, average="sum")),
    'ours, cross, average="mean"': ("cross", lambda: ours("cross", TEMPERATURE)),
    "gather with gradient, N × N": ("both", lambda: whole("both", TEMPERATURE)),
    "open_clip ClipLoss()": ("cross", lambda: open_clip(TEMPERATURE)),
    "open_clip gather_with_grad": ("cross", lambda: open_clip(TEMPERATURE, gather_with_grad=True)),
    "open_clip local_loss": ("cross", lambda: open_clip(TEMPERATURE, local_loss=True)),
    "open_clip local_loss, gather_with_grad": (
        "cross", lambda: open_clip(TEMPERATURE, local_loss=True, gather_with_grad=True)),
    "lightly gather_distributed": (
        "both", lambda: peers.lightly_ntxent(TEMPERATURE, gather_distributed=True)),
    "sentence-transformers gather_across_devices": (
        "cross", lambda: peers.sentence_transformers(TEMPERATURE, gather_across_devices=True)),
    "pytorch-metric-learning DistributedLossWrapper": (
        "both", lambda: peers.metric_learning_wrapped(TEMPERATURE, dist.get_rank())),
    "pytorch-metric-learning efficient": (
        "both", lambda: peers.metric_learning_wrapped(TEMPERATURE, dist.get_rank(), efficient=True)),
}  # fmt: skip


def measure(device: str) -> list[Row]:
    """Scale and residual of the encoder's gradient, and the value's scale, of every setting; on each rank the same."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    x, y = (side.to(device) for side in batches.untrained(ROWS * ranks, COLUMNS, dtype=torch.float64, device="cpu"))
    torch.manual_seed(0)
    encoder = nn.Linear(COLUMNS, D, dtype=torch.float64, device=device)
    truths = {name: _gradient(deepcopy(encoder), forms.eager(*LOSSES[name], TEMPERATURE), x, y) for name in LOSSES}
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    rows: list[Row] = []
    for setting, (negatives, make) in SETTINGS.items():
        row: Row = {"setting": setting, "negatives": negatives, "ranks": ranks}
        try:
            loss = make()
        except PeerMissing as reason:
            rows.append({**row, "note": str(reason)})
            continue
        value, gradient = _gradient(DistributedDataParallel(deepcopy(encoder)), loss, x[own], y[own])
        dist.all_reduce(value)
        # DistributedDataParallel has averaged the gradient already.
        factor = ranks if setting == ENGINE_ADDS else 1
        right, wanted = truths[negatives]
        scale, residual = compared(gradient * factor, wanted)
        row |= {"scale": scale, "residual": residual, "value": (value * factor / ranks / right).item()}
        rows.append(row)
    return rows


def _gradient(encoder: nn.Module, loss: PairLoss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of encoded rows, and the gradient of the encoder's parameters, as one vector."""
    u, v = encoder(torch.stack((x, y)))
    value = loss(u, v)
    value.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.flatten() for parameter in encoder.parameters() if parameter.grad is not None]
    return value.detach().reshape(()), torch.cat(gradients)


def compared(gradient: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The scale s that brings s · wanted closest to a gradient, and ``‖gradient − s · wanted‖ / ‖gradient‖``.

    Example:
        >>> compared(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
        (3.0, 0.800000011920929)
    """
    scale = (gradient @ wanted / (wanted @ wanted)).item()
    length = gradient.norm().item()
    return scale, (gradient - scale * wanted).norm().item() / length if length else math.nan
