"""transformers' Trainer with our batches, objective, measures and checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from .model.encoder import CCEEncoder
from .model.objective import FORCES, Objective
from .output import CHECKPOINTS, LOG_FILE, checkpoint_folder, load_optimizer, remove_old, save_optimizer, writing_folder
from .recipe import Optimisation, Recipe
from .reporting.logs import JSONLines, ProgressLines, TensorBoard
from .samples.dataset import WPSDataset
from .samples.sampler import BatchPlan, PlanSampler

AVERAGED = ("loss", "contrastive", "mlm", "z_mean", "saturated")
LOG_STATE = "log_state.json"


class EpochsInTurn(PlanSampler):
    """A plan's batches of the epoch that the run has come to, whether or not anybody calls ``set_epoch``.

    Versions of Trainer differ in whom they tell the epoch when a run is resumed.

    Args:
        steps: returns the steps that the run has made.
        plan, rank, world_size: as in PlanSampler.
    """

    def __init__(self, steps: Callable[[], int], plan: BatchPlan, *, rank: int, world_size: int) -> None:
        super().__init__(plan, rank=rank, world_size=world_size)
        self._steps = steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.set_epoch(self._steps() // len(self))
        return super().__iter__()


class PretrainingTrainer(Trainer):
    """A Trainer for which everything random is a function of the seed and the place in the run.

    Batches, word draws and masks depend on (seed, epoch, row); dropout on (seed, step, process), as the generator is
    seeded anew for every step. So a checkpoint holds no generator's state, and a resumed run repeats the unbroken one.
    Checkpoints are folders of safetensors and JSON: nothing in them is unpickled.

    Args:
        objective: the model with its loss.
        recipe: the run.
        output: folder of logs and checkpoints.
        rows: training rows.
        plan: the batches of every epoch. Each process takes its own: they are its only negatives.
        collate: turns a list of rows into the objective's arguments.
        tokenizer: saved with every checkpoint.
        measure: what is measured of the encoder during the run, by name.
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
        super().__init__(
            objective,
            training_arguments(recipe, output),
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
        """Trains to the end from the last of the (step, folder) checkpoints, or from the start; returns the steps."""
        if not saved:
            return self.train().global_step
        step, folder = saved[-1]
        # Trainer would take one more step from a checkpoint that is at the end already.
        if step >= total_steps(self._recipe.optimisation, len(self._plan), self.args.world_size):
            self._load_from_checkpoint(str(folder))
            return step
        return self.train(resume_from_checkpoint=str(folder)).global_step

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the planned batches of this process, collated."""
        batches = EpochsInTurn(
            lambda: self.state.global_step,
            self._plan,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)  # type: ignore[arg-type]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Seeds dropout for this step, then steps as Trainer does."""
        if not self._pairs:
            self._since = time.perf_counter()
        place = np.random.SeedSequence([self.args.seed, self.state.global_step, self.args.process_index])
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the objective of a batch, and keeps its parts for the log."""
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
        """Adds the parts of the objective, averaged since the last line and over processes, to a training line.

        Pull and push are those of this process's last batch.
        """
        if "loss" in logs and self._steps:
            # Trainer's own mean of the loss forgets, on resuming, what the checkpoint's step had summed up.
            sums, logs["z_min"] = self._gathered()
            logs.update({name: value / self._steps for name, value in sums.items()})
            logs.update({name: float(value) for name, value in self._forces.items()})
            elapsed = time.perf_counter() - self._since
            logs["pairs_per_second"] = self.args.world_size * self._pairs / elapsed
            self._forget()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Measures the encoder on the validation pairs; every process does the same."""
        started = time.perf_counter()
        encoder: CCEEncoder = self.model.encoder  # type: ignore[union-attr,assignment]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._measure(encoder).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - started
        return metrics

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Returns the recipe's learning-rate schedule, a function of the step."""
        if self.lr_scheduler is None:
            factor = learning_rate_factor(self._recipe.optimisation, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_state(self, folder: Path) -> None:  # type: ignore[override]
        """Writes encoder, tokenizer, optimiser, schedule and Trainer's state into an existing folder."""
        self.model.encoder.save(folder)  # type: ignore[union-attr,operator]
        self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
        save_optimizer(self.optimizer, folder)  # type: ignore[arg-type]
        (folder / "scheduler.json").write_text(json.dumps(self.lr_scheduler.state_dict()) + "\n", encoding="utf-8")  # type: ignore[union-attr]
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.store_flos()
        sums, z_min = self._gathered() if self._steps else ({}, None)
        if self.args.should_save:
            root = self._output / CHECKPOINTS
            with writing_folder(checkpoint_folder(root, self.state.global_step)) as folder:
                self.save_state(folder)
                log = {"steps": self._steps, "sums": sums, "z_min": z_min}
                (folder / LOG_STATE).write_text(json.dumps(log) + "\n", encoding="utf-8")
            remove_old(root, keep=self._recipe.bookkeeping.keep_checkpoints)
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
        """Nothing to restore: every step seeds its own."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing to restore: bfloat16 needs no loss scaling."""

    def _gathered(self) -> tuple[dict[str, float], float]:
        """Returns the sums since the last line, their mean over processes, and the least z of all."""
        sums = self.accelerator.gather(torch.stack(list(self._sums.values())).unsqueeze(0)).mean(dim=0)
        z_min = float(self.accelerator.gather(self._z_min.reshape(1)).min())
        return dict(zip(self._sums, sums.tolist(), strict=True)), z_min

    def _forget(self) -> None:
        self._sums = {}
        self._z_min = torch.tensor(torch.inf)
        self._steps = self._pairs = 0
        self._since = time.perf_counter()


def training_arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    """Returns Trainer's arguments for a recipe; checkpoints go to the folder ``checkpoints`` of the output."""
    optimisation, bookkeeping = recipe.optimisation, recipe.bookkeeping
    arguments = TrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        per_device_train_batch_size=optimisation.batch_size,
        num_train_epochs=optimisation.epochs,
        max_steps=optimisation.max_steps or -1,
        weight_decay=optimisation.weight_decay if optimisation.optimizer == "adamw" else 0.0,
        max_grad_norm=optimisation.clip,
        seed=bookkeeping.seed,
        bf16=uses_bfloat16(bookkeeping.precision),
        use_cpu=not torch.cuda.is_available(),
        logging_strategy="steps",
        logging_steps=bookkeeping.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=bookkeeping.evaluate_every,
        save_strategy="steps",
        save_steps=bookkeeping.checkpoint_every,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=False,
    )
    # Known once the device is. On several, Trainer would split each batch, and its negatives, with DataParallel.
    if arguments.device and arguments.n_gpu > 1:
        print(f"1 of {arguments.n_gpu} GPUs is used; torchrun uses all", file=sys.stderr)
        arguments._n_gpu = 1
    return arguments


def uses_bfloat16(precision: str) -> bool:
    """Tells whether a run autocasts to bfloat16: as asked, or, for ``"auto"``, where the device multiplies it fast."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def total_steps(optimisation: Optimisation, batches: int, processes: int) -> int:
    """Returns the steps of a whole run, given the batches of an epoch over all processes.

    Example:
        >>> total_steps(Optimisation(epochs=3), 7, 2), total_steps(Optimisation(max_steps=5), 7, 2)
        (9, 5)
    """
    return optimisation.max_steps or optimisation.epochs * (batches // processes)


def learning_rate_factor(optimisation: Optimisation, steps: int) -> Callable[[int], float]:
    """Returns the learning rate at a step as a share of its peak.

    Args:
        optimisation: names the schedule and the share of warmup.
        steps: steps of the whole run.

    Example:
        >>> factor = learning_rate_factor(Optimisation(schedule="thirds", warmup=0.0), 12)
        >>> [round(factor(step), 6) for step in (0, 3, 4, 8, 10)]
        [1.0, 1.0, 0.1, 0.01, 0.001]
        >>> factor = learning_rate_factor(Optimisation(schedule="linear", warmup=0.2), 10)
        >>> [factor(step) for step in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warm = int(optimisation.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        if optimisation.schedule == "linear":
            return max(0.0, (steps - step) / max(1, steps - warm))
        if optimisation.schedule == "thirds":
            return 0.1 ** sum(step >= steps * share for share in (1 / 3, 2 / 3, 5 / 6))
        return 1.0

    return factor
