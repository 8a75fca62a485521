"""The two parts of a contrastive gradient: the pull of the positives and the push of the negatives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

import ctloss


def pull_and_push(
    x: Tensor, y: Tensor, *, loss: str, temperature: float, negatives: Literal["both", "cross"] = "both"
) -> tuple[Tensor, Tensor]:
    """Norms of what draws positives together, and of what drives negatives apart, in the gradient of the batch loss.

    With unit rows u_i, N = 2n of them, and a row's weight w_i = 1 (CZ-NCE) or sigmoid(z_i) (infoNCE), the gradient of
    Chen et al. 2022, eq. (2), before it is taken through the cosine, is

        dL/du_i = push_i - pull_i,   pull_i = (w_i + w_p(i)) u_p(i) / (Nτ),   push_i = Σ_j W_ij u_j / (Nτ).

    Args:
        x, y: (n, d), not yet normalised.
        loss: ``"cz_nce"`` or ``"info_nce"``.
        temperature, negatives: see :func:`ctloss.cz_nce`.

    Returns:
        The norms of all pulls and of all pushes, scalars without gradient.

    Example:
        >>> x = torch.eye(3)
        >>> pull, push = pull_and_push(x, x, loss="cz_nce", temperature=0.5)
        >>> round(float(pull), 4), round(float(push), 4)
        (1.633, 1.1547)
    """
    with torch.enable_grad():
        first, second = (functional.normalize(side.detach(), dim=1).requires_grad_() for side in (x, y))
        function = ctloss.cz_nce if loss == "cz_nce" else ctloss.info_nce
        rows = function(first, second, temperature=temperature, negatives=negatives, normalize=False, reduction="none")
        gradients = torch.autograd.grad(rows.mean(), (first, second))
    # infoNCE's rows are softplus(z), and sigmoid(z) = 1 - exp(-softplus(z)).
    weights = torch.ones_like(rows) if loss == "cz_nce" else -torch.expm1(-rows.detach())
    shared = weights.view(2, -1).sum(dim=0).unsqueeze(1) / (len(rows) * temperature)
    pulls = torch.cat([shared * second.detach(), shared * first.detach()])
    return pulls.norm(), (torch.cat(gradients) + pulls).norm()
