"""Label smoothing, whose uniform part needs only sums of embeddings and no logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contrast import Contrast
from ..core import checks
from ..core.ops import unwatched
from ..core.units import unit_rows
from ..kernels.problem import Directions, Negatives, Problem
from .formula import row_losses, softplus
from .options import number, vector

__all__ = ["label_smoothing", "mean_logits"]


def label_smoothing(c: Contrast, mean_logit: Tensor, smoothing: float) -> Tensor:
    r"""infoNCE towards a target that spreads a share ε evenly over all of a row's candidates.

    .. math:: L_i = \mathrm{softplus}(z_i) + \varepsilon s^+_i - \frac{\varepsilon}{C} \sum_j s_{ij}

    The sum is over all C candidates, including the positive. This is cross-entropy with ``label_smoothing=ε``
    (arXiv 1512.00567).

    Args:
        c: from ``ctloss.contrast``.
        mean_logit: ``(rows,)`` means over the candidates, from :func:`mean_logits` with the same options.
        smoothing: ε in [0, 1].

    Returns:
        ``(rows,)`` losses.

    Raises:
        TypeError, ValueError: for a smoothing outside [0, 1], or means that are not one number per row.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> c = Contrast(torch.tensor([-0.8, -0.8]), torch.tensor([2.0, 2.0]))
        >>> label_smoothing(c, mean_logits(x, x, negatives="cross", directions="x", temperature=0.5), 0.1)
        tensor([0.4111, 0.4111])
    """
    smoothing = number("smoothing", smoothing, lambda v: 0 <= v <= 1, "a number in [0, 1]", "0 is infoNCE, 0.1 usual")
    mean_logit = vector("mean_logit", mean_logit, c)
    return row_losses(c, lambda z, positive: softplus(z) + smoothing * (positive - mean_logit))


def mean_logits(
    x: Tensor,
    y: Tensor,
    *,
    candidates: Tensor | Sequence[Tensor] | None = None,
    temperature: float | Tensor = 0.07,
    negatives: Negatives = "both",
    directions: Directions = "both",
    normalize: bool = True,
) -> Tensor:
    r"""Every row's mean logit over its candidates, including its positive, from sums of embeddings in O(nd).

    .. math:: \frac{1}{C} \sum_j s_{ij} = \frac{1}{C \tau_i} \Big\langle u_i, \sum_j u_j \Big\rangle

    This does not know of pairs left out by ids or by a margin: leave those options at their defaults.

    Args:
        x: ``(n, d)``.
        y: ``(n, d)``; row i is the positive of row i of x.
        candidates: as for ``ctloss.contrast``: ``(m, d)``, ``(n, k, d)``, or a list of these.
        temperature: a number, ``()``, ``(n,)`` or ``(rows,)``.
        negatives: as for ``ctloss.contrast``.
        directions: as for ``ctloss.contrast``.
        normalize: as for ``ctloss.contrast``.

    Returns:
        ``(rows,)`` float64, differentiable in every input.

    Raises:
        TypeError, ValueError: as ``ctloss.contrast``.

    Example:
        >>> x, y = torch.eye(2), torch.eye(2)
        >>> mean_logits(x, y, temperature=1.0)
        tensor([0.3333, 0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """
    problem = Problem(negatives=negatives, directions=directions, normalize=normalize)
    x, y = checks.pair(x, y)
    read = not isinstance(temperature, Tensor) or unwatched(temperature)
    tau = checks.temperature(temperature, x, problem.num_directions, read=read)
    sides = [side.double() for side in (x, y, *checks.candidates(x, candidates))]
    sides = [unit_rows(side) for side in sides] if normalize else sides
    queued = sum((side.sum(0) for side in sides[2:]), torch.zeros_like(sides[0][0]))
    num_queued = sum(len(side) for side in sides[2:])
    means = []
    for own, other in ((sides[0], sides[1]), (sides[1], sides[0]))[: problem.num_directions]:
        total, count = queued + other.sum(0) if negatives in ("both", "cross") else queued + other, num_queued + 1
        if negatives in ("both", "own"):
            total, count = total + own.sum(0) - own, count + len(own) - 1
        if negatives in ("both", "cross"):
            count += len(own) - 1
        means.append((own * total).sum(1) / count)
    return torch.cat(means) / tau
