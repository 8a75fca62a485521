"""Global contrastive losses, whose normaliser is learnt or carried from batch to batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..contrast import Contrast
from .formula import log_of, per_row, require, row_losses


def sogclr(c: Contrast, log_normalizer: Tensor) -> Tensor:
    r"""The global contrastive loss: a batch's φ over a running estimate of the whole data's, per sample.

    .. math:: L_i = \frac{e^{z_i}}{M \, \mathrm{sg}(u_i)}

    Its value says little; its gradient is that of log u_i, whatever the batch's size. Source: SogCLR, arXiv 2202.12387,
    and FastCLIP-v1, 2407.01445. In log domain nothing overflows at any temperature, and log(ε + u) needs no ε.

    Args:
        c: from ``ctloss.contrast``.
        log_normalizer: ``(rows,)``, log(M u), from :class:`MovingNormalizer`.

    Returns:
        ``(rows,)`` losses.

    Example:
        >>> sogclr(Contrast(torch.tensor([-300.0]), torch.tensor([5.0])), torch.tensor([-300.0]))
        tensor([1.])
    """
    return row_losses(c, lambda z, positive: torch.exp(z - log_normalizer.detach()))


def neuclip(c: Contrast, log_normalizer: Tensor) -> Tensor:
    r"""A bound on z from above that is tight where the normaliser, learnt by a network, is right.

    .. math:: L_i = e^{z_i - \alpha_i} + \alpha_i - 1 \ge z_i

    Source: NeuCLIP, arXiv 2511.08417.

    Args:
        c: from ``ctloss.contrast``.
        log_normalizer: ``(rows,)``, α: what the network says of each row; receives the gradient 1 − e^(z − α).

    Returns:
        ``(rows,)`` losses.

    Example:
        >>> neuclip(Contrast(torch.tensor([-3.0, -3.0]), torch.zeros(2)), torch.tensor([-3.0, -2.0]))
        tensor([-3.0000, -2.6321])
    """
    log_normalizer = log_normalizer.double()
    return row_losses(c, lambda z, positive: torch.expm1(z - log_normalizer) + log_normalizer)


def isogclr(
    c: Contrast, log_normalizer: Tensor, temperature: Tensor, rho: float, num_negatives: int | Tensor
) -> Tensor:
    r"""The robust global contrastive loss: temperatures that are learnt, for each sample (iSogCLR) or for all.

    .. math:: L_i = \tau_i (\log u_i + \rho)

    The gradient treats u's past as constant: ∂L/∂z = τ e^z / (M u), and ∂L/∂τ = log u + ρ beside what comes through z.
    Source: iSogCLR, arXiv 2305.11965, eq. (6); with one temperature FastCLIP-v3, 2407.01445.

    Args:
        c: from ``ctloss.contrast`` with the same ``temperature``, so that its gradient comes through z too.
        log_normalizer: ``(rows,)``, log(M u), from :class:`MovingNormalizer`.
        temperature: ``()``, ``(n,)`` or ``(rows,)``.
        rho: ρ; the larger, the smaller the temperatures.
        num_negatives: M as the normaliser was given it.

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for a temperature of another shape.

    Example:
        >>> c = Contrast(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> isogclr(c, c.z, torch.tensor([0.1]), 6.0, 1)
        tensor([0.3000])
    """
    tau, log_normalizer = torch.as_tensor(per_row(temperature, len(c.z))), log_normalizer.detach().double()
    value = tau * (log_normalizer - log_of(num_negatives, c) + rho)

    def formula(z: Tensor, positive: Tensor) -> Tensor:
        ratio = torch.exp(z - log_normalizer)
        return value + tau.detach() * (ratio - ratio.detach())

    return row_losses(c, formula)


class MovingNormalizer(nn.Module):
    r"""A running estimate of every training sample's e^z / M, kept as its logarithm.

    .. math:: u_i \leftarrow (1 - \gamma) u_i + \gamma \, e^{z_i} / M

    A sample's first value is its estimate from then on (γ = 1). Source: SogCLR, arXiv 2202.12387, algorithm 1. The
    estimates are part of ``state_dict``, in float64 whatever the module is converted to; a sample not seen yet has
    −inf. In evaluation mode estimates are read and, where there is none, the batch's own value is taken; nothing is
    written. Rows without negatives and rows that are not finite leave their estimates as they are.

    Args:
        num_samples: how many training samples there are; their ids are 0 … num_samples − 1.
        gamma: γ in (0, 1], the share of the new value; an attribute that a schedule may change.
        num_directions: 2 if both rows of a pair are anchors: each has an estimate of its own.

    Raises:
        ValueError: for a gamma outside (0, 1], or counts below 1.

    Example:
        >>> normalizer = MovingNormalizer(10, gamma=0.5, num_directions=1)
        >>> ids, empty = torch.tensor([3]), torch.zeros(1)
        >>> normalizer(Contrast(torch.tensor([0.0]), empty), ids, 1)
        tensor([0.])
        >>> normalizer(Contrast(torch.tensor([1.0]), empty), ids, 1)
        tensor([0.6201])
    """

    log_u: Tensor

    def __init__(self, num_samples: int, *, gamma: float = 0.9, num_directions: int = 2) -> None:
        super().__init__()
        require(num_samples > 0, "num_samples", num_samples, "a positive number")
        require(num_directions in (1, 2), "num_directions", num_directions, "1 or 2")
        require(0 < gamma <= 1, "gamma", gamma, "a number in (0, 1]")
        self.gamma = gamma
        self.register_buffer("log_u", torch.full((num_directions, num_samples), -math.inf, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, c: Contrast, ids: Tensor, num_negatives: int | Tensor) -> Tensor:
        """Update the estimates of a batch's samples, if training, and return them.

        Args:
            c: from ``ctloss.contrast``, ``num_directions`` rows a sample.
            ids: ``(n,)`` int64, which sample each pair is. Of a sample that is there twice the larger value stays.
            num_negatives: M, the number of a row's negatives: a number, or one a row.

        Returns:
            ``(rows,)``, log(M u_i) in the dtype of z, without gradient: what e^z is to be divided by. It is 0 for a row
            without negatives whose sample has no estimate.

        Raises:
            ValueError: if there are not ``num_directions`` rows an id.
        """
        shape = (self.log_u.shape[0], ids.shape[0])
        require(len(c.z) == math.prod(shape), "ids", f"{ids.shape[0]} ids, {len(c.z)} rows", f"{shape[0]} rows an id")
        log_count = log_of(num_negatives, c).expand(len(c.z)).reshape(shape)
        new = c.z.double().view(shape) - log_count
        old = self.log_u[:, ids]
        # log1p(−1) of γ = 1 is −inf, which forgets the old one.
        kept = old + (math.log1p(-self.gamma) if self.gamma < 1 else -math.inf)
        mixed = torch.where(old == -math.inf, new, torch.logaddexp(kept, new + math.log(self.gamma)))
        if self.training:
            mixed = torch.where(torch.isfinite(new), mixed, old)
            self.log_u.scatter_reduce_(1, ids.expand(shape), mixed, "amax", include_self=False)
        else:
            mixed = torch.where(old == -math.inf, new, old)
        return (mixed + log_count).masked_fill(mixed == -math.inf, 0.0).flatten().to(c.z.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingNormalizer:
        # model.bfloat16() must not leave three digits of what took an epoch to learn.
        exact = self.log_u
        super()._apply(fn, recurse)
        self.log_u = exact.to(self.log_u.device)
        return self
