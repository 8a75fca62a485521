"""Value and gradient in float64, a panel of rows at a time: what every error is measured against, at any n."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import PairLoss

SIGMOID_BIAS = -10.0
"""The bias of the sigmoid loss wherever it is measured."""


@dataclass(frozen=True)
class Exact:
    """A float64 loss, its gradients, and what its error is relative to."""

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
    """z = lse(negatives) - s+ of every row, equation (5): (2n,) of (2n, d) unit rows in float64, x's first.

    ``step`` rows are taken at a time.
    """
    starts = range(0, len(rows), step)
    panels = (_panel(rows, start, min(start + step, len(rows)), negatives, temperature)[0] for start in starts)
    return torch.cat([torch.logsumexp(panel, 1) for panel in panels])


def exact(x: Tensor, y: Tensor, *, loss: str, negatives: str, temperature: float, panel_bytes: int = 2**29) -> Exact:
    """The loss of raw rows and its gradient, by equation (5) and the closed form of its derivative.

    With w = 1 (CZ-NCE) or sigmoid(z) (infoNCE) and P the softmax over a row's negatives, a pair's weight is
    w_i P_ij + w_j P_ji; a row's gradient is the weighted sum of the others, less (w_i + w_p) times its partner,
    through the cosine. The sigmoid loss is -Σ log sigmoid(±(cos/τ + b)) / n with b = SIGMOID_BIAS.

    Args:
        x, y: (n, d) raw rows of any dtype; taken as they are, in float64.
        loss: "cz_nce", "info_nce" or "sig_lip".
        negatives: "both" or "cross"; "sig_lip" has no others than "cross".
        panel_bytes: memory of one panel of logits.

    Returns:
        The mean loss (over the 2n rows, or the n rows of "sig_lip") and its gradients with respect to x and y.
    """
    raw = torch.cat((x, y)).double()
    norms = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
    rows = raw / norms
    value, unit_gradient = (
        _sigmoid(rows, temperature, max(1, panel_bytes // (4 * len(rows))))
        if loss == "sig_lip"
        else _softmax(rows, loss, negatives, temperature, max(1, panel_bytes // (8 * len(rows))))
    )
    gradient = (unit_gradient - (unit_gradient * rows).sum(1, keepdim=True) * rows) / norms
    return Exact(value, gradient[: len(x)], gradient[len(x) :], value if loss == "info_nce" else max(1.0, abs(value)))


def _softmax(rows: Tensor, loss: str, negatives: str, temperature: float, step: int) -> tuple[float, Tensor]:
    """Mean and gradient with respect to unit rows of CZ-NCE or infoNCE."""
    count = len(rows)
    z = log_ratios(rows, negatives=negatives, temperature=temperature, step=step)
    info = loss == "info_nce"
    log_weight = F.logsigmoid(z) if info else torch.zeros_like(z)
    value = torch.logaddexp(z, torch.zeros_like(z)) if info else z
    weight = log_weight.exp()
    pull = (weight + weight.roll(count // 2))[:, None] * rows.roll(count // 2, 0)
    gradient = -pull
    # log P_ij = s_ij - s+_i - z_i: the row's own softmax, and by symmetry its column's.
    positives = (rows * rows.roll(count // 2, 0)).sum(1) / temperature
    column = log_weight - z - positives
    for start in range(0, count, step):
        stop = min(start + step, count)
        logits, positive = _panel(rows, start, stop, negatives, temperature)
        pair = torch.exp(logits + (log_weight - z)[start:stop, None])
        logits += positive[:, None] + column[None, :]
        pair += logits.exp_()
        gradient[start:stop] += pair @ rows
    return value.mean().item(), gradient / (count * temperature)


def _sigmoid(rows: Tensor, temperature: float, step: int) -> tuple[float, Tensor]:
    """Mean and gradient with respect to unit rows of the sigmoid loss."""
    n = len(rows) // 2
    u, v = rows[:n], rows[n:]
    gradient = torch.zeros_like(rows)
    total = 0.0
    for start in range(0, n, step):
        stop = min(start + step, n)
        signed = -(u[start:stop] @ v.T / temperature + SIGMOID_BIAS)
        own = torch.arange(start, stop, device=rows.device)
        row = own - start
        signed[row, own] *= -1
        total -= F.logsigmoid(signed).sum().item() / n
        slope = torch.sigmoid(-signed) / (n * temperature)
        slope[row, own] *= -1
        gradient[start:stop] = slope @ v
        gradient[n:] += slope.T @ u[start:stop]
    return total, gradient


def errors(call: PairLoss, x: Tensor, y: Tensor, truth: Exact, *, scale: float = 1.0) -> dict[str, float]:
    """How far an implementation is from the truth, on the same raw rows x and y.

    ``scale`` multiplies the loss before the backward pass and divides the gradient, as a gradient scaler does.

    Returns:
        ``gradient_error`` = ‖g - g_ref‖ / ‖g_ref‖ over both inputs, and ``value_error``: relative to the loss for
        infoNCE, to max(1, |loss|) for CZ-NCE, which crosses zero, and for the sigmoid loss.
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
