"""What the integrations ask of a process group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world() -> int:
    """How many ranks there are: 1 where no process group has been made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def group_of(wanted: bool) -> str | None:
    """``group=`` for a loss that is to gather, where there are several ranks."""
    return "world" if wanted and world() > 1 else None


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, as many of each, in the order of the ranks; without a gradient.

    Raises:
        ValueError: on every rank, where ranks have different numbers of rows.
    """
    rows = rows.detach().contiguous()
    sizes = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    if len(set(counts := [int(size) for size in sizes])) > 1:
        raise ValueError(
            f"rows: expected as many on every rank, got {', '.join(map(str, counts))}; drop the last batch, as "
            "drop_last=True of a DataLoader does"
        )
    every = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(every, rows)
    return torch.cat(every)


def gathered_with_gradient(rows: Tensor) -> Tensor:
    """The same; the gradient of a rank's own rows is the sum of what all ranks make of them."""
    found: Tensor = _Gathered.apply(rows)
    return found


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        return gathered(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def mean_over_ranks(loss: Tensor) -> Tensor:
    """The same loss, with the same gradient, shown as the mean over ranks."""
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return loss + (mean / world() - loss.detach())
