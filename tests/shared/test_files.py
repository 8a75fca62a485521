"""Files and folders that are whole or not there, their markers old and new, and locks."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import Mock

import pytest

from ctloss.shared.files import (
    MARKER,
    complete,
    digest_of_files,
    is_complete,
    locked,
    mark_complete,
    name_complete,
    numbered,
    open_folder,
    remove_folder,
    remove_incomplete,
    remove_old,
    write_atomically,
    writing_file,
    writing_folder,
)


def fill(parent: Path, *numbers: int, name: str = "checkpoint") -> None:
    for number in numbers:
        with writing_folder(parent / f"{name}-{number}") as folder:
            (folder / "weights").write_bytes(bytes(range(number)))


@pytest.mark.parametrize("content", ["one\ntwo\r\né\u2028", b"\x89PNG\r\n\x00"])
def test_files_are_written_as_they_are(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    for _ in range(2):
        write_atomically(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert list(path.parent.iterdir()) == [path]


def fail(writing: AbstractContextManager[Path], inside: str = "") -> None:
    """Has the disk run full while a file is half written."""
    with writing as partial:
        (partial / inside).write_text("half")
        raise RuntimeError("disk full")


def test_file_whose_writing_fails_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    write_atomically(path, "before")
    with pytest.raises(RuntimeError, match="disk full"):
        fail(writing_file(path))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_marker_holds_sizes_and_checksums(tmp_path: Path) -> None:
    with writing_folder(tmp_path / "model") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_bytes(b"abc")
    entry = {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert json.loads((tmp_path / "model" / MARKER).read_text()) == {"files": {"part/weights": entry}}
    assert is_complete(tmp_path / "model", checksums=True)


def test_changed_file_shows_by_its_size_or_its_checksum(tmp_path: Path) -> None:
    fill(tmp_path, 9)
    weights = tmp_path / "checkpoint-9" / "weights"
    weights.write_bytes(bytes(9))
    assert is_complete(weights.parent)
    assert not is_complete(weights.parent, checksums=True)
    weights.write_bytes(bytes(8))
    assert not is_complete(weights.parent)
    weights.unlink()
    assert not is_complete(weights.parent)


def test_markers_of_former_versions_are_read(tmp_path: Path) -> None:
    for marker, content in (("complete.json", json.dumps({"files": {"weights": 5}})), ("whole", "")):
        folder = tmp_path / marker
        folder.mkdir()
        (folder / "weights").write_bytes(b"12345")
        assert not is_complete(folder)
        (folder / marker).write_text(content)
        assert is_complete(folder)
        assert is_complete(folder, checksums=True)
    (tmp_path / "complete.json" / "weights").write_bytes(b"1234")
    assert not is_complete(tmp_path / "complete.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 1}', '{"files": {"weights": {"size": 3}}}'])
def test_invalid_markers_mark_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    (tmp_path / MARKER).write_text(content)
    assert not is_complete(tmp_path)


def test_folder_written_by_others_is_marked(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "weights").write_bytes(b"abc")
    assert not is_complete(folder)
    for _ in range(2):
        mark_complete(folder)
        assert is_complete(folder, checksums=True)


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / "checkpoint-3" / "other").write_text("x")
    fill(tmp_path, 3)
    assert sorted(path.name for path in (tmp_path / "checkpoint-3").iterdir()) == [MARKER, "weights"]


def test_folder_whose_writing_fails_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="disk full"):
        fail(writing_folder(tmp_path / "checkpoint-1"), "weights")
    assert not (tmp_path / "checkpoint-1").exists()
    assert not is_complete(tmp_path / "checkpoint-1.partial")


def test_folders_come_by_number(tmp_path: Path) -> None:
    fill(tmp_path, 9, 100, 10)
    fill(tmp_path, 4, name="best")
    (tmp_path / "checkpoint-10" / MARKER).unlink()
    (tmp_path / "checkpoint-mine").mkdir()
    (tmp_path / "checkpoint-5").write_text("no folder")
    assert [number for number, _ in numbered(tmp_path, "checkpoint")] == [9, 10, 100]
    assert complete(tmp_path, "checkpoint") == [(9, tmp_path / "checkpoint-9"), (100, tmp_path / "checkpoint-100")]
    assert complete(tmp_path / "none", "checkpoint") == []


def test_only_what_is_not_complete_is_removed(tmp_path: Path) -> None:
    fill(tmp_path, 4, 8, 12, 16)
    fill(tmp_path, 8, name="best")
    (tmp_path / "checkpoint-8" / "weights").write_bytes(b"short")
    (tmp_path / "checkpoint-12" / MARKER).unlink()
    (tmp_path / "checkpoint-16" / "weights").write_bytes(bytes(16))
    (tmp_path / "checkpoint-20.partial").mkdir()
    (tmp_path / "checkpoint-24.partial").write_text("no folder")
    (tmp_path / "checkpoint-mine.partial").mkdir()
    (tmp_path / "best-8" / MARKER).unlink()
    removed = remove_incomplete(tmp_path, "checkpoint")
    assert {path.name.removeprefix("checkpoint-") for path in removed} == {"8", "12", "16", "20.partial"}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("best-8", "checkpoint-4", "checkpoint-24.partial", "checkpoint-mine.partial"),
    }


def test_old_folders_go(tmp_path: Path) -> None:
    fill(tmp_path, 9, 10, 100)
    remove_old(tmp_path, "checkpoint", keep=2)
    assert [number for number, _ in complete(tmp_path, "checkpoint")] == [10, 100]
    remove_folder(tmp_path / "checkpoint-10")
    remove_folder(tmp_path / "checkpoint-10")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-100"]


def test_folders_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    open_folder(tmp_path / "new" / "folder")
    for name in ("file", "file/in"):
        for enter in (open_folder, lambda folder: locked(folder).__enter__()):
            with pytest.raises(
                ValueError, match=rf"expected a folder to write to, got .*{name} \(.*\); choose another"
            ):
                enter(tmp_path / name)


def test_lock_keeps_others_out(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    folder = tmp_path / "run"
    with locked(folder), pytest.raises(ValueError, match=r"expected a folder that no run writes to, got .*run, where"):
        locked(folder).__enter__()
    with locked(folder, wait=True):
        pass


def test_a_script_that_its_worker_runs_again_does_not_wait_for_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys; from pathlib import Path; from ctloss.shared.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=True):\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    print(process.exitcode)\n"
    )
    given = [sys.executable, str(script), str(tmp_path / "folder")]
    done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "1\n"
    assert "expected a script that calls it below if __name__ == '__main__':, got one that" in done.stderr


def test_only_one_process_at_a_time_holds_a_waiting_lock(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    program = (
        "import sys, time; from pathlib import Path; from ctloss.shared.files import locked\n"
        "folder = Path(sys.argv[1])\n"
        "for _ in range(5):\n"
        "    with locked(folder, wait=True):\n"
        "        count = int((folder / 'count').read_text())\n"
        "        time.sleep(0.01)\n"
        "        (folder / 'count').write_text(str(count + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    children = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert (tmp_path / "count").read_text() == "10"


def test_digest_tells_names_contents_and_their_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"xy")
    b.write_bytes(b"xy")
    assert digest_of_files([a]) == hashlib.sha256(b"a 2\nxy").hexdigest()
    assert digest_of_files([a], "hub:name") == hashlib.sha256(b"hub:namea 2\nxy").hexdigest()
    assert len({digest_of_files(files) for files in ([], [a], [b], [a, b], [b, a])}) == 5


def test_waiting_for_a_lock_is_told_once_and_only_if_it_is_held(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    told, entered = threading.Event(), threading.Event()

    def enter() -> None:
        with locked(tmp_path, wait=True, waiting=told.set):
            entered.set()

    with locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        assert told.wait(30)
        assert not entered.is_set()
    thread.join(30)
    assert entered.is_set()
    told.clear()
    enter()
    assert not told.is_set()


def test_file_systems_without_locks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    refusing = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(fcntl, "flock", refusing)
    with pytest.raises(
        ValueError, match=r"expected a folder that can be locked, got .* \(No locks available\); choose"
    ):
        locked(tmp_path, wait=True).__enter__()


def test_a_folder_that_was_marked_but_not_named_gets_its_name(tmp_path: Path) -> None:
    with writing_folder(tmp_path / "checkpoint-7") as folder:
        (folder / "weights").write_bytes(b"whole")
    (tmp_path / "checkpoint-7").rename(tmp_path / "checkpoint-7.partial")
    half = tmp_path / "checkpoint-9.partial"
    half.mkdir()
    (half / "weights").write_bytes(b"ha")
    name_complete(tmp_path, "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "checkpoint-9.partial"]
    assert is_complete(tmp_path / "checkpoint-7", checksums=True)
