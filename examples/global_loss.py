"""SogCLR: batches of eight that estimate the loss of the whole data set, next to infoNCE on the same batches.

With few negatives in a batch infoNCE soon has nothing left to tell apart. SogCLR remembers for each sample how large
the sum over all negatives is, and so weighs each pair as a large batch would.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ctloss
from ctloss import objectives

SAMPLES, BATCH, STEPS, TEMPERATURE = 256, 8, 600, 0.05
torch.manual_seed(0)
things = torch.randn(SAMPLES, 10)
x, y = (torch.tanh(things @ torch.randn(10, 32) / 2) + 0.1 * torch.randn(SAMPLES, 32) for _ in range(2))


def accuracy(encoders: nn.ModuleList) -> float:
    """How often the nearest of all second views is that of the same thing."""
    with torch.no_grad():
        a, b = (nn.functional.normalize(encoder(side), dim=1) for encoder, side in zip(encoders, (x, y), strict=True))
    return ((a @ b.T).argmax(1) == torch.arange(SAMPLES)).double().mean().item()


def train(loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Accuracy before and after, with the same weights and batches at the start for every loss."""
    torch.manual_seed(1)
    encoders = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2))
    optimizer = torch.optim.Adam(encoders.parameters(), lr=1e-3)
    before = accuracy(encoders)
    for _ in range(STEPS):
        sample = torch.randperm(SAMPLES)[:BATCH]
        loss = loss_of(encoders[0](x[sample]), encoders[1](y[sample]), sample)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, accuracy(encoders)


def main() -> None:
    """Trains twice, and prints the accuracy before and after."""
    normalizer = objectives.MovingNormalizer(num_samples=SAMPLES)

    def in_batch(a: Tensor, b: Tensor, sample: Tensor) -> Tensor:
        return ctloss.info_nce(a, b, negatives="cross", temperature=TEMPERATURE)

    def over_all(a: Tensor, b: Tensor, sample: Tensor) -> Tensor:
        c = ctloss.contrast(a, b, negatives="cross", temperature=TEMPERATURE)
        return objectives.sogclr(c, normalizer(c, sample, BATCH - 1)).mean()

    for name, loss_of in (("infoNCE", in_batch), ("SogCLR", over_all)):
        before, after = train(loss_of)
        print(f"{name}, views found: {before:.2f} before, {after:.2f} after")


if __name__ == "__main__":
    main()
