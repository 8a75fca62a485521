"""A random BERT of one layer as a SentenceTransformer, and columns of made-up texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(120)]
WIDTH = 32
COLUMNS = ("anchor", "positive", "negative_1", "negative_2")


def save(folder: Path, *, dropout: float = 0.1, reverse: bool = False) -> str:
    """A model's folder; ``reverse`` gives its words other numbers."""
    words = WORDS[::-1] if reverse else WORDS
    pieces = [*SPECIAL, *words]
    folder.mkdir(exist_ok=True)
    # Tokenizers of transformers 4 and 5 are made of different arguments, and of the same files.
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    torch.manual_seed(len(words) + reverse)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def perturbed(folder: Path) -> str:
    """The folder of a model of the same vocabulary whose weights are a little other."""
    save(folder)
    model = SentenceTransformer(str(folder), device="cpu")
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05 * torch.randn(one.shape, generator=torch.Generator().manual_seed(one.numel())))
    model.save_pretrained(str(folder))
    return str(folder)


def texts(rows: int, columns: int = 2, seed: int = 0) -> dict[str, list[str]]:
    """Columns of texts of 2 to 9 words, none of which occurs twice."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < rows * columns:
        found[" ".join(draw.choices(WORDS, k=draw.randint(2, 9)))] = None
    every = list(found)
    return {COLUMNS[place]: every[place::columns] for place in range(columns)}


def dataset(rows: int, columns: int = 2, **more: list[Any]) -> Dataset:
    return Dataset.from_dict({**texts(rows, columns), **more})


def tokens(model: SentenceTransformer, rows: int, columns: int = 2) -> list[dict[str, Any]]:
    # Before version 5.4 the method has the other name.
    tokenize = getattr(model, "preprocess", None) or model.tokenize
    return [tokenize(column) for column in texts(rows, columns).values()]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
