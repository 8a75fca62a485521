"""transformers' Trainer with our batches, objective, measures and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from ...shared.command import Signals, Stopped, ignore_signals
from ...shared.options import OptionError
from .. import saving, stops
from ..arguments import PretrainingArguments
from ..model.encoder import CCEEncoder
from ..model.objective import Objective, decays
from ..output import LOG_FILE
from ..processes import from_main
from ..reporting.logs import JSONLines, ProgressLines, TensorBoard
from ..resumption import read_run_state
from ..samples.dataset import WPSDataset
from ..samples.sampler import BatchPlan, PlanSampler
from .checkpointed import CheckpointedTrainer, SaveLast
from .schedule import steps_per_epoch, thirds, total_steps


class PretrainingTrainer(CheckpointedTrainer):
    """A Trainer in which everything random is a function of the seed and the position in the run.

    Batches, word draws and masks depend on (seed, epoch, row), and dropout on (seed, step, process), with gradient
    accumulation also on the part of the step: the generator is seeded for every part. Checkpoints therefore hold no
    generator state, and a resumed run repeats an uninterrupted one.

    Args:
        objective: the model with its loss.
        arguments: Trainer's arguments; ``output_dir`` is the folder of the checkpoints, in ``output``.
        output: folder of the run.
        rows: training rows.
        plan: the batches of every epoch.
        split: whether processes split each batch; otherwise each takes batches of its own, and its negatives come only
            from them.
        collate: turns the rows of a batch into the objective's arguments.
        tokenizer: saved with every checkpoint.
        measure: returns measures of the encoder by name, for the reports during the run. All processes call it, unless
            weights are shared out: then the main one alone.
        signals: the signals that a run stops for.
    """

    def __init__(
        self,
        objective: Objective,
        arguments: PretrainingArguments,
        output: Path,
        *,
        rows: WPSDataset,
        plan: BatchPlan,
        split: bool,
        collate: Callable[[Any], dict[str, Tensor]],
        tokenizer: Any,
        measure: Callable[[CCEEncoder], dict[str, float]],
        signals: Signals,
    ) -> None:
        super().__init__(
            objective,
            arguments,
            output,
            data_collator=collate,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
        )
        if "tensorboard" in (arguments.report_to or []):
            self.pop_callback(TensorBoardCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressLines())
        self.add_callback(JSONLines(output / LOG_FILE))
        self.add_callback(TensorBoard(output / "tensorboard"))
        if arguments.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(arguments.early_stopping_patience))
        self._stopping = stops.Stopping(signals)
        self.add_callback(self._stopping)
        self.add_callback(SaveLast())
        self._plan, self._split = plan, split
        self._measure = measure
        self._watch = stops.FiniteWatch()
        self._part = (-1, 0)

    def run(self, saved: Sequence[tuple[int, Path]]) -> int:
        """Trains from the last of the (step, folder) checkpoints, or from the start, to the end; returns the steps.

        Raises:
            Stopped: a signal came; what was trained is saved.
            DivergedError: a loss or weight is not finite.
            SavingError: a checkpoint or the log could not be written.
        """
        if saved and self._is_last(*saved[-1]):
            return self._load_last(*saved[-1])
        if saved:
            # A share of the steps then, which a longer run must not change.
            self.args.warmup_steps = read_run_state(saved[-1][1]).warmup_steps
            self.args.eval_on_start = False
        self._stopping.begin()
        with self._stopping.signals.deferred():
            try:
                return self.train(resume_from_checkpoint=str(saved[-1][1]) if saved else None).global_step
            except stops.ENDS:
                self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
                raise
            except RuntimeError as error:
                # A signal to all processes also ends those that load the batches.
                if (number := self._stopping.signals.received) and "DataLoader worker" in str(error):
                    said = "which ended the loader's workers too, before the step; go on with --resume"
                    raise Stopped(number, said, told=self.is_world_process_zero()) from error
                raise
            except OSError as error:
                if stops.is_about_disk(error):
                    with stops.writing("the log", stops.MAKE_ROOM):
                        raise
                raise

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the planned batches of this process in the run's current epoch, collated."""
        arguments, workers = self.args, self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self._batches(),  # type: ignore[arg-type]
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=arguments.dataloader_pin_memory and arguments.device.type == "cuda",
            persistent_workers=workers > 0 and arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=getattr(arguments, "dataloader_multiprocessing_context", None) if workers else None,
            worker_init_fn=ignore_signals if workers else None,
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Seeds dropout for this part of this step, then trains as Trainer does."""
        self._averages.start()
        step, part = self._part
        self._part = (self.state.global_step, part + 1 if step == self.state.global_step else 0)
        place = [self.args.seed, self.state.global_step, self.args.process_index]
        if self.args.gradient_accumulation_steps > 1:
            place.append(self._part[1])
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the objective of a batch and keeps its parts for the log."""
        given = {name: value for name, value in inputs.items() if name != "index"}
        measured = model(**given, forces=self._last_of_line())
        self._watch.see(measured["loss"], self.state.global_step + 1)
        self._averages.add(measured, len(inputs["source_ids"]))
        return (measured["loss"], measured) if return_outputs else measured["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the objective measured since the last line to a training line."""
        if "loss" in logs and self._averages.batches:
            # On resuming, Trainer's own mean of the loss loses what had been summed up by the checkpoint's step.
            logs.update(self._averages.report(self.args.world_size))
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Measures the encoder on the validation pairs, each process its share of them."""
        started = time.perf_counter()
        encoder = self.whole_encoder()
        measured = self._measure(encoder) if encoder is not None else {}
        if self.shared_out:
            measured = from_main(measured)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        if metrics:
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.args.save_strategy != "no":
            # Stopped early: a restart must find that out again.
            self.control.should_save |= self.control.should_training_stop
        self._averages.pause(time.perf_counter() - started)
        return metrics

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that weight decay applies to."""
        return [name for name in super().get_decay_parameter_names(model) if decays(name)]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Returns the learning-rate schedule: Chen et al.'s or one of Trainer's."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == "thirds":
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = thirds(optimizer or self.optimizer, warmup, num_training_steps)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (TypeError, ValueError, AttributeError) as error:
            raise OptionError(
                f"lr_scheduler_kwargs: expected what the schedule {self.args.lr_scheduler_type} takes, got "
                f"{self.args.lr_scheduler_kwargs!r} ({error}); correct it"
            ) from error

    def create_optimizer(self, *given: Any) -> torch.optim.Optimizer:
        """Returns the optimiser that the arguments name."""
        try:
            return super().create_optimizer(*given)
        except (ImportError, ValueError, RuntimeError, TypeError) as error:
            raise OptionError(
                f"optim: expected one that runs here, got {self.args.optim} ({error}); choose another"
            ) from error

    def _init_training_state(self, max_steps: int, *others: Any) -> Any:
        found = super()._init_training_state(max_steps, *others)
        # How often a run reports and saves may change when it goes on.
        self.state.compute_steps(self.args, max_steps)
        return found

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *others: Any, **more: Any
    ) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._check_losses()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *others, **more)

    def _finalize_training(self, *given: Any) -> Any:
        self._check_losses()
        if number := self._stopping.end():
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(self.model_wrapped, None)
            raise Stopped(
                number,
                f"at step {self.state.global_step}; saved {self._folder(self._saved_step)}; go on with --resume",
                told=self.is_world_process_zero(),
            )
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        # With a limit of 1 Trainer would leave the best checkpoint alone, from which the run would go on.
        found = super()._finalize_training(*given)
        self.args.save_total_limit = limit
        return found

    def _check_losses(self) -> None:
        first = int(self.accelerator.gather(self._watch.first(self.args.device)).min())
        if first < stops.NEVER:
            self._diverge(f"the loss is not finite at step {first}", first - 1)

    def _batches(self) -> PlanSampler:
        batches = PlanSampler(
            self._plan,
            epoch=lambda: self.state.global_step // steps_per_epoch(self.args, len(batches)),
            rank=self.args.process_index,
            world_size=self.args.world_size,
            split=self._split,
        )
        return batches

    def _is_last(self, step: int, folder: Path) -> bool:
        # From a checkpoint at the very end Trainer would take one more step.
        state = TrainerState.load_from_json(str(folder / saving.TRAINER_STATE))
        early = state.stateful_callbacks.get("EarlyStoppingCallback", {})
        waited = early.get("attributes", {}).get("early_stopping_patience_counter", 0)
        patience = self.args.early_stopping_patience
        return step >= total_steps(self.args, len(self._batches())) or (patience is not None and waited >= patience)

    def _last_of_line(self) -> bool:
        due = self.args.logging_strategy == "steps" and (self.state.global_step + 1) % self.state.logging_steps == 0
        return due and self._part[1] == self.current_gradient_accumulation_steps - 1
