"""Fine-tuning of one model on one task with one seed, by transformers' Trainer, resumable."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from .head import Collate, Encoded, Head, check_inputs, load_model
from .kept import best, claim, finish, is_finished, last_checkpoint, mark_whole, writing_best
from .lengths import ByLength
from .loading import load_tokenizer, quietly
from .options import FinetuneOptions
from .tasks import Row


class _Finetuner(Trainer):
    """A Trainer whose evaluation is one score of predictions, here called ``eval_score``."""

    def __init__(
        self, *args: Any, measure: Callable[[_Finetuner], float], sampler: Sampler[int] | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.preprocess_logits_for_metrics = lambda logits, _: self._label_numbers(logits)
        self._measure = measure
        self._sampler = sampler
        # The loss is a mean of each part of a batch; models that take any keyword are thought to divide by the whole.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self._sampler is None else self._sampler

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        metrics = {f"{metric_key_prefix}_score": self._measure(self)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def labels_of(self, encoded: Encoded) -> list[Any]:
        """Returns one prediction a row."""
        bare = [{name: value for name, value in row.items() if name != "labels"} for row in encoded.features]
        return encoded.decode(self.predict(bare).predictions)  # type: ignore[arg-type]

    def _label_numbers(self, logits: Tensor) -> Tensor:
        # Of NaN the first label would pass for the largest.
        if not logits.isfinite().all():
            raise ValueError(
                f"{self.args.output_dir}: expected finite logits of the fine-tuned model, got NaN or infinity; if its "
                "training diverged, lower learning_rate and remove that folder; if its weights never were finite, "
                "choose another model"
            )
        return logits.argmax(dim=-1)


class _Keeper(TrainerCallback):
    """Keeps the best model and the last whole checkpoint, and scores the last step whatever its number."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder = folder
        self._tokenizer = tokenizer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate |= state.global_step >= state.max_steps

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        score, kept = kwargs["metrics"]["eval_score"], best(self._folder)
        if state.is_world_process_zero and (kept is None or score > kept[1]):
            with writing_best(self._folder, state.global_step, score) as folder, quietly():
                kwargs["model"].save_pretrained(folder)
                self._tokenizer.save_pretrained(folder)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_whole(self._folder / f"checkpoint-{state.global_step}")


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
    """Fine-tunes a model, or goes on where a killed run in the folder stopped, and predicts with the best step's model.

    Args:
        model: name or folder of a Hugging Face encoder.
        head: what to put on it.
        train, dev: labelled English rows.
        tests: rows by language.
        options: see :class:`FinetuneOptions`; its seeds are not read.
        seed: of the head's initialisation, the order of the data and dropout.
        folder: of this run alone.
        settings: what a run in that folder must have had in common with this one to be resumed.

    Returns:
        For each language one prediction a row.

    Raises:
        ValueError: the model is no encoder with safetensors, is too short for ``max_length``, has not its tokenizer
            beside it, the batch cannot be divided, the folder holds another run, or the training diverged.
    """
    arguments = training_arguments(options, folder, seed)
    if arguments.process_index == 0:
        claim(folder, settings)
    tokenizer = load_tokenizer(model, **head.tokenizer_options)
    check_inputs(model, tokenizer, options.max_length)
    encoded = head.encode(tokenizer, train, options.max_length)
    judged = head.encode(tokenizer, dev, options.max_length)
    lengths = [len(row["input_ids"]) for row in encoded.features]
    set_seed(seed)
    trainer = _Finetuner(
        load_model(model, head),
        arguments,
        data_collator=Collate(tokenizer.pad_token_id or 0),
        train_dataset=encoded.features,
        eval_dataset=judged.features,
        callbacks=[_Keeper(folder, tokenizer)],
        measure=lambda trainer: head.score(dev, trainer.labels_of(judged)),
        sampler=ByLength(lengths, options.batch_size, seed) if options.batches == "by_length" else None,
    )
    if not is_finished(folder):
        _train(trainer, folder)
    trainer.accelerator.wait_for_everyone()
    found = best(folder)
    assert found is not None
    trainer.model.load_state_dict(load_model(str(found[0]), head).state_dict())  # type: ignore[union-attr]
    return {
        language: trainer.labels_of(head.encode(tokenizer, rows, options.max_length))
        for language, rows in tests.items()
    }


def _train(trainer: _Finetuner, folder: Path) -> None:
    checkpoint = last_checkpoint(folder) if trainer.args.process_index == 0 else None
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
        finish(folder, steps)


def training_arguments(options: FinetuneOptions, folder: Path, seed: int) -> TrainingArguments:
    """Returns Trainer's arguments; a step is of ``options.batch_size`` items on any number of processes.

    Raises:
        ValueError: the batch cannot be divided among processes and accumulated parts.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=options.evaluation_batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        seed=seed,
        bf16=options.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=50,
        eval_strategy="steps",
        eval_steps=options.evaluate_every,
        save_strategy="steps",
        save_steps=options.checkpoint_every,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,
        disable_tqdm=False,
    )
    # Known once the device is. On several GPUs in one process Trainer would split batches with DataParallel.
    if arguments.device and arguments.n_gpu > 1:
        print(f"1 of {arguments.n_gpu} GPUs is used; torchrun uses all", file=sys.stderr)
        arguments._n_gpu = 1
    parts = arguments.world_size * options.accumulation
    if options.batch_size % parts:
        raise ValueError(
            f"expected a batch_size that {arguments.world_size} processes times {options.accumulation} accumulated "
            f"parts divide, got {options.batch_size}; change one of them"
        )
    arguments.per_device_train_batch_size = options.batch_size // parts
    return arguments
