"""A signal ends a command in one line, with status 128 + its number, and the handlers are as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from ctloss.evaluate import __main__ as command
from ctloss.shared.command import HEARD, holding_signals


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


def test_held_signals_come_at_the_end_of_the_block() -> None:
    heard: list[str] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append("handler"))
    try:
        with holding_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            heard.append("block")
            if not (child := os.fork()):
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
        assert heard == ["block", "handler"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["block", "handler", "handler"]
    finally:
        signal.signal(signal.SIGTERM, former)


PROGRAM = """
import os, signal, sys, time
from ctloss.shared.command import Signals, as_process

def main():
    with Signals("command", "do") as signals, signals.deferred():
        print("ready", flush=True)
        while not signals.received:
            time.sleep(0.01)
        sys.stdin.read()
        print("in vain", flush=True)
        print("in vain", file=sys.stderr)
        open(sys.argv[1], "x").close()

as_process(main)
"""


def test_a_step_is_finished_though_nobody_reads_any_more(tmp_path: Path) -> None:
    given = [sys.executable, "-c", PROGRAM, str(tmp_path / "saved")]
    with subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        process.stdin.close()
        assert process.wait(60) == 128 + signal.SIGINT
    assert (tmp_path / "saved").exists()


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
