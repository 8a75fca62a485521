"""sentence-transformers' trainer with hard negatives, with ctloss's loss in the place of its own: one import.

The model is a small random BERT, and the texts are of an invented language, so that nothing is downloaded.
"""

from __future__ import annotations

import random
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import BertConfig, BertModel, BertTokenizer

from ctloss.integrations.sentence_transformers import MultipleNegativesRankingLoss

NOUNS, COLOURS = [f"noun{i}" for i in range(12)], [f"colour{i}" for i in range(8)]
# Each word has a translation, in which documents are written.
OTHER = {word: word[::-1] for word in [*NOUNS, *COLOURS]}


def row(noun: str, colour: str) -> dict[str, str]:
    """A query, its translation, and one that shares the noun: a hard negative."""
    other = random.choice([each for each in COLOURS if each != colour])
    return {
        "anchor": f"{colour} {noun}",
        "positive": f"{OTHER[noun]} {OTHER[colour]}",
        "negative": f"{OTHER[noun]} {OTHER[other]}",
    }


def small_model(folder: str) -> SentenceTransformer:
    """A random BERT that knows the words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *OTHER, *OTHER.values()]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    # Of a plain model sentence-transformers takes the mean of the last hidden states.
    return SentenceTransformer(folder, device="cpu")


def accuracy(model: SentenceTransformer, rows: list[dict[str, str]]) -> float:
    """How often the nearest of all documents is the query's."""
    x, y = (model.encode([each[side] for each in rows], convert_to_tensor=True) for side in ("anchor", "positive"))
    return (model.similarity(x, y).argmax(1).cpu() == torch.arange(len(rows))).double().mean().item()


def main() -> None:
    """Trains on most combinations of words, and prints the accuracy on the others before and after."""
    random.seed(0)
    torch.manual_seed(0)
    rows = [row(noun, colour) for noun in NOUNS for colour in COLOURS]
    random.shuffle(rows)
    held_out, trained = rows[:20], rows[20:]
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(folder)
        before = accuracy(model, held_out)
        options = SentenceTransformerTrainingArguments(
            folder, num_train_epochs=40, per_device_train_batch_size=38, learning_rate=3e-3, warmup_steps=10,
            report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1000, use_cpu=True,
        )  # fmt: skip
        loss = MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model, options, train_dataset=Dataset.from_list(trained), loss=loss).train()
        print(f"translations found: {before:.2f} before, {accuracy(model, held_out):.2f} after")


if __name__ == "__main__":
    main()
