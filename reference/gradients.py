"""The gradients of the losses in closed form, without autograd: no probability minus one."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .eager import near_one_by_powers_of_two, unit_rows


class Gradients(NamedTuple):
    """Gradients of ``Σ_i upstream_i · row_loss_i`` in float64."""

    x: Tensor
    y: Tensor
    temperature: Tensor


class Weights(NamedTuple):
    """What the closed form is made of, for N = 2n rows: logits, softmax over negatives, row weights."""

    rows: Tensor
    logits: Tensor
    positive: Tensor
    softmax: Tensor
    weight: Tensor


def weights(
    x: Tensor,
    y: Tensor,
    *,
    loss: Literal["cz_nce", "info_nce"],
    temperature: float,
    negatives: Literal["both", "cross"],
    normalize: bool,
) -> Weights:
    """P_ij, the softmax of row i over its negatives, and w_i: 1 for CZ-NCE, sigmoid(z_i) for infoNCE.

    Args:
        x: ``(n, d)`` anchors.
        y: ``(n, d)`` translations.
        loss: ``"cz_nce"`` or ``"info_nce"``.
        temperature: τ > 0.
        negatives: ``"both"`` or ``"cross"``.
        normalize: cosine similarity if true.

    Returns:
        The :class:`Weights` in float64.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> weights(eye, eye, loss="cz_nce", temperature=1.0, negatives="cross", normalize=True).softmax[0]
        tensor([0., 0., 0., 1.], dtype=torch.float64)
    """
    n = x.shape[0]
    rows = torch.cat((x.double(), y.double()))
    if normalize:
        rows = unit_rows(rows)
    logits = rows @ rows.T / temperature
    positive = ((rows[:n] * rows[n:]).sum(1) / temperature).repeat(2)
    language = torch.arange(2 * n, device=x.device) // n
    index = torch.arange(2 * n, device=x.device) % n
    excluded = index[:, None] == index
    if negatives == "cross":
        excluded = excluded | (language[:, None] == language)
    negative = logits.masked_fill(excluded, -torch.inf)
    softmax = torch.softmax(negative, dim=1)
    z = torch.logsumexp(negative - positive[:, None], dim=1)
    weight = torch.ones_like(z) if loss == "cz_nce" else torch.sigmoid(z)
    return Weights(rows, logits, positive, softmax, weight)


def closed_form(
    x: Tensor,
    y: Tensor,
    upstream: Tensor,
    *,
    loss: Literal["cz_nce", "info_nce"],
    temperature: float = 0.07,
    negatives: Literal["both", "cross"] = "both",
    normalize: bool = True,
) -> Gradients:
    """Gradients of ``Σ_i upstream_i L_i``, from ∂L_i/∂s_ij = w_i P_ij and ∂L_i/∂s_i,p(i) = -w_i.

    Equation (6) of Chen et al. 2022, ∇log φ = ∇φ / φ, carried through the cosine: the radial part of each unit row's
    gradient is projected out and the rest divided by the row's norm.

    Args:
        x: ``(n, d)`` anchors.
        y: ``(n, d)`` translations.
        upstream: ``(2n,)``, one factor a row loss; ``1/2n`` each for the batch mean of equation (2).
        loss: ``"cz_nce"`` or ``"info_nce"``.
        temperature: τ > 0.
        negatives: ``"both"`` or ``"cross"``.
        normalize: cosine similarity if true.

    Returns:
        :class:`Gradients` in float64.

    Example:
        >>> import torch
        >>> x, y = torch.randn(4, 3), torch.randn(4, 3)
        >>> closed_form(x, y, torch.full((8,), 1 / 8), loss="cz_nce").x.shape
        torch.Size([4, 3])
    """
    n = x.shape[0]
    rows, logits, positive, softmax, weight = weights(
        x, y, loss=loss, temperature=temperature, negatives=negatives, normalize=normalize
    )
    factor = upstream.double() * weight
    attraction = (factor[:, None] * softmax + (factor[:, None] * softmax).T) / temperature
    pull = (factor + factor.roll(n))[:, None] / temperature
    gradient = attraction @ rows - pull * rows.roll(n, 0)
    mean_logit = torch.where(softmax > 0, softmax * logits, 0.0).sum(1)
    slope = -(factor * (mean_logit - positive)).sum() / temperature
    if normalize:
        near_one, first, second = near_one_by_powers_of_two(torch.cat((x.double(), y.double())))
        norm = torch.linalg.vector_norm(near_one, dim=1, keepdim=True)
        tangent = gradient - (gradient * rows).sum(1, keepdim=True) * rows
        gradient = torch.where(norm > 0, tangent / norm * first * second, 0.0)
    return Gradients(gradient[:n], gradient[n:], slope)
