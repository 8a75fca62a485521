"""Contrastive training with transformers' Trainer.

For a model that returns both embeddings: ``ContrastiveTrainer(..., outputs=("text_embeds", "image_embeds"))``, or with
any Trainer ``compute_loss_func=PairLoss("text_embeds", "image_embeds", accumulation_steps=1)``. For one encoder of both
sides: :class:`ContrastiveTrainer` with a :class:`PairCollator`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import info_nce
from .processes import world

try:
    from transformers import Trainer
except ImportError as missing:
    raise ImportError(
        "ctloss.integrations.transformers: expected transformers with what its Trainer needs, got an environment "
        f"without it ({missing}); pip install 'ctloss[train]'"
    ) from missing

Loss = Callable[..., Tensor]
Pooling = str | Callable[[Any, Mapping[str, Tensor]], Tensor]
POOLINGS = ("mean", "cls", "pooler")
STEPS = "pass accumulation_steps=arguments.gradient_accumulation_steps"
IGNORED = -100
"""The label that Trainer does not count."""


class PairLoss:
    r"""A loss of the two embeddings that a model returns, as Trainer's ``compute_loss_func``.

    Trainer divides no loss of such a function by the steps of gradient accumulation. With ``labels`` in the batches it
    says how many labels the whole accumulated batch has, and this divides by them: losses are those of a mean over all
    its rows, each compared with its own micro-batch. Without labels it does not say, so ``accumulation_steps`` must.
    (Trainer drops a column ``labels`` that the model does not take, unless ``label_names=["labels"]``.)
    For a model whose ``loss_type`` is that of causal language models, Trainer leaves the first label of every
    micro-batch out of its count: give ``accumulation_steps``.
    Over several ranks batches have equally many rows, and ``average_tokens_across_devices`` is as by default.

    Args:
        x: the anchors' name in the model's outputs, or their number in a tuple.
        y: the positives'.
        loss: :func:`ctloss.info_nce`, :func:`ctloss.cz_nce`, or another function of x, y and ``options``, a mean.
        accumulation_steps: Trainer's ``gradient_accumulation_steps``; needed where batches have no labels. If given, it
            is what losses are divided by, whatever Trainer counts.
        options: the loss's. Integer ``labels`` of the batches are passed to it as ``ids``: rows of one label are no
            negatives.

    Raises:
        TypeError, ValueError: for a loss with parameters, which no optimiser would see, or steps below 1.

    Example:
        >>> loss = PairLoss("query", "document", accumulation_steps=1, temperature=0.5, negatives="cross")
        >>> loss({"query": torch.eye(2), "document": torch.eye(2)}, None)
        tensor(0.1269)
    """

    def __init__(
        self,
        x: str | int = 0,
        y: str | int = 1,
        *,
        loss: Loss = info_nce,
        accumulation_steps: int | None = None,
        **options: Any,
    ) -> None:
        if isinstance(accumulation_steps, bool) or not isinstance(accumulation_steps, Integral | None):
            raise TypeError(f"accumulation_steps: expected an integer, got {accumulation_steps!r}; pass Trainer's")
        if accumulation_steps is not None and accumulation_steps < 1:
            raise ValueError(f"accumulation_steps: expected at least 1, got {accumulation_steps}; pass Trainer's")
        self.x, self.y, self.loss, self.options = x, y, without_parameters(loss), options
        self.accumulation_steps = accumulation_steps

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        """The loss of a model's outputs; what Trainer calls.

        Raises:
            KeyError, TypeError: if the outputs lack an embedding, or labels are no integers, one a row.
            ValueError: for labels of -100; or without ``accumulation_steps``, if in training there are no labels
                either, or Trainer counts fewer than there are.
        """
        x, y = (_picked(outputs, which) for which in (self.x, self.y))
        loss = self.loss(x, y, **self.options, **_ids(labels, len(x)))
        if self.accumulation_steps is None and num_items_in_batch is not None:
            if bool((torch.as_tensor(num_items_in_batch) < len(x)).any()):
                raise ValueError(
                    f"num_items_in_batch: expected at least the {len(x)} rows of a batch, got {num_items_in_batch}, as "
                    f"Trainer counts for causal language models; {STEPS}"
                )
            return loss * (len(x) / num_items_in_batch)
        if num_items_in_batch is not None:
            # Trainer multiplies by them what it takes for divided by a count over all ranks.
            loss = loss / world()
        if not torch.is_grad_enabled():
            return loss
        if self.accumulation_steps is None:
            raise ValueError(
                "accumulation_steps: expected a number, because batches without labels do not tell how many are "
                f"accumulated, got None; {STEPS}"
            )
        return loss / self.accumulation_steps


class ContrastiveMixin:
    """Gives a Trainer the loss of one encoder's embeddings of several columns; see :class:`ContrastiveTrainer`."""

    # A mean over the rows of a micro-batch: Trainer divides it by the steps of accumulation.
    loss_is_scaled_for_ga: bool | None = False

    def __init__(
        self,
        *arguments: Any,
        sides: Sequence[str] = ("query", "document"),
        loss: Loss = info_nce,
        loss_options: Mapping[str, Any] | None = None,
        pooling: Pooling = "mean",
        outputs: Sequence[str | int] | None = None,
        **options: Any,
    ) -> None:
        for name, given in (("sides", sides), ("outputs", outputs)):
            if given is not None and (isinstance(given, str) or len(given) < 2):
                raise ValueError(f"{name}: expected those of anchors and positives, got {given!r}; name both")
        if not callable(pooling) and pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)} or a function, got {pooling!r}")
        if options.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func: expected none beside loss=, got one; pass it to a plain Trainer")
        if not isinstance(loss_options, Mapping | None):
            raise TypeError(f"loss_options: expected a dict of the loss's options, got {loss_options!r}; name each")
        self.sides, self.pooling, self.outputs = tuple(sides), pooling, outputs
        self.pair_loss, self.loss_options = without_parameters(loss), dict(loss_options or {})
        super().__init__(*arguments, **options)
        settings = self.args  # type: ignore[attr-defined]
        tokenizer = getattr(self, "processing_class", None)
        collated = options.get("data_collator") is not None or (len(arguments) > 2 and arguments[2] is not None)
        if outputs is None and not collated:
            usual: Any = self.data_collator  # type: ignore[has-type]
            made = partial(_tokenized, self.sides, usual) if tokenizer is None else PairCollator(tokenizer, self.sides)
            self.data_collator: Any = made
        if settings.remove_unused_columns and outputs is None:
            raise ValueError(
                "remove_unused_columns: expected False, got True, which removes the columns of both sides; pass "
                "TrainingArguments(remove_unused_columns=False)"
            )
        if settings.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor: expected 0, got {settings.label_smoothing_factor}; it smooths classes of a "
                "model's logits: make a loss with ctloss.objectives.label_smoothing"
            )
        # Else the encoder's own arguments would decide how a loss is scaled, and whether evaluation forms one.
        self.model_accepts_loss_kwargs = False
        self.label_names: list[str] = []
        self.can_return_loss = True

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of a batch; with ``return_outputs`` also the embeddings, by their columns."""
        if self.outputs is None:
            self._check_sides(inputs)
            rows = [self.embed(model, _of_side(inputs, side)) for side in self.sides]
        else:
            found = model(**{name: value for name, value in inputs.items() if name != "labels"})
            rows = [_picked(found, which) for which in self.outputs]
        x, y, *hard = rows
        more: dict[str, Any] = {"candidates": hard} if hard else {}
        loss = self.pair_loss(x, y, **self.loss_options, **more, **_ids(inputs.get("labels"), len(x)))
        return (loss, {f"embeddings_{number}": one for number, one in enumerate(rows)}) if return_outputs else loss

    def _check_sides(self, inputs: Mapping[str, Any]) -> None:
        """Refuse a column that no side names, such as hard negatives that would take no part."""
        ending = "_input_ids"
        found = [name.removesuffix(ending) for name in inputs if name.endswith(ending)]
        if not set(found) <= set(self.sides):
            raise ValueError(
                f"sides: expected the columns of the batch, {', '.join(found)}, got {', '.join(self.sides)}; pass the "
                "same sides= to the trainer and to its PairCollator"
            )

    def embed(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The embeddings of one column, ``(n, d)``."""
        outputs = model(**inputs)
        if callable(self.pooling):
            return self.pooling(outputs, inputs)
        if isinstance(outputs, Tensor):
            return outputs
        if self.pooling == "pooler":
            return _picked(outputs, "pooler_output")
        hidden = _picked(outputs, "last_hidden_state")
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = inputs["attention_mask"][:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


class ContrastiveTrainer(ContrastiveMixin, Trainer):
    """Trainer for embeddings of a row's columns that belong together, by one encoder or by several in one model.

    The model runs once on each column, and its rows are pooled; or with ``outputs`` it runs once and returns several
    embeddings. The loss takes the first as anchors, the second as their positives and further ones as hard negatives.
    Accumulated micro-batches have negatives of their own; for those of a whole large batch see :func:`ctloss.cached`.

    Args:
        sides: the columns; a batch has ``query_input_ids``, ``query_attention_mask`` and so on, from
            :class:`PairCollator`, which is also what a tokenizer as ``processing_class`` comes to without a
            ``data_collator``. The same name twice encodes a text twice: with dropout SimCSE (arXiv 2104.08821).
        loss: :func:`ctloss.info_nce`, :func:`ctloss.cz_nce`, or another function of x and y, a mean.
        loss_options: the loss's, such as ``{"temperature": 0.05, "group": "world"}``. Integer ``labels`` of the batches
            are passed as ``ids``: rows of one label are no negatives.
        pooling: ``"mean"`` over a text's tokens, ``"cls"``, ``"pooler"``, or a function of outputs and inputs.
        outputs: the names of the embeddings in the model's outputs, or their numbers in a tuple, instead of sides.
        options: Trainer's.

    Raises:
        TypeError, ValueError: for less than two sides, another pooling, a loss with parameters, or arguments of Trainer
            that do not go with it, among them, with sides, ``remove_unused_columns=True``, which is its default.
    """


class PairCollator:
    """Tokenizes the text columns of rows, each with a prefix: ``query_input_ids``, ``document_input_ids``.

    Args:
        tokenizer: of transformers.
        sides: the columns; a value may be a list of texts, such as several hard negatives.
        max_length: what longer texts are cut to; ``None``: the tokenizer's own limit.

    Raises:
        KeyError, TypeError, ValueError: for a row without a column, texts that are none, labels that are no integers or
            that only some rows have, or a batch without texts.
    """

    def __init__(
        self, tokenizer: Any, sides: Sequence[str] = ("query", "document"), max_length: int | None = None
    ) -> None:
        if not callable(tokenizer):
            raise TypeError(
                f"tokenizer: expected one of transformers, got {tokenizer!r}; AutoTokenizer.from_pretrained makes one"
            )
        self.tokenizer, self.sides, self.max_length = tokenizer, tuple(dict.fromkeys(sides)), max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of rows; integers under ``labels`` or ``label`` become its ``labels``."""
        batch = {}
        for side in self.sides:
            texts = [text for number, row in enumerate(rows) for text in _texts(row, side, number)]
            if not texts:
                raise ValueError(f"{side}: expected texts, got {len(rows)} rows without one; leave the side out")
            tokens = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            batch.update({f"{side}_{name}": value for name, value in tokens.items()})
        for name in ("labels", "label"):
            if any(name in row for row in rows):
                batch["labels"] = torch.tensor([_label(row, name, number) for number, row in enumerate(rows)])
        return batch


def _tokenized(sides: Sequence[str], collator: Any, rows: Sequence[Any]) -> Any:
    """A batch by Trainer's own collator, which drops texts, or fails at a list of them.

    Raises:
        TypeError: for rows that have a column of a side as it is.
    """
    for side in sides:
        if rows and isinstance(rows[0], Mapping) and side in rows[0]:
            raise TypeError(
                f"data_collator: expected one that tokenizes the column {side!r}, got none; pass "
                "data_collator=PairCollator(tokenizer, sides), or processing_class=tokenizer"
            )
    return collator(rows)


def without_parameters(loss: Loss) -> Loss:
    """Refuse what is no function, and a loss that has something to learn: Trainer's optimiser would not see it."""
    if not callable(loss):
        raise TypeError(f"loss: expected a function, got {loss!r}; pass ctloss.info_nce itself, or ctloss.cz_nce")
    if isinstance(loss, nn.Module) and any(one.requires_grad for one in loss.parameters()):
        raise TypeError(
            "loss: expected one without parameters, got a module with some, which Trainer's optimiser would not see; "
            "let the model keep them and return its own loss"
        )
    return loss


def _texts(row: Mapping[str, Any], side: str, number: int) -> list[str]:
    """The texts of a row's column."""
    if side not in row:
        raise KeyError(f"expected a column {side!r} in each row, got {', '.join(row)} in row {number}; pass sides=")
    found = row[side]
    texts = list(found) if isinstance(found, Iterable) and not isinstance(found, str | Mapping) else [found]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"{side}: expected texts, got {text!r} in row {number} of the batch; leave the row out, or pass sides= "
                "of text"
            )
    return texts


def _label(row: Mapping[str, Any], name: str, number: int) -> int:
    """A row's label."""
    if name not in row:
        raise KeyError(f"expected a {name!r} in each row, got none in row {number} of the batch; add it, or drop all")
    found = row[name].item() if isinstance(row[name], Tensor) and row[name].numel() == 1 else row[name]
    if isinstance(found, bool) or not isinstance(found, Integral):
        raise TypeError(
            f"{name}: expected an integer, got {found!r} in row {number} of the batch; number the labels, as "
            "dataset.class_encode_column does"
        )
    return int(found)


def _of_side(inputs: Mapping[str, Any], side: str) -> dict[str, Any]:
    prefix = f"{side}_"
    found = {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}
    if not found:
        raise KeyError(
            f"expected inputs such as {prefix}input_ids, got {', '.join(inputs)}; pass sides= to the trainer, and "
            "data_collator=PairCollator(tokenizer, sides)"
        )
    return found


def _picked(outputs: Any, which: str | int) -> Tensor:
    try:
        found = outputs[which]
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, Tensor):
        has = ", ".join(map(str, outputs)) if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
        raise KeyError(f"expected embeddings under {which!r} in the model's outputs, got {has}; name what it returns")
    return found


def _ids(labels: Any, count: int) -> dict[str, Tensor]:
    if labels is None:
        return {}
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (count,):
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected one integer for each of {count} rows, got {got}; leave the column out")
    if bool((labels == IGNORED).any()):
        raise ValueError(
            f"labels: expected ids other than {IGNORED}, which transformers takes for no label, got it for row "
            f"{int((labels == IGNORED).nonzero()[0])}; give such rows an id of their own"
        )
    return {"ids": labels}
