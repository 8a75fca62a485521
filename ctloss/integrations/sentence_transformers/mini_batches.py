"""The encoder's side of the cached losses, on :class:`ctloss.GradientCache`: columns of texts in mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...gradient_cache import GradientCache
from ..numbers import widened

BATCH_KEYS = ("input_ids", "attention_mask")
WHOLE_KEYS = ("prompt_length",)
"""What belongs to a batch and not to its rows."""
OF_MINI_BATCHES = ("embed_minibatch", "embed_minibatch_iter", "forward_cached", "calculate_loss_and_cache_gradients")
"""Methods of sentence-transformers' cached losses that ours do without."""


@dataclass(frozen=True, kw_only=True)
class MiniBatches:
    """How a column of texts is split.

    Attributes:
        size: rows that the encoder gets at once.
        tokens: instead, the tokens that it gets at once, padding not counted; a longer text is alone.
        show_progress_bar: a bar over the first run of the encoder.
        uncached: the loss for inputs that have no rows to split.

    Raises:
        ValueError: for a number that is not a positive integer.
    """

    size: int
    tokens: int | None
    show_progress_bar: bool
    uncached: str

    def __post_init__(self) -> None:
        for name, value in (("mini_batch_size", self.size), ("mini_batch_num_tokens", self.tokens)):
            optional = name == "mini_batch_num_tokens" and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"{name}: expected a positive integer, got {value!r}; pass what the memory has room for"
                )

    def embedded(self, encode: Callable[[dict[str, Any]], Tensor], features: dict[str, Any], task: str) -> Tensor:
        """The embeddings of a column, ``(n, d)``, in the memory of one mini-batch.

        Args:
            encode: from features to embeddings; it may change the features that it gets.
            features: the tokenized texts.
            task: what the progress bar is called.

        Raises:
            ValueError: for inputs that do not have one row a text, or no mask where ``tokens`` needs it.
        """
        rows = self._rows(features)
        by_row = {name: value for name, value in features.items() if self._is_by_row(name, value, rows)}
        rest = {name: value for name, value in features.items() if name not in by_row}
        running = [True]

        def encode_part(part: dict[str, Tensor]) -> Tensor:
            embedding = encode(own_copy({**rest, **part}))
            if running:
                bar.update(len(embedding))
            return embedding

        from tqdm import tqdm

        with tqdm(total=rows, desc=task, disable=not self.show_progress_bar) as bar:
            # Each call is a chunk of its own where chunks differ in size.
            parts = [
                GradientCache(size)(encode_part, {name: value[start:stop] for name, value in by_row.items()})
                for start, stop, size in self._ranges(by_row, rows)
            ]
        running.clear()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def described(self, config: dict[str, Any]) -> dict[str, Any]:
        """A loss's arguments for model cards, with these after its first two, where sentence-transformers has them."""
        arguments = list(config.items())
        own = [("mini_batch_size", self.size), ("mini_batch_num_tokens", self.tokens)]
        return dict(arguments[:2] + own + arguments[2:])

    def _rows(self, features: dict[str, Any]) -> int:
        """The texts of a column.

        Raises:
            ValueError: for inputs that do not have one row a text.
        """
        sizes = [
            len(features[key]) for key in BATCH_KEYS if isinstance(features.get(key), Tensor) and features[key].ndim > 1
        ]
        if not sizes or "cu_seq_lens_q" in features or "offsets" in features:
            raise ValueError(
                "inputs: expected padded texts, (rows, tokens), to split into mini-batches, got "
                f"{', '.join(features)}; use {self.uncached}, or switch flattening of the model's inputs off"
            )
        return sizes[0]

    def _is_by_row(self, name: str, value: object, rows: int) -> bool:
        if not isinstance(value, Tensor) or not value.ndim or name in WHOLE_KEYS:
            return False
        if len(value) != rows:
            raise ValueError(
                f"inputs: expected one row a text, {rows}, got {tuple(value.shape)} for {name}; mini-batches of texts "
                f"with several images are not supported: use {self.uncached}"
            )
        return True

    def _ranges(self, by_row: dict[str, Tensor], rows: int) -> Iterator[tuple[int, int, int]]:
        """First row, row after the last, and rows at a time, of each call of the cache."""
        if self.tokens is None:
            yield 0, rows, self.size
            return
        if "attention_mask" not in by_row:
            raise ValueError(
                "mini_batch_num_tokens: expected inputs with an attention mask, which tells tokens from padding, got "
                f"{', '.join(by_row)}; set mini_batch_size instead"
            )
        for start, stop in pairwise(_packed(by_row["attention_mask"].sum(1).tolist(), self.tokens)):
            yield start, stop, stop - start


def loss_of(embeddings: list[Tensor], calculate: Callable[..., Tensor]) -> Tensor:
    """A loss of whole columns, with its gradient found at once, so that the encoder's second run needs no graph of it.

    Args:
        embeddings: ``(n, d)`` each.
        calculate: from the parts of each column to a loss; with ``with_backward=True`` it leaves gradients in them.
    """
    if not torch.is_grad_enabled() or not any(one.requires_grad for one in embeddings):
        return calculate([[one] for one in embeddings])
    # MatryoshkaLoss has calculate_loss leave gradients in leaves, at every width.
    leaves = [widened(one.detach()) for one in embeddings]
    for leaf in leaves:
        leaf.requires_grad_()
    value = calculate([[leaf] for leaf in leaves], with_backward=True)
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    loss: Tensor = _WithGradients.apply(value.detach(), gradients, *embeddings)
    return loss


def backward_if(wanted: bool, loss: Tensor) -> Tensor:
    """The loss; if wanted, detached, with its gradient left in the leaves that it is of."""
    if wanted:
        loss.backward()
        return loss.detach()
    return loss


def own_copy(features: dict[str, Any]) -> dict[str, Any]:
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
            of_tokens = value.shape == mask.shape
            found[name] = (value[:, :width] if of_tokens else value).clone()
    return found


def refuse_changed_encoder(model: Any, advice: str) -> None:
    """Refuse wrappers that change the encoder for the forward pass only, whose second run would be another.

    Raises:
        ValueError: inside MatryoshkaLoss of versions that do not know this loss.
    """
    if type(vars(model).get("forward")).__name__ == "ForwardDecorator":
        raise ValueError(
            "MatryoshkaLoss: expected a version of sentence-transformers that asks losses for uses_gradient_cache, got "
            f"one that changes the encoder instead; {advice}"
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


def _packed(lengths: list[int], most: int) -> list[int]:
    """The ends of ranges of rows with at most so many tokens each, or one row; the first is 0."""
    ends, tokens = [0], 0
    for row, length in enumerate(lengths):
        if tokens and tokens + length > most:
            ends.append(row)
            tokens = 0
        tokens += length
    return [*ends, len(lengths)]
