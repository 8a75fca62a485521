"""What a contrastive loss is made of: every row's log-ratio and its positive's logit."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Contrast(NamedTuple):
    """Every anchor's log-ratio and positive logit; :mod:`ctloss.objectives` turns them into row losses.

    Attributes:
        z: ``(rows,)``, ``log Σ_negatives exp(s_ij) − s⁺_i``; −inf for a row without negatives.
        positive: ``(rows,)``, the positives' logits s⁺, over the temperature.

    Example:
        >>> import torch
        >>> Contrast(torch.tensor([-3.0]), torch.tensor([5.0])).lse
        tensor([2.])
    """

    z: Tensor
    positive: Tensor

    @property
    def lse(self) -> Tensor:
        """``(rows,)``, log Σ_negatives exp(s_ij); z is more exact than a difference of it and the positive."""
        return self.z + self.positive
