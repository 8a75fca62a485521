"""Fine-tuning of one model on one task with one seed, with transformers' Trainer; a killed run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from ...shared import training
from ...shared.files import (
    complete,
    mark_complete,
    numbered,
    remove_folder,
    remove_incomplete,
    remove_old,
    write_atomically,
    writing_folder,
)
from ...shared.models import check_inputs, load_tokenizer, load_with_head, quietly, read_config, share_as_umask
from ..data.labelled import IGNORED, Row
from .options import FinetuneOptions

SETTINGS = "settings.json"
FINISHED = "finished.json"
# Steps whose items are sorted together: with more there is less padding and less randomness.
POOL = 50
# More steps than any run has.
NEVER = 10**9
# What of the features is not shown to a model that predicts.
GOLD = ("labels", "start_positions", "end_positions")

Features = dict[str, Any]


@dataclass(frozen=True)
class Encoded:
    """Rows as a model reads them.

    Args:
        features: ids, mask, perhaps types, and labels where the rows have them; the longest first, so that a batch has
            items of similar length and too large a batch fails at once.
        decode: turns the predicted label numbers, (features,) or (features, length), into one prediction per row; or
            the logits of starts and ends of answers, twice (features, length).
    """

    features: list[Features]
    decode: Callable[[Any], list[Any]]


class Head(Protocol):
    """What differs between labelling pairs, tagging words and answering questions.

    ``model_class`` names the class of transformers that puts such a head on an encoder.
    """

    model_class: ClassVar[str]
    tokenizer_options: ClassVar[Mapping[str, Any]]

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels; their order numbers them."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> Encoded:
        """Returns rows as a model reads them."""

    def score(self, rows: Sequence[Row], predicted: Sequence[Any]) -> float:
        """Returns the score that chooses the best step."""


@dataclass(frozen=True)
class Collate:
    """Makes tensors of features, padded to the longest: ids with ``pad``, words' labels with -100, the rest with 0."""

    pad: int

    def __call__(self, rows: Sequence[Features]) -> dict[str, Tensor]:
        """Returns int64 tensors (rows, length), or (rows,) where a feature is one number per row."""
        padding = {"input_ids": self.pad, "labels": IGNORED}
        batch = {}
        for name, first in rows[0].items():
            values = [torch.tensor(row[name]) for row in rows]
            if isinstance(first, int):
                batch[name] = torch.stack(values)
            else:
                batch[name] = pad_sequence(values, batch_first=True, padding_value=padding.get(name, 0))
        return batch


class ByLength(Sampler[int]):
    """Draws pools of many steps at random, sorts each pool by length, and splits it into steps in random order.

    Transformers' own length-grouped sampling runs through each pool from long to short, and its order depends on the
    global generator, so that a run killed within an epoch would not resume with the items that were left.

    Args:
        lengths: of the items.
        step: items per step, over all devices and accumulated parts.
        seed: of the order, which differs by epoch.

    Example:
        >>> list(ByLength([9, 1, 8, 2], step=2, seed=0))
        [0, 2, 3, 1]
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self._lengths = lengths
        self._step = step
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Yields the items' indices, each once."""
        draw = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self), generator=draw).tolist()
        steps: list[list[int]] = []
        for start in range(0, len(order), POOL * self._step):
            pool = sorted(order[start : start + POOL * self._step], key=lambda index: -self._lengths[index])
            steps += [pool[at : at + self._step] for at in range(0, len(pool), self._step)]
        # The last step may have fewer items: anywhere else it would shift the others.
        *whole, last = steps
        places = torch.randperm(len(whole), generator=draw).tolist()
        return chain.from_iterable([*(whole[place] for place in places), last])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; Trainer calls it, also for an epoch that it resumes in the middle."""
        self._epoch = epoch


class _Finetuner(Trainer):
    """A Trainer that evaluates by one score of its predictions, which it calls ``eval_score``."""

    def __init__(
        self, *args: Any, measure: Callable[[_Finetuner], float], sampler: Sampler[int] | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.preprocess_logits_for_metrics = lambda logits, _: self._label_numbers(logits)
        self._measure = measure
        self._sampler = sampler
        # The loss is a mean over each part of a batch; Trainer assumes that models which take any keyword divide it by
        # the whole batch.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self._sampler is None else self._sampler

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        metrics = {f"{metric_key_prefix}_score": self._measure(self)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def labels_of(self, encoded: Encoded) -> list[Any]:
        """Returns one prediction per row."""
        bare = [{name: value for name, value in row.items() if name not in GOLD} for row in encoded.features]
        return encoded.decode(self.predict(bare).predictions)  # type: ignore[arg-type]

    def _label_numbers(self, logits: Any) -> Any:
        # Where answers start and where they end: two logits a wordpiece, of which the head makes answers.
        spans = isinstance(logits, tuple)
        # Among NaN the first label would pass for the largest.
        if not all(part.isfinite().all() for part in (logits if spans else (logits,))):
            raise ValueError(
                f"{self.args.output_dir}: expected finite logits from the fine-tuned model, got NaN or infinity; if "
                "its training diverged, lower learning_rate and remove that folder, otherwise choose another model"
            )
        return logits[:2] if spans else logits.argmax(dim=-1)


class _Keeper(TrainerCallback):
    """Keeps the best model and the last complete checkpoint, and scores the last step whatever its number."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder = folder
        self._tokenizer = tokenizer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate |= state.global_step >= state.max_steps

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        score, kept = kwargs["metrics"]["eval_score"], best(self._folder)
        if not state.is_world_process_zero or (kept is not None and score <= kept[1]):
            return
        chosen = self._folder / f"best-{state.global_step}"
        with writing_folder(chosen) as folder, quietly():
            kwargs["model"].save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
            share_as_umask(folder)
            write_atomically(folder / "score.json", json.dumps({"step": state.global_step, "score": score}) + "\n")
        for _, other in numbered(self._folder, "best"):
            if other != chosen:
                remove_folder(other)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_complete(self._folder / f"checkpoint-{state.global_step}")
            remove_old(self._folder, "checkpoint", 1)


def finetune(
    model: str,
    head: Head,
    train: Sequence[Row],
    dev: Sequence[Row],
    tests: Mapping[str, Sequence[Row]],
    options: FinetuneOptions,
    *,
    seed: int,
    folder: Path,
    settings: Mapping[str, object],
) -> dict[str, list[Any]]:
    """Fine-tunes a model, or resumes a killed run in the folder, and predicts with the best step's model.

    Args:
        train, dev: labelled English rows; without any of the latter the last step is the best.
        tests: rows by language.
        options: its seeds are not read.
        seed: of the head's initialisation, the order of the data and dropout.
        folder: of this run only.
        settings: what a run in that folder must have in common with this one to be resumed.

    Returns:
        For each language one prediction per row.

    Raises:
        ValueError: the model is not an encoder with safetensors and its tokenizer, or takes fewer wordpieces than
            ``max_length``; the batch cannot be divided; the folder holds another run; or the training diverged.
    """
    # Without rows to choose by, the last step is kept: no other is scored.
    arguments = training_arguments(options if dev else replace(options, evaluate_every=NEVER), folder, seed)
    if arguments.process_index == 0:
        claim(folder, settings)
    tokenizer = load_tokenizer(model, **head.tokenizer_options)
    check_inputs(model, read_config(model), tokenizer, options.max_length)
    encoded = head.encode(tokenizer, train, options.max_length)
    judged = head.encode(tokenizer, dev, options.max_length)
    lengths = [len(row["input_ids"]) for row in encoded.features]
    transformers.set_seed(seed)
    trainer = _Finetuner(
        load_model(model, head),
        arguments,
        data_collator=Collate(tokenizer.pad_token_id or 0),
        train_dataset=encoded.features,
        eval_dataset=judged.features,
        callbacks=[_Keeper(folder, tokenizer)],
        measure=lambda trainer: head.score(dev, trainer.labels_of(judged)) if dev else float(trainer.state.global_step),
        sampler=ByLength(lengths, options.batch_size, seed) if options.batches == "by_length" else None,
    )
    if best(folder) is None or not (folder / FINISHED).exists():
        _train(trainer, folder)
    trainer.accelerator.wait_for_everyone()
    found = best(folder)
    assert found is not None
    trainer.model.load_state_dict(load_model(str(found[0]), head).state_dict())  # type: ignore[union-attr]
    return {
        language: trainer.labels_of(head.encode(tokenizer, rows, options.max_length))
        for language, rows in tests.items()
    }


def load_model(name: str, head: Head) -> PreTrainedModel:
    """Returns an encoder with a head; see :func:`ctloss.shared.models.load_with_head`."""
    names = dict(enumerate(head.labels))
    return load_with_head(
        name,
        getattr(transformers, head.model_class),
        id2label=names,
        label2id={label: number for number, label in names.items()},
        # Trainer would take them for more predictions.
        output_hidden_states=False,
        output_attentions=False,
    )


def training_arguments(options: FinetuneOptions, folder: Path, seed: int) -> TrainingArguments:
    """Returns Trainer's arguments; a step has ``options.batch_size`` items on any number of processes.

    Raises:
        ValueError: the batch cannot be divided among processes and accumulated parts.
    """
    arguments = training.training_arguments(
        folder,
        seed=seed,
        precision=options.precision,
        epochs=options.epochs,
        max_steps=options.max_steps,
        weight_decay=options.weight_decay,
        clip=options.clip,
        log_every=50,
        evaluate_every=options.evaluate_every,
        checkpoint_every=options.checkpoint_every,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=options.warmup_steps,
        gradient_accumulation_steps=options.accumulation,
        average_tokens_across_devices=False,
        per_device_eval_batch_size=options.evaluation_batch_size,
    )
    parts = arguments.world_size * options.accumulation
    if options.batch_size % parts:
        raise ValueError(
            f"expected a batch_size that {arguments.world_size} processes times {options.accumulation} accumulated "
            f"parts divide, got {options.batch_size}; change one of them"
        )
    arguments.per_device_train_batch_size = options.batch_size // parts
    return arguments


def _train(trainer: _Finetuner, folder: Path) -> None:
    checkpoint = None
    if trainer.args.process_index == 0:
        remove_incomplete(folder, "checkpoint")
        for partial in folder.glob("best*.partial"):
            remove_folder(partial)
        checkpoint = next((path for _, path in reversed(complete(folder, "checkpoint"))), None)
    if trainer.args.world_size > 1:
        shared = [checkpoint]
        torch.distributed.broadcast_object_list(shared)
        checkpoint = shared[0]
    if checkpoint is None:
        steps = trainer.train().global_step
    else:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        steps = state["global_step"]
        # From a checkpoint at the end Trainer would take one more step.
        if steps < state["max_steps"]:
            steps = trainer.train(resume_from_checkpoint=str(checkpoint)).global_step
    trainer.accelerator.wait_for_everyone()
    if trainer.args.process_index == 0:
        write_atomically(folder / FINISHED, json.dumps({"steps": steps}) + "\n")
        for _, path in numbered(folder, "checkpoint"):
            remove_folder(path)


def claim(folder: Path, settings: Mapping[str, object]) -> None:
    """Writes the settings of a run into its folder, or compares them with those of the run that is there.

    Raises:
        ValueError: the folder belongs to a run with other settings.
    """
    path = folder / SETTINGS
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if not path.exists() or (best(folder) is None and not complete(folder, "checkpoint")):
        # A run that was refused or killed before it kept anything does not own the folder.
        write_atomically(path, text)
        return
    there, ours = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
    different = sorted(name for name in there.keys() | ours.keys() if there.get(name) != ours.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{folder}: expected an empty folder or a run with the same settings, got one with {name} "
            f"{there.get(name)!r} instead of {ours.get(name)!r}; choose another folder, or remove this one"
        )


def best(folder: Path) -> tuple[Path, float] | None:
    """Returns a run's best model and its score; of two with equal scores, the earlier."""
    models = [
        (path, float(json.loads((path / "score.json").read_text(encoding="utf-8"))["score"]))
        for _, path in numbered(folder, "best")
    ]
    return max(models, key=lambda model: model[1]) if models else None
