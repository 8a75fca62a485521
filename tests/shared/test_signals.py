"""A signal ends a command in one line, with status 128 + its number, and the handlers are as before."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from ctloss.evaluate import __main__ as command
from ctloss.shared.command import HEARD


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_evaluation_ends_in_one_line(
    number: int, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in HEARD]
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(command, "evaluate", lambda given: os.kill(os.getpid(), number))
    assert command.main(["model", "--tasks", "pairs", "--data", "data"]) == 128 + number
    name = signal.Signals(number).name
    said = (
        f"python -m ctloss.evaluate: stopped by {name} before the end; what is scored is kept: give the command again"
    )
    assert capsys.readouterr().err == (f"{said} to go on\n" if rank == "0" else "")
    assert [signal.getsignal(one) for one in HEARD] == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m", "--taks", "pairs"], "unrecognized arguments: --taks pairs; did you mean --tasks?"),
        (["m", "--tasks", "pair"], "argument --tasks: expected one of xnli, .*, got 'pair'; did you mean pairs?"),
        (["m", "--pooling", "avg-first-lst"], "got 'avg-first-lst'; did you mean avg-first-last?"),
    ],
)
def test_what_is_misspelt_is_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(words)
    line = capsys.readouterr().err
    assert (end.value.code, line.count("\n")) == (2, 1)
    assert all(part in line for part in said.split(".*"))
