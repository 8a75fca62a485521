"""The plain definitions every fused path is held to: Chen et al. 2022, arXiv 2202.13083, over any set of negatives.

* :mod:`ctloss.reference.loops` transcribes the equations entry by entry in 60-digit arithmetic.
* :mod:`ctloss.reference.eager` writes them with differentiable tensor operations, in float64 unless told otherwise.
* :mod:`ctloss.reference.gradients` writes their gradients in closed form.
"""

from .eager import contrast
from .gradients import Gradients, closed_form

__all__ = ["Gradients", "closed_form", "contrast"]
