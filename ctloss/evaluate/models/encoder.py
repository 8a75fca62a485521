"""Vectors of sentences and of wordpieces from any Hugging Face encoder, and the poolings that make them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...shared.models import check_fast, load_encoder, load_tokenizer, positions, usual_length
from ...shared.options import Group, option, require
from ...shared.text import DataError, home_path, nfc
from .method import OTHERS, Method, Pooling, own_method

if TYPE_CHECKING:
    import numpy as np
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

USUAL_LAYER = 8


@dataclass(frozen=True)
class VectorOptions(Group):
    """How an encoder that is used as it is makes vectors; see :class:`ctloss.evaluate.Encoder`."""

    pooling: Pooling = option(  # noqa: RUF009 (the rule does not see that an alias of a Literal is immutable)
        "layer", "from hidden states to a sentence's vector; model: what its own folder says"
    )
    layer: int | None = option(None, "index into hidden_states for --pooling layer", shown="8, or the last if fewer")
    prefix: str = option("", "text before every sentence, such as 'query: '")
    max_length: int | None = option(None, "most tokens in a sentence", shown="the model's, up to 512")
    batch_size: int = option(64, "sentences encoded at a time")
    device: str | None = option(
        None, "device of torch; fine-tuning always takes a GPU if there is one", shown="a GPU if there is one"
    )

    def check(self) -> None:
        self.at_least(1, "batch_size")
        require(
            self.layer is None or self.pooling == "layer",
            "layer",
            "no layer unless pooling is 'layer'",
            self.layer,
            "leave it out",
        )


@dataclass(frozen=True)
class Pieces:
    """A sentence's wordpieces without special tokens: their vectors (m, H) float32, and the word each belongs to."""

    vectors: np.ndarray
    words: list[int]


class Encoder:
    """A Hugging Face encoder, and how its hidden states become vectors.

    With hidden_states[0] the embeddings and hidden_states[l] the output of layer l of L, a sentence's vector is

        ``"layer"``           mean over tokens of hidden_states[layer]
        ``"mean"``            the same for the last layer
        ``"avg-first-last"``  mean over tokens of hidden_states[1] + hidden_states[L] (Chen et al. 2022)
        ``"cls"``             the first token's hidden_states[L]
        ``"model"``           what the model's folder says: cce.json as ctloss.train writes it, the modules of
                              sentence-transformers (:func:`ctloss.evaluate.models.method.own_method`), or else the
                              output of the model's trained pooler

    Means are over all tokens, special ones included. Text is brought to Unicode's normal form C. XTREME's "layer 7" of
    mBERT counts the first layer's output as 0, so it is hidden_states[8], the default here.

    Args:
        model: name or folder of a Hugging Face encoder, or a model in memory (with ``tokenizer``), which stays in the
            mode it is in, training or not.
        tokenizer: a fast tokenizer; by default the one in the model's folder.
        layer: index into hidden_states for ``"layer"``; by default 8, or the last, with a warning, if there are fewer.
        prefix: text put before every sentence, such as ``"query: "``; by default, for ``"model"``, the one that its
            files name, if any.
        max_length: most tokens in a sentence; by default what the model takes, but at most 512, and for ``"model"`` no
            more than its files say. A longer sentence is cut, with a warning.
        device: by default a GPU if there is one, or where a model in memory is.
        batch_size: sentences at a time, taken in the order of their lengths.
        progress: whether to show a progress bar on a terminal.

    Raises:
        ValueError: the model is not an encoder, or lacks weights, layers or a fast tokenizer; or an option is not one
            of those above.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        pooling: Pooling = "layer",
        layer: int | None = None,
        prefix: str = "",
        max_length: int | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        VectorOptions(pooling, layer, prefix, max_length, batch_size)
        given = None if isinstance(model, str | Path) else model
        name = str(home_path(model)) if isinstance(model, str | Path) else str(model.config.name_or_path or "")
        method = own_method(name) if pooling == "model" else Method(pooling)
        self.pooling = method.pooling
        loaded: Any = load_encoder(name, pooler=self.pooling == "pooler") if given is None else given.base_model
        self.model = loaded
        if self.pooling == "pooler" and getattr(loaded, "pooler", None) is None:
            raise ValueError(
                f"expected {name or 'the model'!r} to name its pooling or to have a pooler, got neither; "
                f"choose one of {OTHERS}"
            )
        self.tokenizer: Any = load_tokenizer(name) if tokenizer is None else tokenizer
        check_fast(self.tokenizer)
        self.layer = choose_layer(layer, self.model.config.num_hidden_layers) if self.pooling == "layer" else None
        self.method = replace(method, layer=self.layer)
        self.prefix, self.batch_size, self.progress = prefix or method.prompt, batch_size, progress
        self.max_length = _max_length(max_length, self.model.config, method.max_length)
        if device is None and given is not None:
            device = loaded.device
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.device = torch.device(device)
            self.model.to(self.device)
            if self.method.after is not None:
                self.method.after.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"expected a device of torch with room for the model, such as cpu or cuda, got {str(device)!r} "
                f"({str(error).splitlines()[0]}); choose another"
            ) from error

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of sentences, (n, H) float32, in their order.

        Raises:
            EmptySentence: one has no tokens but special ones: it is empty, or of characters that the tokenizer drops.
            ValueError: the model returns NaN or infinity, or the tokenizer wordpieces that the model does not have.
        """
        import numpy as np

        found = np.empty((len(texts), self.method.width or self.model.config.hidden_size), dtype=np.float32)
        if not texts:
            return found
        coded = self._encode([self.prefix + self._read(text) for text in texts])
        self._refuse_empty(texts, coded["input_ids"])
        for part, output, mask in self._batches(coded, self.pooling == "pooler"):
            found[part] = self._finite(self.method.vectors(output, mask).cpu().numpy())
        return found

    def pieces(self, sentences: Sequence[Sequence[str]]) -> list[Pieces]:
        """Returns, for each sentence given as its words, the hidden states of its wordpieces.

        They are the ones that sentence vectors average, before a model's Dense layers; with ``"cls"`` and a model's
        pooler, which only see the first token, they are the last layer's. A word that the tokenizer drops, or that is
        cut off, has no pieces.

        Raises:
            ValueError: as :meth:`sentences`.
        """
        if not sentences:
            return []
        before = self.prefix.split()
        space = self._space()
        given = [[*before, *map(self._read, words)] for words in sentences]
        spaced = [[*words[:1], *(space + word for word in words[1:])] for words in given]
        coded = self._encode(spaced, is_split_into_words=True)
        found: list[Pieces | None] = [None] * len(sentences)
        for part, output, _ in self._batches(coded, False):
            states = self.method.states(output).cpu().numpy()
            for row, i in enumerate(part):
                places = [
                    (place, word - len(before))
                    for place, word in enumerate(coded.word_ids(i))
                    if word is not None and word >= len(before)
                ]
                # Indexing with a list copies, so that a few pieces do not keep their whole batch in memory.
                vectors = self._finite(states[row, [place for place, _ in places]])
                found[i] = Pieces(vectors, [word for _, word in places])
        return [item for item in found if item is not None]

    def _refuse_empty(self, texts: Sequence[str], coded: Sequence[Sequence[int]]) -> None:
        def length(text: str) -> int:
            return len(self.tokenizer(text, verbose=False)["input_ids"])

        nothing, around = length(self.prefix), length("")
        special, unknown = set(self.tokenizer.all_special_ids), self.tokenizer.unk_token_id
        unread = 0
        for number, (text, ids) in enumerate(zip(texts, coded, strict=True)):
            # A text may share a wordpiece with the prefix, or be cut off behind it: such a one is looked at alone.
            if len(ids) <= nothing and length(self._read(text)) <= around:
                raise EmptySentence(text, number)
            unread += unknown in ids and special.issuperset(ids)
        if unread:
            warnings.warn(
                f"the tokenizer knows nothing of {unread} of {len(texts)} sentences: all of it is "
                f"{self.tokenizer.unk_token}",
                stacklevel=3,
            )

    def _read(self, text: str) -> str:
        return nfc(text.lower() if self.method.lower_case else text)

    def _finite(self, vectors: np.ndarray) -> np.ndarray:
        import numpy as np

        # No comparison with NaN holds, so that a diverged model would only seem to score badly.
        if not np.isfinite(vectors).all():
            raise ValueError(
                f"expected finite vectors, got NaN or infinity from a model in {self.model.dtype}; its training "
                "diverged or its numbers are too large for the type: take an earlier checkpoint or float32"
            )
        return vectors

    def _space(self) -> str:
        # Byte-level tokenizers split a word differently after a space, and words passed separately have none.
        separate = self.tokenizer(["a", "a"], is_split_into_words=True)["input_ids"]
        return "" if separate == self.tokenizer("a a")["input_ids"] else " "

    def _encode(self, texts: Sequence[Any], **options: bool) -> BatchEncoding:
        # Not verbose: it would warn of indexing errors where sentences are cut below.
        coded = self.tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)
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
        size, largest = self.model.config.vocab_size, max(max(ids, default=0) for ids in coded["input_ids"])
        if largest >= size:
            raise ValueError(
                f"expected wordpieces below {size}, the model's vocabulary, got number {largest}; "
                "use the tokenizer that the model was trained with"
            )
        return coded

    @torch.no_grad()
    def _batches(self, coded: BatchEncoding, pooler: bool) -> Iterator[tuple[list[int], Any, Tensor]]:
        from tqdm import tqdm

        lengths = [len(ids) for ids in coded["input_ids"]]
        # The longest first: if memory does not suffice, it shows at once.
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        was_training = self.model.training
        bar = tqdm(total=len(order), unit="sentence", desc="encoding", disable=None if self.progress else True)
        self.model.eval()
        try:
            with bar:
                for start in range(0, len(order), self.batch_size):
                    part = order[start : start + self.batch_size]
                    inputs = {name: tensor.to(self.device) for name, tensor in self._padded(coded, part).items()}
                    yield part, self.model(**inputs, output_hidden_states=not pooler), inputs["attention_mask"]
                    bar.update(len(part))
        finally:
            self.model.train(was_training)

    def _padded(self, coded: BatchEncoding, part: Sequence[int]) -> dict[str, Tensor]:
        pads = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": 0}
        rows = {name: [torch.tensor(coded[name][i], dtype=torch.long) for i in part] for name in pads if name in coded}
        rows["attention_mask"] = [torch.ones_like(ids) for ids in rows["input_ids"]]
        return {
            name: pad_sequence(row, batch_first=True, padding_value=pads.get(name, 0)) for name, row in rows.items()
        }


def choose_layer(layer: int | None, layers: int) -> int:
    """Returns the index into hidden_states: 8 where none is given, or the last, with a warning, if there are fewer.

    Raises:
        ValueError: the model has no such layer.
    """
    if layer is None:
        if layers < USUAL_LAYER:
            warnings.warn(
                f"the model has {layers} layers, fewer than {USUAL_LAYER}: its last layer is used", stacklevel=3
            )
        return min(USUAL_LAYER, layers)
    if not 0 <= layer <= layers:
        raise ValueError(
            f"expected layer from 0 (embeddings) to {layers} (the model's last), got {layer}; choose one of them"
        )
    return layer


class EmptySentence(DataError):
    """A sentence of which a tokenizer leaves nothing but special tokens; ``number`` is its place, from 0."""

    def __init__(self, text: str, number: int, place: str | None = None) -> None:
        super().__init__(
            f"{place or f'sentence {number}'}: expected a sentence that the tokenizer reads, got {text[:80]!r}, of "
            "which nothing but special tokens is left; remove it, or give its text"
        )
        self.text, self.number = text, number


def sentence_vectors(encoder: Encoder, texts: Sequence[str], place: Callable[[int], str]) -> np.ndarray:
    """Returns the vectors of sentences, as :meth:`Encoder.sentences` does.

    Args:
        place: names the file and line of sentence i, for errors.

    Raises:
        EmptySentence: with its place.
    """
    try:
        return encoder.sentences(texts)
    except EmptySentence as error:
        raise EmptySentence(error.text, error.number, place(error.number)) from None


def _max_length(asked: int | None, config: Any, own: int | None) -> int | None:
    most = positions(config)
    if asked is None:
        return min(own, most or own) if own else usual_length(config)
    if asked < 3 or (most and asked > most):
        raise ValueError(
            f"expected max_length from 3 to {most or 'any number'} (the model's positions), got {asked}; change it"
        )
    return asked
