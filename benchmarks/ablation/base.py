"""The base model: a small multilingual BERT, trained only by masked language modelling, and its untrained twin."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from benchmarks.ablation.corpus import sentences
from ctloss.shared.files import numbered, write_atomically
from ctloss.train.model.encoder import small_backbone
from ctloss.train.text.tokenizer import train_wordpiece


@dataclass(frozen=True)
class Base:
    """How large the encoder is and how long its base is trained.

    Attributes:
        layers, hidden, heads: of the BERT.
        vocabulary: wordpieces, trained on the same text.
        max_length: wordpieces of a sentence; longer ones are cut.
        steps, batch_size, learning_rate: of masked language modelling; warmup over 6 %, then linear decay.
        seed: of weights, batches and masks.
    """

    layers: int = 2
    hidden: int = 256
    heads: int = 4
    vocabulary: int = 16000
    max_length: int = 128
    steps: int = 10000
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 2021


class MaskedTrainer(Trainer):
    """A Trainer that computes the vocabulary's logits only at masked positions, one in seven."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean cross entropy of the masked wordpieces."""
        labels = inputs.pop("labels")
        masked = labels != -100
        states = model.bert(**inputs).last_hidden_state[masked]
        loss = torch.nn.functional.cross_entropy(model.cls(states).float(), labels[masked])
        return (loss, {"logits": states}) if return_outputs else loss


def make(base: Base, data: Path, folder: Path) -> None:
    """Train the base on a folder of corpora, or continue where it stopped.

    The other folder gets ``random`` and ``base``, two Hugging Face folders that differ only in their weights.

    Raises:
        ValueError: the base in the folder was begun on other sentences.
    """
    trained = folder / "base"
    texts = sentences(data)
    record, digest = folder / "sentences.txt", hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
    if not record.is_file():
        write_atomically(record, digest)
    if record.read_text(encoding="utf-8") != digest:
        raise ValueError(
            f"{folder}: expected the sentences that this base was begun on, got others; restore those of --data or "
            "name another --output"
        )
    if (trained / "config.json").is_file():
        return
    tokenizer = train_wordpiece(texts, vocabulary=base.vocabulary, lower_case=True, max_length=base.max_length)
    torch.manual_seed(base.seed)
    model = small_backbone(
        vocabulary=len(tokenizer), layers=base.layers, hidden=base.hidden, heads=base.heads, dropout=0.1,
        max_length=base.max_length, pad=tokenizer.pad_token_id, mlm=True,
    )  # fmt: skip
    _save(model, tokenizer, folder / "random")
    _train(base, model, tokenizer, texts, folder / "mlm")
    _save(model, tokenizer, trained)


def _train(
    base: Base, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], folder: Path
) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=base.steps,
        per_device_train_batch_size=base.batch_size,
        learning_rate=base.learning_rate,
        warmup_steps=base.steps * 6 // 100,
        weight_decay=0.01,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        logging_steps=100,
        save_steps=500,
        save_total_limit=2,
        seed=base.seed,
        report_to=[],
        remove_unused_columns=False,
    )
    coded = tokenizer(texts, truncation=True, max_length=base.max_length, return_attention_mask=False)
    trainer = MaskedTrainer(
        model,
        arguments,
        train_dataset=[{"input_ids": ids} for ids in coded["input_ids"]],  # type: ignore[arg-type]
        data_collator=DataCollatorForLanguageModeling(tokenizer, seed=base.seed),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))


def last_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint of a Trainer, if any."""
    # The state is written last: a checkpoint without it was interrupted.
    whole = [path for _, path in numbered(folder, "checkpoint") if (path / "trainer_state.json").is_file()]
    return str(whole[-1]) if whole else None


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    unfinished = folder.with_name(f".{folder.name}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    if not folder.exists():
        unfinished.rename(folder)
