"""Contrastive losses of pairs, fused and numerically careful, for PyTorch: CZ-NCE, infoNCE and their family."""

from .contrast import Contrast
from .losses import contrast, cz_nce, explain, info_nce
from .modules import CZNCELoss, InfoNCELoss
from .plan import Plan, get_workspace_limit, set_workspace_limit

__all__ = [
    "CZNCELoss",
    "Contrast",
    "InfoNCELoss",
    "Plan",
    "contrast",
    "cz_nce",
    "explain",
    "get_workspace_limit",
    "info_nce",
    "set_workspace_limit",
]
__version__ = "0.1.0"
