"""Published row losses as functions of a :class:`~ctloss.contrast.Contrast`, each a formula and its source.

``ctloss.contrast`` forms z_i = log Σ_j exp(s_ij) − s⁺_i over a row's negatives, and s⁺_i, its positive's logit. A loss
of pairs is arithmetic on those two vectors, and autograd carries it back through them. So a new loss is one function:

    >>> import torch
    >>> @row_loss
    ... def squared_hinge(c: Contrast, margin: float) -> Tensor:
    ...     return (c.z + margin).clamp(min=0).square()
    >>> squared_hinge(Contrast(torch.tensor([-3.0, 1.0]), torch.tensor([5.0, 1.0])), 2.0)
    tensor([0., 9.])

Nothing here subtracts a probability from one: σ(z) and softplus(z) keep their digits at both ends, so that a row whose
negatives weigh 1e-36 of its positive still pulls. All of it is done in float64, of which two vectors cost nothing, and
returned in the dtype of z. A row without any negative (z = −inf) has loss 0 and gradient 0 in every objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, Literal, ParamSpec

import torch
from torch import Tensor, nn

from .contrast import Contrast
from .reference.eager import unit_rows

Options = ParamSpec("Options")


def row_loss(
    formula: Callable[Concatenate[Contrast, Options], Tensor],
) -> Callable[Concatenate[Contrast, Options], Tensor]:
    """Make a formula in z and s⁺ a row loss: in float64, and 0 for rows without negatives.

    Args:
        formula: takes a :class:`Contrast` of finite float64 vectors and any options; returns a loss for each row.

    Returns:
        The same function for any :class:`Contrast`; its row losses have the dtype of z.

    Example:
        >>> @row_loss
        ... def twice(c: Contrast) -> Tensor:
        ...     return 2 * c.z
        >>> twice(Contrast(torch.tensor([1.0, -torch.inf]), torch.zeros(2)))
        tensor([2., 0.])
    """

    @wraps(formula)
    def loss(c: Contrast, /, *args: Options.args, **options: Options.kwargs) -> Tensor:
        empty = c.z == -math.inf
        finite = Contrast(*(rows.double().masked_fill(empty, 0.0) for rows in c))
        return formula(finite, *args, **options).masked_fill(empty, 0.0).to(c.z.dtype)

    return loss


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), relative to itself accurate at both ends.

    Example:
        >>> softplus(torch.tensor([-80.0, 0.0, 1e4]))
        tensor([1.8049e-35, 6.9315e-01, 1.0000e+04])
    """
    # PyTorch's own threshold of 20 would be 2e-9 off above it.
    return nn.functional.softplus(z, threshold=40)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def _log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf


def _per_row(values: float | Tensor, rows: int) -> float | Tensor:
    """A number as it is; a tensor of one element, one a row, or one a pair, repeated for the pairs' other side."""
    if not isinstance(values, Tensor):
        return values
    values = values.double()
    if values.dim() == 1 and values.shape[0] not in (1, rows):
        values = values.repeat(2)
    _require(values.numel() in (1, rows), "one value a row", tuple(values.shape), f"({rows},), or half as many")
    return values


@row_loss
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
    _require(0 <= epsilon < math.inf, "epsilon", epsilon, "a finite number of at least 0")
    if epsilon == 0:
        return c.z
    return softplus(c.z - math.log(epsilon)) + math.log(epsilon)


@row_loss
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
    _require(math.isfinite(margin), "margin", margin, "a finite number")
    return softplus(c.z + margin / _per_row(temperature, len(c.z)))


@row_loss
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
    _require(0 <= gamma < math.inf, "gamma", gamma, "a finite number of at least 0")
    return torch.exp(-gamma * softplus(-c.z)) * softplus(c.z)


@row_loss
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
    _require(0 <= tau_plus < 1, "tau_plus", tau_plus, "a number in [0, 1)")
    count = torch.as_tensor(_per_row(num_negatives, len(c.z)), dtype=torch.float64, device=c.z.device)
    above = c.z - (count.log() + _log(tau_plus))
    # log(e^z − Mτ⁺), where that is positive.
    unbiased = c.z + torch.log(-torch.expm1(-above.masked_fill(above <= 0, 1.0))) - math.log1p(-tau_plus)
    floor = count.log() - 1 / _per_row(temperature, len(c.z)) - c.positive
    return softplus(torch.maximum(unbiased.masked_fill(above <= 0, -math.inf), floor))


@row_loss
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
    _require(0 < q <= 1, "q", q, "a number in (0, 1]")
    _require(0 < lam < math.inf, "lam", lam, "a positive number")
    return torch.exp(q * c.positive) * torch.expm1(q * (math.log(lam) + softplus(c.z))) / q


@row_loss
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
    _require(0 < sigma < math.inf, "sigma", sigma, "a positive number")
    cosine = c.positive.detach() * _per_row(temperature, len(c.z))
    # Over 2n rows: each pair is there twice, and so is n.
    excess = len(c.z) * torch.softmax(cosine / sigma, 0).detach() - 1
    return c.z + excess * c.positive


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
    _require(len(c.z) % 2 == 0, "c", f"{len(c.z)} rows", "both directions' rows, twice as many as pairs")
    empty = c.z == -math.inf
    # Far below any logit, yet without the NaN that a difference of two infinities gives.
    queries, documents = c.z.double().masked_fill(empty, -1e300).chunk(2)
    pairs = math.log(2) + softplus(torch.logaddexp(queries, documents) - math.log(2))
    return pairs.masked_fill(empty.view(2, -1).all(0), 0.0).to(c.z.dtype)


@row_loss
def label_smoothing(c: Contrast, mean_logit: Tensor, smoothing: float) -> Tensor:
    r"""infoNCE towards a distribution that leaves a share ε to all of a row's candidates alike.

    .. math:: L_i = \mathrm{softplus}(z_i) + \varepsilon s^+_i - \frac{\varepsilon}{C} \sum_j s_{ij}

    the sum being over all C candidates, the positive among them: cross-entropy with ``label_smoothing=ε``
    (arXiv 1512.00567).

    Args:
        c: from ``ctloss.contrast``.
        mean_logit: ``(rows,)`` means over the candidates, from :func:`mean_logits` with the same options.
        smoothing: ε in [0, 1].

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for a smoothing outside [0, 1].

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> c = Contrast(torch.tensor([-0.8, -0.8]), torch.tensor([2.0, 2.0]))
        >>> label_smoothing(c, mean_logits(x, x, negatives="cross", directions="x", temperature=0.5), 0.1)
        tensor([0.4111, 0.4111])
    """
    _require(0 <= smoothing <= 1, "smoothing", smoothing, "a number in [0, 1]")
    return softplus(c.z) + smoothing * (c.positive - mean_logit)


def mean_logits(
    x: Tensor,
    y: Tensor,
    *,
    candidates: Sequence[Tensor] = (),
    temperature: float | Tensor = 0.07,
    negatives: Literal["both", "cross", "own", "none"] = "both",
    directions: Literal["both", "x"] = "both",
    normalize: bool = True,
) -> Tensor:
    r"""Every row's logit to its candidates on average, its positive among them, from sums of embeddings in O(nd).

    .. math:: \frac{1}{C} \sum_j s_{ij} = \frac{1}{C \tau_i} \Big\langle u_i, \sum_j u_j \Big\rangle

    Pairs left out by ids or by a margin are not known here: leave those options at their defaults.

    Args:
        x: ``(n, d)``.
        y: ``(n, d)``; row i is the positive of row i of x.
        candidates: ``(m, d)`` each.
        temperature: a number, ``()``, ``(n,)`` or ``(rows,)``.
        negatives: as for ``ctloss.contrast``.
        directions: as for ``ctloss.contrast``.
        normalize: as for ``ctloss.contrast``.

    Returns:
        ``(rows,)`` float64, differentiable in every input.

    Raises:
        ValueError: for another word than those listed.

    Example:
        >>> x, y = torch.eye(2), torch.eye(2)
        >>> mean_logits(x, y, temperature=1.0)
        tensor([0.3333, 0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """
    _require(negatives in ("both", "cross", "own", "none"), "negatives", negatives, "'both', 'cross', 'own' or 'none'")
    _require(directions in ("both", "x"), "directions", directions, "'both' or 'x'")
    sides = [side.double() for side in (x, y, *candidates)]
    sides = [unit_rows(side) for side in sides] if normalize else sides
    queued = sum((side.sum(0) for side in sides[2:]), torch.zeros_like(sides[0][0]))
    num_queued = sum(len(side) for side in sides[2:])
    means = []
    for own, other in ((sides[0], sides[1]), (sides[1], sides[0]))[: 2 if directions == "both" else 1]:
        total, count = queued + other.sum(0) if negatives in ("both", "cross") else queued + other, num_queued + 1
        if negatives in ("both", "own"):
            total, count = total + own.sum(0) - own, count + len(own) - 1
        if negatives in ("both", "cross"):
            count += len(own) - 1
        means.append((own * total).sum(1) / count)
    rows = torch.cat(means)
    return rows / _per_row(temperature, len(rows))


@row_loss
def hardness_alpha(c: Contrast, alpha: float, temperature: float | Tensor) -> Tensor:
    r"""infoNCE with every negative's logit raised by α times its similarity, which carries no gradient.

    .. math:: L_i = \log\Big(1 + \sum_j e^{s_{ij} - s^+_i + \alpha \, \mathrm{sg}(\cos_{ij})}\Big)

    Negatives at τ' = τ / (1 + ατ) are those logits, so one contrast at τ' serves; its gradient is 1 + ατ times too
    large. Source: LLaVE, arXiv 2503.04812, eq. (5).

    Args:
        c: from ``ctloss.contrast`` at the temperature ``τ / (1 + alpha · τ)``.
        alpha: α, at least 0; 9 in the paper.
        temperature: τ, the loss's own; no gradient reaches it.

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for an alpha below 0 or not finite.

    Example:
        >>> hardness_alpha(Contrast(torch.tensor([-9.0]), torch.tensor([14.0])), 4.0, 0.1)
        tensor([0.0067])
    """
    _require(0 <= alpha < math.inf, "alpha", alpha, "a finite number of at least 0")
    factor = 1 + alpha * _per_row(temperature, len(c.z))
    factor = factor.detach() if isinstance(factor, Tensor) else factor
    # The positive's logit is raised in c too: what it gained is added again.
    z = c.z.detach() + (1 - 1 / factor) * c.positive.detach()
    return softplus(z + (c.z - c.z.detach()) / factor)


def hardness_beta(sharper: Contrast, sharp: Contrast, num_negatives: int | Tensor) -> Contrast:
    r"""The contrast with negatives weighted by their own exponentials to the power of β, for any objective.

    .. math:: z_i = \log\Big(M \frac{\sum_j e^{(1 + \beta) s_{ij}}}{\sum_j e^{\beta s_{ij}}}\Big) - s^+_i
                  = z_i(\tau / (1 + \beta)) - z_i(\tau / \beta) + \log M

    Source: arXiv 2010.04592, eq. (4); the paper's loss is :func:`debiased_nce` of it.

    Args:
        sharper: from ``ctloss.contrast`` at the temperature ``τ / (1 + beta)``.
        sharp: the same at ``τ / beta``.
        num_negatives: M, the number of a row's negatives: a number, or one a row.

    Returns:
        A :class:`Contrast` at τ.

    Example:
        >>> hardness_beta(Contrast(torch.tensor([1.0]), torch.tensor([4.0])),
        ...               Contrast(torch.tensor([0.5]), torch.tensor([2.0])), 1)
        Contrast(z=tensor([0.5000]), positive=tensor([2.]))
    """
    empty = sharper.z == -math.inf
    count = torch.as_tensor(_per_row(num_negatives, len(empty)), dtype=torch.float64, device=empty.device)
    z = sharper.z.double().masked_fill(empty, 0.0) - sharp.z.double().masked_fill(empty, 0.0) + count.log()
    positive = sharper.positive.double() - sharp.positive.double()
    dtype = sharper.z.dtype
    return Contrast(z.masked_fill(empty, -math.inf).to(dtype), positive.to(dtype))


@row_loss
def sogclr(c: Contrast, log_normalizer: Tensor) -> Tensor:
    r"""The global contrastive loss: a batch's φ over a running estimate of the whole data's, per sample.

    .. math:: L_i = \frac{e^{z_i}}{M \, \mathrm{sg}(u_i)}

    Its value says little; its gradient is that of log u_i, whatever the batch's size. Source: SogCLR, arXiv 2202.12387,
    and FastCLIP-v1, 2407.01445. In log domain nothing overflows at any temperature, and log(ε + u) needs no ε.

    Args:
        c: from ``ctloss.contrast``.
        log_normalizer: ``(rows,)``, log(M u), from :class:`MovingNormalizer`.

    Returns:
        ``(rows,)`` losses.

    Example:
        >>> sogclr(Contrast(torch.tensor([-300.0]), torch.tensor([5.0])), torch.tensor([-300.0]))
        tensor([1.])
    """
    return torch.exp(c.z - log_normalizer.detach())


@row_loss
def neuclip(c: Contrast, log_normalizer: Tensor) -> Tensor:
    r"""A bound on z from above that is tight where the normaliser, learnt by a network, is right.

    .. math:: L_i = e^{z_i - \alpha_i} + \alpha_i - 1 \ge z_i

    Source: NeuCLIP, arXiv 2511.08417.

    Args:
        c: from ``ctloss.contrast``.
        log_normalizer: ``(rows,)``, α: what the network says of each row; receives the gradient 1 − e^(z − α).

    Returns:
        ``(rows,)`` losses.

    Example:
        >>> neuclip(Contrast(torch.tensor([-3.0, -3.0]), torch.zeros(2)), torch.tensor([-3.0, -2.0]))
        tensor([-3.0000, -2.6321])
    """
    log_normalizer = log_normalizer.double()
    return torch.expm1(c.z - log_normalizer) + log_normalizer


@row_loss
def isogclr(
    c: Contrast, log_normalizer: Tensor, temperature: Tensor, rho: float, num_negatives: int | Tensor
) -> Tensor:
    r"""The robust global contrastive loss: temperatures that are learnt, for each sample (iSogCLR) or for all.

    .. math:: L_i = \tau_i (\log u_i + \rho)

    The gradient treats u's past as constant: ∂L/∂z = τ e^z / (M u), and ∂L/∂τ = log u + ρ beside what comes through z.
    Source: iSogCLR, arXiv 2305.11965, eq. (6); with one temperature FastCLIP-v3, 2407.01445.

    Args:
        c: from ``ctloss.contrast`` with the same ``temperature``, so that its gradient comes through z too.
        log_normalizer: ``(rows,)``, log(M u), from :class:`MovingNormalizer`.
        temperature: ``()``, ``(n,)`` or ``(rows,)``.
        rho: ρ; the larger, the smaller the temperatures.
        num_negatives: M as the normaliser was given it.

    Returns:
        ``(rows,)`` losses.

    Raises:
        ValueError: for a temperature of another shape.

    Example:
        >>> c = Contrast(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> isogclr(c, c.z, torch.tensor([0.1]), 6.0, 1)
        tensor([0.3000])
    """
    tau, log_normalizer = _per_row(temperature, len(c.z)), log_normalizer.detach().double()
    count = torch.as_tensor(_per_row(num_negatives, len(c.z)), dtype=torch.float64, device=c.z.device)
    ratio = torch.exp(c.z - log_normalizer)
    constant = tau.detach() if isinstance(tau, Tensor) else tau
    return tau * (log_normalizer - count.log() + rho) + constant * (ratio - ratio.detach())


class MovingNormalizer(nn.Module):
    r"""A running estimate of every training sample's e^z / M, kept as its logarithm.

    .. math:: u_i \leftarrow (1 - \gamma) u_i + \gamma \, e^{z_i} / M

    A sample's first value is its estimate from then on (γ = 1). Source: SogCLR, arXiv 2202.12387, algorithm 1. The
    estimates are part of ``state_dict``, in float64 whatever the module is converted to; a sample not seen yet has
    −inf. In evaluation mode estimates are read and, where there is none, the batch's own value is taken; nothing is
    written. Rows without negatives and rows that are not finite leave their estimates as they are.

    Args:
        num_samples: how many training samples there are; their ids are 0 … num_samples − 1.
        gamma: γ in (0, 1], the share of the new value; an attribute that a schedule may change.
        num_directions: 2 if both rows of a pair are anchors: each has an estimate of its own.

    Raises:
        ValueError: for a gamma outside (0, 1], or counts below 1.

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
        _require(num_samples > 0, "num_samples", num_samples, "a positive number")
        _require(num_directions in (1, 2), "num_directions", num_directions, "1 or 2")
        _require(0 < gamma <= 1, "gamma", gamma, "a number in (0, 1]")
        self.gamma = gamma
        self.register_buffer("log_u", torch.full((num_directions, num_samples), -math.inf, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, c: Contrast, ids: Tensor, num_negatives: int | Tensor) -> Tensor:
        """Update the estimates of a batch's samples, if training, and return them.

        Args:
            c: from ``ctloss.contrast``, ``num_directions`` rows a sample.
            ids: ``(n,)`` int64, which sample each pair is. Of a sample that is there twice the larger value stays.
            num_negatives: M, the number of a row's negatives: a number, or one a row.

        Returns:
            ``(rows,)``, log(M u_i) in the dtype of z, without gradient: what e^z is to be divided by. It is 0 for a row
            without negatives whose sample has no estimate.

        Raises:
            ValueError: if there are not ``num_directions`` rows an id.
        """
        shape = (self.log_u.shape[0], ids.shape[0])
        _require(len(c.z) == math.prod(shape), "ids", f"{ids.shape[0]} ids, {len(c.z)} rows", f"{shape[0]} rows an id")
        count = torch.as_tensor(_per_row(num_negatives, len(c.z)), dtype=torch.float64, device=c.z.device)
        log_count = count.log().expand(len(c.z)).view(shape)
        new = c.z.double().view(shape) - log_count
        old = self.log_u[:, ids]
        # log1p(−1) of γ = 1 is −inf, which forgets the old one.
        kept = old + (math.log1p(-self.gamma) if self.gamma < 1 else -math.inf)
        mixed = torch.where(old == -math.inf, new, torch.logaddexp(kept, new + math.log(self.gamma)))
        if self.training:
            mixed = torch.where(torch.isfinite(new), mixed, old)
            self.log_u.scatter_reduce_(1, ids.expand(shape), mixed, "amax", include_self=False)
        else:
            mixed = torch.where(old == -math.inf, new, old)
        return (mixed + log_count).masked_fill(mixed == -math.inf, 0.0).view(-1).to(c.z.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingNormalizer:
        # model.bfloat16() must not leave three digits of what took an epoch to learn.
        exact = self.log_u
        super()._apply(fn, recurse)
        self.log_u = exact.to(self.log_u.device)
        return self
