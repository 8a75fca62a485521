"""GISTEmbedLoss of batches beyond memory, on :class:`ctloss.GradientCache`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from . import citations
from .gist import GISTEmbedLoss
from .mini_batches import OF_MINI_BATCHES, MiniBatches, backward_if, loss_of, refuse_changed_encoder


class CachedGISTEmbedLoss(GISTEmbedLoss):
    """:class:`GISTEmbedLoss` with the encoder run over ``mini_batch_size`` rows at a time, twice, and the guide once.

    The loss sees the whole batch, and its gradient is that of the whole batch (GradCache, arXiv 2101.06983); dropout
    draws in the second run what it drew in the first. Value and gradient are those of the class of this name in
    sentence-transformers. The loss itself takes panels of its own size, whatever ``mini_batch_size`` is.

    Args:
        model: a ``SentenceTransformer``.
        guide: another one.
        temperature: as for :class:`GISTEmbedLoss`; so are all that are not named here.
        mini_batch_size: rows that model and guide get at once.
        mini_batch_num_tokens: instead, the tokens that they get at once, as the model counts them and without padding;
            a longer text is alone.
        show_progress_bar: a bar over the first run of the encoder, and one over that of the guide.
        margin_strategy: what the margin is a share of.
        margin: m.
        contrast_anchors: compare anchors with anchors.
        contrast_positives: compare positives with positives.
        gather_across_devices: compare with the positives and negatives of all processes.

    Raises:
        TypeError, ValueError: as :class:`GISTEmbedLoss`; for a number that is not positive, and for inputs that have
            no rows to split: a static embedding, flattened texts, images without one row a text.
    """

    uncalled = (*GISTEmbedLoss.uncalled, *OF_MINI_BATCHES)
    uses_gradient_cache = True
    """MatryoshkaLoss reads this, and then changes :meth:`calculate_loss` instead of the encoder."""

    def __init__(
        self,
        model: SentenceTransformer,
        guide: SentenceTransformer,
        temperature: float = 0.01,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        margin_strategy: Literal["absolute", "relative"] = "absolute",
        margin: float = 0.0,
        contrast_anchors: bool = True,
        contrast_positives: bool = True,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(
            model,
            guide,
            temperature,
            margin_strategy,
            margin,
            contrast_anchors,
            contrast_positives,
            gather_across_devices,
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
            uncached="GISTEmbedLoss",
        )

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, whose backward runs the encoder again; labels are ignored."""
        refuse_changed_encoder(self.model, "upgrade it, or leave MatryoshkaLoss out")
        batches, features = self.mini_batches, list(sentence_features)
        embeddings = [batches.embedded(self._encode, column, "Embedding") for column in features]
        with torch.no_grad():
            guided = [batches.embedded(self._guide, column, "Guide") for column in features]
        return loss_of(embeddings, partial(self.calculate_loss, reps_guided=[[one] for one in guided]))

    def calculate_loss(
        self,
        reps: Sequence[Sequence[Tensor]],
        reps_guided: Sequence[Sequence[Tensor]],
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The loss of embeddings in parts, ``(rows, d)`` each, for every column.

        Args:
            reps: the model's parts of each column.
            reps_guided: the guide's.
            with_backward: leave the gradient in the model's parts, and return the loss detached.
        """
        whole, guided = ([torch.cat(list(parts)) for parts in side] for side in (reps, reps_guided))
        return backward_if(with_backward, self.compute_loss_from_embeddings(whole, guided))

    def _encode(self, features: dict[str, Any]) -> Tensor:
        embedding: Tensor = self.model(features)["sentence_embedding"]
        return embedding

    def _guide(self, features: dict[str, Any]) -> Tensor:
        embedding: Tensor = self.guide(self._for_guide(features))["sentence_embedding"]
        return embedding

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, for model cards."""
        return self.mini_batches.described(super().get_config_dict())

    @property
    def citation(self) -> str:
        """BibTeX of the papers that the loss is from, for model cards."""
        return super().citation + citations.GRADIENT_CACHE
