"""What :func:`ctloss.contrast` returns, and the losses in :mod:`ctloss.objectives` are made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Contrast(NamedTuple):
    """How every anchor compares with its negatives.

    Attributes:
        z: ``(rows,)`` log φ = lse over the negatives − s⁺; −inf for a row without negatives.
        positive: ``(rows,)`` s⁺, the logit of the row's positive.

    Example:
        >>> import torch
        >>> Contrast(torch.tensor([-2.0]), torch.tensor([5.0])).lse
        tensor([3.])
    """

    z: Tensor
    positive: Tensor

    @property
    def lse(self) -> Tensor:
        """``(rows,)`` log Σ exp(s) over the negatives, rounded once: use z where the difference matters."""
        return self.z + self.positive
