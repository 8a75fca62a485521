"""Files and folders that exist whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKER = "complete.json"
# An empty file: how ctloss.evaluate marked its checkpoints before they had the marker above.
FORMER_MARKER = "whole"
PARTIAL = ".partial"
# Descriptors of locks: a process forked while they are held would keep the locks beyond the end of its parent.
_HELD: set[int] = set()


@contextmanager
def writing_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a path to write to, which becomes ``path`` when the block ends without an error.

    The folder is made if missing. A reader, or a restart after a kill, sees the whole file or the one before it. The
    yielded path ends in .partial, so tell the library that writes to it which format to write. With ``shared``, several
    processes may write the same file at once, each by a path of its own; what one leaves that is killed stays there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}" if shared else path.name + PARTIAL)
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes bytes, or text as UTF-8 with its line ends unchanged, as :func:`writing_file` does."""
    with writing_file(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def open_folder(folder: Path) -> None:
    """Makes a folder to write to unless it exists.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"expected a folder to write to, got {folder} ({error.strerror}); choose another") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"expected a folder to write to, got {folder}, which is read-only; choose another")


@contextmanager
def locked(folder: Path, *, wait: bool = False, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keeps other processes from locking a folder while the block runs; makes the folder if it is missing.

    The lock ends with its process, however that ends. Systems without flock (Windows) lock nothing.

    Args:
        folder: the folder.
        wait: wait until no other process holds the lock.
        waiting: called once before a wait, to say so; not if the lock is free.

    Raises:
        ValueError: another process holds the lock and ``wait`` is False, or the folder cannot be written to or is on
            a file system without locks; or a process that was just started runs the script of its parent.
    """
    # As multiprocessing does, which has no public name for it. The parent has the lock, and waits for this process.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ValueError(
            "expected a script that calls it below if __name__ == '__main__':, got one that calls it again in each "
            "worker process; put the call there"
        )
    open_folder(folder)
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _HELD.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise ValueError(
                    f"expected a folder that no run writes to, got {folder}, where one is going on; wait for it to "
                    "end, or choose another folder"
                ) from error
            if waiting is not None:
                waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"expected a folder that can be locked, got {folder} ({error.strerror}); choose one on another file "
                "system"
            ) from error
        yield
    finally:
        # Not in a forked process, which has closed it already.
        if descriptor in _HELD:
            _HELD.remove(descriptor)
            os.close(descriptor)


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write into, which becomes ``folder`` when the block ends without an error.

    Its marker is written last; then the folder gets its name. A process killed before that leaves nothing that
    :func:`is_complete` would accept.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    remove_folder(partial)
    partial.mkdir(parents=True)
    yield partial
    mark_complete(partial)
    remove_folder(folder)
    os.replace(partial, folder)
    flush(folder.parent)


def mark_complete(folder: Path) -> None:
    """Marks a folder as completely written: its marker lists the size and SHA-256 of every file in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    for path in files:
        flush(path)
    write_atomically(folder / MARKER, json.dumps({"files": listing(folder, files)}, indent=2) + "\n")


def listing(folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Returns the size and SHA-256 of files in a folder, by their place in it."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }


def damage(folder: Path, listed: Mapping[str, Any], *, checksums: bool = True) -> dict[str, str]:
    """Returns what is wrong with files that :func:`listing` listed, by their place: missing, or another content.

    Raises:
        KeyError, TypeError: what is listed is no listing.
    """
    found = {}
    for name, entry in listed.items():
        # Formerly the sizes alone.
        size, sha256 = (entry["size"], entry["sha256"]) if isinstance(entry, dict) else (entry, None)
        path = folder / name
        if not path.is_file():
            found[name] = "missing"
        elif path.stat().st_size != size:
            found[name] = f"{path.stat().st_size:,} bytes instead of {size:,}"
        elif checksums and sha256 is not None and _sha256(path) != sha256:
            found[name] = "other content of the same size"
    return found


def is_complete(folder: Path, *, checksums: bool = False) -> bool:
    """Tells whether a folder has its marker and every file that the marker lists, at its full size.

    Markers of former versions count too: those with sizes only, and the empty one of ctloss.evaluate. Compare the
    checksums too, which reads the files, before loading anything from them.
    """
    if not (folder / MARKER).exists():
        return (folder / FORMER_MARKER).is_file()
    try:
        listed: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return not damage(folder, listed, checksums=checksums)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def numbered(parent: Path, name: str) -> list[tuple[int, Path]]:
    """Returns (number, folder) of the folders NAME-NUMBER in a folder, complete or not, by number."""
    found = ((re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name), path) for path in parent.glob(f"{name}-*"))
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir() and not path.is_symlink())


def complete(parent: Path, name: str) -> list[tuple[int, Path]]:
    """Returns (number, folder) of the folders NAME-NUMBER that are complete by their sizes, by number."""
    return [(number, folder) for number, folder in numbered(parent, name) if is_complete(folder)]


def incomplete(parent: Path, name: str) -> list[Path]:
    """Returns the folders NAME-NUMBER that are half-written or do not match their checksums, and links of that name."""
    ours = re.compile(rf"{re.escape(name)}-\d+({re.escape(PARTIAL)})?")
    found = [path for path in parent.glob(f"{name}-*") if ours.fullmatch(path.name)]
    return sorted(
        path
        for path in found
        if path.is_symlink() or (path.is_dir() and (path.suffix == PARTIAL or not is_complete(path, checksums=True)))
    )


def name_complete(parent: Path, name: str) -> None:
    """Gives folders NAME-NUMBER their names that a process had marked as complete when it was killed."""
    for partial in parent.glob(f"{name}-*{PARTIAL}"):
        folder = partial.with_name(partial.name.removesuffix(PARTIAL))
        if not partial.is_symlink() and is_complete(partial, checksums=True) and not is_complete(folder):
            remove_folder(folder)
            os.replace(partial, folder)


def remove_incomplete(parent: Path, name: str) -> list[Path]:
    """Removes what :func:`incomplete` finds, and returns it; of links, only the link.

    Call it before a run resumes: what is left can be loaded.
    """
    name_complete(parent, name)
    removed = incomplete(parent, name)
    for path in removed:
        remove_folder(path)
    return removed


def remove_old(parent: Path, name: str, keep: int) -> None:
    """Removes all but the last ``keep`` complete folders NAME-NUMBER."""
    for _, folder in complete(parent, name)[:-keep]:
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Removes a folder if it exists, its marker first, so that a half-removed one never counts as complete.

    Of a link it removes the link, never what that leads to.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    for marker in (MARKER, FORMER_MARKER):
        (folder / marker).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def digest_of_files(paths: Iterable[Path], start: str = "") -> str:
    """Returns a SHA-256 of a text and of files' names, sizes and contents, in the order given.

    Raises:
        OSError: a file cannot be read.
    """
    total = hashlib.sha256(start.encode())
    for path in paths:
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        _update(total, path)
    return total.hexdigest()


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    _update(total, path)
    return total.hexdigest()


def _update(total: Any, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)


def _leave_locks() -> None:
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def flush(path: Path) -> None:
    """Waits until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
