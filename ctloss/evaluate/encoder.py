"""Vectors of sentences and of words' pieces from any Hugging Face encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .pooling import POOLINGS, own_pooling, pooled, states_wanted

if TYPE_CHECKING:
    import numpy as np
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

USUAL_LAYER = 8


@dataclass(frozen=True)
class Pieces:
    """A sentence's wordpieces without the special tokens: their vectors (m, H) float32, and of which word each is."""

    vectors: np.ndarray
    words: list[int]


class Encoder:
    """A Hugging Face encoder, and how its hidden states become vectors.

    With hidden_states[0] the embeddings and hidden_states[l] the output of layer l of L, a sentence's vector is

        ``"layer"``           mean over tokens of hidden_states[layer]
        ``"mean"``            the same of the last layer
        ``"avg-first-last"``  mean over tokens of hidden_states[1] + hidden_states[L] (Chen et al. 2022)
        ``"cls"``             the first token's hidden_states[L]
        ``"model"``           what the model's folder says: cce.json as ctloss.train writes it, the pooling of
                              sentence-transformers, or else the output of the model's trained pooler

    The mean goes over all tokens, special ones included. XTREME's "layer 7" of mBERT counts from the first layer's
    output as 0, so it is hidden_states[8], the default here.

    Args:
        model: name or folder of a Hugging Face encoder, or a model in memory (with ``tokenizer``), which is left in
            the mode it is in, training or not.
        tokenizer: a fast tokenizer; by default the one beside the model.
        pooling: see above.
        layer: index into hidden_states for ``"layer"``; by default 8, or with a warning the last if there are fewer.
        prefix: put before every sentence as it stands, such as ``"query: "``.
        max_length: tokens of a sentence at most; by default what the model takes, but not over 512. A longer sentence
            is cut, with a warning.
        device: by default a GPU if there is one, or where a model in memory is.
        batch_size: sentences at a time, taken in the order of their lengths.
        progress: whether to show a progress bar on a terminal.

    Raises:
        ValueError: the model is no encoder or lacks weights or layers, the tokenizer is not a fast one, or an option is
            not one of those above.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        pooling: str = "layer",
        layer: int | None = None,
        prefix: str = "",
        max_length: int | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"expected pooling to be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size to be 1 or more, got {batch_size}")
        name = str(model) if isinstance(model, str | Path) else str(model.config.name_or_path or "")
        self.pooling = own_pooling(name) if pooling == "model" else pooling
        loaded: Any = load(name, pooler=self.pooling == "pooler") if isinstance(model, str | Path) else model.base_model
        self.model = loaded
        if self.pooling == "pooler" and getattr(loaded, "pooler", None) is None:
            raise ValueError(
                f"expected {name or 'the model'!r} to say its pooling or to have a pooler, got neither; "
                f"choose one of {', '.join(POOLINGS[:-1])}"
            )
        if tokenizer is None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(name)
        self.tokenizer: Any = tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"expected a fast tokenizer, got {type(tokenizer).__name__}; load it with AutoTokenizer")
        self.layer = _layer(layer, self.model.config.num_hidden_layers) if self.pooling == "layer" else None
        self.prefix, self.batch_size, self.progress = prefix, batch_size, progress
        self.max_length = _max_length(max_length, self.model.config)
        if device is None and not isinstance(model, str | Path):
            device = loaded.device
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model.to(self.device)

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of sentences, (n, H) float32, in their order."""
        import numpy as np

        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        if not texts:
            return found
        coded = self._encode([self.prefix + text for text in texts])
        for part, output, mask in self._batches(coded, self.pooling == "pooler"):
            found[part] = pooled(output, mask, self.pooling, self.layer).cpu().numpy()
        return found

    def pieces(self, sentences: Sequence[Sequence[str]]) -> list[Pieces]:
        """Returns of each sentence, given as its words, the hidden states of its wordpieces.

        They are those that sentence vectors are the mean of; with ``"cls"`` and a model's pooler, which see no other
        token, the last layer's. A word that the tokenizer or the length leaves nothing of has no pieces.
        """
        if not sentences:
            return []
        before = self.prefix.split()
        coded = self._encode([[*before, *words] for words in sentences], is_split_into_words=True)
        found: list[Pieces | None] = [None] * len(sentences)
        for part, output, _ in self._batches(coded, False):
            states = states_wanted(output, self.pooling, self.layer).cpu().numpy()
            for row, i in enumerate(part):
                places = [
                    (place, word - len(before))
                    for place, word in enumerate(coded.word_ids(i))
                    if word is not None and word >= len(before)
                ]
                # Indexing by a list copies, so that a few pieces do not keep their whole batch in memory.
                found[i] = Pieces(states[row, [place for place, _ in places]], [word for _, word in places])
        return [item for item in found if item is not None]

    def _encode(self, texts: Sequence[Any], **options: bool) -> BatchEncoding:
        coded = self.tokenizer(list(texts), add_special_tokens=True, return_attention_mask=False, **options)
        lengths = [len(ids) for ids in coded["input_ids"]]
        if self.max_length is not None and max(lengths, default=0) > self.max_length:
            longer = sum(length > self.max_length for length in lengths)
            warnings.warn(
                f"{longer} of {len(lengths)} sentences have more than {self.max_length} tokens and are cut there",
                stacklevel=3,
            )
            coded = self.tokenizer(
                list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False, **options
            )
        return coded

    @torch.no_grad()
    def _batches(self, coded: BatchEncoding, pooler: bool) -> Iterator[tuple[list[int], Any, Tensor]]:
        from tqdm import tqdm

        lengths = [len(ids) for ids in coded["input_ids"]]
        # The longest first: if memory does not suffice, that shows at once.
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        was_training = self.model.training
        self.model.eval()
        with tqdm(total=len(order), unit="sentence", desc="encoding", disable=None if self.progress else True) as bar:
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                inputs = {name: tensor.to(self.device) for name, tensor in self._padded(coded, part).items()}
                yield part, self.model(**inputs, output_hidden_states=not pooler), inputs["attention_mask"]
                bar.update(len(part))
        self.model.train(was_training)

    def _padded(self, coded: BatchEncoding, part: Sequence[int]) -> dict[str, Tensor]:
        longest = max(len(coded["input_ids"][i]) for i in part)
        pads = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": 0}
        inputs = {name: torch.full((len(part), longest), pad) for name, pad in pads.items() if name in coded}
        inputs["attention_mask"] = torch.zeros(len(part), longest, dtype=torch.long)
        for row, i in enumerate(part):
            length = len(coded["input_ids"][i])
            inputs["attention_mask"][row, :length] = 1
            for name in pads.keys() & coded.keys():
                inputs[name][row, :length] = torch.tensor(coded[name][i])
        return inputs


def load(name: str, *, pooler: bool = False) -> PreTrainedModel:
    """Returns a Hugging Face encoder in float32, without heads; nothing is unpickled.

    Args:
        name: name or folder.
        pooler: whether its pooler is wanted.

    Raises:
        ValueError: it is no encoder, has no weights as safetensors, or lacks some of them.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(name)
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise ValueError(f"expected a transformer encoder, got {name!r} ({config.model_type}); choose another")

    def read(**options: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return AutoModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )

    try:
        model, information = _quietly(lambda: read(add_pooling_layer=pooler))
    except TypeError:  # The model's class knows no such option.
        model, information = _quietly(read)
    except OSError as error:
        raise ValueError(
            f"expected an encoder with its weights as safetensors, got {name!r} without "
            f"({str(error).splitlines()[0]}); convert them: "
            "load the model where you trust its pickled weights, and write it with save_pretrained"
        ) from error
    missing = sorted(part for part in information["missing_keys"] if pooler or "pooler" not in part.split("."))
    if missing:
        raise ValueError(
            f"expected all weights of {type(model).__name__}, got {name!r} without {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}, which would be random numbers; "
            + ("choose another pooling" if pooler else "choose another model")
        )
    return model


def _quietly(read: Callable[[], Any]) -> Any:
    # Heads that are left out fill the screen; missing weights, which matter, are refused by the caller.
    from transformers.utils import logging

    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return read()
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _layer(layer: int | None, layers: int) -> int:
    if layer is None:
        if layers < USUAL_LAYER:
            warnings.warn(
                f"the model has {layers} layers, fewer than {USUAL_LAYER}: its last layer is taken", stacklevel=3
            )
        return min(USUAL_LAYER, layers)
    if not 0 <= layer <= layers:
        raise ValueError(f"expected layer from 0 (embeddings) to {layers} (the model's last), got {layer}")
    return layer


def _max_length(asked: int | None, config: Any) -> int | None:
    most = getattr(config, "max_position_embeddings", None)
    if most and ("roberta" in config.model_type or config.model_type in ("camembert", "mpnet", "xmod")):
        # RoBERTa and what follows it number positions from after the padding token's id.
        most -= (config.pad_token_id or 0) + 1
    if asked is None:
        return min(most, 512) if most else 512
    if asked < 3 or (most and asked > most):
        raise ValueError(f"expected max_length from 3 to {most or 'any number'} (the model's positions), got {asked}")
    return asked
