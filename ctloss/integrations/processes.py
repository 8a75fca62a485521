"""What the integrations ask of a process group."""

from __future__ import annotations

from collections.abc import Sequence
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


def check_even(sides: Sequence[Tensor]) -> None:
    """Refuse, on every rank, sides of which ranks have different numbers of rows; all in one exchange.

    Raises:
        ValueError: for them.
    """
    own = torch.tensor([len(side) for side in sides], device=sides[0].device)
    every = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(every, own)
    for counts in torch.stack(every, dim=1).tolist():
        if len(set(counts)) > 1:
            raise ValueError(
                f"rows: expected as many on every rank, got {', '.join(map(str, counts))}; drop the last batch, as "
                "drop_last=True of a DataLoader does"
            )


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, as many of each, in the order of the ranks; without a gradient; see check_even."""
    rows = rows.detach().contiguous()
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
