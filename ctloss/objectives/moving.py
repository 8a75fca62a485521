"""Global contrastive losses, whose normaliser is learnt or carried over from batch to batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..contrast import Contrast
from ..core import checks
from ..core.ops import unwatched
from .formula import row_losses
from .options import checked, log_count, number, vector
from .options import temperature as checked_temperature

__all__ = ["MovingNormalizer", "isogclr", "neuclip", "sogclr"]


def sogclr(c: Contrast, log_normalizer: Tensor) -> Tensor:
    r"""The global contrastive loss: each row's φ in the batch over a running estimate of its φ in the whole data set.

    .. math:: L_i = \frac{e^{z_i}}{M \, \mathrm{sg}(u_i)}

    Its value says little; its gradient is that of log u_i, whatever the batch's size. Source: SogCLR, arXiv 2202.12387,
    and FastCLIP-v1, 2407.01445. In the log domain nothing overflows at any temperature, and log(ε + u) needs no ε.

    Args:
        c: from ``ctloss.contrast``.
        log_normalizer: ``(rows,)``, log(M u), from :class:`MovingNormalizer`.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a normaliser that is not one number per row.

    Example:
        >>> sogclr(Contrast(torch.tensor([-300.0]), torch.tensor([5.0])), torch.tensor([-300.0]))
        tensor([1.])
    """
    log_normalizer = vector("log_normalizer", log_normalizer, c).detach()
    return row_losses(c, lambda z, positive: torch.exp(z - log_normalizer))


def neuclip(c: Contrast, log_normalizer: Tensor) -> Tensor:
    r"""An upper bound on z that is tight where the normaliser, learnt by a network, is right.

    .. math:: L_i = e^{z_i - \alpha_i} + \alpha_i - 1 \ge z_i

    Source: NeuCLIP, arXiv 2511.08417.

    Args:
        c: from ``ctloss.contrast``.
        log_normalizer: ``(rows,)``, α: the network's prediction for each row; receives the gradient 1 − e^(z − α).

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for an α that is not one number per row.

    Example:
        >>> neuclip(Contrast(torch.tensor([-3.0, -3.0]), torch.zeros(2)), torch.tensor([-3.0, -2.0]))
        tensor([-3.0000, -2.6321])
    """
    log_normalizer = vector("log_normalizer", log_normalizer, c)
    return row_losses(c, lambda z, positive: torch.expm1(z - log_normalizer) + log_normalizer)


def isogclr(
    c: Contrast, log_normalizer: Tensor, temperature: float | Tensor, rho: float, num_negatives: int | Tensor
) -> Tensor:
    r"""The robust global contrastive loss, which learns temperatures: one for each sample (iSogCLR), or one for all.

    .. math:: L_i = \tau_i (\log u_i + \rho)

    The gradient treats u's past as constant: ∂L/∂z = τ e^z / (M u), and ∂L/∂τ = log u + ρ plus the part through z.
    Source: iSogCLR, arXiv 2305.11965, eq. (6); with one temperature FastCLIP-v3, 2407.01445.

    Args:
        c: from ``ctloss.contrast`` with the same ``temperature``, so that its gradient also comes through z.
        log_normalizer: ``(rows,)``, log(M u), from :class:`MovingNormalizer`.
        temperature: a number, ``()``, ``(n,)`` or ``(rows,)``; may require a gradient.
        rho: ρ; the larger it is, the smaller the temperatures become.
        num_negatives: M as given to the normaliser.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a normaliser that is not one number per row, a temperature of another shape or value,
            a rho that is not a finite number, or an M below 0.

    Example:
        >>> c = Contrast(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> isogclr(c, c.z, torch.tensor([0.1]), 6.0, 1)
        tensor([0.3000])
    """
    rho = number("rho", rho, math.isfinite, "a finite number", "start with 6")
    tau = torch.as_tensor(checked_temperature(temperature, c), dtype=torch.float64, device=c.z.device)
    log_normalizer = vector("log_normalizer", log_normalizer, c).detach()
    value = tau * (log_normalizer - log_count(num_negatives, c) + rho)

    def formula(z: Tensor, positive: Tensor) -> Tensor:
        ratio = torch.exp(z - log_normalizer)
        return value + tau.detach() * (ratio - ratio.detach())

    return row_losses(c, formula)


class MovingNormalizer(nn.Module):
    r"""A running estimate of every training sample's e^z / M, kept as its logarithm.

    .. math:: u_i \leftarrow (1 - \gamma) u_i + \gamma \, e^{z_i} / M

    A sample's first value is its first estimate. Source: SogCLR, arXiv 2202.12387, algorithm 1. The estimates and γ are
    part of ``state_dict``; the estimates stay float64 whatever the module is converted to, and are −inf for samples not
    seen yet. In evaluation mode estimates are only read, and samples without one use the batch's value. Rows without
    negatives and rows that are not finite leave their estimates unchanged.

    Args:
        num_samples: how many training samples there are; their ids are 0 … num_samples − 1.
        gamma: γ in (0, 1], the share of the new value; an attribute that a schedule may set.
        num_directions: 2 if both rows of a pair are anchors: each has an estimate of its own.

    Raises:
        TypeError, ValueError: for a gamma outside (0, 1], or counts below 1.

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
        number(
            "num_samples",
            num_samples,
            lambda v: v >= 1 and v == int(v),
            "a whole number of at least 1",
            "it is the number of samples in the data set",
        )
        number("num_directions", num_directions, lambda v: v in (1, 2), "1 or 2", "2 goes with directions='both'")
        self.gamma = gamma
        shape = int(num_directions), int(num_samples)
        self.register_buffer("log_u", torch.full(shape, -math.inf, dtype=torch.float64))

    @property
    def gamma(self) -> float:
        """γ, the share of the new value."""
        return self._gamma

    @gamma.setter
    def gamma(self, value: float) -> None:
        self._gamma = float(number("gamma", value, lambda v: 0 < v <= 1, "a number in (0, 1]", "1 forgets the past"))

    def get_extra_state(self) -> Tensor:
        """γ as a tensor, which every checkpoint format can hold."""
        return torch.tensor(self.gamma, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore γ from a checkpoint."""
        self.gamma = float(state)

    @torch.no_grad()
    def forward(self, c: Contrast, ids: Tensor, num_negatives: int | Tensor) -> Tensor:
        """Update the estimates of a batch's samples, if training, and return them.

        Args:
            c: from ``ctloss.contrast``, ``num_directions`` rows per sample.
            ids: ``(n,)`` integers, the sample of each pair. If a sample occurs twice, the larger value is stored and
                returned for both. Ids on a CUDA device are not read on the host.
            num_negatives: M, the number of a row's negatives: one for all rows, or one per row.

        Returns:
            ``(rows,)``, log(M u_i) in the dtype of z, without gradient: the log of what divides e^z. It is 0 for a row
            without negatives whose sample has no estimate.

        Raises:
            TypeError: for ids that are not integers, or something other than a contrast.
            ValueError: for another number of ids or another shape, ids out of range, or another device.
        """
        ids = self._checked_ids(ids, checked(c))
        shape = (self.log_u.shape[0], ids.shape[0])
        log_m = log_count(num_negatives, c).expand(len(c.z)).reshape(shape)
        new = c.z.double().view(shape) - log_m
        old = self.log_u[:, ids]
        # With γ = 1, log1p(−γ) is −inf, which forgets the old estimate.
        kept = old + (math.log1p(-self.gamma) if self.gamma < 1 else -math.inf)
        mixed = torch.where(old == -math.inf, new, torch.logaddexp(kept, new + math.log(self.gamma)))
        if self.training:
            # −inf is below the value of any other row of the same sample.
            mixed = torch.where(torch.isfinite(new), mixed, -math.inf)
            self.log_u.scatter_reduce_(1, ids.expand(shape), mixed, "amax", include_self=False)
            mixed = self.log_u[:, ids]
            mixed = torch.where(mixed == -math.inf, old, mixed)
            self.log_u[:, ids] = mixed
        else:
            mixed = torch.where(old == -math.inf, new, old)
        return (mixed + log_m).masked_fill(mixed == -math.inf, 0.0).flatten().to(c.z.dtype)

    def _checked_ids(self, ids: object, c: Contrast) -> Tensor:
        num_directions, num_samples = self.log_u.shape
        rows = len(c.z)
        if self.log_u.device != c.z.device:
            raise ValueError(
                f"c: expected a contrast on the normaliser's device, {self.log_u.device}, got one on {c.z.device}; "
                f"move the normaliser with .to({str(c.z.device)!r})"
            )
        if isinstance(ids, Tensor) and (ids.ndim != 1 or ids.shape[0] * num_directions != rows):
            raise ValueError(
                f"ids: expected shape (n,) and {num_directions} rows per id, got shape {tuple(ids.shape)} for {rows} "
                "rows; num_directions is 2 if both directions' rows are anchors, and .flatten() makes a vector"
            )
        numbers = checks.ids("ids", ids, rows // num_directions, c.z)
        if numbers.numel() and numbers.device.type == "cpu" and unwatched(numbers):
            for extreme in numbers.aminmax():
                if not 0 <= extreme.item() < num_samples:
                    raise ValueError(
                        f"ids: expected numbers from 0 to {num_samples - 1}, got {extreme.item()}; number the samples "
                        "from 0, and pass their number as num_samples"
                    )
        return numbers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingNormalizer:
        exact = self.log_u
        super()._apply(fn, recurse)
        if exact.is_meta and not self.log_u.is_meta:
            # Memory just allocated for a module from meta is uninitialised.
            self.log_u = torch.full_like(exact, -math.inf, device=self.log_u.device)
        elif self.log_u.dtype != exact.dtype:
            # model.bfloat16() must not cut what took an epoch to learn to three digits.
            self.log_u = exact.to(self.log_u.device)
        return self
