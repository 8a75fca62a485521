"""A training loop of your own in which one line changes: the loss.

Two views of one thing go through two encoders; each must find its partner among those of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ctloss

torch.manual_seed(0)
views = [nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 48)).requires_grad_(False) for _ in range(2)]


def draw(n: int) -> list[Tensor]:
    """Things of 16 numbers, each seen in two ways."""
    things = torch.randn(n, 16)
    return [view(things) + 0.02 * torch.randn(n, 48) for view in views]


def accuracy(x: Tensor, y: Tensor) -> float:
    """How often the nearest row of the other side is the partner."""
    similarities = nn.functional.normalize(x, dim=1) @ nn.functional.normalize(y, dim=1).T
    return (similarities.argmax(1) == torch.arange(len(x))).double().mean().item()


def held_out(encoders: nn.ModuleList, pairs: list[Tensor]) -> float:
    """Accuracy on pairs that were not trained on."""
    with torch.no_grad():
        return accuracy(*(encoder(side) for encoder, side in zip(encoders, pairs, strict=True)))


def main() -> None:
    """Trains, and prints the accuracy before and after."""
    encoders = nn.ModuleList(nn.Sequential(nn.Linear(48, 128), nn.GELU(), nn.Linear(128, 32)) for _ in views)
    optimizer = torch.optim.AdamW(encoders.parameters(), lr=2e-3)
    unseen = draw(200)
    before = held_out(encoders, unseen)
    for _ in range(150):
        x, y = (encoder(side) for encoder, side in zip(encoders, draw(128), strict=True))
        # Instead of: logits = normalize(x) @ normalize(y).T / 0.07
        #             loss = (cross_entropy(logits, arange(128)) + cross_entropy(logits.T, arange(128))) / 2
        loss = ctloss.info_nce(x, y, temperature=0.07, negatives="cross")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"pairs found: {before:.2f} before, {held_out(encoders, unseen):.2f} after")


if __name__ == "__main__":
    main()
