"""MoCo: negatives come from a queue of former batches, whose encoder follows the trained one slowly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import ctloss

torch.manual_seed(0)
LENGTH, BATCH, MOMENTUM = 1024, 64, 0.97
SUBSPACE, NUISANCE = torch.randn(8, 64), torch.randn(24, 64)


def views(things: Tensor) -> list[Tensor]:
    """Two views: the thing in a few directions of many, and in the others what differs from view to view."""
    return [things @ SUBSPACE + 1.5 * torch.randn(len(things), 24) @ NUISANCE for _ in range(2)]


def accuracy(encoder: nn.Module, pair: list[Tensor]) -> float:
    """How often the nearest of the second views is that of the same thing."""
    with torch.no_grad():
        x, y = (nn.functional.normalize(encoder(side), dim=1) for side in pair)
    return ((x @ y.T).argmax(1) == torch.arange(len(x))).double().mean().item()


def main() -> None:
    """Trains, and prints the accuracy before and after."""
    encoder = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
    follower = copy.deepcopy(encoder).requires_grad_(False)
    queue = torch.randn(LENGTH, 32)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    unseen = views(torch.randn(100, 8))
    before = accuracy(encoder, unseen)
    for step in range(200):
        x, y = views(torch.randn(BATCH, 8))
        keys = follower(y)
        # The queue needs no normalising and takes no gradient; neither do the keys.
        loss = ctloss.info_nce(encoder(x), keys, negatives="none", directions="x", candidates=queue, temperature=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for slow, quick in zip(follower.parameters(), encoder.parameters(), strict=True):
            slow.lerp_(quick.detach(), 1 - MOMENTUM)
        # A new tensor, as the loss may still hold the old one.
        start = step * BATCH % LENGTH
        queue = torch.cat((queue[:start], keys, queue[start + BATCH :]))
    print(f"views found: {before:.2f} before, {accuracy(encoder, unseen):.2f} after")


if __name__ == "__main__":
    main()
