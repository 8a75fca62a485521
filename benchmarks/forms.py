"""The losses as people write them by hand in PyTorch: what the fused paths are measured against.

Each function takes a loss ("cz_nce", "info_nce" or "sig_lip"), its negatives ("both" or "cross") and a temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.exact import SIGMOID_BIAS
from benchmarks.peers import PairLoss
from ctloss.command import bench


def _eye(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=torch.bool, device=like.device)


def _all_logits(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    rows = F.normalize(torch.cat((x, y)), dim=1)
    return rows @ rows.T / temperature


def _cross_logits(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature


def eager(loss: str, negatives: str, temperature: float) -> PairLoss:
    """The fastest eager form known of each loss: one logit matrix, masked in place.

    infoNCE is ``cross_entropy`` on it; CZ-NCE, whose denominator lacks the positive, is ``logsumexp`` less the
    positive's logit; the sigmoid loss is ``logsigmoid``.
    """

    def info_both(x: Tensor, y: Tensor) -> Tensor:
        return bench.nt_xent(x, y, temperature)

    def cz_both(x: Tensor, y: Tensor) -> Tensor:
        logits = _all_logits(x, y, temperature)
        positive = logits.diagonal(len(x)).repeat(2)
        masked = logits.masked_fill(_eye(len(x), x).repeat(2, 2), -torch.inf)
        return (torch.logsumexp(masked, 1) - positive).mean()

    def info_cross(x: Tensor, y: Tensor) -> Tensor:
        return bench.clip(x, y, temperature)

    def cz_cross(x: Tensor, y: Tensor) -> Tensor:
        logits = _cross_logits(x, y, temperature)
        masked = logits.masked_fill(_eye(len(x), x), -torch.inf)
        both = torch.logsumexp(masked, 1) + torch.logsumexp(masked, 0)
        return (both / 2 - logits.diagonal()).mean()

    def sigmoid(x: Tensor, y: Tensor) -> Tensor:
        return bench.sigmoid(x, y, temperature, SIGMOID_BIAS)

    forms = {
        ("info_nce", "both"): info_both,
        ("cz_nce", "both"): cz_both,
        ("info_nce", "cross"): info_cross,
        ("cz_nce", "cross"): cz_cross,
        ("sig_lip", "cross"): sigmoid,
    }
    return forms[loss, negatives]


def cross_entropy(loss: str, negatives: str, temperature: float) -> PairLoss | None:
    """infoNCE as each direction's ``cross_entropy`` over concatenated blocks of logits; None for the other losses."""
    if loss != "info_nce":
        return None

    def direction(a: Tensor, b: Tensor) -> Tensor:
        logits = a @ b.T / temperature
        if negatives == "both":
            logits = torch.cat((logits, (a @ a.T / temperature).masked_fill(_eye(len(a), a), -torch.inf)), dim=1)
        return F.cross_entropy(logits, torch.arange(len(a), device=a.device))

    def form(x: Tensor, y: Tensor) -> Tensor:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        return (direction(x, y) + direction(y, x)) / 2

    return form


def logsumexp(loss: str, negatives: str, temperature: float) -> PairLoss | None:
    """infoNCE as log Σ exp over positive and negatives less the positive's logit; None for the other losses."""
    if loss != "info_nce" or negatives != "both":
        return None

    def form(x: Tensor, y: Tensor) -> Tensor:
        rows = F.normalize(torch.cat((x, y)), dim=1)
        logits = (rows @ rows.T / temperature).masked_fill_(_eye(2 * len(x), x), -torch.inf)
        positive = (rows * rows.roll(len(x), 0)).sum(1) / temperature
        return (torch.logsumexp(logits, 1) - positive).mean()

    return form


def naive(loss: str, negatives: str, temperature: float) -> PairLoss | None:
    """Exponentials, sums and the logarithm of their ratio, as in the paper's released code: no maximum is subtracted.

    None for the sigmoid loss.
    """
    if loss == "sig_lip":
        return None

    def form(x: Tensor, y: Tensor) -> Tensor:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        positive = torch.exp((x * y).sum(1) / temperature)
        eye = _eye(len(x), x)
        crossing = torch.exp(x @ y.T / temperature).masked_fill(eye, 0)
        sums = [crossing.sum(1), crossing.sum(0)]
        if negatives == "both":
            for side, rows in enumerate((x, y)):
                sums[side] = sums[side] + torch.exp(rows @ rows.T / temperature).masked_fill(eye, 0).sum(1)
        if loss == "info_nce":
            sums = [total + positive for total in sums]
        return -(torch.log(positive / sums[0]) + torch.log(positive / sums[1])).mean() / 2

    return form
