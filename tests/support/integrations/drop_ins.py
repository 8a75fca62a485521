"""What tests of the integrations ask of a class of ours and of the one it replaces: equal numbers, equal training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[..., Tensor]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
"""Relative, of gradients: float32's rounding grows by the cancellation in a softmax of some tens of logits."""


def rows(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, unit: bool = False) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (nn.functional.normalize(made, dim=-1) if unit else made).to(dtype)


def value_and_gradients(loss: Loss, inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def same_numbers(ours: Loss, theirs: Loss, *inputs: Tensor, tolerance: float | None = None) -> None:
    """Value and gradients of all inputs, within a tolerance relative to their lengths."""
    if tolerance is None:
        tolerance = max(TOLERANCE[one.dtype] for one in inputs)
    wanted = value_and_gradients(theirs, inputs)
    assert any(gradient.abs().max() > 0 for gradient in wanted[1:])
    found = value_and_gradients(ours, inputs)
    for mine, other in zip(found, wanted, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).norm() <= tolerance * max(other.norm().item(), 1e-2)


def trained(criterion: Callable[..., Any], views: Callable[[nn.Module, Tensor], Any], steps: int = 5) -> list[Tensor]:
    """The weights of a small encoder after some steps of AdamW, and the last loss.

    Args:
        criterion: the loss, called with what ``views`` returns.
        views: of an encoder and a step's inputs.
    """
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    loss = torch.zeros(())
    for step in range(steps):
        optimizer.zero_grad()
        loss = criterion(*views(encoder, rows(10, 12, seed=step)))
        loss.backward()
        optimizer.step()
    return [*(one.detach() for one in encoder.parameters()), loss.detach()]


def same_training(ours: Callable[..., Any], theirs: Callable[..., Any], views: Callable[..., Any]) -> None:
    """In float64, the same weights within what AdamW makes of roundings of the gradient."""
    for mine, other in zip(trained(ours, views), trained(theirs, views), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


def two_views(encoder: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return encoder(x), encoder(x + 0.1)
