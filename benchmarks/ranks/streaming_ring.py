"""infoNCE on a ring as the memory-efficient CLIP losses describe it, in plain PyTorch.

Rows travel round a ring past every rank's own. In the forward pass each rank streams the log-sum-exp of its own rows
over the blocks that come by. In the backward pass the blocks travel again, weights are formed from the kept
log-sum-exps, and the gradients of travelling rows are gathered in one tensor of the whole batch, which a
reduce-scatter adds up. So every rank forms all weights of its own rows, and a symmetric matrix is formed whole.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.peers import PairLoss


def info_nce(negatives: str, temperature: float) -> PairLoss:
    """The mean over a rank's own rows, as a function of its raw x and y, both (n, d); every rank holds n."""

    def both(x: Tensor, y: Tensor) -> Tensor:
        rows = F.normalize(torch.cat((x, y)), dim=1)
        lse = _Streamed.apply(rows, rows, temperature, True)[0]
        return (lse - (rows * rows.roll(len(x), 0)).sum(1) / temperature).mean()

    def cross(x: Tensor, y: Tensor) -> Tensor:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        of_x, of_y = _Streamed.apply(x, y, temperature, False)
        return ((of_x + of_y) / 2 - (x * y).sum(1) / temperature).mean()

    return both if negatives == "both" else cross


def _pass_on(block: Tensor) -> tuple[Tensor, list[Any]]:
    """Begin to send a block to the next rank, and to receive the previous rank's."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(block)
    if ranks == 1:
        return received, []
    to, source = (rank + 1) % ranks, (rank - 1) % ranks
    sends = [dist.P2POp(dist.isend, block, to), dist.P2POp(dist.irecv, received, source)]
    return received, dist.batch_isend_irecv(sends)


class _Streamed(torch.autograd.Function):
    """Log-sum-exps of own rows over everybody's keys and, unless the two are the same rows, of own keys over rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor, temperature: float, same: bool) -> tuple[Tensor, Tensor]:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        lse = rows.new_full((len(rows),), -torch.inf)
        of_keys = rows.new_empty(ranks, len(keys))
        block = keys.contiguous()
        for step in range(ranks):
            received, waiting = _pass_on(block) if step + 1 < ranks else (block, [])
            logits = rows @ block.T / temperature
            if same and step == 0:
                logits.fill_diagonal_(-torch.inf)
            lse = torch.logaddexp(lse, torch.logsumexp(logits, 1))
            if not same:
                of_keys[(rank - step) % ranks] = torch.logsumexp(logits, 0)
            for each in waiting:
                each.wait()
            block = received
        if not same:
            largest = of_keys.clone()
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            of_keys = of_keys.sub_(largest).exp_()
            dist.all_reduce(of_keys)
            of_keys = of_keys.log_().add_(largest)
        ctx.save_for_backward(rows, keys, lse, of_keys)
        ctx.temperature, ctx.same = temperature, same
        return lse, of_keys[rank].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_lse: Tensor, of_key_lse: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        rows, keys, lse, of_keys = ctx.saved_tensors
        # Each key's factor is its own rank's.
        factors = of_key_lse.new_empty(ranks * len(keys))
        if not ctx.same:
            dist.all_gather_into_tensor(factors, of_key_lse.contiguous())
        gradient, of_all = torch.zeros_like(rows), rows.new_empty(ranks, *keys.shape)
        block = keys.contiguous()
        for step in range(ranks):
            received, waiting = _pass_on(block) if step + 1 < ranks else (block, [])
            source = (rank - step) % ranks
            logits = rows @ block.T / ctx.temperature
            if ctx.same and step == 0:
                logits.fill_diagonal_(-torch.inf)
            weights = torch.exp(logits - lse[:, None]) * of_lse[:, None]
            if not ctx.same:
                own = slice(source * len(keys), (source + 1) * len(keys))
                weights += torch.exp(logits - of_keys[source]) * factors[own]
            gradient += weights @ block
            of_all[source] = weights.T @ rows
            for each in waiting:
                each.wait()
            block = received
        of_own = torch.empty_like(keys)
        dist.reduce_scatter_tensor(of_own, of_all.flatten(0, 1))
        return gradient / ctx.temperature, of_own / ctx.temperature, None, None
