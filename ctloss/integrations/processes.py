"""What the integrations ask of a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many ranks there are: 1 where no process group has been made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def group_of(wanted: bool) -> str | None:
    """``group=`` for a loss that is to gather, where there are several ranks."""
    return "world" if wanted and world() > 1 else None


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, as many of each, in the order of the ranks; without a gradient."""
    rows = rows.detach().contiguous()
    every = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(every, rows)
    return torch.cat(every)


def mean_over_ranks(loss: Tensor) -> Tensor:
    """The same loss, with the same gradient, shown as the mean over ranks."""
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return loss + (mean / world() - loss.detach())
