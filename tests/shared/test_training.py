"""Trainer's arguments as both kinds of training hand them over, and when they ask for bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from ctloss.shared.training import training_arguments, uses_bfloat16

SHARED: dict[str, Any] = {
    "seed": 7, "precision": "fp32", "epochs": 2.5, "max_steps": None, "weight_decay": 0.1, "clip": 0.5,
    "log_every": 3, "evaluate_every": 4, "checkpoint_every": 5,
}  # fmt: skip


def test_arguments_are_those_given(tmp_path: Path) -> None:
    arguments = training_arguments(tmp_path, **SHARED, learning_rate=0.25, per_device_train_batch_size=6)
    expected = {
        "output_dir": str(tmp_path), "seed": 7, "num_train_epochs": 2.5, "max_steps": -1, "weight_decay": 0.1,
        "max_grad_norm": 0.5, "logging_steps": 3, "eval_steps": 4, "save_steps": 5, "learning_rate": 0.25,
        "per_device_train_batch_size": 6, "bf16": False, "report_to": [], "remove_unused_columns": False,
    }  # fmt: skip
    assert {name: getattr(arguments, name) for name in expected} == expected
    assert arguments.eval_strategy == arguments.save_strategy == arguments.logging_strategy == "steps"
    assert training_arguments(tmp_path, **SHARED | {"max_steps": 9, "precision": "bf16"}).max_steps == 9


def test_one_process_uses_one_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def several(arguments: TrainingArguments) -> torch.device:
        arguments._n_gpu = 3
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(several))
    monkeypatch.setattr(TrainingArguments, "device", property(several))
    assert training_arguments(tmp_path, **SHARED)._n_gpu == 1
    assert "1 of 3 GPUs is used; torchrun uses all" in capsys.readouterr().err


def test_bfloat16_is_as_asked_or_as_the_device_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert uses_bfloat16("bf16")
    assert not uses_bfloat16("fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for avx, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert uses_bfloat16("auto") == (avx or amx)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=supported: there)
        assert uses_bfloat16("auto") == supported
        assert uses_bfloat16("auto", cpu=True)
