"""Preparation by processes that are killed, that come at once, and that divide the work."""

from __future__ import annotations

import errno
import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")
pytest.importorskip("fcntl")

import pyarrow as pa

from ctloss.shared import command
from ctloss.shared.text import DataError
from ctloss.train.__main__ import main
from ctloss.train.prepared import build, mapping, reading
from ctloss.train.prepared.build import prepare
from ctloss.train.prepared.parts import hash_texts
from ctloss.train.recipe import Data, EncoderChoice
from support.tiny_runs import write_corpus

SMALL = EncoderChoice(vocabulary=300)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """A corpus that every pass writes in several files."""
    monkeypatch.setattr(reading, "ROWS", 50)
    monkeypatch.setattr(mapping, "FEWEST", 40)
    monkeypatch.setattr(mapping, "BATCH", 16)
    # Parts end with chunks, and chunks with files.
    lines = write_corpus(tmp_path).read_text(encoding="utf-8").splitlines(keepends=True)
    paths = [tmp_path / f"{number}.en-fr.tsv" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text("".join(lines[number::3]), encoding="utf-8")
    return Data(corpus=tuple(map(str, paths)), evaluation_pairs=12)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forked(work: Callable[..., None], *given: Any) -> int:
    """Starts a process that has imported everything already; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        signal.alarm(60)
        work(*given)
        code = 0
    finally:
        os._exit(code)


def end_of(number: int) -> int:
    """Waits for a process; returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def prepare_and_die(data: Data, folder: Path, moves: int) -> None:
    """Kills itself in place of putting a finished file in its place for the given time."""
    left = moves

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **options)

        return call

    import shutil

    os.replace = dying(os.replace)
    shutil.move = dying(shutil.move)
    prepare(data, SMALL, folder, workers=1, say=Mock())


def test_what_a_killed_process_left_is_gone_on_with(tmp_path: Path, corpus: Data) -> None:
    whole = prepare(corpus, SMALL, tmp_path / "whole", workers=1, say=Mock())
    moves = 0
    for place in (1, 6, 9, 15, 19, 22, 26, 28):
        assert end_of(forked(prepare_and_die, corpus, tmp_path / "killed", place - moves)) == -signal.SIGKILL, place
        assert not (tmp_path / "killed").exists()
        moves = place
    assert prepare(corpus, SMALL, tmp_path / "killed", workers=1, say=Mock()).fingerprint == whole.fingerprint
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list(tmp_path.glob("*.partial"))


def test_any_number_of_workers_makes_the_same_files(tmp_path: Path, corpus: Data) -> None:
    for workers in (1, 3):
        prepare(corpus, SMALL, tmp_path / str(workers), workers=workers, say=Mock())
    assert content(tmp_path / "1") == content(tmp_path / "3")
    assert sum(name.startswith("train/") for name in content(tmp_path / "1")) > 3


def prepare_and_tell(data: Data, folder: Path) -> None:
    told: list[str] = []
    prepared = prepare(data, SMALL, folder, workers=1, say=told.append)
    (folder.parent / f"told-{os.getpid()}").write_text("\n".join([*told, prepared.fingerprint]))


def test_processes_that_come_at_once_build_once(tmp_path: Path, corpus: Data) -> None:
    processes = [forked(prepare_and_tell, corpus, tmp_path / "made") for _ in range(3)]
    assert [end_of(process) for process in processes] == [0, 0, 0]
    told = [path.read_text().splitlines() for path in tmp_path.glob("told-*")]
    assert len({lines[-1] for lines in told}) == 1
    assert sum(any(line.startswith("preparing the corpus") for line in lines) for lines in told) == 1
    assert sum(lines[0] == f"waiting for another process that prepares {tmp_path / 'made'}" for lines in told) <= 2
    assert not list(tmp_path.glob("*.partial"))


def test_damaged_files_of_an_unfinished_build_are_made_again(tmp_path: Path, corpus: Data) -> None:
    assert end_of(forked(prepare_and_die, corpus, tmp_path / "made", 24)) == -signal.SIGKILL
    [building] = tmp_path.glob("made-*.partial")
    damaged = sorted((building / "train").glob("*.arrow"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    prepare(corpus, SMALL, tmp_path / "made", workers=1, say=Mock())
    prepare(corpus, SMALL, tmp_path / "whole", workers=1, say=Mock())
    assert content(tmp_path / "made") == content(tmp_path / "whole")


# The process that builds: its workers' parent is another one, which no test may end, as soon as it is gone.
BUILDER: list[int] = []


def lead_a_group() -> None:
    """Makes this process the one that builds, in a group of its own."""
    os.setsid()
    BUILDER.append(os.getpid())


def wait_for_workers() -> None:
    """Waits for them, as a script that ends does."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


def signal_to(number: int, which: int, send: Callable[[int, int], None] = os.kill) -> None:
    """Sends a signal to a process, or by ``os.killpg`` to its group, unless it has ended."""
    with suppress(ProcessLookupError):
        send(number, which)


def hash_and_kill(table: Any, first: int) -> Any:
    """Kills the process that builds, as soon as its workers work; they live on."""
    if os.getpid() not in BUILDER:
        signal_to(BUILDER[-1], signal.SIGKILL)
    return hash_texts(table, first)


def prepare_in_a_group(data: Data, folder: Path) -> None:
    lead_a_group()
    patch.object(build, "hash_texts", hash_and_kill).start()
    prepare(data, SMALL, folder, workers=2, say=Mock())


def test_workers_of_a_killed_process_keep_no_lock_and_end(tmp_path: Path, corpus: Data) -> None:
    # Every process of the preparation has the end to write to: none is there any more when the other end says so.
    reading, writing = os.pipe()
    killed = forked(prepare_in_a_group, corpus, tmp_path / "made")
    os.close(writing)
    assert end_of(killed) == -signal.SIGKILL
    try:
        assert end_of(forked(prepare_and_tell, corpus, tmp_path / "made")) == 0
        assert select.select([reading], [], [], 30)[0]
        assert os.read(reading, 1) == b""
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.killpg(killed, signal.SIGKILL)
    prepare(corpus, SMALL, tmp_path / "whole", workers=1, say=Mock())
    assert content(tmp_path / "made") == content(tmp_path / "whole")


def stopping_hashes(table: pa.Table, first: int) -> pa.Table:
    """In a worker waits for its own end; one of them sends a signal to the process that builds, or to all."""
    if parent_process() is not None:
        if not first:
            signal_to(BUILDER[-1], *STOPPING)
        time.sleep(2)
    return hash_texts(table, first)


STOPPING: tuple[int, Callable[[int, int], None]] = (signal.SIGTERM, os.kill)


def prepare_as_a_command(corpus: Data, folder: Path, whole: bool, *stopping: Any) -> None:
    global STOPPING
    STOPPING = (stopping[0], stopping[1])
    lead_a_group()
    command._whole_process = whole
    given = ["prepare", "--corpus", *corpus.corpus, "--evaluation-pairs", "12", "--vocabulary", "300"]
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 2)
    stopped = patch.object(build, "hash_texts", stopping_hashes)
    with stopped, os.fdopen(said, "w", encoding="utf-8") as sys.stderr:
        status = main([*given, "--workers", "2", "--output", str(folder / "made")])
    os._exit(status)


@pytest.mark.parametrize("whole", [True, False], ids=["a process of its own", "within another"])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to it", "to all"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_a_preparation_in_one_line_with_its_workers(
    tmp_path: Path, corpus: Data, number: int, send: Callable[[int, int], None], whole: bool
) -> None:
    # Every process of it has the end to write to.
    reading, writing = os.pipe()
    stopped = forked(prepare_as_a_command, corpus, tmp_path, whole, number, send)
    os.close(writing)
    assert end_of(stopped) == 128 + number
    text = (tmp_path / "said").read_text(encoding="utf-8")
    assert text.count("stopped by") == 1
    assert text.endswith(
        f"python -m ctloss.train prepare: stopped by {signal.Signals(number).name} before the end; what is finished is "
        "kept: give the command again to go on\n"
    )
    assert "Traceback" not in text
    assert select.select([reading], [], [], 30)[0]
    assert os.read(reading, 1) == b""
    os.close(reading)
    prepare(corpus, SMALL, tmp_path / "made", workers=1, say=Mock())


def interrupted_hashes(table: pa.Table, first: int) -> pa.Table:
    """In a worker, at the first rows, interrupts all processes, as Ctrl+C does."""
    if parent_process() is not None and not first:
        signal_to(BUILDER[-1], signal.SIGINT, os.killpg)
    return hash_texts(table, first)


def prepare_and_be_interrupted(corpus: Data, folder: Path) -> None:
    lead_a_group()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with patch.object(build, "hash_texts", interrupted_hashes), pytest.raises(KeyboardInterrupt):
        prepare(corpus, SMALL, folder, workers=2, say=Mock())


def test_an_interrupted_preparation_raises_what_python_raises(tmp_path: Path, corpus: Data) -> None:
    assert end_of(forked(prepare_and_be_interrupted, corpus, tmp_path / "made")) == 0
    prepare(corpus, SMALL, tmp_path / "made", workers=2, say=Mock())


FORK = os.fork


def prepare_and_be_interrupted_early(corpus: Data, folder: Path) -> None:
    signal.alarm(30)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def fork() -> int:
        number = FORK()
        if number and multiprocessing.active_children():
            os.kill(os.getpid(), signal.SIGINT)
        return number

    with patch.object(os, "fork", fork), pytest.raises(KeyboardInterrupt):
        prepare(corpus, SMALL, folder, workers=2, say=Mock())
    wait_for_workers()


def test_an_interrupt_while_workers_are_started_ends_them_too(tmp_path: Path, corpus: Data) -> None:
    assert end_of(forked(prepare_and_be_interrupted_early, corpus, tmp_path / "made")) == 0
    prepare(corpus, SMALL, tmp_path / "made", workers=2, say=Mock())


def failing_fork() -> int:
    """Starts the first worker, and no other."""
    if multiprocessing.active_children():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return FORK()


def prepare_where_no_process_is_left(corpus: Data, folder: Path) -> None:
    signal.alarm(30)
    with (
        patch.object(os, "fork", failing_fork),
        pytest.raises(DataError, match="2 workers, got Resource temp"),
    ):
        prepare(corpus, SMALL, folder, workers=2, say=Mock())
    wait_for_workers()


def test_where_a_worker_cannot_be_started_the_others_end(tmp_path: Path, corpus: Data) -> None:
    assert end_of(forked(prepare_where_no_process_is_left, corpus, tmp_path / "made")) == 0


def dying_hashes(table: pa.Table, first: int) -> pa.Table:
    """In a worker dies, as for want of memory."""
    if parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return hash_texts(table, first)


def refusing_hashes(table: pa.Table, first: int) -> pa.Table:
    raise DataError(f"row {first}: expected another")


@pytest.mark.parametrize(
    ("hashes", "said"),
    [
        (dying_hashes, r"made: expected workers that end their work, got one that died; take fewer workers if memory"),
        (refusing_hashes, "^row [0-9]+: expected another$"),
    ],
    ids=["dies", "refuses"],
)
def test_what_ends_a_worker_is_told(
    tmp_path: Path, corpus: Data, hashes: Callable[[pa.Table, int], pa.Table], said: str
) -> None:
    with patch.object(build, "hash_texts", hashes), pytest.raises(DataError, match=said):
        prepare(corpus, SMALL, tmp_path / "made", workers=2, say=Mock())
    prepare(corpus, SMALL, tmp_path / "made", workers=2, say=Mock())
