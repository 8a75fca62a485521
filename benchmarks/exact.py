"""Value and gradient in float64, a panel of rows at a time: the truth beside every measured time, at any n."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import PairLoss


@dataclass(frozen=True)
class Exact:
    """A float64 loss (mean over the 2n rows), its gradients, and what its error is relative to."""

    loss: float
    gx: Tensor
    gy: Tensor
    unit: float


def _panel(rows: Tensor, start: int, stop: int, negatives: str, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits less the positive's for rows start..stop, excluded pairs at -inf, and the positive's logit."""
    count = len(rows)
    logits = rows[start:stop] @ rows.T / temperature
    index = torch.arange(start, stop, device=rows.device)
    partner = (index + count // 2) % count
    positive = logits.gather(1, partner[:, None])
    logits -= positive
    if negatives == "cross":
        own_side = (index < count // 2)[:, None] == (torch.arange(count, device=rows.device) < count // 2)[None, :]
        logits.masked_fill_(own_side, -torch.inf)
    logits.scatter_(1, index[:, None], -torch.inf)
    logits.scatter_(1, partner[:, None], -torch.inf)
    return logits, positive[:, 0]


def log_ratios(rows: Tensor, *, negatives: str, temperature: float, step: int) -> Tensor:
    """z = lse(negatives) - s+ of every row, equation (5).

    Args:
        rows: (2n, d) unit rows in float64, x's first.
        negatives: "both" or "cross".
        temperature: τ > 0.
        step: rows taken at a time.

    Returns:
        (2n,) in float64.
    """
    starts = range(0, len(rows), step)
    panels = (_panel(rows, start, min(start + step, len(rows)), negatives, temperature)[0] for start in starts)
    return torch.cat([torch.logsumexp(panel, 1) for panel in panels])


def exact(
    x: Tensor,
    y: Tensor,
    *,
    loss: str,
    negatives: str,
    temperature: float,
    panel_bytes: int = 2**29,
) -> Exact:
    """The loss of raw rows and its gradient, by equation (5) and the closed form of its derivative.

    With w = 1 (CZ-NCE) or sigmoid(z) (infoNCE) and P the softmax over a row's negatives, a pair's weight is
    w_i P_ij + w_j P_ji; a row's gradient is the weighted sum of the others, less (w_i + w_p) times its partner,
    through the cosine.

    Args:
        x: (n, d) raw rows of any dtype; taken as they are, in float64.
        y: (n, d).
        loss: "cz_nce" or "info_nce".
        negatives: "both" or "cross".
        temperature: τ > 0.
        panel_bytes: memory of one panel of logits.

    Returns:
        The mean loss and its gradients with respect to x and y.
    """
    raw = torch.cat((x, y)).double()
    norms = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
    rows = raw / norms
    count = len(rows)
    step = max(1, panel_bytes // (8 * count))
    z = log_ratios(rows, negatives=negatives, temperature=temperature, step=step)
    info = loss == "info_nce"
    log_weight = F.logsigmoid(z) if info else torch.zeros_like(z)
    value = torch.logaddexp(z, torch.zeros_like(z)) if info else z
    weight = log_weight.exp()
    pull = (weight + weight.roll(count // 2))[:, None] * rows.roll(count // 2, 0)
    unit_gradient = -pull
    # log P_ij = s_ij - s+_i - z_i: the row's own softmax, and by symmetry its column's.
    positives = (rows * rows.roll(count // 2, 0)).sum(1) / temperature
    column = log_weight - z - positives
    for start in range(0, count, step):
        stop = min(start + step, count)
        logits, positive = _panel(rows, start, stop, negatives, temperature)
        pair = torch.exp(logits + (log_weight - z)[start:stop, None])
        logits += positive[:, None] + column[None, :]
        pair += logits.exp_()
        unit_gradient[start:stop] += pair @ rows
    unit_gradient /= count * temperature
    gradient = (unit_gradient - (unit_gradient * rows).sum(1, keepdim=True) * rows) / norms
    mean = value.mean().item()
    return Exact(mean, gradient[: len(x)], gradient[len(x) :], mean if info else max(1.0, abs(mean)))


def errors(call: PairLoss, x: Tensor, y: Tensor, truth: Exact, *, scale: float = 1.0) -> dict[str, float]:
    """How far an implementation is from the truth, on the same inputs.

    Args:
        call: the loss.
        x: raw rows; differentiated with respect to.
        y: likewise.
        truth: what :func:`exact` gave for them.
        scale: the loss is multiplied by it before the backward pass and the gradient divided by it, as a gradient
            scaler would.

    Returns:
        ``gradient_error`` = ‖g - g_ref‖ / ‖g_ref‖ over both inputs, and ``value_error``: relative to the loss for
        infoNCE, to max(1, |loss|) for CZ-NCE, which crosses zero.
    """
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = call(x, y)
    gradients = torch.autograd.grad(value * scale, (x, y))
    square = reference = 0.0
    for gradient, wanted in zip(gradients, (truth.gx, truth.gy), strict=True):
        square += (gradient.double() / scale - wanted).square().sum().item()
        reference += wanted.square().sum().item()
    return {
        "gradient_error": math.sqrt(square / reference) if reference else math.nan,
        "value_error": abs(value.item() - truth.loss) / truth.unit,
    }
