"""The losses as differentiable tensor operations: short, quadratic in memory, and the truth for every other path."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norms; a zero row stays zero and receives no gradient.

    Each row is first brought near 1 by an exact power of two, so that no representable row overflows or
    underflows when it is squared.

    Args:
        rows: ``(n, d)``, any floating dtype.

    Returns:
        ``(n, d)`` in the same dtype.

    Example:
        >>> import torch
        >>> unit_rows(torch.tensor([[3e200, 4e200], [0.0, 0.0]], dtype=torch.float64))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    near_one, _, _ = near_one_by_powers_of_two(rows)
    zero = (near_one.detach() == 0).all(dim=1, keepdim=True)
    safe = near_one.masked_fill(zero, 1.0)
    return (near_one / torch.linalg.vector_norm(safe, dim=1, keepdim=True)).masked_fill(zero, 0.0)


def near_one_by_powers_of_two(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows brought near 1 by exact powers of two, and those powers as two factors.

    One factor alone would overflow for the smallest representable rows.

    Args:
        rows: ``(n, d)``, any floating dtype.

    Returns:
        ``(rows * first * second, first, second)``; the factors are ``(n, 1)``, and 1 for a zero row.

    Example:
        >>> import torch
        >>> near_one_by_powers_of_two(torch.tensor([[12.0, 3.0]]))[0]
        tensor([[0.7500, 0.1875]])
    """
    largest = rows.detach().abs().amax(dim=1, keepdim=True)
    _, exponent = torch.frexp(largest.masked_fill(largest == 0, 0.5))
    half = torch.div(exponent, 2, rounding_mode="floor")
    first, second = torch.exp2(-half.to(rows.dtype)), torch.exp2((half - exponent).to(rows.dtype))
    return rows * first * second, first, second


def log_ratios(
    x: Tensor, y: Tensor, *, temperature: float | Tensor, negatives: Literal["both", "cross"], normalize: bool
) -> Tensor:
    """z_i = log Σ_negatives exp(s_ij - s_i,p(i)), equation (5), for all 2n rows, x's first.

    Args:
        x: ``(n, d)`` anchors.
        y: ``(n, d)`` translations, same dtype.
        temperature: τ > 0, a float or a zero-dimensional tensor.
        negatives: ``"both"`` or ``"cross"``.
        normalize: cosine similarity if true.

    Returns:
        ``(2n,)`` in the dtype of the inputs.

    Example:
        >>> import torch
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> log_ratios(eye, eye, temperature=1.0, negatives="cross", normalize=True)
        tensor([-1., -1., -1., -1.], dtype=torch.float64)
    """
    n = x.shape[0]
    if normalize:
        x, y = unit_rows(x), unit_rows(y)
    rows = torch.cat((x, y))
    logits = rows @ rows.T / temperature
    positive = ((x * y).sum(1) / temperature).repeat(2)
    eye = torch.eye(n, dtype=torch.bool, device=x.device)
    excluded = eye.repeat(2, 2)
    if negatives == "cross":
        same_language = torch.block_diag(torch.ones_like(eye), torch.ones_like(eye))
        excluded = excluded | same_language
    return torch.logsumexp((logits - positive[:, None]).masked_fill(excluded, -torch.inf), dim=1)


def row_losses(
    x: Tensor,
    y: Tensor,
    *,
    loss: Literal["cz_nce", "info_nce"],
    temperature: float | Tensor = 0.07,
    negatives: Literal["both", "cross"] = "both",
    normalize: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The 2n row losses: z (CZ-NCE, equations (4) and (5)) or softplus(z) (infoNCE, equation (1)).

    Args:
        x: ``(n, d)`` anchors, any floating dtype.
        y: ``(n, d)`` translations.
        loss: ``"cz_nce"`` or ``"info_nce"``.
        temperature: τ > 0, a float or a zero-dimensional tensor.
        negatives: ``"both"`` languages' other rows or ``"cross"``.
        normalize: cosine similarity if true, dot products otherwise.
        dtype: what to compute in; float64 makes this the truth for half and single precision inputs.

    Returns:
        ``(2n,)`` losses in ``dtype``, x's rows first; differentiable any number of times.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> row_losses(eye, eye, loss="info_nce", temperature=1.0)
        tensor([0.5514, 0.5514, 0.5514, 0.5514], dtype=torch.float64)
    """
    if loss not in ("cz_nce", "info_nce") or negatives not in ("both", "cross"):
        raise ValueError(
            "expected loss 'cz_nce' or 'info_nce' and negatives 'both' or 'cross', "
            f"got {loss!r} and {negatives!r}; correct the spelling"
        )
    if isinstance(temperature, Tensor):
        temperature = temperature.to(device=x.device, dtype=dtype).reshape(())
        temperature = torch.where(temperature > 0, temperature, torch.nan)
    # An infinite entry poisons its row, which a logit of minus infinity alone would not.
    x, y = (rows.to(dtype) + 0 * rows.detach().to(dtype).abs().amax(dim=1, keepdim=True) for rows in (x, y))
    z = log_ratios(x, y, temperature=temperature, negatives=negatives, normalize=normalize)
    if loss == "cz_nce":
        return z
    # softplus(z); torch's own returns z itself above 20, which is 2e-9 off.
    return torch.logaddexp(z, torch.zeros_like(z))
