"""Fused contrastive losses of other packages that need a CUDA device, as published.

memeff, inf-cl and cut-cross-entropy compute infoNCE with the other language's negatives; siglip-kernel computes the
sigmoid loss.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.exact import SIGMOID_BIAS
from benchmarks.peers import PairLoss
from benchmarks.providers import Build, Case, NotOffered, Provider, only
from ctloss.command.versions import installed_version


def _module(distribution: str, name: str, case: Case, loss: str) -> ModuleType:
    only(case, loss)
    if not case.device.startswith("cuda"):
        raise NotOffered("needs a CUDA device")
    if installed_version(distribution) is None:
        raise NotOffered(f"{distribution} is not installed")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package's import may fail in any way; the run continues without it
        raise NotOffered(f"{distribution} cannot be imported: {error!r}") from error


def _memeff(case: Case) -> PairLoss:
    module = _module("memeff", "memeff", case, "info-cross")
    # stable=True, its default, returns a gradient of another scale.
    loss: PairLoss = module.MemoryEfficientCLIPLoss(temperature=case.temperature, stable=False)
    return loss


def _both_directions(one_way: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    return (one_way(x, y) + one_way(y, x)) / 2


def _inf_cl(case: Case) -> PairLoss:
    module = _module("inf-cl", "inf_cl", case, "info-cross")
    head = next((width for width in (256, 128, 64, 32, 16) if case.d % width == 0), None)
    if head is None:
        raise NotOffered("needs d to be a multiple of 16")

    def one_way(a: Tensor, b: Tensor) -> Tensor:
        return module.cal_flash_loss(a, b, scale=1 / case.temperature, head_dim=head).mean()

    return partial(_both_directions, one_way)


def _cut_cross_entropy(filter_eps: str | None) -> Build:
    def build(case: Case) -> PairLoss:
        module = _module("cut-cross-entropy", "cut_cross_entropy", case, "info-cross")
        target, scale = torch.arange(case.n, device=case.device), 1 / case.temperature

        def one_way(a: Tensor, b: Tensor) -> Tensor:
            return module.linear_cross_entropy(a * scale, b, target, filter_eps=filter_eps)

        return partial(_both_directions, one_way)

    return build


def _siglip(case: Case) -> PairLoss:
    module = _module("siglip-kernel", "siglip_kernel", case, "siglip")
    log_scale = torch.tensor(-math.log(case.temperature), device=case.device)
    bias = torch.tensor(SIGMOID_BIAS, device=case.device)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return module.fused_siglip_loss(F.normalize(x, dim=1), F.normalize(y, dim=1), log_scale, bias)

    return loss


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("memeff", "MemoryEfficientCLIPLoss, stable=False", _memeff),
        Provider("inf-cl", "flash loss, both directions", _inf_cl),
        Provider("cut-cross-entropy", "twice, gradients filtered (its default)", _cut_cross_entropy("high")),
        Provider("cut-cross-entropy-exact", "twice, nothing filtered", _cut_cross_entropy(None)),
        Provider("siglip-kernel", "sigmoid loss", _siglip),
    )
}
