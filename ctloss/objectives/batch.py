"""Losses of one batch's rows: infoNCE, its decoupled form, and their variants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contrast import Contrast
from .formula import row_losses, softplus
from .options import checked, log_count, number
from .options import temperature as checked_temperature

__all__ = ["dclw", "debiased_nce", "epsilon_nce", "focal_nce", "gte_nce", "margin_nce", "rince"]


def epsilon_nce(c: Contrast, epsilon: float) -> Tensor:
    r"""A share of the positive stays in the denominator: 0 is CZ-NCE, 1 is infoNCE.

    .. math:: L_i = \log(\varepsilon + e^{z_i})

    Source: arXiv 2201.12680; ε = 0 is eq. (4) of 2202.13083, ε = 1 infoNCE (1807.03748).

    Args:
        c: from ``ctloss.contrast``.
        epsilon: ε, at least 0.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for an epsilon that is not a finite number of at least 0.

    Example:
        >>> c = Contrast(torch.tensor([0.0, -2.0]), torch.tensor([5.0, 5.0]))
        >>> epsilon_nce(c, 0.0), epsilon_nce(c, 1.0)
        (tensor([ 0., -2.]), tensor([0.6931, 0.1269]))
    """
    epsilon = number(
        "epsilon", epsilon, lambda v: 0 <= v < math.inf, "a finite number of at least 0", "0 is CZ-NCE, 1 infoNCE"
    )
    if epsilon == 0:
        return row_losses(c, lambda z, positive: z)
    return row_losses(c, lambda z, positive: softplus(z - math.log(epsilon)) + math.log(epsilon))


def margin_nce(c: Contrast, margin: float, temperature: float | Tensor) -> Tensor:
    r"""Additive margin: the positive must win even with its similarity lowered by a margin (LaBSE).

    .. math:: L_i = \mathrm{softplus}(z_i + m / \tau)

    Source: arXiv 1902.08564, used by LaBSE, 2007.01852.

    Args:
        c: from ``ctloss.contrast``.
        margin: m, in units of the similarity; LaBSE's is 0.3.
        temperature: τ that ``c`` was formed with, a number, ``()``, ``(n,)`` or ``(rows,)``; may require a gradient.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a margin that is not a finite number, or a temperature of another shape or value.

    Example:
        >>> c = Contrast(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> margin_nce(c, 0.3, 0.1) == epsilon_nce(Contrast(torch.tensor([0.0]), c.positive), 1.0)
        tensor([True])
    """
    margin = number("margin", margin, math.isfinite, "a finite number", "LaBSE's is 0.3")
    logit = margin / checked_temperature(temperature, c)
    return row_losses(c, lambda z, positive: softplus(z + logit))


def focal_nce(c: Contrast, gamma: float) -> Tensor:
    r"""infoNCE with easy rows down-weighted by their error probability to the power of γ.

    .. math:: L_i = \sigma(z_i)^\gamma \, \mathrm{softplus}(z_i)

    Source: the focal loss of arXiv 1708.02002 with infoNCE's probability of the positive, σ(−z).

    Args:
        c: from ``ctloss.contrast``.
        gamma: at least 0; 0 is infoNCE.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a gamma that is not a finite number of at least 0.

    Example:
        >>> focal_nce(Contrast(torch.tensor([0.0]), torch.tensor([5.0])), 2.0)
        tensor([0.1733])
    """
    gamma = number(
        "gamma", gamma, lambda v: 0 <= v < math.inf, "a finite number of at least 0", "0 is infoNCE, 2 usual"
    )
    return row_losses(c, lambda z, positive: torch.exp(-gamma * softplus(-z)) * softplus(z))


def debiased_nce(c: Contrast, tau_plus: float, num_negatives: int | Tensor, temperature: float | Tensor) -> Tensor:
    r"""infoNCE with the negatives' sum corrected for the positives expected among them.

    .. math:: L_i = \log\left(1 + \max\left(\frac{e^{z_i} - M \tau^+}{1 - \tau^+},
              M e^{-1/\tau - s^+_i}\right)\right)

    The floor is what M negatives of cosine −1 would add up to. Source: arXiv 2007.00224, eqs. (7), (8).

    Args:
        c: from ``ctloss.contrast`` with ``normalize=True``.
        tau_plus: τ⁺, the share of a row's negatives that are really positives, in [0, 1).
        num_negatives: M, the number of a row's negatives: one for all rows, or one per row.
        temperature: τ that ``c`` was formed with.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a tau_plus outside [0, 1), an M below 0, or a temperature that is not positive.

    Example:
        >>> debiased_nce(Contrast(torch.tensor([2.0]), torch.tensor([5.0])), 0.1, 6, 0.2)
        tensor([2.1452])
    """
    tau_plus = number(
        "tau_plus", tau_plus, lambda v: 0 <= v < 1, "a number in [0, 1)", "it is a share, and 0 corrects nothing"
    )
    log_m, tau = log_count(num_negatives, c), checked_temperature(temperature, c)
    log_share = math.log(tau_plus) if tau_plus > 0 else -math.inf

    def formula(z: Tensor, positive: Tensor) -> Tensor:
        above = z - log_m - log_share
        # log(e^z − Mτ⁺), where that is positive.
        unbiased = z + torch.log(-torch.expm1(-above.masked_fill(above <= 0, 1.0))) - math.log1p(-tau_plus)
        floor = log_m - 1 / tau - positive
        return softplus(torch.maximum(unbiased.masked_fill(above <= 0, -math.inf), floor))

    return row_losses(c, formula)


def rince(c: Contrast, q: float, lam: float) -> Tensor:
    r"""Robust infoNCE: between infoNCE (q → 0) and a symmetric loss that forgives wrong pairs (q = 1).

    .. math:: L_i = \frac{-e^{q s^+_i} + (\lambda (e^{s^+_i} + \sum_j e^{s_{ij}}))^q}{q}
                  = e^{q s^+_i} \, \frac{\mathrm{expm1}(q (\log \lambda + \mathrm{softplus}(z_i)))}{q}

    Source: arXiv 2201.04309, eq. (4). The second form keeps the digits of the difference. The loss is as large as
    e^(q s⁺): where q s⁺ exceeds 88 (float64: 709) it is −inf and its gradient meaningless. Cosines stay below that with
    τ > q / 88, which is 0.0114 for q = 1.

    Args:
        c: from ``ctloss.contrast``.
        q: in (0, 1].
        lam: λ, in (0, 1]; with 1 the loss tends to infoNCE for q → 0.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a q or lam outside its range.

    Example:
        >>> rince(Contrast(torch.tensor([-1.0]), torch.tensor([2.0])), 0.5, 0.1)
        tensor([-3.4259])
    """
    q = number("q", q, lambda v: 0 < v <= 1, "a number in (0, 1]", "epsilon_nce(c, 1.0) is the limit of q → 0")
    lam = number("lam", lam, lambda v: 0 < v <= 1, "a number in (0, 1]", "start with 0.01")
    return row_losses(
        c, lambda z, positive: torch.exp(q * positive) * torch.expm1(q * (math.log(lam) + softplus(z))) / q
    )


def dclw(c: Contrast, temperature: float | Tensor, sigma: float = 0.5) -> Tensor:
    r"""Decoupled contrastive loss that pulls pairs more strongly the farther apart they still are.

    .. math:: L_i = \mathrm{lse}_i - w_i s^+_i, \qquad
              w_i = 2 - n \, \mathrm{softmax}_i(\cos^+_i / \sigma)

    The weights carry no gradient. Source: arXiv 2110.06848, eq. (6) and section 3.2.

    Args:
        c: from ``ctloss.contrast``.
        temperature: τ that ``c`` was formed with.
        sigma: σ of the weights, positive.

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a sigma or a temperature that is not positive.

    Example:
        >>> dclw(Contrast(torch.tensor([1.0, 1.0]), torch.tensor([5.0, 4.0])), 0.1)
        tensor([1.4983, 0.6013])
    """
    sigma = number("sigma", sigma, lambda v: 0 < v < math.inf, "a positive number", "the paper's is 0.5")
    cosine = checked(c).positive.double() * checked_temperature(temperature, c)
    # Over 2n rows each pair occurs twice, so its softmax is halved and the count doubled.
    excess = len(c.z) * torch.softmax(cosine / sigma, 0).detach() - 1
    return row_losses(c, lambda z, positive: z + excess * positive)


def gte_nce(c: Contrast) -> Tensor:
    r"""Four directions in one softmax: queries and documents against both sides, one loss per pair.

    .. math:: L_i = \log(2 + e^{z_{q,i}} + e^{z_{d,i}})

    The positive is in the sum twice, as query to document and as document to query. Source: GTE, arXiv 2308.03281,
    eq. (2).

    Args:
        c: from ``ctloss.contrast`` with ``directions="both"`` and ``negatives="both"``.

    Returns:
        ``(n,)`` losses, one per pair; 0 where neither row of a pair has negatives.

    Raises:
        TypeError, ValueError: for another kind of contrast, or an odd number of rows.

    Example:
        >>> gte_nce(Contrast(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 5.0])))
        tensor([1.7437])
    """
    if len(checked(c).z) % 2:
        raise ValueError(
            f"c: expected both directions' rows, two per pair, got {len(c.z)}; form the contrast with directions='both'"
        )
    empty = c.z == -math.inf
    # Far below any logit, but finite: a difference of two infinities would be NaN.
    queries, documents = c.z.double().masked_fill(empty, -1e300).chunk(2)
    pairs = math.log(2) + softplus(torch.logaddexp(queries, documents) - math.log(2))
    return pairs.masked_fill(empty.view(2, -1).all(0), 0.0).to(c.z.dtype)
