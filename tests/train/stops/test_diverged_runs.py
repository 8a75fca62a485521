"""Runs that diverge, and disks that take no more: one line, and every checkpoint that was good is kept."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.train import pretrain, saving
from ctloss.train.__main__ import main
from ctloss.train.output import checkpoints
from ctloss.train.stops import DivergedError, FiniteWatch, SavingError, diverged, not_finite, writing
from ctloss.train.trainer import PretrainingTrainer
from support.tiny_runs import arguments, assert_same_weights, quick_recipe, small_options, weights, write_corpus

WILD = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 5, "save_steps": 1, "save_total_limit": 9}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_diverged_run_ends_in_one_line(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = {"layers": 1, "alpha": 0.0, "pictured_words": 0, "max_steps": 10}
    given = arguments({**small_options(corpus), **quick, **WILD, "output": tmp_path})
    assert main(given) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    step, last = checkpoints(tmp_path)[-1]
    assert f"training diverged: the loss is not finite at step {step + 1}; likely because of a learning rate" in line
    assert "of 1e+30 and gradients that are not clipped" in line
    assert f"the last finite checkpoint, {last}, is kept; start again with a lower learning_rate" in line
    assert f"--encoder {last}" in line
    assert all(value.isfinite().all() for value in weights(last).values())
    assert not (tmp_path / "results.json").exists()


def test_a_loss_that_no_step_has_changed_is_not_the_learning_rates() -> None:
    arguments: Any = SimpleNamespace(learning_rate=0.1, weight_decay=0.0, max_grad_norm=1.0, fp16=False)
    first = diverged("the loss is not finite at step 1", arguments, None, steps=0)
    assert "likely because of the encoder's own weights, alpha or temperature, as no step was taken before" in first
    assert "learning" not in first
    arguments.weight_decay = 1e9
    later = diverged("the loss is not finite at step 2", arguments, None, steps=1)
    assert "likely because of a learning rate of 0.1 and a weight_decay of 1e+09, which turns weights over" in later


@pytest.mark.parametrize("where", ["a weight (encoder.", "the optimizer's state"])
def test_what_is_not_finite_is_never_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    original = PretrainingTrainer.training_step

    def spoiling(self: Any, model: Any, inputs: Any, *others: Any) -> Any:
        loss = original(self, model, inputs, *others)
        if self.state.global_step == 6:
            spoilt = next(self.model.parameters())
            if where.startswith("the optimizer"):
                spoilt = self.optimizer.state[spoilt]["exp_avg_sq"]
            spoilt.data.view(-1)[3] = torch.inf
        return loss

    monkeypatch.setattr(PretrainingTrainer, "training_step", spoiling)
    monkeypatch.setattr(FiniteWatch, "see", lambda *given: None)
    with pytest.raises(DivergedError) as error:
        pretrain(quick_recipe(corpus), tmp_path)
    assert where in str(error.value)
    assert "is not finite after step 8" in str(error.value)
    assert [step for step, _ in checkpoints(tmp_path)] == [4]


@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "No space left on device"), None], ids=["full", "limit"])
def test_a_checkpoint_that_cannot_be_written_costs_no_other(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: OSError | None
) -> None:
    original = saving.save_optimizer

    def failing(optimizer: Any, folder: Path) -> None:
        if "-8" in folder.name:
            if cause is not None:
                raise cause
            limited(lambda: original(optimizer, folder))
        original(optimizer, folder)

    with monkeypatch.context() as patched:
        patched.setattr(saving, "save_optimizer", failing)
        with pytest.raises(SavingError, match=r"could not write the checkpoint of step 8: .*make room") as error:
            pretrain(quick_recipe(corpus), tmp_path / "run")
    assert error.value.status == 1
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]
    pretrain(quick_recipe(corpus), tmp_path / "run", resume=True)
    pretrain(quick_recipe(corpus), tmp_path / "unbroken")
    assert_same_weights(tmp_path / "run", tmp_path / "unbroken")


def limited(action: Any) -> None:
    """Calls an action while files may have no more than 4 kB."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_libraries_errors_about_files_are_lines(tmp_path: Path) -> None:
    with (
        pytest.raises(SavingError, match=r"could not write the weights: .*; make room"),
        writing("the weights", "make room"),
    ):
        limited(lambda: save_file({"a": torch.zeros(5000)}, tmp_path / "a.safetensors"))
    with pytest.raises(ZeroDivisionError), writing("the weights", "make room"):
        1 / 0  # noqa: B018


def test_a_log_that_cannot_be_written_is_a_line(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("ctloss.train.reporting.logs.JSONLines.on_log", full)
    with pytest.raises(SavingError, match=r"could not write the log: No space left on device \(metrics.jsonl\); make"):
        pretrain(quick_recipe(corpus), tmp_path)


def test_weights_can_be_read_by_those_the_umask_lets(corpus: Path, tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        pretrain(quick_recipe(corpus, max_steps=2), tmp_path / "run")
    finally:
        os.umask(former)
    files = list((tmp_path / "run").rglob("*.safetensors"))
    assert len(files) == 8
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_first_step_that_is_not_finite_is_kept() -> None:
    watch, cpu = FiniteWatch(), torch.device("cpu")
    for step, loss in enumerate([1.0, 2.0, torch.nan, 1.0, torch.inf], start=1):
        watch.see(torch.tensor(loss), step)
    assert watch.first(cpu).tolist() == [3]
    assert not_finite([("a", torch.ones(2)), ("b", torch.tensor([1, 2]))]) is None
