"""The ranking losses of batches beyond memory, on :class:`ctloss.GradientCache`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch import Tensor

from ..overrides import Uncalled
from . import citations
from .mini_batches import OF_MINI_BATCHES, MiniBatches, backward_if, loss_of, refuse_changed_encoder
from .ranking import REPLACEMENT, MultipleNegativesRankingLoss
from .settings import SYMMETRIC, Direction, HardnessMode, PartitionMode, Similarity


class CachedMultipleNegativesRankingLoss(Uncalled, MultipleNegativesRankingLoss):
    """:class:`MultipleNegativesRankingLoss` with the encoder run over ``mini_batch_size`` rows at a time, twice.

    The loss sees the whole batch, and its gradient is that of the whole batch (GradCache, arXiv 2101.06983); dropout
    draws in the second run what it drew in the first.

    Args:
        model: a ``SentenceTransformer``.
        scale: as for :class:`MultipleNegativesRankingLoss`; so are all that are not named here.
        similarity_fct: ``cos_sim`` or ``dot_score``.
        mini_batch_size: rows that the encoder gets at once.
        mini_batch_num_tokens: instead, the tokens that it gets at once, padding not counted; a longer text is alone.
        gather_across_devices: compare with the rows of all processes.
        directions: the similarities in the sum.
        partition_mode: one softmax, or the mean of one for each direction.
        show_progress_bar: a bar over the first run of the encoder.
        hardness_mode: whose logits are raised.
        hardness_strength: by how much.
        ours: ``objective``, ``margin``, ``dims``, ``dim_weights``, ``labels_are_ids``.

    Raises:
        TypeError, ValueError: as :class:`MultipleNegativesRankingLoss`; for a number that is not positive, and for
            inputs that have no rows to split: a static embedding, flattened texts, images without one row a text.
    """

    uncalled = OF_MINI_BATCHES
    library = "sentence_transformers.losses"
    uses_gradient_cache = True
    """MatryoshkaLoss reads this, and then changes :meth:`calculate_loss` instead of the encoder."""

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Similarity = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: tuple[Direction, ...] = ("query_to_doc",),
        partition_mode: PartitionMode = "joint",
        show_progress_bar: bool = False,
        hardness_mode: HardnessMode | None = None,
        hardness_strength: float = 0.0,
        **ours: Any,
    ) -> None:
        super().__init__(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions,
            partition_mode,
            hardness_mode,
            hardness_strength,
            **ours,
        )
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        # Refuses them as they are given.
        _ = self.mini_batches

    @property
    def mini_batches(self) -> MiniBatches:
        """The attributes as they are now, checked again."""
        return MiniBatches(
            size=self.mini_batch_size,
            tokens=self.mini_batch_num_tokens,
            show_progress_bar=self.show_progress_bar,
            uncached="MultipleNegativesRankingLoss",
        )

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, whose backward runs the encoder again; arguments as for the loss without a cache."""
        refuse_changed_encoder(self.model, "pass dims= to this loss, which is the same")
        batches = self.mini_batches
        embeddings = [batches.embedded(self._encode, column, "Embedding") for column in sentence_features]
        return loss_of(embeddings, partial(self.calculate_loss, labels=labels))

    def calculate_loss(
        self, reps: Sequence[Sequence[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings in parts, ``(rows, d)`` each, for every column.

        Args:
            reps: the parts of each column.
            labels: as for :meth:`forward`.
            with_backward: leave the gradient in the parts, and return the loss detached.
        """
        whole = [torch.cat(list(parts)) for parts in reps]
        return backward_if(with_backward, self.compute_loss_from_embeddings(whole, labels))

    def _encode(self, features: dict[str, Any]) -> Tensor:
        embedding: Tensor = self.model(features)["sentence_embedding"]
        return embedding

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, for model cards."""
        return self.mini_batches.described(super().get_config_dict())

    @property
    def citation(self) -> str:
        """BibTeX of the papers that the loss is from, for model cards."""
        return super().citation + citations.GRADIENT_CACHE


class CachedMultipleNegativesSymmetricRankingLoss(CachedMultipleNegativesRankingLoss):
    """sentence-transformers' loss of the same name: the mean of both directions' infoNCE, cached.

    Arguments and errors are those of :class:`CachedMultipleNegativesRankingLoss`.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Similarity = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
        **ours: Any,
    ) -> None:
        warnings.warn(
            REPLACEMENT.format(name=type(self).__name__, other="CachedMultipleNegativesRankingLoss"),
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(
            model,
            scale,
            similarity_fct,
            mini_batch_size,
            mini_batch_num_tokens,
            gather_across_devices,
            directions=SYMMETRIC,
            partition_mode="per_direction",
            show_progress_bar=show_progress_bar,
            **ours,
        )
