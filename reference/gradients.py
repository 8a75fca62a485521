"""The gradients of z and s⁺ in closed form, without autograd: no probability minus one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .eager import near_one_by_powers_of_two, unit_rows


class Gradients(NamedTuple):
    """Gradients of ``Σ_i a_i lse_i − b_i s⁺_i`` in float64; the temperature's has the temperature's shape."""

    x: Tensor
    y: Tensor
    candidates: tuple[Tensor, ...]
    temperature: Tensor


class Pairs(NamedTuple):
    """What the closed form is made of: every anchor against all M rows that it could be compared with.

    Attributes:
        sides: ``(M, d)``: the rows of x, y and the candidates, of length 1 when normalising.
        num_pairs: n.
        temperature: ``(rows,)``.
        logits: ``(rows, M)``, s_ij.
        counts: ``(rows, M)``, whether the pair is a negative.
        softmax: ``(rows, M)``, P_ij: over a row's negatives, 0 elsewhere and in a row without negatives.
        positive: ``(rows,)``, s⁺_i.
    """

    sides: Tensor
    num_pairs: int
    temperature: Tensor
    logits: Tensor
    counts: Tensor
    softmax: Tensor
    positive: Tensor

    def gather(self, a: Tensor, b: Tensor, vectors: Tensor) -> Tensor:
        """Σ_j W_ij v_j − c_i v_p(i) for every row i of all sides: the weighted sum of the rows it is paired with.

        W_ij = a_i P_ij / τ_i + a_j P_ji / τ_j and c_i = b_i / τ_i + b_p(i) / τ_p(i), where each term only exists if its
        row is an anchor. ``a`` and ``b`` are ``(rows,)``; ``vectors``, one per row of all sides, is ``(M, k)`` like the
        result.
        """
        n, rows = self.num_pairs, len(a)
        weight = (a / self.temperature)[:, None] * self.softmax
        total = weight.T @ vectors[:rows]
        total[:rows] += weight @ vectors
        pull = (b / self.temperature).reshape(-1, n).sum(0)[:, None]
        total[:n] -= pull * vectors[n : 2 * n]
        total[n : 2 * n] -= pull * vectors[:n]
        return total


def pairs(
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
) -> Pairs:
    """Every pair of a call; options as in :func:`ctloss.reference.contrast`.

    Returns:
        The :class:`Pairs` in float64.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> pairs(eye, eye, temperature=1.0, negatives="cross").softmax[0]
        tensor([0., 0., 0., 1.], dtype=torch.float64)
    """
    n, device = len(x), x.device
    rows = 2 * n if directions == "both" else n
    sides = torch.cat([side.double() for side in (x, y, *candidates)])
    if normalize:
        sides = unit_rows(sides)
    # Sides are numbered 0 for x, 1 for y, 2 for candidates of any kind.
    lengths = torch.tensor([n, n, len(sides) - 2 * n], device=device)
    side = torch.arange(3, device=device).repeat_interleave(lengths)
    own, other = side[:rows, None] == side, side[:rows, None] == 1 - side
    listed = {"both": own | other, "cross": other, "own": own, "none": own & other}[negatives] | (side == 2)

    pair_ids = torch.arange(n, device=device) if ids is None else ids
    known = torch.ones(len(sides), dtype=torch.bool, device=device)
    numbers = torch.cat([pair_ids, pair_ids, pair_ids.new_zeros(len(sides) - 2 * n)])
    start = 2 * n
    for k, candidate in enumerate(candidates):
        part = slice(start, start + len(candidate))
        given = None if candidate_ids is None else candidate_ids[k]
        if given is None:
            known[part] = False
        else:
            numbers[part] = given
        start = part.stop
    counts = listed & ~((numbers[:rows, None] == numbers) & known)

    similarity = sides[:rows] @ sides.T
    of_pairs = (sides[:n] * sides[n : 2 * n]).sum(1).repeat(rows // n)
    if margin is not None:
        counts = counts & ~(similarity > of_pairs[:, None] + margin)
    tau = torch.as_tensor(temperature, dtype=torch.float64, device=device).reshape(-1).expand(rows)
    logits = similarity / tau[:, None]
    some = counts.any(1, keepdim=True)
    softmax = torch.softmax(logits.masked_fill(~counts & some, -torch.inf), dim=1).masked_fill(~some, 0.0)
    return Pairs(sides, n, tau, logits, counts, softmax, of_pairs / tau)


def closed_form(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    candidates: Sequence[Tensor] = (),
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    **options: Any,
) -> Gradients:
    """Gradients of ``Σ_i a_i lse_i − b_i s⁺_i``, from ∂lse_i/∂s_ij = P_ij, the softmax over a row's negatives.

    For a row loss L(z_i, s⁺_i), a_i = ∂L/∂z_i and b_i = ∂L/∂z_i − ∂L/∂s⁺_i. Equation (6) of Chen et al. 2022,
    ∇log φ = ∇φ / φ, is a = b = 1. For cosines, the radial part of each unit row's gradient is projected out, and the
    rest divided by the row's norm.

    Args:
        x: ``(n, d)`` anchors.
        y: ``(n, d)`` their positives.
        a: ``(2n,)``, or ``(n,)`` with ``directions="x"``; its value does not matter where a row has no negatives.
        b: of the same shape.
        candidates: this and all other options as for :func:`ctloss.reference.contrast`.

    Returns:
        :class:`Gradients` in float64.

    Example:
        >>> import torch
        >>> x, y, mean = torch.randn(4, 3), torch.randn(4, 3), torch.full((8,), 1 / 8)
        >>> closed_form(x, y, mean, mean, candidates=[torch.randn(5, 3)]).candidates[0].shape
        torch.Size([5, 3])
    """
    of = pairs(x, y, candidates=candidates, temperature=temperature, normalize=normalize, **options)
    a, b = a.double(), b.double()
    gradient = of.gather(a, b, of.sides)
    if normalize:
        near_one, first, second = near_one_by_powers_of_two(torch.cat([s.double() for s in (x, y, *candidates)]))
        norm = torch.linalg.vector_norm(near_one, dim=1, keepdim=True)
        tangent = gradient - (gradient * of.sides).sum(1, keepdim=True) * of.sides
        gradient = torch.where(norm > 0, tangent / norm * first * second, 0.0)
    slope = (b * of.positive - a * (of.softmax * of.logits).sum(1)) / of.temperature
    grad_x, grad_y, *grad_candidates = gradient.split([len(side) for side in (x, y, *candidates)])
    one_each = isinstance(temperature, Tensor) and temperature.dim() == 1
    return Gradients(grad_x, grad_y, tuple(grad_candidates), slope if one_each else slope.sum())
