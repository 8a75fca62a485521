"""Rows to rows by `datasets`, in several processes and many small files, which a killed build keeps; and its bars."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from .folder import batches_of

# Rows that the function gets at a time: enough for a tokenizer to gain from batches, few enough to stay in cache.
BATCH = 1024
# Files, unless they became smaller or larger than this many rows: enough for processes to end together, whatever text
# each has, and for the bar to move.
FILES, FEWEST, MOST = 128, 4096, 16_384
NAME = "rows"
# Seconds between two drawings where standard error is a file, in which every drawing stays.
RARELY = 60.0


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
    function: Callable[[pa.Table, list[int]], pa.Table],
    schema: pa.Schema,
    *,
    workers: int,
    fingerprint: str,
    move: Callable[[int], None],
) -> list[Path]:
    """Applies a function to all rows, or to those whose results are missing, and returns the files of the results.

    Which rows go into which file depends on nothing but their number: any number of workers makes the same files.

    Args:
        files: Arrow streams with the rows.
        folder: gets the results; nothing but this function may write there.
        function: gets rows and their numbers; small to pickle, as every file of results starts with a copy.
        schema: of the function's results.
        workers: processes.
        fingerprint: differs whenever the results may; written into the files.
        move: is told of rows that are done.
    """
    from datasets import Dataset, Features, concatenate_datasets

    folder.mkdir(exist_ok=True)
    rows = concatenate_datasets([Dataset.from_file(str(path)) for path in files]).with_format("arrow")
    count = -(-len(rows) // min(max(len(rows) // FILES, FEWEST), MOST))
    suffix = f"_00000_of_{count:05d}"
    options: dict[str, Any] = {
        "with_indices": True,
        "batched": True,
        "batch_size": BATCH,
        "features": Features.from_arrow_schema(schema),
        "load_from_cache_file": True,
    }
    _remove_damaged(folder)
    with _quiet(), _ending_together(), _watched(folder, len(rows) / count, move):
        # `datasets` makes a file for each process, unless it finds some of another number: then it makes the others.
        first = folder / f"{NAME}{suffix}.arrow"
        rows.shard(count, 0, contiguous=True).map(
            function, cache_file_name=str(first), new_fingerprint=fingerprint + suffix, **options
        )
        if count > 1:
            rows.map(
                function,
                cache_file_name=str(folder / f"{NAME}.arrow"),
                new_fingerprint=fingerprint,
                num_proc=workers if workers > 1 else None,
                **options,
            )
    made = [folder / f"{NAME}_{number:05d}_of_{count:05d}.arrow" for number in range(count)]
    for path in set(folder.iterdir()) - set(made):
        path.unlink()  # Left by a killed process.
    return made


def _remove_damaged(folder: Path) -> None:
    for path in folder.glob("*.arrow"):
        try:
            for _ in batches_of(path):
                pass
        except (OSError, ValueError):
            path.unlink()


@contextmanager
def _ending_together() -> Iterator[None]:
    """Lets the processes that are forked during the block end with this one, however it ends.

    Killed, it cannot tell its workers, nor the process that holds their queue; they would wait for ever.
    """
    _PARENTS.append(os.getpid())
    try:
        yield
    finally:
        # Not in a forked process, which has taken it out already.
        if _PARENTS:
            _PARENTS.pop()


# The process that runs such a block.
_PARENTS: list[int] = []


def _watch_parent() -> None:
    """Ends this process, which was just forked, when the one that forked it is no more."""
    if not _PARENTS:
        return
    parent = _PARENTS[-1]
    _PARENTS.clear()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch_parent)


@contextmanager
def _watched(folder: Path, size: float, move: Callable[[int], None]) -> Iterator[None]:
    """Moves a bar by ``size`` rows for each file that appears while the block runs."""
    ended, moved = threading.Event(), 0

    def look() -> None:
        nonlocal moved
        done = round(size * len(list(folder.glob(f"{NAME}_*.arrow"))))
        move(done - moved)
        moved = done

    def watch() -> None:
        while not ended.wait(1):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves progress to our own bar, and processors to our own processes."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden, threads = are_progress_bars_disabled(), os.environ.get("TOKENIZERS_PARALLELISM")
    disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if threads is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = threads
