"""What a rank does in the tests of the gradient cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ctloss

Gradients = dict[str, Tensor]


class Towers(nn.Module):
    """Two towers, a temperature, and a buffer, which DistributedDataParallel sends around."""

    offset: Tensor

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.right = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.log_temperature = nn.Parameter(torch.tensor([-1.0]))
        self.register_buffer("offset", torch.ones(6))

    def forward(self, rows: Tensor, side: str = "left") -> Tensor:
        tower = self.left if side == "left" else self.right
        embedded: Tensor = tower(rows + self.offset)
        return embedded


def towers(dropout: float = 0.0) -> Towers:
    torch.manual_seed(3)
    return Towers(dropout).double()


def batch(rank: int, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(2, rows, 6, generator=generator, dtype=torch.float64)
    return x, y


def gradients(model: nn.Module) -> Gradients:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


Embed = Callable[..., Tensor]


def embedder(chunk: int | None) -> Embed:
    """``embed(encode, inputs)``, through a cache or at once."""
    if chunk is None:
        return lambda encode, inputs: encode(inputs)
    return ctloss.GradientCache(chunk)


def one_tower(model: nn.Module, inner: Towers, embed: Embed, x: Tensor, y: Tensor) -> Tensor:
    return ctloss.info_nce(embed(model, x), embed(model, y), temperature=0.5)


def two_towers(model: nn.Module, inner: Towers, embed: Embed, x: Tensor, y: Tensor) -> Tensor:
    left, right = embed(model, x), embed(lambda rows: model(rows, side="right"), y)
    return ctloss.info_nce(left, right, temperature=inner.log_temperature.exp())


class Step(nn.Module):
    """A model whose forward is a whole step, as a LightningModule under its strategy."""

    def __init__(self, towers: Towers, embed: Embed) -> None:
        super().__init__()
        self.towers, self.embed = towers, embed

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return two_towers(self.towers, self.towers, self.embed, x, y)


def reduced(
    group: dist.ProcessGroup,
    loss: Callable[..., Tensor],
    chunk: int | None,
    rows: int,
    accumulated: bool,
    options: dict[str, Any],
) -> tuple[list[Gradients], int]:
    """The gradients of two steps under DistributedDataParallel, and how often it reduced.

    With ``accumulated``, the first step is one of accumulation.
    """
    model = towers()
    ddp = DistributedDataParallel(model, process_group=group, **options)
    count = counted(ddp, group)
    x, y = batch(group.rank(), rows)
    found = []
    for step in range(2):
        with ddp.no_sync() if accumulated and step == 0 else nullcontext():
            loss(ddp, model, embedder(chunk), x, y).backward()
        found.append(gradients(model))
    return found, count[0]


def counted(ddp: DistributedDataParallel, group: dist.ProcessGroup) -> list[int]:
    """The number of reductions from now on, all of them averages as ever."""
    count = [0]

    def reduce(state, bucket):  # type: ignore[no-untyped-def]  # It wants classes for annotations, not their names.
        count[0] += 1
        return allreduce_hook(group, bucket)

    ddp.register_comm_hook(None, reduce)
    return count


def wrapped_step(group: dist.ProcessGroup, chunk: int | None, rows: int) -> tuple[list[Gradients], int]:
    """The same where DistributedDataParallel holds the step with the cache in it."""
    model = towers()
    ddp = DistributedDataParallel(Step(model, embedder(chunk)), process_group=group)
    count = counted(ddp, group)
    x, y = batch(group.rank(), rows)
    found = []
    for _ in range(2):
        ddp(x, y).backward()
        found.append(gradients(model))
    return found, count[0]


def sharded(
    group: dist.ProcessGroup, chunk: int | None, rows: int, accumulated: bool = False
) -> tuple[list[Gradients], list[bool]]:
    """The gradients of two steps under fully_shard, and whether layers were freed as soon as the next one began.

    With ``accumulated``, the first step is one of accumulation.
    """
    model = towers()
    mesh = DeviceMesh.from_group(group, "cpu")
    freed = []
    for tower in (model.left, model.right):
        first, last = tower[0], tower[-1]
        for layer in (first, last):
            fully_shard(layer, mesh=mesh)
        last.register_forward_pre_hook(
            lambda module, args, first=first: freed.append(hasattr(first.weight, "device_mesh"))
        )
    fully_shard(model, mesh=mesh)
    x, y = batch(group.rank(), rows)
    found = []
    for step in range(2):
        model.set_requires_gradient_sync(step > 0 or not accumulated)  # type: ignore[operator]
        embed = embedder(chunk)
        left, right = embed(model, x), embed(lambda rows: model(rows, side="right"), y)
        ctloss.info_nce(left, right, temperature=0.5).backward()
        found.append({name: getattr(one, "full_tensor")() for name, one in gradients(model).items()})  # noqa: B009
    return found, freed


REFUSED = {
    "static_graph": "expected DistributedDataParallel without static_graph=True",
    "both": "expected modules under DistributedDataParallel or under fully_shard, got both",
    "asked for": "expected loss.backward() for a model under fully_shard",
}


def refused(group: dist.ProcessGroup, name: str) -> str:
    """What is said against a model."""
    rows = batch(0, 4)[0]
    shards = nn.Linear(6, 2).double()
    fully_shard(shards, mesh=DeviceMesh.from_group(group, "cpu"))
    copies = DistributedDataParallel(nn.Linear(6, 2).double(), process_group=group, static_graph=name == "static_graph")
    models = {"static_graph": copies, "both": lambda part: copies(part) + shards(part), "asked for": shards}
    try:
        torch.autograd.grad(ctloss.GradientCache(2)(models[name], rows.requires_grad_()).sum(), rows)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing"
