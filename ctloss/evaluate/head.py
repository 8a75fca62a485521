"""What is put on an encoder for a task: its labels, its inputs, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from .loading import missing_below_head, positions, quietly, refuse_missing
from .pieces import IGNORED
from .tasks import Row

Features = dict[str, Any]


@dataclass(frozen=True)
class Encoded:
    """Rows as a model reads them.

    Args:
        features: ids, mask, perhaps types, and labels where the rows have them; the longest first, so that a batch
            is of one length and too large a batch fails at once.
        decode: turns the predicted label numbers, (features,) or (features, length), into one prediction a row.
    """

    features: list[Features]
    decode: Callable[[np.ndarray], list[Any]]


class Head(Protocol):
    """What differs between labelling pairs and tagging words."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels; their order numbers them."""

    @property
    def model_class(self) -> Any:
        """The class of transformers that puts such a head on an encoder."""

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """How the tokenizer is to be loaded."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Encoded:
        """Returns rows as a model reads them."""

    def score(self, rows: Sequence[Row], predicted: Sequence[Any]) -> float:
        """Returns the score that chooses the best step."""


@dataclass(frozen=True)
class Collate:
    """Makes tensors of features, padded to the longest: ids with ``pad``, words' labels with -100, the rest with 0."""

    pad: int

    def __call__(self, rows: Sequence[Features]) -> dict[str, Tensor]:
        """Returns int64 tensors (rows, length), or (rows,) where a feature is one number a row."""
        padding = {"input_ids": self.pad, "labels": IGNORED}
        batch = {}
        for name, first in rows[0].items():
            if isinstance(first, int):
                batch[name] = torch.tensor([row[name] for row in rows])
                continue
            length = max(len(row[name]) for row in rows)
            fill = padding.get(name, 0)
            batch[name] = torch.tensor([[*row[name], *[fill] * (length - len(row[name]))] for row in rows])
        return batch


def load_model(name: str, head: Head) -> PreTrainedModel:
    """Returns an encoder with a head, in float32; a head or pooler that its files lack is drawn from torch's generator.

    Raises:
        ValueError: no encoder, none with its weights as safetensors, or one whose weights have other shapes or are not
            all there.
    """
    names = dict(enumerate(head.labels))
    numbers = {label: number for number, label in names.items()}
    try:
        with quietly():
            loaded, information = head.model_class.from_pretrained(
                name,
                id2label=names,
                label2id=numbers,
                dtype=torch.float32,
                use_safetensors=True,
                # Trainer would take them for further predictions.
                output_hidden_states=False,
                output_attentions=False,
                output_loading_info=True,
            )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"expected an encoder whose weights are whole and have the shapes of its configuration and of "
            f"{len(head.labels)} labels, got {name!r} with others; if it has a head of other labels, load it with "
            "AutoModel and write it with save_pretrained"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a transformer encoder with its weights as safetensors, got {name!r} "
            f"({str(error).splitlines()[0]}); check the name, or load the model where you trust its pickled weights "
            "and write it with save_pretrained"
        ) from error
    missing = missing_below_head(loaded, information["missing_keys"])
    refuse_missing(name, loaded, missing, "choose another model, or save it whole")
    return loaded  # type: ignore[no-any-return]


def check_inputs(model: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Refuses a tokenizer of more tokens than the model has embeddings, and windows longer than it has positions for.

    Raises:
        ValueError: with the most that the model takes.
    """
    config = AutoConfig.from_pretrained(model)
    rows = getattr(config, "vocab_size", None)
    if rows and len(tokenizer) > rows:
        raise ValueError(
            f"expected a tokenizer of at most {rows} tokens, as many as {model} has embeddings, got one of "
            f"{len(tokenizer)}; write the model's own there"
        )
    most = positions(config)
    if most and most < max_length:
        raise ValueError(
            f"expected max_length at most {most}, the wordpieces that {model} takes, got {max_length}; lower it"
        )
