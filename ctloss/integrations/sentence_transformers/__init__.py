# ruff: noqa: E402
"""The ranking losses of sentence-transformers, with its names and arguments, computed by ctloss.

Change one import and nothing else:

    from ctloss.integrations.sentence_transformers import MultipleNegativesRankingLoss

What each argument becomes, and what is refused, is in ``docs/guide/integrations/sentence-transformers.md``.
"""

from .installed import require_sentence_transformers

require_sentence_transformers()

from .cached import CachedMultipleNegativesRankingLoss, CachedMultipleNegativesSymmetricRankingLoss
from .cached_gist import CachedGISTEmbedLoss
from .gist import GISTEmbedLoss
from .ranking import CZNCELoss, MultipleNegativesRankingLoss, MultipleNegativesSymmetricRankingLoss
from .sampler import DistinctTextsBatchSampler
from .sup_con import SupConLoss

__all__ = [
    "CZNCELoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "DistinctTextsBatchSampler",
    "GISTEmbedLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "SupConLoss",
]
