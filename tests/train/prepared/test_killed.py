"""Preparation by processes that are killed, that come at once, and that divide the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")
pytest.importorskip("fcntl")

from ctloss.train.prepared import mapping, reading
from ctloss.train.prepared.build import prepare
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


def forked(work: Callable[..., None], *given: Any) -> Any:
    """Starts a process that has imported everything already."""
    process = multiprocessing.get_context("fork").Process(target=work, args=given)
    process.start()
    return process


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
        process = forked(prepare_and_die, corpus, tmp_path / "killed", place - moves)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, place
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
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    told = [path.read_text().splitlines() for path in tmp_path.glob("told-*")]
    assert len({lines[-1] for lines in told}) == 1
    assert sum(any(line.startswith("preparing the corpus") for line in lines) for lines in told) == 1
    assert sum(lines[0] == f"waiting for another process that prepares {tmp_path / 'made'}" for lines in told) <= 2
    assert not list(tmp_path.glob("*.partial"))


def test_damaged_files_of_an_unfinished_build_are_made_again(tmp_path: Path, corpus: Data) -> None:
    process = forked(prepare_and_die, corpus, tmp_path / "made", 24)
    process.join(60)
    [building] = tmp_path.glob("made-*.partial")
    damaged = sorted((building / "train").glob("*.arrow"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    prepare(corpus, SMALL, tmp_path / "made", workers=1, say=Mock())
    prepare(corpus, SMALL, tmp_path / "whole", workers=1, say=Mock())
    assert content(tmp_path / "made") == content(tmp_path / "whole")
