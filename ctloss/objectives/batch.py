"""Losses of one batch's rows: infoNCE, its decoupled form, and what was made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contrast import Contrast
from .formula import log_of, per_row, require, row_losses, softplus


def epsilon_nce(c: Contrast, epsilon: float) -> Tensor:
    r"""How much of the positive stays in the denominator: 0 is CZ-NCE, 1 is infoNCE.

    .. math:: L_i = \log(\varepsilon + e^{z_i})

    Source: arXiv 2201.12680; ε = 0 is eq. (4) of 2202.13083, ε = 1 infoNCE (1807.03748).

    Args:
        c: from ``ctloss.contrast``, vectors of length rows.
        epsilon: at least 0.

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for an epsilon below 0 or not finite.

    Example:
        >>> c = Contrast(torch.tensor([0.0, -2.0]), torch.tensor([5.0, 5.0]))
        >>> epsilon_nce(c, 0.0), epsilon_nce(c, 1.0)
        (tensor([ 0., -2.]), tensor([0.6931, 0.1269]))
    """
    require(0 <= epsilon < math.inf, "epsilon", epsilon, "a finite number of at least 0")
    if epsilon == 0:
        return row_losses(c, lambda z, positive: z)
    return row_losses(c, lambda z, positive: softplus(z - math.log(epsilon)) + math.log(epsilon))


def margin_nce(c: Contrast, margin: float, temperature: float | Tensor) -> Tensor:
    r"""Additive margin: the positive must win although its similarity is lowered by a margin (LaBSE).

    .. math:: L_i = \mathrm{softplus}(z_i + m / \tau)

    Source: arXiv 1902.08564, used by LaBSE, 2007.01852.

    Args:
        c: from ``ctloss.contrast``.
        margin: m, in units of the similarity; LaBSE's is 0.3.
        temperature: τ that ``c`` was formed with, a number, ``()``, ``(n,)`` or ``(rows,)``; may ask for its gradient.

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for a margin that is not finite.

    Example:
        >>> c = Contrast(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> margin_nce(c, 0.3, 0.1) == epsilon_nce(Contrast(torch.tensor([0.0]), c.positive), 1.0)
        tensor([True])
    """
    require(math.isfinite(margin), "margin", margin, "a finite number")
    logit = margin / per_row(temperature, len(c.z))
    return row_losses(c, lambda z, positive: softplus(z + logit))


def focal_nce(c: Contrast, gamma: float) -> Tensor:
    r"""infoNCE with easy rows weighted down by their error probability to the power of γ.

    .. math:: L_i = \sigma(z_i)^\gamma \, \mathrm{softplus}(z_i)

    Source: the focal loss of arXiv 1708.02002 with infoNCE's probability of the positive, σ(−z).

    Args:
        c: from ``ctloss.contrast``.
        gamma: at least 0; 0 is infoNCE.

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for a gamma below 0 or not finite.

    Example:
        >>> focal_nce(Contrast(torch.tensor([0.0]), torch.tensor([5.0])), 2.0)
        tensor([0.1733])
    """
    require(0 <= gamma < math.inf, "gamma", gamma, "a finite number of at least 0")
    return row_losses(c, lambda z, positive: torch.exp(-gamma * softplus(-z)) * softplus(z))


def debiased_nce(c: Contrast, tau_plus: float, num_negatives: int | Tensor, temperature: float | Tensor) -> Tensor:
    r"""infoNCE with the negatives' sum freed of the positives expected among them.

    .. math:: L_i = \log\left(1 + \max\left(\frac{e^{z_i} - M \tau^+}{1 - \tau^+},
              M e^{-1/\tau - s^+_i}\right)\right)

    The floor is the least that M cosines can come to, −1 over the temperature. Source: arXiv 2007.00224, eqs. (7), (8).

    Args:
        c: from ``ctloss.contrast`` with ``normalize=True``.
        tau_plus: τ⁺, the share of a row's negatives that are its positives in truth, in [0, 1).
        num_negatives: M, the number of a row's negatives: a number, or one a row.
        temperature: τ that ``c`` was formed with.

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for a tau_plus outside [0, 1).

    Example:
        >>> debiased_nce(Contrast(torch.tensor([2.0]), torch.tensor([5.0])), 0.1, 6, 0.2)
        tensor([2.1452])
    """
    require(0 <= tau_plus < 1, "tau_plus", tau_plus, "a number in [0, 1)")
    log_count, tau = log_of(num_negatives, c), per_row(temperature, len(c.z))
    log_share = math.log(tau_plus) if tau_plus > 0 else -math.inf

    def formula(z: Tensor, positive: Tensor) -> Tensor:
        above = z - log_count - log_share
        # log(e^z − Mτ⁺), where that is positive.
        unbiased = z + torch.log(-torch.expm1(-above.masked_fill(above <= 0, 1.0))) - math.log1p(-tau_plus)
        floor = log_count - 1 / tau - positive
        return softplus(torch.maximum(unbiased.masked_fill(above <= 0, -math.inf), floor))

    return row_losses(c, formula)


def rince(c: Contrast, q: float, lam: float) -> Tensor:
    r"""Robust infoNCE: between infoNCE (q → 0) and a symmetric loss that forgives wrong pairs (q = 1).

    .. math:: L_i = \frac{-e^{q s^+_i} + (\lambda (e^{s^+_i} + \sum_j e^{s_{ij}}))^q}{q}
                  = e^{q s^+_i} \, \frac{\mathrm{expm1}(q (\log \lambda + \mathrm{softplus}(z_i)))}{q}

    Source: arXiv 2201.04309, eq. (4). The second form keeps the difference's digits.

    Args:
        c: from ``ctloss.contrast``.
        q: in (0, 1].
        lam: λ, in (0, 1).

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for a q or lam outside its range.

    Example:
        >>> rince(Contrast(torch.tensor([-1.0]), torch.tensor([2.0])), 0.5, 0.1)
        tensor([-3.4259])
    """
    require(0 < q <= 1, "q", q, "a number in (0, 1]")
    require(0 < lam < math.inf, "lam", lam, "a positive number")
    return row_losses(
        c, lambda z, positive: torch.exp(q * positive) * torch.expm1(q * (math.log(lam) + softplus(z))) / q
    )


def dclw(c: Contrast, temperature: float | Tensor, sigma: float = 0.5) -> Tensor:
    r"""Decoupled contrastive loss, pairs that are still far apart pulled more strongly.

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
        ValueError: for a sigma that is not positive.

    Example:
        >>> dclw(Contrast(torch.tensor([1.0, 1.0]), torch.tensor([5.0, 4.0])), 0.1)
        tensor([1.4983, 0.6013])
    """
    require(0 < sigma < math.inf, "sigma", sigma, "a positive number")
    cosine = c.positive.double() * per_row(temperature, len(c.z))
    # Over 2n rows: each pair is there twice, and so is n.
    excess = len(c.z) * torch.softmax(cosine / sigma, 0).detach() - 1
    return row_losses(c, lambda z, positive: z + excess * positive)


def gte_nce(c: Contrast) -> Tensor:
    r"""Four directions in one softmax: queries and documents against both sides, a pair a row.

    .. math:: L_i = \log(2 + e^{z_{q,i}} + e^{z_{d,i}})

    The positive stands in the sum twice, as query to document and as document to query. Source: GTE, arXiv 2308.03281,
    eq. (2).

    Args:
        c: from ``ctloss.contrast`` with ``directions="both"`` and ``negatives="both"``.

    Returns:
        ``(n,)`` losses, one a pair; 0 where neither row of a pair has negatives.

    Raises:
        ValueError: for an odd number of rows.

    Example:
        >>> gte_nce(Contrast(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 5.0])))
        tensor([1.7437])
    """
    require(len(c.z) % 2 == 0, "c", f"{len(c.z)} rows", "both directions' rows, twice as many as pairs")
    empty = c.z == -math.inf
    # Far below any logit, yet without the NaN that a difference of two infinities gives.
    queries, documents = c.z.double().masked_fill(empty, -1e300).chunk(2)
    pairs = math.log(2) + softplus(torch.logaddexp(queries, documents) - math.log(2))
    return pairs.masked_fill(empty.view(2, -1).all(0), 0.0).to(c.z.dtype)
