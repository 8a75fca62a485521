"""Panels of base-2 logits ``log2(e) · s_ij``, the pairs that are no negatives taken out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Panel

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)


@dataclass(frozen=True)
class Logits:
    """What a panel of logits is formed from.

    Attributes:
        rows: ``(2n, d)`` stacked rows.
        n: pairs.
        symmetric: negatives of both languages; a row is then no negative of itself.
        scale: ``log2(e) / τ``, a number, or a 0-d tensor where τ lives on the device.
    """

    rows: Tensor
    n: int
    symmetric: bool
    scale: float | Tensor

    def fill(self, panel: Panel, out: Tensor) -> Tensor:
        """Write the panel's logits, all pairs included.

        Args:
            panel: which rows and columns.
            out: at least ``height · (2n - first)`` elements of scratch.

        Returns:
            ``(height, 2n - first)`` view of ``out``.
        """
        width = 2 * self.n - panel.first
        logits = out[: panel.height * width].view(panel.height, width)
        left, right = self.rows[panel.start : panel.stop], self.rows[panel.first :].t()
        if isinstance(self.scale, Tensor):
            return torch.mm(left, right, out=logits).mul_(self.scale)
        return torch.addmm(logits, left, right, beta=0, alpha=self.scale, out=logits)

    def positives(self, panel: Panel, logits: Tensor) -> Tensor | None:
        """The panel's positive pairs ``(i, i + n)`` as a view of length ``height``; ``None`` for y's rows."""
        if panel.start >= self.n:
            return None
        offset = panel.start + self.n - panel.first
        return logits[:, offset : offset + panel.height].diagonal()

    def exclude(self, panel: Panel, logits: Tensor, value: float) -> None:
        """Overwrite what is no negative, a row's own entry and its positive's, with ``value``."""
        if self.symmetric:
            logits[:, : panel.height].diagonal().fill_(value)
        positives = self.positives(panel, logits)
        if positives is not None:
            positives.fill_(value)


def base2_scale(temperature: float | Tensor) -> float | Tensor:
    """``log2(e) / τ``; NaN for a device tensor that is not positive, which is not read on the host.

    Args:
        temperature: a float, or a 0-d tensor.

    Returns:
        A float for floats and CPU tensors, else a 0-d tensor.

    Example:
        >>> base2_scale(torch.tensor(1.0)) == LOG2E
        True
    """
    if isinstance(temperature, Tensor) and temperature.device.type != "cpu":
        return torch.where(temperature > 0, LOG2E / temperature, math.nan)
    return LOG2E / float(temperature)
