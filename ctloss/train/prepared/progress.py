"""Progress bars with the time left, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
