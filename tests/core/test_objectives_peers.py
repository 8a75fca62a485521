"""Objectives and the classes of other libraries: equal where their arithmetic is exact, right where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks import batches, peers
from benchmarks.peers import PairLoss
from ctloss import contrast, objectives
from support.calls import present, value_and_gradients

FLOAT64, FLOAT32 = 1e-12, 2e-5
USELESS, OURS, OURS_IN_HALF = 0.1, 1e-4, 5e-3
ALPHA = 9.0


def gte(temperature: float) -> PairLoss:
    return lambda x, y: objectives.gte_nce(contrast(x, y, temperature=temperature)).mean()


def dclw(temperature: float) -> PairLoss:
    return lambda x, y: objectives.dclw(contrast(x, y, temperature=temperature), temperature).mean()


def hardness(temperature: float) -> PairLoss:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        tau = temperature / (1 + ALPHA * temperature)
        c = contrast(x, y, temperature=tau, negatives="cross", directions="x")
        return objectives.hardness_alpha(c, ALPHA, temperature).mean()

    return loss


class Peer(NamedTuple):
    make: Callable[..., PairLoss]
    options: tuple[float, ...]
    ours: Callable[[float], PairLoss]
    negatives: str


PEERS = {
    "lightly DCLWLoss": Peer(peers.lightly_dclw, (), dclw, "both"),
    "sentence-transformers MultipleNegativesRankingLoss, GTE": Peer(peers.sentence_transformers_gte, (), gte, "both"),
    "sentence-transformers MultipleNegativesRankingLoss, hardness": Peer(
        peers.sentence_transformers_hardness, (ALPHA,), hardness, "cross"
    ),
}


def gradient_error(call: PairLoss, truth: PairLoss, x: Tensor, y: Tensor) -> float:
    """‖g − g_ref‖ / ‖g_ref‖ over both sides, the reference in float64 on the same rows."""
    _, *found = value_and_gradients(call, x, y)
    _, *wanted = value_and_gradients(truth, x.double(), y.double())
    mine, other = torch.cat(found).double(), torch.cat(wanted)
    return ((mine - other).norm() / other.norm()).item()


@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 3, 0.5), (7, 16, 0.07), (33, 40, 0.1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_equal_to_peer(name: str, dtype: torch.dtype, tolerance: float, n: int, d: int, temperature: float) -> None:
    peer = PEERS[name]
    theirs = present(peer.make, temperature, *peer.options)
    x, y = batches.untrained(n, d, dtype=dtype, device="cpu", seed=n)
    wanted = value_and_gradients(theirs, x, y)
    for mine, other in zip(value_and_gradients(peer.ours(temperature), x, y), wanted, strict=True):
        assert (mine - other).norm() <= tolerance * max(1.0, other.norm().item())


@pytest.mark.parametrize("phi", [1e-7, 1e-20])
@pytest.mark.parametrize("name", [name for name in PEERS if "DCLW" not in name])
def test_float32_on_a_trained_batch(name: str, phi: float) -> None:
    """In the peers the positive's probability rounds to 1, and its pull to nothing."""
    peer = PEERS[name]
    x, y = batches.trained(32, 256, dtype=torch.float32, device="cpu")
    temperature = batches.temperature_for(x, y, phi, peer.negatives)
    ours = peer.ours(temperature)
    assert gradient_error(present(peer.make, temperature, *peer.options), ours, x, y) > USELESS
    assert gradient_error(ours, ours, x, y) < OURS


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_bfloat16_on_a_trained_batch(name: str) -> None:
    """The peers round the logits to bfloat16; where the positive's pull remains, as in DCL, that is the only error."""
    peer = PEERS[name]
    x, y = batches.trained(32, 256, dtype=torch.bfloat16, device="cpu")
    temperature = batches.temperature_for(x, y, 1e-3, peer.negatives)
    ours = peer.ours(temperature)
    least = 2 * OURS_IN_HALF if "DCLW" in name else USELESS
    assert gradient_error(present(peer.make, temperature, *peer.options), ours, x, y) > least
    assert gradient_error(ours, ours, x, y) < OURS_IN_HALF


class Global:
    """SogCLR with a running normaliser, called as LibAUC's classes are."""

    def __init__(self, temperature: float, samples: int, negatives: str) -> None:
        self.temperature, self.negatives = temperature, negatives
        self.normalizer = objectives.MovingNormalizer(samples, gamma=0.9)

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        c = contrast(x, y, temperature=self.temperature, negatives=self.negatives)
        count = (len(x) - 1) * (2 if self.negatives == "both" else 1)
        return objectives.sogclr(c, self.normalizer(c, ids, count)).mean()


def of_samples(loss: Callable[[Tensor, Tensor, Tensor], Tensor], ids: Tensor) -> PairLoss:
    return lambda x, y: loss(x, y, ids)


def batches_of_samples(steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    ids = torch.tensor([3, 0, 4, 6, 1])
    return [
        (*batches.untrained(5, 8, dtype=torch.float32, device="cpu", seed=step), ids if step % 2 else ids.flip(0))
        for step in range(steps)
    ]


def test_equal_to_libauc_bimodal() -> None:
    """Three steps: the first value is the estimate, later ones move it. LibAUC only takes float32."""
    ours, theirs = Global(0.2, 8, "cross"), present(peers.libauc_bimodal, 0.2, 8)
    for x, y, ids in batches_of_samples(3):
        _, *mine = value_and_gradients(of_samples(ours, ids), x, y)
        _, *other = value_and_gradients(of_samples(theirs, ids), x, y)
        for one, two in zip(mine, other, strict=True):
            torch.testing.assert_close(one * (0.2 * 4), two, rtol=FLOAT32, atol=FLOAT32)


def test_equal_to_libauc_unimodal() -> None:
    """Only the first step: later LibAUC averages the estimates of a pair's two rows, which ours keeps separate."""
    ours, theirs = Global(0.2, 8, "both"), present(peers.libauc_unimodal, 0.2, 8)
    ((x, y, ids),) = batches_of_samples(1)
    _, *mine = value_and_gradients(of_samples(ours, ids), x, y)
    _, *other = value_and_gradients(of_samples(theirs, ids), x, y)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(2 * 0.2 * one, two, rtol=FLOAT32, atol=FLOAT32)


def test_libauc_clamps_the_estimates_of_a_trained_batch() -> None:
    """Bimodal: it clamps u to 1e-20, which loses the gradient."""
    x, y = batches.trained(32, 256, dtype=torch.float32, device="cpu")
    temperature, ids = batches.temperature_for(x, y, 1e-30, "cross"), torch.arange(32)

    def truth(a: Tensor, b: Tensor) -> Tensor:
        return contrast(a, b, temperature=temperature, negatives="cross").z.mean()

    theirs = present(peers.libauc_bimodal, temperature, 32)
    assert gradient_error(lambda a, b: theirs(a, b, ids) / (31 * temperature), truth, x, y) > USELESS
    assert gradient_error(of_samples(Global(temperature, 32, "cross"), ids), truth, x, y) < OURS


def test_libauc_overflows_at_a_small_temperature() -> None:
    """Unimodal: it forms e^(cos/τ) directly."""
    x, y = batches.trained(32, 256, dtype=torch.float32, device="cpu")
    theirs, ids = present(peers.libauc_unimodal, 0.001, 32), torch.arange(32)
    assert not value_and_gradients(of_samples(theirs, ids), x, y)[1].isfinite().all()

    def truth(a: Tensor, b: Tensor) -> Tensor:
        return contrast(a, b, temperature=0.001).z.mean()

    assert gradient_error(of_samples(Global(0.001, 32, "both"), ids), truth, x, y) < OURS
