"""Two processes, one batch: negatives of both ranks under DDP, encoded in chunks that fit into memory.

torchrun --nproc-per-node 2 examples/ddp_gradcache.py
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ctloss

ROWS, CHUNK = 64, 16


def draw(rows: int) -> list[Tensor]:
    """Things of 12 numbers in two views, of 40 numbers each."""
    things = torch.randn(rows, 12)
    return [torch.tanh(things @ VIEWS[side]) + 0.05 * torch.randn(rows, 40) for side in range(2)]


def accuracy(model: nn.Module, pair: list[Tensor]) -> float:
    """How often the nearest second view is that of the same thing."""
    with torch.no_grad():
        x, y = (nn.functional.normalize(model(side), dim=1) for side in pair)
    return ((x @ y.T).argmax(1) == torch.arange(len(x))).double().mean().item()


def main() -> None:
    """Trains on all ranks; the first prints the accuracy before and after."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    encoder = nn.Sequential(nn.Linear(40, 128), nn.GELU(), nn.Linear(128, 32))
    unseen = draw(200)
    before = accuracy(encoder, unseen)
    model = DistributedDataParallel(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    # Every rank compares its 64 pairs with those of all ranks: the gradient of one process with the whole batch.
    loss_of = partial(ctloss.info_nce, negatives="cross", temperature=0.1, group="world")
    # From here on each rank draws pairs of its own.
    torch.manual_seed(1 + rank)
    for _ in range(60):
        x, y = draw(ROWS)
        loss = ctloss.cached(model, x, model, y, loss_of, chunk=CHUNK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        print(f"{world} processes, {world * ROWS} pairs a step, encoded {CHUNK} at a time")
        print(f"views found: {before:.2f} before, {accuracy(encoder, unseen):.2f} after", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.manual_seed(0)
    VIEWS = torch.randn(2, 12, 40) / 12**0.5
    main()
