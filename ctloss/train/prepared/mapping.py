"""Rows to rows, in several processes and many small files, which a killed build keeps; and the bars of all passes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...shared.command import holding_signals, ignore_signals
from ...shared.files import writing_file
from ...shared.text import DataError
from .folder import batches_of, read_arrow

# Rows that the function gets at a time: enough for a tokenizer to gain from batches, few enough to stay in cache.
BATCH = 1024
# Files, unless they became smaller or larger than this many rows: enough for processes to end together, whatever text
# each has, and for the bar to move.
FILES, FEWEST, MOST = 128, 4096, 16_384
NAME = "rows"
# Seconds between two drawings where standard error is a file, in which every drawing stays.
RARELY = 60.0

# Makes rows out of rows, the first of which has this number.
RowFunction = Callable[[pa.Table, int], pa.Table]


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a bar while the block runs; yields a function that moves it by a number of pairs.

    Args:
        what: the work, in front of the bar.
        total: pairs in all, from which the time left follows; None where nobody knows.
    """
    from tqdm.auto import tqdm

    often = 0.1 if sys.stderr.isatty() else RARELY
    with tqdm(desc=what, total=total, unit=" pairs", unit_scale=True, mininterval=often, maxinterval=2 * often) as bar:

        def move(pairs: int) -> None:
            bar.update(pairs)

        yield move


def map_rows(
    files: Sequence[Path],
    folder: Path,
    function: RowFunction,
    schema: pa.Schema,
    *,
    workers: int,
    move: Callable[[int], None],
) -> list[Path]:
    """Applies a function to all rows, or to those whose results are missing, and returns the files of the results.

    Which rows go into which file depends on nothing but their number: any number of workers makes the same files.

    Args:
        files: Arrow streams with the rows.
        folder: gets the results; nothing but this function may write there.
        function: gets rows and the number of the first; is pickled where processes are not forked.
        schema: of the function's results.
        workers: processes.
        move: is told of rows that are done.
    """
    folder.mkdir(exist_ok=True)
    work = _Work(files, folder, function, schema)
    made = [work.place(number) for number in range(work.count)]
    for path in set(folder.iterdir()) - set(made):
        path.unlink(missing_ok=True)  # Left by a killed process.

    def done(number: int) -> None:
        move(len(work.stretch(number)))

    missing = []
    for number, path in enumerate(made):
        if _is_sound(path):
            done(number)
        else:
            missing.append(number)
    with _one_thread():
        if workers > 1 and len(missing) > 1:
            _make_in_processes(work, missing, min(workers, len(missing)), done)
        else:
            for number in missing:
                work.make(number)
                done(number)
    return made


@dataclass
class _Work:
    """All the rows, and what makes a file of each stretch of them."""

    files: Sequence[Path]
    folder: Path
    function: RowFunction
    schema: pa.Schema

    def __post_init__(self) -> None:
        self.rows = pa.concat_tables([read_arrow(path) for path in self.files])
        self.count = -(-len(self.rows) // min(max(len(self.rows) // FILES, FEWEST), MOST))

    def __reduce__(self) -> Any:
        # The rows stay on the disk.
        return _Work, (self.files, self.folder, self.function, self.schema)

    def place(self, number: int) -> Path:
        """Returns the path of a file, by its number."""
        return self.folder / f"{NAME}_{number:05d}_of_{self.count:05d}.arrow"

    def stretch(self, number: int) -> range:
        """Returns the numbers of its rows; the longest stretch has one more than the shortest."""
        least, more = divmod(len(self.rows), self.count)
        start = least * number + min(number, more)
        return range(start, start + least + (number < more))

    def make(self, number: int) -> None:
        """Writes the file."""
        numbers = self.stretch(number)
        rows = self.rows.slice(numbers.start, len(numbers))
        # Shared: for a moment, a worker of a process that was killed may still write the same file.
        with writing_file(self.place(number), shared=True) as path, pa.ipc.new_stream(str(path), self.schema) as writer:
            for start in range(0, len(rows), BATCH):
                batch = rows.slice(start, BATCH).combine_chunks()
                writer.write_table(self.function(batch, numbers.start + start))


def _is_sound(path: Path) -> bool:
    try:
        for _ in batches_of(path):
            pass
    except (OSError, ValueError):
        return False
    return True


def _make_in_processes(work: _Work, numbers: Sequence[int], workers: int, done: Callable[[int], None]) -> None:
    """Makes files in worker processes, and tells of each.

    Pools that end their workers, as those of multiprocessing and `datasets` do, may wait for ever after a Ctrl+C, which
    all processes get: a worker ended with the lock of its queue. These workers end by themselves.
    """
    # Forked, workers share what is loaded; elsewhere than on Linux, libraries do not survive it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    stopped = context.RawValue("b", 0)
    with ProcessPoolExecutor(workers, context, _begin, (work, stopped, os.getpid())) as pool:
        try:
            try:
                with holding_signals():
                    futures = [pool.submit(_make, number) for number in numbers]
            except OSError as error:
                raise DataError(
                    f"expected a system that starts {workers} workers, got {error.strerror}; prepare with fewer "
                    "--workers, or end other processes"
                ) from error
            for future in as_completed(futures):
                done(future.result())
        except BaseException:
            stopped.value = 1
            raise


# What a worker works on.
_WORK: list[_Work] = []


def _begin(work: _Work, stopped: Any, parent: int) -> None:
    """Begins a worker: it leaves signals to its parent, and ends when that ends, however it does, or says so."""
    ignore_signals()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _WORK.append(work)

    def watch() -> None:
        while os.getppid() == parent and not stopped.value:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make(number: int) -> int:
    _WORK[-1].make(number)
    return number


@contextmanager
def _one_thread() -> Iterator[None]:
    """Leaves processors to our own processes, which tokenizers' threads do not survive."""
    threads = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if threads is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = threads
