"""Contrastive losses of pairs, fused and numerically careful, for PyTorch: CZ-NCE, infoNCE and their family."""

from . import objectives
from .contrast import Contrast
from .core.plan import Plan, get_workspace_limit, set_workspace_limit
from .gradient_cache import GradientCache, cached
from .losses import contrast, cz_nce, explain, info_nce
from .modules import CZNCELoss, InfoNCELoss
from .sig_lip import sig_lip
from .sup_con import sup_con

__all__ = [
    "CZNCELoss",
    "Contrast",
    "Explanation",
    "GradientCache",
    "InfoNCELoss",
    "Plan",
    "cached",
    "contrast",
    "cz_nce",
    "explain",
    "get_workspace_limit",
    "info_nce",
    "objectives",
    "set_workspace_limit",
    "sig_lip",
    "sup_con",
]
# What Plan was called in 0.1.
Explanation = Plan
__version__ = "0.2.0.dev0"
