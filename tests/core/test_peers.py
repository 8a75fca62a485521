"""The losses and those of other libraries: equal where their arithmetic is exact, right where it is not."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ctloss
from benchmarks import batches, forms, peers
from benchmarks.cpu.numerics import FLOAT16_SCALE
from benchmarks.exact import Exact, errors, exact
from benchmarks.peers import PairLoss, PeerMissing
from support.acceptance import OUTPUT_ROUNDING, Call, truth_of_call
from support.calls import autocast, on_this_machine, present, value_and_gradients
from support.regimes import Case
from support.truth import length

pytestmark = pytest.mark.numeric

# An error of a tenth of the gradient; ours is allowed far less.
USELESS = 0.1

PEERS: dict[str, tuple[Callable[[float], PairLoss], str, str]] = {
    "lightly NTXentLoss": (peers.lightly_ntxent, "info_nce", "both"),
    "lightly DCLLoss": (peers.lightly_dcl, "cz_nce", "both"),
    "open_clip ClipLoss": (peers.open_clip, "info_nce", "cross"),
    "sentence-transformers MultipleNegativesRankingLoss": (peers.sentence_transformers, "info_nce", "cross"),
    "pytorch-metric-learning NTXentLoss": (peers.metric_learning, "info_nce", "both"),
}


def peer(name: str, temperature: float) -> PairLoss:
    return present(PEERS[name][0], temperature)


def ours(loss: str, negatives: str, temperature: float, impl: str = "auto") -> PairLoss:
    function: Callable[..., Tensor] = ctloss.cz_nce if loss == "cz_nce" else ctloss.info_nce
    return lambda x, y: function(x, y, temperature=temperature, negatives=negatives, impl=impl)


def bounds(loss: str, negatives: str, temperature: float, x: Tensor, y: Tensor) -> Call:
    """The bounds of our paths' errors on a batch."""
    case = Case("random", *x.shape, dtype=x.dtype, temperature=temperature, loss=loss, negatives=negatives)
    return truth_of_call(case, x, y, torch.ones(()))


def allowed(
    loss: str, negatives: str, temperature: float, x: Tensor, y: Tensor, scale: float = 1.0
) -> dict[str, float]:
    """The same, as the relative errors that ``errors`` measures."""
    found = bounds(loss, negatives, temperature, x, y)
    finfo, size = torch.finfo(x.dtype), length(found.gradient)
    # Half a step of subnormal numbers for every entry of the scaled gradient.
    underflow = finfo.smallest_normal * finfo.eps / 2 * found.gradient.numel() ** 0.5 / scale
    gradient = length(found.cancelling) * found.per_logit / size + OUTPUT_ROUNDING[x.dtype] + underflow / size
    assert gradient < USELESS / 10
    return {"gradient_error": gradient, "value_error": found.per_logit}


def assert_exact(
    loss: str, negatives: str, temperature: float, x: Tensor, y: Tensor, found: dict[str, float], scale: float = 1.0
) -> None:
    """Hold our measured errors to what is allowed on the batch, whatever the processor."""
    most = allowed(loss, negatives, temperature, x, y, scale)
    assert {name: value for name, value in found.items() if not value <= most[name]} == {}


@pytest.mark.parametrize(
    ("impl", "dtype"),
    [
        *itertools.product(["reference", "torch"], [torch.float64, torch.float32]),
        *((impl, torch.float32) for impl in on_this_machine()),
    ],
)
@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 3, 0.5), (7, 16, 0.07), (33, 40, 0.1)])
@pytest.mark.parametrize("name", PEERS)
def test_equal_to_peer(name: str, dtype: torch.dtype, n: int, d: int, temperature: float, impl: str) -> None:
    """Up to both roundings: on such a batch no form loses digits, so our bound also holds for theirs."""
    theirs = peer(name, temperature)
    x, y = batches.untrained(n, d, dtype=dtype, device="cpu", seed=n)
    wanted = value_and_gradients(theirs, x, y)
    got = value_and_gradients(ours(*PEERS[name][1:], temperature, impl), x, y)
    bound = bounds(*PEERS[name][1:], temperature, x, y)
    differences = [(mine - other).norm().item() for mine, other in zip(got, wanted, strict=True)]
    assert differences[0] <= 2 * bound.per_logit * max(1.0, abs(wanted[0].item()))
    assert math.hypot(*differences[1:]) <= 2 * bound.per_logit * length(bound.cancelling)


FORMS = {
    "eager": forms.eager,
    "cross_entropy": forms.cross_entropy,
    "logsumexp": forms.logsumexp,
    "naive": forms.naive,
}


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_compute_our_losses(name: str, loss: str, negatives: str) -> None:
    """The hand-written forms in the benchmarks are the same functions as ours."""
    form = FORMS[name](loss, negatives, 0.1)
    if form is None:
        assert name in ("cross_entropy", "logsumexp")
        return
    x, y = batches.untrained(9, 12, dtype=torch.float64, device="cpu")
    mine = value_and_gradients(ours(loss, negatives, 0.1, "reference"), x, y)
    torch.testing.assert_close(mine, value_and_gradients(form, x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("negatives", ["both", "cross"])
@pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
@pytest.mark.parametrize("panel_bytes", [1, 2**29])
def test_exact_answer_is_the_reference(loss: str, negatives: str, panel_bytes: int) -> None:
    """The float64 answer that errors are measured against, whole or row by row, is the reference's."""
    x, y = batches.untrained(11, 6, dtype=torch.float64, device="cpu")
    answer = exact(x, y, loss=loss, negatives=negatives, temperature=0.05, panel_bytes=panel_bytes)
    found = errors(ours(loss, negatives, 0.05, "reference"), x, y, answer)
    # Each may be off by that much.
    assert_exact(loss, negatives, 0.05, x, y, {name: value / 2 for name, value in found.items()})


def trained(loss: str, negatives: str, phi: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, float, Exact]:
    """A batch late in training, the temperature that gives it φ, and its float64 answer."""
    x, y = batches.trained(32, 256, dtype=dtype, device="cpu")
    temperature = batches.temperature_for(x, y, phi, negatives)
    return x, y, temperature, exact(x, y, loss=loss, negatives=negatives, temperature=temperature)


# 1e-8 is below half the spacing of float32 numbers just under 1: in no order of summation does p - 1 survive.
@pytest.mark.parametrize("phi", [1e-8, 1e-20])
@pytest.mark.parametrize("name", [name for name in PEERS if "DCL" not in name])
def test_float32_infonce_on_a_trained_batch(name: str, phi: float) -> None:
    """The peers' p - 1 rounds to 0, so their gradient lacks the positive's pull; ours has it."""
    _, loss, negatives = PEERS[name]
    x, y, temperature, answer = trained(loss, negatives, phi, torch.float32)
    assert errors(peer(name, temperature), x, y, answer)["gradient_error"] > USELESS
    assert_exact(loss, negatives, temperature, x, y, errors(ours(loss, negatives, temperature), x, y, answer))


@pytest.mark.parametrize("name", PEERS)
def test_bfloat16_on_a_trained_batch(name: str) -> None:
    """The peers, DCL included, round the logits to bfloat16."""
    _, loss, negatives = PEERS[name]
    x, y, temperature, answer = trained(loss, negatives, 1e-3, torch.bfloat16)
    # CZ-NCE keeps the positive's pull whatever the rounding, so DCL's only error is the rounding of its logits.
    least = 2 * allowed(loss, negatives, temperature, x, y)["gradient_error"] if "DCL" in name else USELESS
    assert errors(peer(name, temperature), x, y, answer)["gradient_error"] > least
    found = errors(ours(loss, negatives, temperature), x, y, answer)
    assert_exact(loss, negatives, temperature, x, y, {"gradient_error": found["gradient_error"]})


@pytest.mark.parametrize("name", PEERS)
def test_autocast_on_a_collapsed_batch(name: str) -> None:
    """All rows are nearly equal, so the peers' bfloat16 logits are equal. Ours does not change under autocast."""
    _, loss, negatives = PEERS[name]
    x, y = batches.untrained(32, 256, dtype=torch.float32, device="cpu")
    centre = torch.randn(256, generator=torch.Generator().manual_seed(1)).div(16)
    x, y = centre + 1e-3 * x, centre + 1e-3 * y
    answer = exact(x, y, loss=loss, negatives=negatives, temperature=0.07)

    assert errors(autocast(peer(name, 0.07)), x, y, answer)["gradient_error"] > 5 * USELESS
    mine = ours(loss, negatives, 0.07)
    assert errors(autocast(mine), x, y, answer) == errors(mine, x, y, answer)
    assert_exact(loss, negatives, 0.07, x, y, errors(mine, x, y, answer))


@pytest.mark.parametrize("name", [name for name in PEERS if "DCL" not in name])
def test_float16_under_a_gradient_scaler(name: str) -> None:
    """At φ = 1e-6 a scaled float16 loss gives gradients that are far off or all zero; ours are exact."""
    _, loss, negatives = PEERS[name]
    x, y, temperature, answer = trained(loss, negatives, 1e-6, torch.float16)
    theirs = errors(peer(name, temperature), x, y, answer, scale=FLOAT16_SCALE)
    assert not theirs["gradient_error"] < USELESS
    mine = errors(ours(loss, negatives, temperature), x, y, answer, scale=FLOAT16_SCALE)
    gradient = {"gradient_error": mine["gradient_error"]}
    assert_exact(loss, negatives, temperature, x, y, gradient, scale=FLOAT16_SCALE)


@pytest.mark.parametrize("name", ["cross_entropy", "eager", "logsumexp", "naive"])
def test_hand_written_infonce_on_a_trained_batch(name: str) -> None:
    x, y, temperature, answer = trained("info_nce", "both", 1e-20, torch.float32)
    form = FORMS[name]("info_nce", "both", temperature)
    assert form is not None
    assert not errors(form, x, y, answer)["gradient_error"] < USELESS
    assert_exact("info_nce", "both", temperature, x, y, errors(ours("info_nce", "both", temperature), x, y, answer))


@pytest.mark.parametrize("loss", ["cz_nce", "info_nce"])
def test_naive_form_overflows_at_a_small_temperature(loss: str) -> None:
    """For τ below .0112, exp(1/τ) exceeds float32's largest number."""
    x, y = batches.trained(32, 256, dtype=torch.float32, device="cpu")
    answer = exact(x, y, loss=loss, negatives="both", temperature=0.01)
    assert math.isnan(errors(forms.naive(loss, "both", 0.01), x, y, answer)["gradient_error"])
    assert_exact(loss, "both", 0.01, x, y, errors(ours(loss, "both", 0.01), x, y, answer))


def test_a_missing_peer_is_named() -> None:
    with pytest.raises(
        PeerMissing, match=r"expected no-such-peer, found no such.*pip install --no-deps -r tests/peers"
    ):
        peers.load("no-such-peer", "no_such_peer.loss", "Loss")


def test_an_old_peer_is_refused() -> None:
    with pytest.raises(PeerMissing, match=r"expected pytest >= 1000, found"):
        peers.load("pytest", "pytest", "Class", oldest="1000")


def test_loading_a_peer_leaves_no_module_behind() -> None:
    peer("lightly DCLLoss", 0.1)
    peers.loss_class.cache_clear()
    before = set(sys.modules)
    peer("lightly DCLLoss", 0.1)
    assert {name for name in set(sys.modules) - before if name.startswith("lightly")} == set()
