"""What a checkpoint holds, written and read: safetensors and JSON, nothing that would be unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..shared.models import share_as_umask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .model.encoder import CCEEncoder

OPTIMIZER_TENSORS, OPTIMIZER_SETTINGS = "optimizer.safetensors", "optimizer.json"
SCHEDULER, SCALER, LOG_STATE, TRAINER_STATE = "scheduler.json", "scaler.json", "log_state.json", "trainer_state.json"


def save_encoder(folder: Path, encoder: CCEEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes an encoder and its tokenizer to an existing folder."""
    encoder.save(folder)
    tokenizer.save_pretrained(folder)
    share_as_umask(folder)


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes an optimiser's state: its tensors as safetensors, its numbers and groups as JSON."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()
    values = {f"{index}.{name}": value for index, found in state["state"].items() for name, value in found.items()}
    tensors = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
    numbers = {key: value for key, value in values.items() if key not in tensors}
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / OPTIMIZER_TENSORS)
    _write(folder / OPTIMIZER_SETTINGS, {"groups": state["param_groups"], "numbers": numbers})
    share_as_umask(folder)


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restores what :func:`save_optimizer` wrote, bit for bit."""
    from safetensors.torch import load_file

    settings = _read(folder / OPTIMIZER_SETTINGS)
    # Formerly the groups alone.
    groups, numbers = (settings, {}) if isinstance(settings, list) else (settings["groups"], settings["numbers"])
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**load_file(folder / OPTIMIZER_TENSORS), **numbers}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_progress(folder: Path, *, scheduler: Any, scaler: Any, log: dict[str, Any]) -> None:
    """Writes the states of the schedule, of the loss scaling (None without) and of the log's sums."""
    _write(folder / SCHEDULER, scheduler.state_dict())
    if scaler is not None:
        _write(folder / SCALER, scaler.state_dict())
    _write(folder / LOG_STATE, log)


def load_progress(folder: Path, *, scheduler: Any) -> dict[str, Any]:
    """Restores the schedule; returns the state of the log's sums."""
    scheduler.load_state_dict(_read(folder / SCHEDULER))
    log: dict[str, Any] = _read(folder / LOG_STATE)
    return log


def load_scaler(folder: Path, scaler: Any) -> None:
    """Restores the loss scaling, if there is one now and was one when the checkpoint was written."""
    if scaler is not None and (folder / SCALER).is_file():
        scaler.load_state_dict(_read(folder / SCALER))


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
