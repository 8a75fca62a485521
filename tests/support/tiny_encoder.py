"""A random BERT, a tokenizer of given wordpieces, and an encoder that needs no model, for tests of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, PreTrainedModel

from ctloss.evaluate import Encoder
from ctloss.evaluate.models.encoder import Pieces

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_tokenizer(pieces: Iterable[str]) -> BertTokenizer:
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *dict.fromkeys(pieces)])}
    return BertTokenizer(vocab=vocabulary, do_lower_case=False, strip_accents=False)


def tiny_bert(
    vocabulary: int, *, layers: int = 3, positions: int = 32, mlm: bool = False, pooler: bool = False
) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    return BertForMaskedLM(config) if mlm else BertModel(config, add_pooling_layer=pooler)


def saved(folder: Path, pieces: Iterable[str], **options: bool | int) -> Path:
    tokenizer = word_tokenizer(pieces)
    tokenizer.save_pretrained(folder)
    tiny_bert(len(tokenizer), **options).save_pretrained(folder)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_layer(folder: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "encoder.layer.2." in name]:
            del weights[name]

    change_weights(folder, drop)


class Table(Encoder):
    """Looks up vectors of sentences and words, so that scores can be worked out by hand."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self.vectors = {text: np.array(vector, dtype=np.float32) for text, vector in vectors.items()}

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts])

    def pieces(self, sentences: Sequence[Sequence[str]]) -> list[Pieces]:
        found = []
        for words in sentences:
            pieces = [(piece, i) for i, word in enumerate(words) for piece in word.split("+") if piece in self.vectors]
            vectors = np.stack([self.vectors[piece] for piece, _ in pieces]) if pieces else np.empty((0, 2))
            found.append(Pieces(vectors, [i for _, i in pieces]))
        return found


def write(folder: Path, **files: Sequence[str]) -> Path:
    """Writes files of lines; in their names two underscores stand for a dot, three for a hyphen."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        path = folder / name.replace("___", "-").replace("__", ".")
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder
