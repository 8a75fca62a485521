"""The sigmoid loss of Zhai et al. 2023, arXiv 2303.15343, written plainly: in 60-digit decimals, and in float64.

Each pair of rows has a logit s_ij = sim(x_i, y_j) / τ + b and is classified on its own, as positive (i = j) or not. The
loss of row i is softplus(−s_ii) + Σ_j≠i softplus(s_ij).
"""

from __future__ import annotations

import decimal
from decimal import Decimal

import torch
from torch import Tensor

from .eager import _poisoned, unit_rows

DIGITS = 60


def loop(
    x: Tensor, y: Tensor, *, temperature: float = 0.1, bias: float = -10.0, ids: Tensor | None, normalize: bool
) -> list[Decimal]:
    """The n row losses, entry by entry; arguments as for :func:`row_losses`.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> [round(float(v), 4) for v in loop(eye, eye, temperature=1.0, bias=-1.0, ids=None, normalize=True)]
        [1.0064, 1.0064]
    """
    with decimal.localcontext() as context:
        context.prec = DIGITS
        rows = [[[Decimal(float(v)) for v in row] for row in side.detach().cpu()] for side in (x, y)]
        names = list(range(len(x))) if ids is None else ids.tolist()
        tau, offset = Decimal(float(temperature)), Decimal(float(bias))
        losses = []
        for i, a in enumerate(rows[0]):
            total = Decimal(0)
            for j, b in enumerate(rows[1]):
                if i != j and names[i] == names[j]:
                    continue
                similarity = sum((p * q for p, q in zip(a, b, strict=True)), Decimal(0))
                if normalize:
                    squares = sum((p * p for p in a), Decimal(0)) * sum((q * q for q in b), Decimal(0))
                    similarity = similarity / squares.sqrt() if squares else Decimal(0)
                logit = similarity / tau + offset
                total += (1 + (-logit if i == j else logit).exp()).ln()
            losses.append(total)
        return losses


def row_losses(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    ids: Tensor | None = None,
    normalize: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The n row losses by plain operations, with derivatives of any order.

    Args:
        x: ``(n, d)``.
        y: ``(n, d)``.
        temperature: τ > 0, a float or a tensor of one element.
        bias: b, a float or a tensor of one element.
        ids: ``(n,)``; pairs i ≠ j with equal ones are left out.
        normalize: cosine similarity if true, else the dot product.
        dtype: what to compute in.

    Returns:
        ``(n,)`` losses in ``dtype``.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> row_losses(eye, eye, temperature=1.0, bias=-1.0)
        tensor([1.0064, 1.0064], dtype=torch.float64)
    """
    temperature, bias = (
        option.to(device=x.device, dtype=dtype).reshape(()) if isinstance(option, Tensor) else option
        for option in (temperature, bias)
    )
    if isinstance(temperature, Tensor):
        temperature = torch.where(temperature > 0, temperature, torch.nan)
    x, y = (_poisoned(side.to(dtype)) for side in (x, y))
    if normalize:
        x, y = unit_rows(x), unit_rows(y)
    logits = x @ y.T / temperature + bias
    same = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    losses = torch.nn.functional.softplus(torch.where(same, -logits, logits), threshold=40)
    if ids is not None:
        losses = torch.where((ids[:, None] == ids) & ~same, 0.0, losses)
    return losses.sum(1)


def opposing_losses(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    ids: tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """What rows y of another rank, none of which is a partner, add to the row losses of x: Σ_j softplus(s_ij).

    Args:
        x: ``(n, d)``.
        y: ``(m, d)``.
        temperature, bias, normalize, dtype: as for :func:`row_losses`.
        ids: ``(n,)`` of x and ``(m,)`` of y; equal ones are left out.

    Returns:
        ``(n,)`` in ``dtype``.

    Example:
        >>> import torch
        >>> opposing_losses(torch.eye(3)[:2], torch.eye(3)[2:], bias=0.0)
        tensor([0.6931, 0.6931], dtype=torch.float64)
    """
    x, y = (_poisoned(side.to(dtype)) for side in (x, y))
    if normalize:
        x, y = unit_rows(x), unit_rows(y)
    if isinstance(temperature, Tensor):
        temperature = torch.where(temperature > 0, temperature, torch.nan)
    losses = torch.nn.functional.softplus(x @ y.T / temperature + bias, threshold=40)
    if ids is not None:
        losses = torch.where(ids[0][:, None] == ids[1], 0.0, losses)
    return losses.sum(1)
