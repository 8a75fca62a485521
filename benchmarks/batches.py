"""Seeded inputs: raw rows as an encoder gives them, early and late in training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.exact import log_ratios


def untrained(n: int, d: int, *, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows (n, d) of unequal length whose positives have a cosine of about .5: the middle of training.

    They are drawn and rounded on the CPU, so that every device gets the same.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, d, generator=generator)
    pair = [shared + torch.randn(n, d, generator=generator) for _ in range(2)]
    lengths = [torch.empty(n, 1).uniform_(0.5, 2.0, generator=generator) / math.sqrt(d) for _ in range(2)]
    x, y = ((rows * length).to(dtype).to(device) for rows, length in zip(pair, lengths, strict=True))
    return x, y


def trained(n: int, d: int, *, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows (n, d) whose positives have a cosine of about .98: late in training; drawn as by :func:`untrained`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    y = x + 0.2 * torch.randn(n, d, generator=generator)
    return x.to(dtype).to(device), y.to(dtype).to(device)


def temperature_for(x: Tensor, y: Tensor, phi: float, negatives: str = "both") -> float:
    """The temperature at which a trained batch's geometric mean of φ, negatives' share over the positive's, is ``phi``.

    By bisection on its logarithm between 1e-3 and 10, for raw rows (n, d) and φ below 1.
    """
    rows = torch.nn.functional.normalize(torch.cat((x, y)).double(), dim=1)
    low, high = math.log(1e-3), math.log(10.0)
    for _ in range(50):
        middle = (low + high) / 2
        z = log_ratios(rows, negatives=negatives, temperature=math.exp(middle), step=len(rows))
        low, high = (middle, high) if z.mean().item() < math.log(phi) else (low, middle)
    return math.exp((low + high) / 2)
