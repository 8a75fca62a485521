"""SupCon for datasets of texts with a label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch import Tensor, nn

from ...sup_con import sup_con
from ..numbers import positive
from ..processes import group_of
from . import citations
from .ranking import embedded, integer_labels
from .settings import Similarity, is_cosine, name_of


class SupConLoss(nn.Module):
    """The supervised contrastive loss (arXiv 2004.11362): texts of one label attract each other, all others repel.

    The dataset has a column of texts and one named ``label`` with integers, as for ``BatchAllTripletLoss``. Further
    columns of texts are more views with the row's label. ``BatchSamplers.GROUP_BY_LABEL`` sees to it that texts have
    others of their label in the batch; one without counts nothing.

    Args:
        model: a ``SentenceTransformer``.
        scale: what similarities are multiplied by, 1/τ.
        similarity_fct: ``cos_sim`` or ``dot_score`` of ``sentence_transformers.util``.
        gather_across_devices: compare with the rows of all processes.

    Raises:
        ValueError: for a similarity that is neither cosine nor dot product, or labels that are missing or no integers.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Similarity = cos_sim,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        positive("scale", scale, "20 is usual for cosines")
        is_cosine(similarity_fct)
        self.model = model
        self.scale = scale
        self.similarity_fct = similarity_fct
        self.gather_across_devices = gather_across_devices

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, ``()``.

        Args:
            sentence_features: the tokenized texts of each column.
            labels: ``(n,)`` integers.
        """
        return self.compute_loss_from_embeddings(embedded(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """The loss of embeddings, ``(n, d)`` for each column."""
        classes = integer_labels("classes of the texts", labels, len(embeddings[0])).repeat(len(embeddings))
        return sup_con(
            torch.cat(embeddings),
            classes,
            temperature=1 / self.scale,
            normalize=is_cosine(self.similarity_fct),
            group=group_of(self.gather_across_devices),
        )

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, for model cards."""
        return {
            "scale": self.scale,
            "similarity_fct": name_of(self.similarity_fct),
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def temperature(self) -> float:
        """τ."""
        return 1.0 / self.scale

    @property
    def citation(self) -> str:
        """BibTeX of the paper that the loss is from, for model cards."""
        return citations.SUP_CON
