"""Published row losses as functions of a :class:`~ctloss.contrast.Contrast`, each a formula and its source.

``ctloss.contrast`` forms z_i = log Σ_j exp(s_ij) − s⁺_i over a row's negatives, and s⁺_i, its positive's logit. A loss
of pairs is arithmetic on those two vectors, and autograd differentiates through them. So a new loss is one function:

    >>> import torch
    >>> from ctloss.contrast import Contrast
    >>> def squared_hinge(c, margin):
    ...     return row_losses(c, lambda z, positive: (z + margin).clamp(min=0).square())
    >>> squared_hinge(Contrast(torch.tensor([-3.0, 1.0]), torch.tensor([5.0, 1.0])), 2.0)
    tensor([0., 9.])

Nothing here subtracts a probability from one: σ(z) and softplus(z) keep their digits at both ends, so even a row whose
negatives weigh 1e-36 of its positive has an exact gradient. Everything is computed in float64, which costs nothing for
two vectors, and returned in the dtype of z. A row without any negative (z = −inf) has loss 0 and gradient 0 in every
objective.

Objectives take one z per row: with ``dims`` they are called once per width, with ``Contrast(c.z[k], c.positive[k])``.
``c.rows(index)`` selects rows.
"""

from . import batch, formula, hardness, moving, smoothing
from .batch import *
from .formula import *
from .hardness import *
from .moving import *
from .smoothing import *

# A loss is public as soon as its module's own __all__ names it.
__all__: list[str] = []
__all__ += batch.__all__
__all__ += formula.__all__
__all__ += hardness.__all__
__all__ += moving.__all__
__all__ += smoothing.__all__
