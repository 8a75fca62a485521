"""Contrastive losses for translated pairs, fused and numerically careful: CZ-NCE and infoNCE for PyTorch."""

from .dispatch import Explanation, explain, get_workspace_limit, set_workspace_limit
from .losses import cz_nce, info_nce
from .modules import CZNCELoss, InfoNCELoss

__all__ = [
    "CZNCELoss",
    "Explanation",
    "InfoNCELoss",
    "cz_nce",
    "explain",
    "get_workspace_limit",
    "info_nce",
    "set_workspace_limit",
]
__version__ = "0.1.0"
