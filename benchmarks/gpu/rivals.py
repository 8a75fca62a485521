"""Fused contrastive losses of other packages that need a CUDA device, as published, beside ours.

memeff, inf-cl and cut-cross-entropy compute infoNCE with the other language's negatives. siglip-kernel computes another
loss, a sigmoid of each pair, in one pass where a softmax needs two: a mark for speed, with an error against its own
formula.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.exact import Exact
from benchmarks.peers import PairLoss, installed_version
from benchmarks.providers import Build, Case, NotOffered, Provider

SIGLIP = "siglip"
SIGLIP_BIAS = -10.0


def _module(distribution: str, name: str, case: Case, *losses: str) -> ModuleType:
    if case.loss not in losses:
        raise NotOffered(f"computes {' and '.join(losses)} alone")
    if not case.device.startswith("cuda"):
        raise NotOffered("needs a CUDA device")
    if installed_version(distribution) is None:
        raise NotOffered(f"{distribution} is not installed")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package's import may fail in any way; the sweep goes on without it
        raise NotOffered(f"{distribution} cannot be imported: {error!r}") from error


def _memeff(case: Case) -> PairLoss:
    module = _module("memeff", "memeff", case, "info-cross")
    # stable=True, its default, returns another gradient scale.
    loss: PairLoss = module.MemoryEfficientCLIPLoss(temperature=case.temperature, stable=False)
    return loss


def _inf_cl(case: Case) -> PairLoss:
    module = _module("inf-cl", "inf_cl", case, "info-cross")
    head = next((width for width in (256, 128, 64, 32, 16) if case.d % width == 0), None)
    if head is None:
        raise NotOffered("needs d to be a multiple of 16")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        one_way = [
            module.cal_flash_loss(a, b, scale=1 / case.temperature, head_dim=head).mean() for a, b in ((x, y), (y, x))
        ]
        return (one_way[0] + one_way[1]) / 2

    return loss


def _cut_cross_entropy(filter_eps: str | None) -> Build:
    def build(case: Case) -> PairLoss:
        module = _module("cut-cross-entropy", "cut_cross_entropy", case, "info-cross")
        target = torch.arange(case.n, device=case.device)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
            scale = 1 / case.temperature
            one_way = [
                module.linear_cross_entropy(a * scale, b, target, filter_eps=filter_eps) for a, b in ((x, y), (y, x))
            ]
            return (one_way[0] + one_way[1]) / 2

        return loss

    return build


def _siglip(case: Case) -> PairLoss:
    module = _module("siglip-kernel", "siglip_kernel", case, SIGLIP)
    log_scale = torch.tensor(-math.log(case.temperature), device=case.device)
    bias = torch.tensor(SIGLIP_BIAS, device=case.device)

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
        Provider("siglip-kernel", "sigmoid loss: another loss, one pass", _siglip),
    )
}


def siglip_exact(x: Tensor, y: Tensor, *, temperature: float, panel_bytes: int = 2**29) -> Exact:
    """The sigmoid loss -Σ log sigmoid(±(cos/τ + b)) / n of raw rows and its gradients, in float64, by panels.

    Args:
        x: (n, d) raw rows.
        y: (n, d).
        temperature: τ.
        panel_bytes: memory of one panel of logits.

    Returns:
        As for the other losses.
    """
    n = len(x)
    raw = [rows.double() for rows in (x, y)]
    norms = [torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in raw]
    u, v = (rows / norm for rows, norm in zip(raw, norms, strict=True))
    gu, gv = torch.zeros_like(u), torch.zeros_like(v)
    total = 0.0
    step = max(1, panel_bytes // (8 * n))
    for start in range(0, n, step):
        stop = min(start + step, n)
        signed = -(u[start:stop] @ v.T / temperature + SIGLIP_BIAS)
        own = torch.arange(start, stop, device=x.device)
        row = own - start
        signed[row, own] *= -1
        total -= F.logsigmoid(signed).sum().item() / n
        slope = torch.sigmoid(-signed) / (n * temperature)
        slope[row, own] *= -1
        gu[start:stop] = slope @ v
        gv += slope.T @ u[start:stop]
    gx, gy = (
        (gradient - (gradient * unit).sum(1, keepdim=True) * unit) / norm
        for gradient, unit, norm in ((gu, u, norms[0]), (gv, v, norms[1]))
    )
    return Exact(total, gx, gy, max(1.0, abs(total)))
