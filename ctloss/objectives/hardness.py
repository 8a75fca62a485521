"""Negatives weighted by how hard they are: logits at another temperature."""

from __future__ import annotations

import math

from torch import Tensor

from ..contrast import Contrast
from .formula import row_losses, softplus
from .options import checked, log_count, number
from .options import temperature as checked_temperature

__all__ = ["hardness_alpha", "hardness_beta"]


def hardness_alpha(c: Contrast, alpha: float, temperature: float | Tensor) -> Tensor:
    r"""infoNCE with every negative's logit raised by α times its similarity, which carries no gradient.

    .. math:: L_i = \log\Big(1 + \sum_j e^{s_{ij} - s^+_i + \alpha \, \mathrm{sg}(\cos_{ij})}\Big)

    Those logits are the ones at τ' = τ / (1 + ατ), so a single contrast at τ' is enough; its gradient, 1 + ατ times too
    large, is scaled back. Source: LLaVE, arXiv 2503.04812, eq. (5).

    Args:
        c: from ``ctloss.contrast`` at the temperature ``τ / (1 + alpha · τ)``.
        alpha: α, at least 0; 9 in the paper.
        temperature: τ of the loss; it receives no gradient.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for an alpha that is not a finite number of at least 0, or a temperature of another
            shape or value.

    Example:
        >>> import torch
        >>> hardness_alpha(Contrast(torch.tensor([-9.0]), torch.tensor([14.0])), 4.0, 0.1)
        tensor([0.0067])
    """
    alpha = number(
        "alpha", alpha, lambda v: 0 <= v < math.inf, "a finite number of at least 0", "0 is infoNCE, the paper's is 9"
    )
    factor = 1 + alpha * checked_temperature(temperature, c)
    factor = factor.detach() if isinstance(factor, Tensor) else factor
    return row_losses(c, lambda z, positive: softplus(raised(Contrast(z, positive), factor)))


def raised(c: Contrast, factor: float | Tensor) -> Tensor:
    """z at τ with the negatives' logits raised to those at τ / factor, without gradient, from a contrast at τ / factor.

    Returns:
        ``(rows,)``; −∞ where c has it.
    """
    empty = c.z == -math.inf
    z = c.z.masked_fill(empty, 0.0)
    # In c the positive's logit is raised too, so its gain is added back.
    gain = (1 - 1 / factor) * c.positive.detach()
    return (z.detach() + gain + (z - z.detach()) / factor).masked_fill(empty, -math.inf)


def hardness_beta(sharper: Contrast, sharp: Contrast, num_negatives: int | Tensor) -> Contrast:
    r"""The contrast with negatives weighted by their own exponentials to the power of β, for any objective.

    .. math:: z_i = \log\Big(M \frac{\sum_j e^{(1 + \beta) s_{ij}}}{\sum_j e^{\beta s_{ij}}}\Big) - s^+_i
                  = z_i(\tau / (1 + \beta)) - z_i(\tau / \beta) + \log M

    Source: arXiv 2010.04592, eq. (4); the paper's loss is :func:`debiased_nce` of this contrast.

    Args:
        sharper: from ``ctloss.contrast`` at the temperature ``τ / (1 + beta)``.
        sharp: the same at ``τ / beta``.
        num_negatives: M, the number of a row's negatives: one for all rows, or one per row.

    Returns:
        A :class:`Contrast` at τ.

    Raises:
        TypeError, ValueError: for contrasts that are not of the same rows, or another M.

    Example:
        >>> import torch
        >>> hardness_beta(Contrast(torch.tensor([1.0]), torch.tensor([4.0])),
        ...               Contrast(torch.tensor([0.5]), torch.tensor([2.0])), 1)
        Contrast(z=tensor([0.5000]), positive=tensor([2.]))
    """
    sharper, sharp = checked(sharper, "sharper"), checked(sharp, "sharp")
    if sharp.z.shape != sharper.z.shape:
        raise ValueError(
            f"sharp: expected the {len(sharper.z)} rows of sharper at another temperature, got {len(sharp.z)}; "
            "form both from the same x and y"
        )
    empty = sharper.z == -math.inf
    z = sharper.z.double().masked_fill(empty, 0.0) - sharp.z.double().masked_fill(empty, 0.0)
    z = z + log_count(num_negatives, sharper)
    positive = sharper.positive.double() - sharp.positive.double()
    dtype = sharper.z.dtype
    return Contrast(z.masked_fill(empty, -math.inf).to(dtype), positive.to(dtype))
