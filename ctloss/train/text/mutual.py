"""Word pairs by an encoder: words whose hidden states are each other's nearest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from ...shared.models import check_inputs, load_encoder, load_tokenizer, positions, read_config
from ...shared.options import require
from ...shared.text import home_path
from .sentences import ParallelSentence, Span, WordPair
from .words import is_unspaced, word_spans

if TYPE_CHECKING:
    from tokenizers import Encoding

# Wordpieces of a batch, padding included; a single sentence pair may have more.
TOKENS = 8192
# Wordpieces of a sentence, also if the encoder takes more.
LONGEST = 512

Vectors = NDArray[np.float32]


class MutualAligner:
    """Finds word pairs as words whose vectors in an encoder are each other's nearest (Jalili Sabet et al. 2020).

    The vector of a word (:func:`~ctloss.train.text.words.word_spans`) is the mean of one layer's hidden states over the
    wordpieces that have a character of it. Words a and b of a sentence pair are a word pair if b is the target's word
    of the highest cosine with a, and a the source's of the highest cosine with b; of equals the first counts. This is
    Argmax of SimAlign (arXiv 2004.08728), at the level of words.

    In languages written without spaces neighbouring characters of the same wordpieces are one word: the encoder does
    not tell them apart. A sentence longer than the encoder takes gives no pairs for the part cut off. Function words
    are aligned like all others; :class:`~ctloss.train.text.finder.WordFinder` drops them.

    Args:
        name: name or folder of a Hugging Face encoder.
        device: of torch; by default a GPU if there is one.
        layer: index into the hidden states, 0 for the embeddings; by default two thirds of the layers, which is mBERT's
            and XLM-R's best, 8, in that paper.

    A pickled aligner holds no model: each process loads it when it first aligns.

    Raises:
        ValueError: there is no such encoder or device.
        OptionError: the encoder has no such layer.
    """

    def __init__(self, name: str | Path, *, device: str | None = None, layer: int | None = None) -> None:
        self._name = str(home_path(name))
        config = read_config(self._name)
        layers = config.num_hidden_layers
        require(
            layer is None or 0 <= layer <= layers,
            "layer",
            f"0 (the embeddings) to {layers} (the last layer of {self._name!r})",
            layer,
            "choose one of them",
        )
        self._layer = round(2 * layers / 3) if layer is None else layer
        self._longest = min(positions(config) or LONGEST, LONGEST)
        self._device = _device(device)
        self._revision = _revision(self._name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_model", "_tokenizer")}

    def fingerprint(self) -> str:
        """Returns a hash of the layer and of what tells the model's files apart.

        Of a model on the hub that is its name and revision. Of one in a folder it is the content of its small files,
        and of its weights header, size and time of the last change.
        """
        digest = hashlib.blake2b(f"mutual argmax 1, layer {self._layer}, {self._longest}".encode(), digest_size=16)
        if self._revision is not None:
            digest.update(f"{self._name} {self._revision}".encode())
            return digest.hexdigest()
        for path in sorted(Path(self._name).iterdir()):
            if path.suffix == ".safetensors":
                status = path.stat()
                digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns} ".encode() + _header(path))
            elif path.name.startswith(("config.", "tokenizer", "vocab", "merges", "special_tokens", "sentencepiece")):
                digest.update(f"{path.name} ".encode() + path.read_bytes())
        return digest.hexdigest()

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        """Returns, for each sentence, the spans of words that are each other's nearest, in the source's order.

        Raises:
            ValueError: the model cannot be loaded or moved to the device, or returns NaN or infinity.
        """
        found: list[list[WordPair]] = [[] for _ in sentences]
        if not sentences:
            return found
        texts = [text for sentence in sentences for text in (sentence.source, sentence.target)]
        languages = [code for sentence in sentences for code in (sentence.source_language, sentence.target_language)]
        coded = self._tokenizer(
            texts, truncation=True, max_length=self._longest, return_attention_mask=False, verbose=False
        )
        words = [_words(*side) for side in zip(texts, languages, coded.encodings, strict=True)]
        lengths = np.array([len(encoding) for encoding in coded.encodings]).reshape(-1, 2).max(axis=1)
        for part in _batches(lengths.tolist()):
            sides = [side for row in part for side in (2 * row, 2 * row + 1)]
            inputs = {
                name: [torch.tensor(coded[name][side]) for side in sides]
                for name in ("input_ids", "token_type_ids")
                if name in coded
            }
            vectors = self._vectors(inputs, [list(words[side].values()) for side in sides])
            for row, a, b in zip(part, vectors[::2], vectors[1::2], strict=True):
                sources, targets = list(words[2 * row]), list(words[2 * row + 1])
                found[row] = [(sources[i], targets[j]) for i, j in mutual(a, b)]
        return found

    @torch.inference_mode()
    def _vectors(self, inputs: dict[str, list[torch.Tensor]], words: list[list[list[int]]]) -> list[Vectors]:
        """Returns the unit vectors (words, H) of each text, given the places of each word's wordpieces."""
        pads = {"input_ids": self._tokenizer.pad_token_id or 0}
        inputs = {**inputs, "attention_mask": [torch.ones_like(ids) for ids in inputs["input_ids"]]}
        padded = {
            name: pad_sequence(rows, batch_first=True, padding_value=pads.get(name, 0)).to(self._device)
            for name, rows in inputs.items()
        }
        states = self._model(**padded, output_hidden_states=True).hidden_states[self._layer].float()
        width = states.shape[1]
        places = [row * width + place for row, text in enumerate(words) for word in text for place in word]
        numbers = [len(word) for text in words for word in text]
        if not numbers:
            return [np.empty((0, states.shape[2]), dtype=np.float32) for _ in words]
        pieces = states.flatten(0, 1)[torch.tensor(places, device=self._device)]
        means = torch.segment_reduce(pieces, "mean", lengths=torch.tensor(numbers, device=self._device), axis=0)
        if not means.isfinite().all():
            raise ValueError(
                f"expected finite hidden states, got NaN or infinity from {self._name!r}; its training diverged: "
                "take an earlier checkpoint or another encoder"
            )
        ends = np.cumsum([len(text) for text in words])
        return np.split(normalize(means, dim=1).cpu().numpy(), ends[:-1])

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._name, truncation_side="right")

    @cached_property
    def _model(self) -> Any:
        model = load_encoder(self._name)
        check_inputs(self._name, model.config, self._tokenizer, self._longest)
        try:
            return model.eval().to(self._device)
        except RuntimeError as error:
            raise ValueError(
                f"expected a device with room for {self._name!r}, got {str(self._device)!r} "
                f"({str(error).splitlines()[0]}); choose another"
            ) from error


def mutual(a: Vectors, b: Vectors) -> list[tuple[int, int]]:
    """Returns the pairs of rows that are each other's nearest, in the order of a; of equals the first counts.

    Example:
        >>> mutual(np.eye(3, dtype=np.float32), np.float32([[0, 1, 0], [1, 0, 0], [0.9, 0, 0]]))
        [(0, 1), (1, 0)]
    """
    if not len(a) or not len(b):
        return []
    cosines = a @ b.T
    forth, back = cosines.argmax(axis=1).tolist(), cosines.argmax(axis=0).tolist()
    return [(i, j) for i, j in enumerate(forth) if back[j] == i]


def _words(text: str, language: str, encoding: Encoding) -> dict[Span, list[int]]:
    """Returns the spans of the words whose wordpieces were not cut off, and the places of these wordpieces."""
    spans = word_spans(text, language)
    owners: list[int | None] = [None] * len(text)
    for word, (start, end) in enumerate(spans):
        owners[start:end] = [word] * (end - start)
    pieces: list[list[int]] = [[] for _ in spans]
    for place, ((start, end), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True)):
        if not special:
            for owner in dict.fromkeys(owners[start:end]):
                if owner is not None:
                    pieces[owner].append(place)
    kept = max(end for _, end in encoding.offsets) if encoding.overflowing else len(text)
    found: dict[Span, list[int]] = {}
    for span, places in zip(spans, pieces, strict=True):
        if not places or span[1] > kept:
            continue
        last = next(reversed(found), None)
        if last is not None and is_unspaced(language) and last[1] == span[0] and found[last] == places:
            del found[last]
            span = (last[0], span[1])
        found[span] = places
    return found


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields the numbers of sentence pairs, the longest first, in batches of bounded size."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and 2 * lengths[batch[0]] * (len(batch) + 1) > TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(
            f"expected a device of torch, such as cpu or cuda, got {name!r} ({str(error).splitlines()[0]})"
        ) from error


def _revision(name: str) -> str | None:
    """Returns which revision of a model on the hub is read; None of a folder."""
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        return None
    # The hub's files lie in a folder named after their revision.
    return Path(str(cached_file(name, "config.json"))).parent.name


def _header(path: Path) -> bytes:
    """Returns the names, types and shapes in a safetensors file, which begins with the length of that part."""
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), 1 << 26))
