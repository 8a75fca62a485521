"""What a run reports while it trains: a progress bar with one line per report, JSON lines, and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from ...shared.files import write_atomically

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
    except (ValueError, KeyError):
        # A kill during a write leaves half a line, which is always the last.
        return float("inf")
