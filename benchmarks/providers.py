"""Who computes each loss: ours by path, the forms written by hand, and other libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import ctloss
from benchmarks import forms, peers
from benchmarks.peers import PairLoss, PeerMissing

LOSSES: dict[str, tuple[str, Literal["both", "cross"]]] = {
    "cz-both": ("cz_nce", "both"),
    "cz-cross": ("cz_nce", "cross"),
    "info-both": ("info_nce", "both"),
    "info-cross": ("info_nce", "cross"),
}
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class NotOffered(Exception):
    """This provider does not compute this case; the text says why."""


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
    def parts(self) -> tuple[str, Literal["both", "cross"]]:
        """The loss's name and which negatives it has."""
        return LOSSES[self.loss]


Build = Callable[[Case], PairLoss]


@dataclass(frozen=True)
class Provider:
    """An implementation: ``build`` gives the loss for a case, or raises NotOffered.

    ``row_bytes`` estimates the memory of a case, so that one that would exhaust the machine is not started.
    """

    name: str
    about: str
    build: Build
    row_bytes: Callable[[int], float] = lambda n: 0.0


def ours(impl: str, precision: str = "highest") -> Build:
    """Our own loss by the named path."""

    def build(case: Case) -> PairLoss:
        name, negatives = case.parts
        function: Callable[..., Tensor] = ctloss.cz_nce if name == "cz_nce" else ctloss.info_nce

        def call(x: Tensor, y: Tensor) -> Tensor:
            return function(x, y, temperature=case.temperature, negatives=negatives, precision=precision, impl=impl)

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
            raise NotOffered("has no form for this loss")
        return form

    return build


def _peer(make: Callable[[float], PairLoss], *losses: str) -> Build:
    def build(case: Case) -> PairLoss:
        if case.loss not in losses:
            raise NotOffered(f"computes {' and '.join(losses)} alone")
        try:
            return make(case.temperature)
        except PeerMissing as error:
            raise NotOffered(str(error)) from error

    return build


def _lightly(case: Case) -> PairLoss:
    make = {"info-both": peers.lightly_ntxent, "cz-both": peers.lightly_dcl}.get(case.loss)
    return _peer(make or peers.lightly_ntxent, "info-both", "cz-both")(case)


def _compiled(case: Case) -> PairLoss:
    compiled: PairLoss = torch.compile(forms.eager(*case.parts, case.temperature), dynamic=False)
    return compiled


def _square(matrices: float) -> Callable[[int], float]:
    return lambda n: matrices * 4 * (2.0 * n) ** 2


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("ctloss", "ours, path chosen as for a user", ours("auto")),
        Provider("ctloss-torch", "ours, torch path", ours("torch")),
        Provider("ctloss-triton", "ours, Triton path", ours("triton")),
        Provider("ctloss-reference", "ours, quadratic reference", ours("reference"), _square(8)),
        Provider("eager", "best eager form: cross_entropy, or logsumexp for CZ-NCE, on one masked matrix",
                 _form(forms.eager), _square(6)),
        Provider("compile", "torch.compile of eager", _compiled, _square(6)),
        Provider("cross_entropy", "cross_entropy on joined blocks of logits", _form(forms.cross_entropy), _square(6)),
        Provider("logsumexp", "lse - s+ by autograd", _form(forms.logsumexp), _square(6)),
        Provider("naive", "exp, sum, log of the ratio", _form(forms.naive), _square(8)),
        Provider("lightly", "NTXentLoss, DCLLoss", _lightly, _square(12)),
        Provider("open_clip", "ClipLoss", _peer(peers.open_clip, "info-cross"), _square(2)),
        Provider("sentence-transformers", "MultipleNegativesRankingLoss, symmetric",
                 _peer(peers.sentence_transformers, "info-cross"), _square(2)),
        Provider("metric-learning", "pytorch-metric-learning's NTXentLoss, cubic in n",
                 _peer(peers.metric_learning, "info-both"), lambda n: 4 * 4 * (2.0 * n) ** 3),
    )
}  # fmt: skip

DEFAULT = tuple(name for name in PROVIDERS if name not in ("ctloss", "logsumexp"))


def build(name: str, case: Case, memory_limit: float = float("inf")) -> PairLoss:
    """The loss of a provider for a case.

    Args:
        name: a key of PROVIDERS.
        case: the problem.
        memory_limit: bytes; a provider estimated to need more is not started.

    Returns:
        A function of raw rows x and y.

    Raises:
        NotOffered: with the reason.
    """
    provider = PROVIDERS[name]
    needed = provider.row_bytes(case.n)
    if needed > memory_limit:
        raise NotOffered(
            f"would need about {needed / 2**30:.0f} GiB, more than the {memory_limit / 2**30:.0f} GiB allowed"
        )
    return provider.build(case)
