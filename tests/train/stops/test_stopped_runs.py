"""Runs that a signal stops: one line, a checkpoint, and a run that goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.shared.command import HEARD, Signals, Stopped
from ctloss.train import pretrain, run
from ctloss.train.model.objective import Objective
from ctloss.train.output import checkpoints
from ctloss.train.reporting import probe
from ctloss.train.reporting.logs import JSONLines
from ctloss.train.stops import Agreement
from support.tiny_runs import assert_same_weights, metrics, quick_recipe, write_corpus

# Parts of a step count as steps of their own here: with two parts a step the run below stops in its third.
FIFTH = 5
Choices = dict[str, Any]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def unbroken(corpus: Path, folder: Path, choices: Choices) -> Path:
    pretrain(quick_recipe(corpus, **choices), folder)
    return folder


def send_at(call: int, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Sends signals to this process during the n-th forward pass from now on."""
    original, calls = Objective.forward, 0

    def forward(self: Objective, *positional: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        for number in numbers if calls == call else ():
            os.kill(os.getpid(), number)
        return original(self, *positional, **named)

    monkeypatch.setattr(Objective, "forward", forward)


@pytest.mark.parametrize(
    ("number", "choices", "step"),
    [
        (signal.SIGTERM, {"learn_temperature": True, "lr_scheduler_type": "thirds"}, 5),
        (signal.SIGINT, {"gradient_accumulation_steps": 2, "lr_scheduler_type": "reduce_lr_on_plateau"}, 3),
        (signal.SIGUSR1, {"dataloader_num_workers": 1, "optim": "adafactor", "save_strategy": "no"}, 5),
    ],
    ids=[
        "SIGTERM with a learnt temperature",
        "SIGINT in a part of a step",
        "SIGUSR1 with workers, without other checkpoints",
    ],
)
def test_stopped_run_goes_on_bit_for_bit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, choices: Choices, step: int
) -> None:
    handlers = [signal.getsignal(one) for one in HEARD]
    with monkeypatch.context() as patched:
        send_at(FIFTH, patched, number)
        with pytest.raises(Stopped) as stopped:
            pretrain(quick_recipe(corpus, **choices), tmp_path / "run")
    assert stopped.value.status == 128 + number
    saved = tmp_path / "run" / "checkpoints" / f"checkpoint-{step}"
    name = signal.Signals(number).name
    assert str(stopped.value) == f"stopped by {name} at step {step}; saved {saved}; go on with --resume"
    assert checkpoints(tmp_path / "run")[-1] == (step, saved)
    assert [signal.getsignal(one) for one in HEARD] == handlers

    measured: list[object] = []
    original = probe.embed

    def embed(encoder: Any, *given: Any, **named: Any) -> Any:
        measured.append(encoder)
        return original(encoder, *given, **named)

    monkeypatch.setattr(probe, "embed", embed)
    results = pretrain(quick_recipe(corpus, **choices), tmp_path / "run", resume=True)
    # Twice or once during training, and after it: what was measured before is read.
    assert len(measured) == (2 if step == 5 else 3)
    other = unbroken(corpus, tmp_path / "unbroken", choices)
    assert_same_weights(tmp_path / "run", other)
    assert metrics(tmp_path / "run") == metrics(other)
    assert results.stages["before"]["mean"]["sentence_forth"] >= 0


def test_a_second_interrupt_ends_at_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send_at(FIFTH, monkeypatch, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Stopped, match=r"stopped by SIGINT \(twice\), so nothing more was saved; go on with --resume"):
        pretrain(quick_recipe(corpus), tmp_path)
    assert [step for step, _ in checkpoints(tmp_path)] == [4]


@pytest.mark.parametrize("part", ["prepare", "WordPictures"], ids=["preparing", "about to measure"])
def test_outside_training_a_signal_ends_at_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(run, part, lambda *given, **named: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"stopped by SIGTERM while no step was under way; go on with --resume") as end:
        pretrain(quick_recipe(corpus), tmp_path)
    assert end.value.status == 143


def test_a_signal_in_the_last_step_is_no_finished_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        send_at(10, patched, signal.SIGTERM)
        with pytest.raises(Stopped, match="at step 10; saved"):
            pretrain(quick_recipe(corpus), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    pretrain(quick_recipe(corpus), tmp_path / "run", resume=True)
    assert_same_weights(tmp_path / "run", tmp_path / "run" / "checkpoints" / "checkpoint-10")


def test_a_signal_after_the_last_step_is_not_forgotten(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(JSONLines, "on_train_end", lambda *given, **named: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="stopped by SIGTERM while no step was under way; go on with --resume"):
            pretrain(quick_recipe(corpus), tmp_path)
    assert not (tmp_path / "results.json").exists()
    pretrain(quick_recipe(corpus), tmp_path, resume=True)
    assert (tmp_path / "results.json").exists()


def test_other_threads_leave_handlers_alone_and_ignored_signals_stay_ignored() -> None:
    def hearing() -> list[Callable[..., Any] | int | None]:
        with Signals("", ""):
            return [signal.getsignal(number) for number in HEARD]

    before = [signal.getsignal(number) for number in HEARD]
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(hearing()))
    thread.start()
    thread.join()
    assert found == [before]
    former = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        heard = dict(zip(HEARD, hearing(), strict=True))
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert heard[signal.SIGUSR1] is signal.SIG_IGN
    assert heard[signal.SIGTERM] not in before


def test_one_process_agrees_with_itself() -> None:
    agreement = Agreement()
    assert [agreement.at_step(0), agreement.at_step(15), agreement.at_end(2)] == [0, 15, 2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_comes_while_an_object_is_removed_is_kept() -> None:
    class Last:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with Signals("", "") as signals:
        one = Last()
        del one
        assert signals.received == signal.SIGTERM
