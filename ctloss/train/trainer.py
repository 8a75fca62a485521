"""transformers' Trainer with our batches, objective, measures and checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.trainer_callback import ProgressCallback

from ..shared.files import remove_old, writing_folder
from ..shared.training import training_arguments
from .model.encoder import CCEEncoder
from .model.objective import FORCES, Objective
from .output import CHECKPOINT, CHECKPOINTS, LOG_FILE, load_optimizer, save_optimizer
from .recipe import Optimisation, Recipe
from .reporting.logs import JSONLines, ProgressLines, TensorBoard
from .samples.dataset import WPSDataset
from .samples.sampler import BatchPlan, PlanSampler

AVERAGED = ("loss", "contrastive", "mlm", "z_mean", "saturated")
LOG_STATE = "log_state.json"


class PretrainingTrainer(Trainer):
    """A Trainer in which everything random is a function of the seed and the position in the run.

    Batches, word draws and masks depend on (seed, epoch, row), and dropout on (seed, step, process): the generator is
    seeded for every step. Checkpoints therefore hold no generator state, and a resumed run repeats an uninterrupted
    one. They are folders of safetensors and JSON: nothing in them is unpickled.

    Args:
        objective: the model with its loss.
        recipe, output: the run, and the folder of its logs and checkpoints.
        rows: training rows.
        plan: the batches of every epoch. Processes that share negatives split each batch; otherwise each takes batches
            of its own, and its negatives come only from them.
        collate: turns a list of rows into the objective's arguments.
        tokenizer: saved with every checkpoint.
        measure: returns measures of the encoder by name, for the reports during the run.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        output: Path,
        *,
        rows: WPSDataset,
        plan: BatchPlan,
        collate: Callable[[list[Any]], dict[str, Tensor]],
        tokenizer: Any,
        measure: Callable[[CCEEncoder], dict[str, float]],
    ) -> None:
        optimisation = recipe.optimisation
        fused = {"lr": optimisation.learning_rate, "fused": True}
        optimizer = torch.optim.AdamW if optimisation.optimizer == "adamw" else torch.optim.Adam
        bookkeeping = recipe.bookkeeping
        arguments = training_arguments(
            output / CHECKPOINTS,
            seed=bookkeeping.seed,
            precision=bookkeeping.precision,
            epochs=optimisation.epochs,
            max_steps=optimisation.max_steps,
            weight_decay=optimisation.weight_decay if optimisation.optimizer == "adamw" else 0.0,
            clip=optimisation.clip,
            log_every=bookkeeping.log_every,
            evaluate_every=bookkeeping.evaluate_every,
            checkpoint_every=bookkeeping.checkpoint_every,
            per_device_train_batch_size=optimisation.batch_size,
            logging_nan_inf_filter=False,
        )
        super().__init__(
            objective,
            arguments,
            data_collator=collate,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            optimizer_cls_and_kwargs=(optimizer, fused),
            callbacks=[JSONLines(output / LOG_FILE), TensorBoard(output / "tensorboard")],
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressLines())
        self._recipe = recipe
        self._output = output
        self._plan = plan
        self._measure = measure
        self._sums: dict[str, Tensor] = {}
        self._z_min = torch.tensor(torch.inf)
        self._forces: dict[str, Tensor] = {}
        self._steps = self._pairs = 0
        self._since = time.perf_counter()

    def run(self, saved: Sequence[tuple[int, Path]]) -> int:
        """Trains from the last of the (step, folder) checkpoints, or from the start, to the end; returns the steps."""
        if not saved:
            return self.train().global_step
        step, folder = saved[-1]
        # From a checkpoint at the very end Trainer would take one more step.
        if step >= total_steps(self._recipe.optimisation, len(self._batches())):
            self._load_from_checkpoint(str(folder))
            return step
        return self.train(resume_from_checkpoint=str(folder)).global_step

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the planned batches of this process in the run's current epoch, collated."""
        return DataLoader(self.train_dataset, batch_sampler=self._batches(), collate_fn=self.data_collator)  # type: ignore[arg-type]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Seeds dropout for this step, then trains as Trainer does."""
        if not self._pairs:
            self._since = time.perf_counter()
        place = np.random.SeedSequence([self.args.seed, self.state.global_step, self.args.process_index])
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the objective of a batch and keeps its parts for the log."""
        last_of_line = (self.state.global_step + 1) % self.args.logging_steps == 0
        given = {name: value for name, value in inputs.items() if name != "index"}
        measured = model(**given, forces=last_of_line)
        self._steps += 1
        self._pairs += len(inputs["source_ids"])
        for name in AVERAGED:
            if name in measured:
                self._sums[name] = self._sums.get(name, 0) + measured[name].detach()
        self._z_min = torch.minimum(self._z_min.to(measured["z_min"].device), measured["z_min"])
        self._forces = {name: measured[name] for name in FORCES if name in measured}
        return (measured["loss"], measured) if return_outputs else measured["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the objective to a training line, averaged over processes and steps since the last line.

        Pull and push are those of the last batch: of all processes if they share negatives, otherwise of this one.
        """
        if "loss" in logs and self._steps:
            # On resuming, Trainer's own mean of the loss loses what had been summed up by the checkpoint's step.
            sums, logs["z_min"] = self._gathered()
            logs.update({name: value / self._steps for name, value in sums.items()})
            logs.update({name: float(value) for name, value in self._forces.items()})
            elapsed = time.perf_counter() - self._since
            logs["pairs_per_second"] = self.args.world_size * self._pairs / elapsed
            self._forget()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Measures the encoder on the validation pairs; every process does the same work."""
        started = time.perf_counter()
        encoder: CCEEncoder = self.model.encoder  # type: ignore[union-attr,assignment]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._measure(encoder).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - started
        return metrics

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Returns the recipe's learning-rate schedule."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = learning_rate_schedule(self._recipe.optimisation, optimizer, num_training_steps)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.store_flos()
        sums, z_min = self._gathered() if self._steps else ({}, None)
        if self.args.should_save:
            root = self._output / CHECKPOINTS
            with writing_folder(root / f"{CHECKPOINT}-{self.state.global_step}") as folder:
                self.model.encoder.save(folder)  # type: ignore[union-attr,operator]
                self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
                save_optimizer(self.optimizer, folder)  # type: ignore[arg-type]
                schedule = self.lr_scheduler.state_dict()  # type: ignore[union-attr]
                (folder / "scheduler.json").write_text(json.dumps(schedule) + "\n", encoding="utf-8")
                self.state.save_to_json(str(folder / "trainer_state.json"))
                log = {"steps": self._steps, "sums": sums, "z_min": z_min}
                (folder / LOG_STATE).write_text(json.dumps(log) + "\n", encoding="utf-8")
            remove_old(root, CHECKPOINT, keep=self._recipe.bookkeeping.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.model.encoder.load_state_dict(CCEEncoder.load(resume_from_checkpoint).state_dict())  # type: ignore[union-attr,operator]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self.optimizer, Path(checkpoint))  # type: ignore[arg-type]
            state = json.loads((Path(checkpoint) / "scheduler.json").read_text(encoding="utf-8"))
            self.lr_scheduler.load_state_dict(state)  # type: ignore[union-attr]
            log = json.loads((Path(checkpoint) / LOG_STATE).read_text(encoding="utf-8"))
            if log["steps"]:
                self._steps, self._z_min = log["steps"], torch.tensor(log["z_min"], device=self.args.device)
                self._sums = {name: torch.tensor(value, device=self.args.device) for name, value in log["sums"].items()}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to restore: every step is seeded."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing to restore: bfloat16 needs no loss scaling."""

    def _batches(self) -> PlanSampler:
        batches = PlanSampler(
            self._plan,
            epoch=lambda: self.state.global_step // len(batches),
            rank=self.args.process_index,
            world_size=self.args.world_size,
            split=self._recipe.objective.negatives_across == "ranks",
        )
        return batches

    def _gathered(self) -> tuple[dict[str, float], float]:
        """Returns the sums since the last line, averaged over processes, and the smallest z of all."""
        sums = self.accelerator.gather(torch.stack(list(self._sums.values())).unsqueeze(0)).mean(dim=0)
        z_min = float(self.accelerator.gather(self._z_min.reshape(1)).min())
        return dict(zip(self._sums, sums.tolist(), strict=True)), z_min

    def _forget(self) -> None:
        self._sums = {}
        self._z_min = torch.tensor(torch.inf)
        self._steps = self._pairs = 0
        self._since = time.perf_counter()


def total_steps(optimisation: Optimisation, batches: int) -> int:
    """Returns the number of steps of a whole run, given the batches of an epoch on each process.

    Example:
        >>> total_steps(Optimisation(epochs=3), 7), total_steps(Optimisation(max_steps=5), 7)
        (21, 5)
    """
    return optimisation.max_steps or optimisation.epochs * batches


def learning_rate_schedule(optimisation: Optimisation, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Returns the schedule that a recipe names, for a run of this many steps."""
    warmup = int(optimisation.warmup * steps)
    if optimisation.schedule != "thirds":
        name = {"linear": "linear", "constant": "constant_with_warmup"}[optimisation.schedule]
        return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)

    def factor(step: int) -> float:
        return step / warmup if step < warmup else 0.1 ** sum(step >= steps * share for share in (1 / 3, 2 / 3, 5 / 6))

    return LambdaLR(optimizer, factor)
