"""SupCon over real ranks: as one process with the whole batch has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ctloss
from ctloss.ranks import sup_con as of_ranks
from support.ranks.calls import share
from support.ranks.pool import shared

pytestmark = pytest.mark.numeric

Found = tuple[Tensor, Tensor, Tensor | None]


def rows(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def answer_of_rank(
    group: Any, x: Tensor, labels: list[int], tau: float | Tensor, large: int, upstream: Tensor, options: dict[str, Any]
) -> Found:
    """A rank's loss and gradients, of the rows and the temperature; runs in the rank's process."""
    x = x.clone().requires_grad_()
    if isinstance(tau, Tensor):
        tau = tau.clone().requires_grad_()
    before, of_ranks.LARGE = of_ranks.LARGE, large
    try:
        loss = ctloss.sup_con(x, torch.tensor(labels, dtype=torch.int64), temperature=tau, group=group, **options)
        loss.backward(upstream)
    finally:
        of_ranks.LARGE = before
    assert x.grad is not None
    return loss.detach(), x.grad, tau.grad if isinstance(tau, Tensor) else None


@settings(max_examples=25)
@given(
    labels=st.lists(st.integers(-2, 3), min_size=1, max_size=30),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    temperature=st.sampled_from(["number", "tensor", "rows"]),
    normalize=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    average=st.sampled_from(["mean", "sum"]),
    large=st.sampled_from([1, 8, 1 << 10]),
    seed=st.integers(0, 99),
)
def test_ranks_have_the_loss_and_gradient_of_one_process(
    labels: list[int],
    cuts: list[float],
    dtype: torch.dtype,
    temperature: str,
    normalize: bool,
    reduction: str,
    average: str,
    large: int,
    seed: int,
) -> None:
    world, n, cuts = len(cuts) + 1, len(labels), sorted(cuts)
    x = rows(n, dtype, seed)
    tau: Any = 0.2 if temperature == "number" else torch.tensor(0.2, dtype=torch.float64)
    if temperature == "rows":
        tau = torch.linspace(0.1, 0.5, n, dtype=torch.float64)
    options = {"normalize": normalize, "reduction": reduction, "average": average}
    upstream = torch.linspace(-1, 2, n) if reduction == "none" else torch.tensor(0.7)

    whole = x.double().clone().requires_grad_()
    of_tau = tau.clone().requires_grad_() if isinstance(tau, Tensor) else tau
    wanted = ctloss.sup_con(
        whole, torch.tensor(labels), temperature=of_tau, normalize=normalize, reduction=reduction, impl="reference"
    )
    wanted.backward(upstream.double())

    parts = [share(n, cuts, rank) for rank in range(world)]
    taus = [tau[part] if temperature == "rows" else tau for part in parts]
    upstreams = [upstream[part] if reduction == "none" else upstream for part in parts]
    # Precisions differ with the dtype that is returned.
    found = shared().run(
        world,
        answer_of_rank,
        [x[part] for part in parts],
        [labels[part] for part in parts],
        taus,
        [large] * world,
        [one.to(torch.float64 if dtype == torch.float64 else torch.float32) for one in upstreams],
        [options] * world,
    )
    divisor = world if reduction != "none" and average == "mean" else 1
    losses, gradients, slopes = zip(*found, strict=True)
    loss = torch.cat([one.view(-1) for one in losses])
    if reduction != "none":
        loss = loss.sum() / divisor
    close = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 2e-6}[dtype]
    size = max(1.0, wanted.detach().abs().max().item())
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=close, atol=close * size)
    assert whole.grad is not None
    gradient = torch.cat(gradients).double() / divisor
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 0.0
    allowed = (20 * close + rounding) * max(1e-3, whole.grad.norm().item())
    assert (gradient - whole.grad).norm() <= allowed
    if isinstance(of_tau, Tensor):
        slope = torch.cat(slopes) if temperature == "rows" else torch.stack(slopes).sum(0)
        torch.testing.assert_close(slope / divisor, of_tau.grad, rtol=20 * close, atol=20 * close * size)
