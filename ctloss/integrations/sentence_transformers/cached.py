"""The ranking losses of batches beyond memory, on :class:`ctloss.GradientCache`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...gradient_cache import GradientCache
from ..numbers import widened
from . import citations
from .ranking import REPLACEMENT, MultipleNegativesRankingLoss
from .settings import SYMMETRIC, Direction, HardnessMode, PartitionMode, Similarity

BATCH_KEYS = ("input_ids", "attention_mask")
WHOLE_KEYS = ("prompt_length",)
"""What belongs to a batch and not to its rows."""


class CachedMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
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
        for name, value in (("mini_batch_size", mini_batch_size), ("mini_batch_num_tokens", mini_batch_num_tokens)):
            optional = name == "mini_batch_num_tokens" and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"{name}: expected a positive integer, got {value!r}; pass what the memory has room for"
                )
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, whose backward runs the encoder again; arguments as for the loss without a cache."""
        _refuse_changed_encoder(self.model)
        features = list(sentence_features)
        embeddings = [self._embedded(column) for column in features]
        if not torch.is_grad_enabled() or not any(one.requires_grad for one in embeddings):
            return self.calculate_loss([[one] for one in embeddings], labels)
        # MatryoshkaLoss has calculate_loss leave gradients in leaves, at every width.
        leaves = [widened(one.detach()) for one in embeddings]
        for leaf in leaves:
            leaf.requires_grad_()
        value = self.calculate_loss([[leaf] for leaf in leaves], labels, with_backward=True)
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        loss: Tensor = _WithGradients.apply(value.detach(), gradients, *embeddings)
        return loss

    def calculate_loss(
        self, reps: Sequence[Sequence[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings in parts, ``(rows, d)`` each, for every column.

        Args:
            reps: the parts of each column.
            labels: as for :meth:`forward`.
            with_backward: leave the gradient in the parts, and return the loss detached.
        """
        loss = self.compute_loss_from_embeddings([torch.cat(list(parts)) for parts in reps], labels)
        if with_backward:
            loss.backward()
            return loss.detach()
        return loss

    def _embedded(self, features: dict[str, Any]) -> Tensor:
        rows = _rows(features)
        by_row = {name: value for name, value in features.items() if _is_by_row(name, value, rows)}
        rest = {name: value for name, value in features.items() if name not in by_row}
        running = [True]

        def encode(chunk: dict[str, Tensor]) -> Tensor:
            embedding: Tensor = self.model(_own_copy({**rest, **chunk}))["sentence_embedding"]
            if running:
                bar.update(len(embedding))
            return embedding

        from tqdm import tqdm

        with tqdm(total=rows, desc="Embedding", disable=not self.show_progress_bar) as bar:
            # Each call is a chunk of its own where chunks differ in size.
            ranges = self._ranges(by_row, rows)
            parts = [
                GradientCache(size)(encode, {name: value[start:stop] for name, value in by_row.items()})
                for start, stop, size in ranges
            ]
        running.clear()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _ranges(self, by_row: dict[str, Tensor], rows: int) -> Iterator[tuple[int, int, int]]:
        """First row, row after the last, and rows at a time, of each call of the cache."""
        if self.mini_batch_num_tokens is None:
            yield 0, rows, self.mini_batch_size
            return
        if "attention_mask" not in by_row:
            raise ValueError(
                "mini_batch_num_tokens: expected inputs with an attention mask, which tells tokens from padding, got "
                f"{', '.join(by_row)}; set mini_batch_size instead"
            )
        for start, stop in pairwise(_packed(by_row["attention_mask"].sum(1).tolist(), self.mini_batch_num_tokens)):
            yield start, stop, stop - start

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, for model cards."""
        config = super().get_config_dict()
        first = {name: config.pop(name) for name in ("scale", "similarity_fct")}
        cached = {"mini_batch_size": self.mini_batch_size, "mini_batch_num_tokens": self.mini_batch_num_tokens}
        return {**first, **cached, **config}

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


class _WithGradients(torch.autograd.Function):
    """A loss whose gradient with respect to the embeddings is already known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *embeddings: Tensor) -> Tensor:
        ctx.gradients, ctx.dtypes = gradients, [one.dtype for one in embeddings]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (upstream * one for one in ctx.gradients)
        return None, None, *(one.to(dtype) for one, dtype in zip(scaled, ctx.dtypes, strict=True))


def _rows(features: dict[str, Any]) -> int:
    """The texts of a column.

    Raises:
        ValueError: for inputs that do not have one row a text.
    """
    sizes = [
        len(features[key]) for key in BATCH_KEYS if isinstance(features.get(key), Tensor) and features[key].ndim > 1
    ]
    if not sizes or "cu_seq_lens_q" in features or "offsets" in features:
        raise ValueError(
            f"inputs: expected padded texts, (rows, tokens), to split into mini-batches, got {', '.join(features)}; "
            "use MultipleNegativesRankingLoss, or switch flattening of the model's inputs off"
        )
    return sizes[0]


def _is_by_row(name: str, value: object, rows: int) -> bool:
    if not isinstance(value, Tensor) or not value.ndim or name in WHOLE_KEYS:
        return False
    if len(value) != rows:
        raise ValueError(
            f"inputs: expected one row a text, {rows}, got {tuple(value.shape)} for {name}; mini-batches of texts with "
            "several images are not supported: use MultipleNegativesRankingLoss"
        )
    return True


def _own_copy(features: dict[str, Any]) -> dict[str, Any]:
    """Features that the model may change, without the columns that are padding in all of these rows."""
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in features.items()}
    used = mask.bool().any(0).nonzero()
    # Leading padding stays, because positions may be counted from it.
    width = int(used[-1]) + 1 if len(used) else mask.shape[1]
    found = dict(features)
    for name, value in features.items():
        if isinstance(value, Tensor):
            of_tokens = value.ndim > 1 and value.shape[1] == mask.shape[1] and len(value) == len(mask)
            found[name] = (value[:, :width] if of_tokens else value).clone()
    return found


def _packed(lengths: list[int], most: int) -> list[int]:
    """The ends of ranges of rows with at most so many tokens each, or one row; the first is 0."""
    ends, tokens = [0], 0
    for row, length in enumerate(lengths):
        if tokens and tokens + length > most:
            ends.append(row)
            tokens = 0
        tokens += length
    return [*ends, len(lengths)]


def _refuse_changed_encoder(model: Any) -> None:
    """Refuse wrappers that change the encoder for the forward pass only, whose second run would be another.

    Raises:
        ValueError: inside MatryoshkaLoss of versions that do not know this loss.
    """
    if type(vars(model).get("forward")).__name__ == "ForwardDecorator":
        raise ValueError(
            "MatryoshkaLoss: expected a version of sentence-transformers that asks losses for uses_gradient_cache, got "
            "one that changes the encoder instead; pass dims= to this loss, which is the same"
        )
