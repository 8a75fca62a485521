"""Who computes each loss: ours by path, the forms written by hand, and other libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ctloss
from benchmarks import exact, forms, peers
from benchmarks.exact import SIGMOID_BIAS, Exact
from benchmarks.peers import PairLoss, PeerMissing

LOSSES: dict[str, tuple[str, str]] = {
    "cz-both": ("cz_nce", "both"),
    "cz-cross": ("cz_nce", "cross"),
    "info-both": ("info_nce", "both"),
    "info-cross": ("info_nce", "cross"),
    "siglip": ("sig_lip", "cross"),
}
"""A loss and which negatives it has, by the name it goes by in results."""
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


class NotOffered(Exception):
    """This provider does not compute this case; the text says why."""


class OtherLosses(NotOffered):
    """This provider computes only other losses."""


@dataclass(frozen=True)
class Case:
    """One problem: which loss (a key of LOSSES) on what inputs."""

    loss: str
    n: int
    d: int
    dtype: str
    device: str
    temperature: float = 0.07

    @property
    def parts(self) -> tuple[str, str]:
        """The loss's name and which negatives it has."""
        return LOSSES[self.loss]

    def exact(self, x: Tensor, y: Tensor) -> Exact:
        """The float64 answer on these rows."""
        loss, negatives = self.parts
        return exact.exact(x, y, loss=loss, negatives=negatives, temperature=self.temperature)


Build = Callable[[Case], PairLoss]


@dataclass(frozen=True)
class Provider:
    """An implementation: ``build`` gives the loss for a case, or raises NotOffered.

    ``row_bytes`` estimates the memory that n pairs take, so that a case that would exhaust the machine is not started.
    """

    name: str
    about: str
    build: Build
    row_bytes: Callable[[int], float] = lambda n: 0.0


def _ours(impl: str) -> Build:
    def build(case: Case) -> PairLoss:
        name, negatives = case.parts
        function: Callable[..., Tensor] = getattr(ctloss, name)
        options: dict[str, Any] = {"bias": SIGMOID_BIAS} if name == "sig_lip" else {"negatives": negatives}

        def call(x: Tensor, y: Tensor) -> Tensor:
            return function(x, y, temperature=case.temperature, precision="highest", impl=impl, **options)

        probe = torch.ones(2, 2, dtype=DTYPES[case.dtype], device=case.device)
        try:
            call(probe, probe)
        except (ValueError, RuntimeError, NotImplementedError, ImportError) as error:
            raise NotOffered(f"impl={impl!r}: {error}") from error
        return call

    return build


def _form(make: Callable[[str, str, float], PairLoss | None]) -> Build:
    def build(case: Case) -> PairLoss:
        form = make(*case.parts, case.temperature)
        if form is None:
            raise OtherLosses("has no form for this loss")
        return form

    return build


def only(case: Case, *losses: str) -> None:
    """Raise OtherLosses unless the case's loss is among these."""
    if case.loss not in losses:
        raise OtherLosses(f"computes only {' and '.join(losses)}")


def _peer(**makers: Callable[[float], PairLoss]) -> Build:
    """Another library's losses, by the name of ours with an underscore."""
    by_loss = {name.replace("_", "-"): make for name, make in makers.items()}

    def build(case: Case) -> PairLoss:
        only(case, *by_loss)
        try:
            return by_loss[case.loss](case.temperature)
        except PeerMissing as error:
            raise NotOffered(str(error)) from error

    return build


def _compiled(case: Case) -> PairLoss:
    compiled: PairLoss = torch.compile(forms.eager(*case.parts, case.temperature), dynamic=False)
    return compiled


def _square(matrices: float) -> Callable[[int], float]:
    return lambda n: matrices * 4 * (2.0 * n) ** 2


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("ctloss", "ours, path chosen as for a user", _ours("auto")),
        Provider("ctloss-torch", "ours, torch path", _ours("torch")),
        Provider("ctloss-triton", "ours, Triton path", _ours("triton")),
        Provider("ctloss-reference", "ours, quadratic reference", _ours("reference"), _square(8)),
        Provider("eager", "best eager form: cross_entropy, logsumexp for CZ-NCE, on one masked matrix",
                 _form(forms.eager), _square(6)),
        Provider("compile", "torch.compile of eager", _compiled, _square(6)),
        Provider("cross_entropy", "cross_entropy on joined blocks of logits", _form(forms.cross_entropy), _square(6)),
        Provider("logsumexp", "lse - s+ by autograd", _form(forms.logsumexp), _square(6)),
        Provider("naive", "exp, sum, log of the ratio", _form(forms.naive), _square(8)),
        Provider("lightly", "NTXentLoss, DCLLoss",
                 _peer(info_both=peers.lightly_ntxent, cz_both=peers.lightly_dcl), _square(12)),
        Provider("open_clip", "ClipLoss, SigLipLoss",
                 _peer(info_cross=peers.open_clip, siglip=lambda t: peers.open_clip_sig_lip(t, SIGMOID_BIAS)),
                 _square(2)),
        Provider("sentence-transformers", "MultipleNegativesRankingLoss, symmetric",
                 _peer(info_cross=peers.sentence_transformers), _square(2)),
        Provider("metric-learning", "pytorch-metric-learning's NTXentLoss, cubic in n",
                 _peer(info_both=peers.metric_learning), lambda n: 4 * 4 * (2.0 * n) ** 3),
    )
}  # fmt: skip

DEFAULT = tuple(name for name in PROVIDERS if name not in ("ctloss", "logsumexp"))


def build(name: str, case: Case, memory_limit: float = float("inf")) -> PairLoss:
    """The loss of a provider for a case, a function of raw rows x and y.

    Raises:
        NotOffered: with the reason, also where the provider is estimated to need more bytes than ``memory_limit``.
    """
    provider = PROVIDERS[name]
    needed = provider.row_bytes(case.n)
    if needed > memory_limit:
        raise NotOffered(
            f"would need about {needed / 2**30:.0f} GiB, more than the {memory_limit / 2**30:.0f} GiB allowed"
        )
    return provider.build(case)


def offered(
    names: Sequence[str], case: Case, memory_limit: float = float("inf")
) -> tuple[dict[str, PairLoss], dict[str, str]]:
    """The providers' losses for a case, and the reasons of those that have none."""
    calls, reasons = {}, {}
    for name in names:
        try:
            calls[name] = build(name, case, memory_limit)
        except NotOffered as reason:
            reasons[name] = str(reason)
    return calls, reasons
