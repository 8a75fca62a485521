"""Options over real ranks that a drawn case does not know: widths, learnt weights, hard negatives, a promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import ctloss
from ctloss.ranks import schedule
from support.ranks.pool import shared

N, D, K = 9, 6, 2
WORLD = 3


def inputs() -> dict[str, Tensor]:
    """Float64 leaves of the whole batch."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"x": (N, D), "y": (N, D), "candidates": (N, K, D), "weights": (N,)}
    found = {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    found["weights"] = found["weights"].abs() + 0.1
    return found


def call(loss: str, leaves: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    given = dict(leaves)
    if loss == "contrast":
        weights = given.pop("weights")
        # A loss of one's own, which each rank makes of its rows.
        z = ctloss.contrast(**given, temperature=0.4, **options).z
        return (z.exp().log1p() * weights.repeat(2)).sum()
    result: Tensor = getattr(ctloss, loss)(**given, temperature=0.4, **options)
    return result


def on_rank(group: Any, loss: str, options: dict[str, Any], at_once: bool) -> tuple[Tensor, dict[str, Tensor]]:
    rank, rows = dist.get_rank(group), N // WORLD
    leaves = {name: whole[rank * rows : (rank + 1) * rows].requires_grad_() for name, whole in inputs().items()}
    before = schedule.at_once
    if not at_once:
        schedule.at_once = lambda sizes, workspace: False
    try:
        for _ in range(2):
            found = call(loss, leaves, {**options, "group": group})
        found.backward(retain_graph=True)
        first = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        for leaf in leaves.values():
            leaf.grad = None
        found.backward()
        assert all(torch.equal(first[name], leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None)
    finally:
        schedule.at_once = before
    return found.detach(), first


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("info_nce", {"dims": (6, 2), "dim_weights": (1.0, 0.5)}),
        ("cz_nce", {"even": True, "negatives": "cross", "directions": "x"}),
        ("contrast", {"even": True}),
    ],
)
def test_ranks_are_one_process(loss: str, options: dict[str, Any], at_once: bool) -> None:
    leaves = {name: whole.requires_grad_() for name, whole in inputs().items()}
    wanted = call(loss, leaves, {name: value for name, value in options.items() if name != "even"})
    wanted.backward()
    found = shared().run(WORLD, on_rank, [loss] * WORLD, [options] * WORLD, [at_once] * WORLD)
    # What a rank makes of its own rows is its loss, and the ranks' losses are added up.
    divisor = 1 if loss == "contrast" else WORLD
    torch.testing.assert_close(torch.stack([one for one, _ in found]).sum() / divisor, wanted.detach())
    for name, leaf in leaves.items():
        gradient = torch.cat([gradients[name] for _, gradients in found]) / divisor
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-9, atol=1e-12)
