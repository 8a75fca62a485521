"""Published row losses as functions of a :class:`~ctloss.contrast.Contrast`, each a formula and its source.

``ctloss.contrast`` forms z_i = log Σ_j exp(s_ij) − s⁺_i over a row's negatives, and s⁺_i, its positive's logit. A loss
of pairs is arithmetic on those two vectors, and autograd carries it back through them. So a new loss is one function:

    >>> import torch
    >>> from ctloss.contrast import Contrast
    >>> def squared_hinge(c, margin):
    ...     return row_losses(c, lambda z, positive: (z + margin).clamp(min=0).square())
    >>> squared_hinge(Contrast(torch.tensor([-3.0, 1.0]), torch.tensor([5.0, 1.0])), 2.0)
    tensor([0., 9.])

Nothing here subtracts a probability from one: σ(z) and softplus(z) keep their digits at both ends, so that a row whose
negatives weigh 1e-36 of its positive still pulls. All of it is done in float64, of which two vectors cost nothing, and
returned in the dtype of z. A row without any negative (z = −inf) has loss 0 and gradient 0 in every objective.
"""

from .batch import dclw, debiased_nce, epsilon_nce, focal_nce, gte_nce, margin_nce, rince
from .formula import row_losses, softplus
from .hardness import hardness_alpha, hardness_beta
from .moving import MovingNormalizer, isogclr, neuclip, sogclr
from .smoothing import label_smoothing, mean_logits

__all__ = [
    "MovingNormalizer",
    "dclw",
    "debiased_nce",
    "epsilon_nce",
    "focal_nce",
    "gte_nce",
    "hardness_alpha",
    "hardness_beta",
    "isogclr",
    "label_smoothing",
    "margin_nce",
    "mean_logits",
    "neuclip",
    "rince",
    "row_losses",
    "softplus",
    "sogclr",
]
