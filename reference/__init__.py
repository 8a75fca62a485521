"""The plain definitions that every fused path is tested against: Chen et al. 2022, arXiv 2202.13083, for any negatives.

* :mod:`ctloss.reference.loops` transcribes the equations entry by entry in 60-digit arithmetic.
* :mod:`ctloss.reference.eager` writes them as differentiable tensor operations, in float64 by default.
* :mod:`ctloss.reference.gradients` writes their gradients in closed form.
"""

from .eager import contrast
from .gradients import Gradients, closed_form

__all__ = ["Gradients", "closed_form", "contrast"]
