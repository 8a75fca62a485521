"""Objectives on embeddings against plain PyTorch on the whole matrix of logits, and the running normaliser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctloss import contrast, objectives
from ctloss.contrast import Contrast

F = torch.nn.functional


def batch(n: int = 6, d: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    return x, y


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T


def assert_same(mine: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("negatives", ["both", "cross", "own"])
@pytest.mark.parametrize("directions", ["both", "x"])
def test_label_smoothing_is_cross_entropy_with_it(negatives: str, directions: str) -> None:
    x, y = batch()
    options: dict[str, Any] = {"negatives": negatives, "directions": directions, "temperature": 0.3}
    c = contrast(x, y, **options)
    loss = objectives.label_smoothing(c, objectives.mean_logits(x, y, **options), 0.2).mean()
    rows = torch.cat((x, y))
    logits = cosines(rows, rows) / 0.3
    side, pair = torch.arange(12) // 6, torch.arange(12) % 6
    kept = torch.eye(12)[torch.arange(12).roll(6)].bool()
    if negatives in ("both", "cross"):
        kept |= side[:, None] != side
    if negatives in ("both", "own"):
        kept |= (side[:, None] == side) & (pair[:, None] != pair)
    total = []
    for row in range(12 if directions == "both" else 6):
        columns = kept[row].nonzero().flatten()
        target = (columns == (row + 6) % 12).nonzero().flatten()
        total.append(F.cross_entropy(logits[row, columns][None], target, label_smoothing=0.2))
    plain = torch.stack(total).mean()
    assert_same((loss, *gradients(loss, x, y)), (plain, *gradients(plain, x, y)))


def test_mean_logits_take_candidates_and_temperatures_of_rows() -> None:
    x, y = batch()
    queue = torch.randn(12, 5, dtype=torch.float64)
    tau = torch.linspace(0.1, 1, 6)
    found = objectives.mean_logits(x, y, candidates=[queue], temperature=tau, negatives="none", normalize=False)
    wanted = [torch.cat(((a * b).sum(1)[:, None], a @ queue.T), 1).mean(1) / tau for a, b in ((x, y), (y, x))]
    torch.testing.assert_close(found, torch.cat(wanted))
    cube = queue.view(6, 2, 5)
    for same in (queue, cube, [cube], (queue[:1], queue[1:])):
        again = objectives.mean_logits(x, y, candidates=same, temperature=tau, negatives="none", normalize=False)
        torch.testing.assert_close(again, found)


def test_mean_logits_of_rows_of_any_scale() -> None:
    """Cosines do not depend on the rows' lengths; those of a zero row are 0 and give it no gradient."""
    x, y = batch()
    scales = torch.tensor([1e-300, 1e-150, 1.0, 1e150, 1e300, 0.0], dtype=torch.float64)[:, None]
    scaled = (x.detach() * scales).requires_grad_()
    kept = slice(0, 5)
    options: dict[str, Any] = {"negatives": "cross", "directions": "x"}
    found, plain = (objectives.mean_logits(side, y, **options) for side in (scaled, x))
    torch.testing.assert_close(found[kept], plain[kept], rtol=1e-12, atol=0.0)
    assert found[5] == 0
    (gradient,), (truth,) = gradients(found.sum(), scaled), gradients(plain.sum(), x)
    torch.testing.assert_close((gradient * scales)[kept], truth[kept], rtol=1e-10, atol=1e-14)
    assert (gradient[5] == 0).all()


def test_hardness_alpha_raises_logits_without_gradient() -> None:
    x, y = batch()
    alpha, tau = 4.0, 0.3
    c = contrast(x, y, temperature=tau / (1 + alpha * tau), negatives="cross", directions="x")
    loss = objectives.hardness_alpha(c, alpha, tau).mean()
    cosine = cosines(x, y)
    raised = cosine / tau + alpha * cosine.detach().masked_fill(torch.eye(6, dtype=torch.bool), 0.0)
    plain = F.cross_entropy(raised, torch.arange(6))
    assert_same((loss, *gradients(loss, x, y)), (plain, *gradients(plain, x, y)))


def test_hardness_beta_weighs_negatives_by_themselves() -> None:
    """The released arithmetic of 2010.04592, with its debiasing."""
    x, y = batch()
    beta, tau, tau_plus = 0.7, 0.3, 0.01
    sharper, sharp = (contrast(x, y, temperature=tau / power) for power in (1 + beta, beta))
    hard = objectives.hardness_beta(sharper, sharp, 10)
    loss = objectives.debiased_nce(hard, tau_plus, 10, tau).mean()
    rows = torch.cat((x, y))
    pair = torch.arange(12) % 6
    negative = (cosines(rows, rows) / tau).exp()[pair[:, None] != pair].view(12, 10)
    positive = ((F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(1) / tau).exp().repeat(2)
    importance = negative**beta
    weighed = (importance * negative).sum(1) / importance.mean(1)
    corrected = ((weighed - tau_plus * 10 * positive) / (1 - tau_plus)).clamp(min=10 * math.exp(-1 / tau))
    plain = -(positive / (positive + corrected)).log().mean()
    assert_same((loss, *gradients(loss, x, y)), (plain, *gradients(plain, x, y)))
    empty = Contrast(torch.tensor([-math.inf]), torch.tensor([1.0]))
    assert objectives.hardness_beta(empty, empty, 1).z.item() == -math.inf


def moved(steps: list[list[float]], gamma: float, count: int) -> float:
    u = math.nan
    for (z,) in steps:
        new = math.exp(z) / count
        u = new if math.isnan(u) else (1 - gamma) * u + gamma * new
    return u


@given(steps=st.lists(st.lists(st.floats(-20, 20), min_size=1, max_size=1), min_size=1, max_size=6))
def test_normalizer_is_a_moving_average(steps: list[list[float]]) -> None:
    normalizer = objectives.MovingNormalizer(7, gamma=0.3, num_directions=1)
    for step in steps:
        found = normalizer(Contrast(torch.tensor(step, dtype=torch.float64), torch.zeros(1)), torch.tensor([4]), 5)
    assert math.isclose(found.item(), math.log(5 * moved(steps, 0.3, 5)), abs_tol=1e-12)
    assert (normalizer.log_u[0, [0, 1, 2, 3, 5, 6]] == -math.inf).all()


def normalized(normalizer: objectives.MovingNormalizer, z: list[float], ids: list[int]) -> Tensor:
    return normalizer(Contrast(torch.tensor(z, dtype=torch.float64), torch.zeros(len(z))), torch.tensor(ids), 2)


def test_normalizer_resumes_its_schedule() -> None:
    first, second = (objectives.MovingNormalizer(3) for _ in range(2))
    first.gamma = 0.25
    stored = first.state_dict()
    assert all(isinstance(value, Tensor) for value in stored.values())
    second.load_state_dict(stored)
    assert second.gamma == 0.25
    with pytest.raises(ValueError, match=r"gamma: expected a number in \(0, 1\], got 2"):
        first.gamma = 2


def test_normalizer_compiles_whole() -> None:
    plain, compiled = (objectives.MovingNormalizer(3, gamma=0.3) for _ in range(2))
    ids = torch.tensor([2, 0])
    torch.compiler.reset()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(3):
        c = Contrast(torch.linspace(-2, step, 4), torch.ones(4))
        torch.testing.assert_close(run(c, ids, 2), plain(c, ids, 2))
    torch.testing.assert_close(compiled.log_u, plain.log_u)


def test_normalizer_is_made_from_meta() -> None:
    normalizer: Any = torch.nn.Sequential(objectives.MovingNormalizer(3)).to("meta").to_empty(device="cpu")[0]
    assert normalizer.log_u.dtype == torch.float64
    assert (normalizer.log_u == -math.inf).all()
    with torch.device("meta"):
        other = objectives.MovingNormalizer(3)
    stored = objectives.MovingNormalizer(3)
    normalized(stored, [1.0] * 4, [2, 1])
    other.load_state_dict(stored.state_dict(), assign=True)
    assert torch.equal(other.log_u, stored.log_u)


def test_normalizer_resumes_and_keeps_its_digits() -> None:
    first, second = (objectives.MovingNormalizer(3) for _ in range(2))
    normalized(first, [-800.0, 1.0, 900.0, 2.0], [2, 0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(normalized(first, [1.0] * 4, [2, 1]), normalized(second, [1.0] * 4, [2, 1]))
    kept = first.log_u.clone()
    assert torch.equal(first.bfloat16().log_u, kept)
    assert torch.equal(torch.nn.Sequential(first).to(torch.float16)[0].log_u, kept)


def test_normalizer_passes_over_rows_that_say_nothing() -> None:
    normalizer = objectives.MovingNormalizer(3, num_directions=1)
    normalized(normalizer, [1.0, 2.0], [0, 1])
    before = normalizer.log_u.clone()
    found = normalized(normalizer, [-math.inf, math.nan, -math.inf], [0, 1, 2])
    assert torch.equal(normalizer.log_u, before)
    assert found.isfinite().all()
    c = Contrast(torch.tensor([-math.inf, math.nan, -math.inf]).double().requires_grad_(), torch.zeros(3))
    tau = torch.full((3,), 0.1, requires_grad=True)
    (gradient,) = torch.autograd.grad(objectives.isogclr(c, found, tau, 6.0, 2).sum(), tau)
    assert gradient[0] == 0
    assert gradient[2] == 0


def test_normalizer_in_evaluation_writes_nothing() -> None:
    normalizer = objectives.MovingNormalizer(3, num_directions=1)
    normalized(normalizer, [1.0], [0])
    before = normalizer.log_u.clone()
    torch.testing.assert_close(normalized(normalizer.eval(), [5.0, 2.0], [0, 1]), torch.tensor([1.0, 2.0]).double())
    assert torch.equal(normalizer.log_u, before)


@pytest.mark.parametrize("former", [[], [5.0]])
def test_normalizer_of_a_sample_twice_returns_what_it_stores(former: list[float]) -> None:
    normalizer = objectives.MovingNormalizer(2, gamma=0.5, num_directions=1)
    for z in former:
        normalized(normalizer, [z], [1])
    found = normalized(normalizer, [3.0, 1.0, -math.inf, 2.0], [1, 1, 1, 0])
    wanted = math.exp(3) if not former else (math.exp(3) + math.exp(5)) / 2
    torch.testing.assert_close(found[:3].exp(), torch.full((3,), wanted, dtype=torch.float64))
    assert torch.equal(normalizer.log_u[0, [1, 1, 1, 0]] + math.log(2), found)


def test_global_losses_follow_the_whole_datas_gradient() -> None:
    """With γ = 1 SogCLR has the gradient of CZ-NCE, and iSogCLR that of τ (log(φ/M) + ρ)."""
    x, y = batch()
    ids = torch.arange(6)
    c = contrast(x, y)
    alpha = objectives.MovingNormalizer(6, gamma=1.0)(c, ids, 10)
    assert_same(gradients(objectives.sogclr(c, alpha).sum(), x, y), gradients(contrast(x, y).z.sum(), x, y))
    tau = torch.linspace(0.2, 0.6, 6, dtype=torch.float64, requires_grad=True)
    c = contrast(x, y, temperature=tau)
    alpha = objectives.MovingNormalizer(6, gamma=1.0)(c, ids, 10)
    loss = objectives.isogclr(c, alpha, tau, 6.0, 10).sum()
    plain = (tau.repeat(2) * (contrast(x, y, temperature=tau).z - math.log(10) + 6)).sum()
    assert_same((loss, *gradients(loss, x, y, tau)), (plain, *gradients(plain, x, y, tau)))
