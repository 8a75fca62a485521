"""The contrast that tests of objectives are built on: one line takes the public one in its place."""

from __future__ import annotations

import torch
from torch import Tensor

from ctloss.contrast import Contrast
from ctloss.reference.eager import unit_rows


def contrast(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    negatives: str = "both",
    directions: str = "both",
    normalize: bool = True,
) -> Contrast:
    """z and the positives' logits by plain operations in float64, returned in float32 for narrower inputs."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, y = (unit_rows(side.double()) if normalize else side.double() for side in (x, y))
    n = len(x)
    tau: float | Tensor = temperature
    if isinstance(temperature, Tensor) and temperature.dim() == 1:
        tau = temperature.repeat(2 * n // len(temperature))[:, None]
    rows = torch.cat((x, y))
    logits = rows @ rows.T / tau
    own = torch.arange(2 * n) // n
    pair = torch.arange(2 * n) % n
    positive = (
        logits.diagonal(n).repeat(2) if not isinstance(tau, Tensor) else logits[range(2 * n), pair + n * (1 - own)]
    )
    left_out = pair[:, None] == pair
    if negatives == "cross":
        left_out = left_out | (own[:, None] == own)
    elif negatives == "own":
        left_out = left_out | (own[:, None] != own)
    differences = (logits - positive[:, None]).masked_fill(left_out, -torch.inf)
    empty = left_out.all(1)
    z = torch.logsumexp(differences.masked_fill(empty[:, None], 0.0), 1).masked_fill(empty, -torch.inf)
    count = 2 * n if directions == "both" else n
    return Contrast(z[:count].to(dtype), positive[:count].to(dtype))
