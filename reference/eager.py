"""z and s⁺ of every row as differentiable tensor operations: short, quadratic in memory, the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norms; a zero row stays zero and receives no gradient.

    Each row is first brought near 1 by an exact power of two, so that squaring cannot overflow or underflow.

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
    """Rows brought near 1 by exact powers of two, and those powers.

    The powers come as two factors, because a single one would overflow for the smallest representable rows.

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


def contrast(
    x: Tensor,
    y: Tensor,
    *,
    candidates: Sequence[Tensor] = (),
    temperature: float | Tensor = 0.07,
    negatives: Literal["both", "cross", "own", "none"] = "both",
    directions: Literal["both", "x"] = "both",
    normalize: bool = True,
    ids: Tensor | None = None,
    candidate_ids: Sequence[Tensor | None] | None = None,
    margin: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """z_i = log Σ_negatives exp(s_ij − s⁺_i), equation (5) of Chen et al. 2022, and the positives' logits s⁺_i.

    Plain operations without branches on data, so derivatives of any order and every transform of ``torch.func`` work.

    Args:
        x: ``(n, d)`` anchors, any floating dtype.
        y: ``(n, d)`` their positives.
        candidates: ``(m, d)`` each: more rows that every row is compared with.
        temperature: τ > 0, a float, or a tensor of one element or one per row; a tensor's entry ≤ 0 gives NaN.
        negatives: the other rows that a row is compared with: those of ``"both"`` sides, of the other side
            (``"cross"``), of its ``"own"`` side, or ``"none"``.
        directions: rows of ``"both"`` sides, or only of ``"x"``.
        normalize: cosine similarity if true, dot products otherwise.
        ids: ``(n,)`` integers; rows with equal ids are not negatives of each other; ``None`` stands for 0 … n − 1.
        candidate_ids: ``(m,)`` for each side of candidates, or ``None`` if they are negatives of every row.
        margin: leave out negatives whose similarity, cosine or dot product, exceeds the positive's by more than this.
        dtype: what to compute in; in float64 this is the ground truth for half and single precision inputs.

    Returns:
        z and s⁺, each ``(2n,)``, or ``(n,)`` with ``directions="x"``, in ``dtype``, x's rows first. A row without
        negatives has z = −∞, which depends on nothing: its gradient is zero.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> contrast(eye, eye, temperature=1.0, negatives="cross")
        (tensor([-1., -1., -1., -1.], dtype=torch.float64), tensor([1., 1., 1., 1.], dtype=torch.float64))
    """
    if negatives not in ("both", "cross", "own", "none") or directions not in ("both", "x"):
        raise ValueError(
            "expected negatives 'both', 'cross', 'own' or 'none' and directions 'both' or 'x', "
            f"got {negatives!r} and {directions!r}; choose among those"
        )
    n = x.shape[0]
    x, y, *candidates = (_poisoned(side.to(dtype)) for side in (x, y, *candidates))
    if normalize:
        x, y, *candidates = (unit_rows(side) for side in (x, y, *candidates))
    ids = torch.arange(n, device=x.device) if ids is None else ids
    extra = list(zip(candidates, candidate_ids or [None] * len(candidates), strict=True))
    similarity_of_pairs = (x * y).sum(1)
    directed = [(x, y), (y, x)] if directions == "both" else [(x, y)]
    log_ratios, positives = [], []
    for (own, other), tau in zip(directed, _temperatures(temperature, x, len(directed)), strict=True):
        sides = {"both": [own, other], "cross": [other], "own": [own], "none": []}[negatives]
        similarity, excluded = _compared(own, ids, [*((side, ids) for side in sides), *extra])
        if margin is not None:
            excluded = excluded | (similarity > similarity_of_pairs[:, None] + margin)
        positive = similarity_of_pairs / tau
        logits = (similarity - similarity_of_pairs[:, None]) / tau[:, None]
        empty = excluded.all(1)
        # A row of only minus infinities has no derivative; any other numbers do.
        logits = logits.masked_fill(excluded, -torch.inf).masked_fill(empty[:, None], 0.0)
        # Zero, or NaN where a NaN must show even without negatives.
        nothing = 0 * positive.detach()
        log_ratios.append(torch.where(empty, nothing - torch.inf, torch.logsumexp(logits, dim=1)))
        positives.append(positive)
    return torch.cat(log_ratios), torch.cat(positives)


def _poisoned(side: Tensor) -> Tensor:
    """Make rows with an infinite entry NaN; otherwise a logit of minus infinity would pass unnoticed."""
    return side + 0 * side.detach().abs().amax(dim=1, keepdim=True)


def _temperatures(temperature: float | Tensor, x: Tensor, directions: int) -> tuple[Tensor, ...]:
    """The temperature of every row, ``(n,)`` per direction; NaN where a tensor's entry is not positive."""
    if isinstance(temperature, Tensor):
        temperature = temperature.to(device=x.device, dtype=x.dtype).reshape(-1)
        # A product, so that the gradient is NaN as well.
        temperature = temperature * torch.where(temperature > 0, 1.0, torch.nan)
    else:
        temperature = x.new_full((1,), temperature)
    return temperature.expand(directions * x.shape[0]).chunk(directions)


def _compared(own: Tensor, ids: Tensor, sides: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Similarities of rows to the rows of all sides, and where ids are equal; rows without ids equal none."""
    similarity, same = [own @ own[:0].T], [ids[:, None] == ids[:0]]
    for side, its_ids in sides:
        product = own @ side.T
        similarity.append(product)
        same.append(torch.zeros_like(product, dtype=torch.bool) if its_ids is None else ids[:, None] == its_ids)
    return torch.cat(similarity, dim=1), torch.cat(same, dim=1)
