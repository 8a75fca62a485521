"""What a run reports while it trains: a progress bar with one line per report, JSON lines, and TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from ...shared.files import write_atomically
from ..model.objective import FORCES

SHOWN = {
    "loss": "loss",
    "contrastive": "contrastive",
    "mlm": "mlm",
    "z_mean": "mean z",
    "z_min": "min z",
    "learning_rate": "rate",
    "pairs_per_second": "pairs/s",
    "eval_sentence_forth": "sentences →",
    "eval_sentence_back": "sentences ←",
    "eval_word_forth": "words →",
    "eval_word_back": "words ←",
    "eval_random_pair_cosine": "random-pair cosine",
}


class Averages:
    """What an objective measured since the last report: means over batches and processes, and the smallest z.

    With gradient accumulation every part of a step counts as a batch. Pull and push are those of the last batch: of all
    processes if they share negatives, otherwise of this one. Sums stay on the device until they are reported or saved.

    Args:
        gather: joins a tensor of all processes along the first dimension.

    Attributes:
        batches: how many there were.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self._gather = gather
        self._sums: dict[str, Tensor] = {}
        self._forces: dict[str, Tensor] = {}
        self._z_min = torch.tensor(torch.inf)
        self.batches = self._pairs = 0
        self._since = time.perf_counter()

    def start(self) -> None:
        """Starts the clock, if nothing was added since the last report."""
        if not self._pairs:
            self._since = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Takes back time in which nothing was trained."""
        self._since += seconds

    def add(self, measured: Mapping[str, Tensor], pairs: int) -> None:
        """Adds what the objective returned for a batch of this many pairs."""
        self.batches += 1
        self._pairs += pairs
        for name, value in measured.items():
            if name == "z_min":
                self._z_min = torch.minimum(self._z_min.to(value.device), value.detach())
            elif name not in FORCES:
                self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._forces = {name: measured[name] for name in FORCES if name in measured}

    def report(self, processes: int) -> dict[str, float]:
        """Returns the values of a report, with the pairs per second of all processes, and begins anew."""
        gathered = self.state()
        found = {name: value / self.batches for name, value in gathered["sums"].items()}
        found |= {name: float(value) for name, value in self._forces.items()}
        if gathered["z_min"] < math.inf:
            # Otherwise no row had negatives.
            found["z_min"] = gathered["z_min"]
        found["pairs_per_second"] = processes * self._pairs / (time.perf_counter() - self._since)
        self._forget()
        return found

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint stores of this, the same on every process; call it on all of them."""
        if not self.batches:
            return {"steps": 0, "sums": {}, "z_min": None}
        sums = self._gather(torch.stack(list(self._sums.values())).unsqueeze(0)).mean(dim=0)
        z_min = float(self._gather(self._z_min.reshape(1)).min())
        return {"steps": self.batches, "sums": dict(zip(self._sums, sums.tolist(), strict=True)), "z_min": z_min}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continues from what ``state`` returned."""
        if state["steps"]:
            self.batches, self._z_min = state["steps"], torch.tensor(state["z_min"], device=device)
            self._sums = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}

    def _forget(self) -> None:
        self._sums, self._forces = {}, {}
        self._z_min = torch.tensor(torch.inf)
        self.batches = self._pairs = 0
        self._since = time.perf_counter()


class JSONLines(TrainerCallback):
    """Appends every report to a file, one JSON object per line.

    A resumed run first drops the lines after the step it resumes from, so the file reads like that of an uninterrupted
    run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            write_atomically(self._path, "".join(line + "\n" for line in lines if _step(line) <= state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class TensorBoard(TensorBoardCallback):
    """Writes every report for TensorBoard, only on the main process.

    A resumed run purges what a killed run reported after its last checkpoint, so TensorBoard shows one run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            purged = state.global_step + 1 if state.global_step else None
            # TensorBoard sorts files by the second in their names, then by process: a file begun in the same second as
            # that of the killed run could sort before it and purge nothing.
            while any(self._folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
                time.sleep(0.05)
            self.tb_writer = SummaryWriter(str(self._folder), purge_step=purged)
        super().on_train_begin(args, state, control, **kwargs)


class ProgressLines(ProgressCallback):
    """Trainer's progress bar, with each report as one short line above it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws the bar; rarely if it goes to a file, where every drawing stays."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and not sys.stderr.isatty():
            self.training_bar.mininterval = 10.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Shows the losses of a training report, or the retrieval accuracies on the validation pairs."""
        if state.is_world_process_zero and self.training_bar is not None and logs is not None:
            chosen = {label: logs[name] for name, label in SHOWN.items() if name in logs}
            if chosen:
                report = "  ".join(f"{label} {value:.4g}" for label, value in chosen.items())
                self.training_bar.write(f"step {state.global_step:>6}  {report}")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A kill during a write leaves half a line, which is always the last.
        return float("inf")
