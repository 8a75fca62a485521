"""Where a corpus is prepared: what is in the way there, what was left beside it, and what the disk refuses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path

from ...shared.files import PARTIAL, locked
from ...shared.text import DataError

# Characters of the key in the name of an unfinished folder.
KEY = 8


def cache() -> Path:
    """Returns the folder of all corpora that nobody gave a place."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "ctloss"


def unfinished(place: Path, key: str) -> Path:
    """Returns where a corpus is built before it gets its place: beside it, named after its key too."""
    return place.with_name(f"{place.name}-{key[:KEY]}{PARTIAL}")


def others(building: Path) -> list[Path]:
    """Returns what unfinished preparations of other settings or files left for the same place."""
    start = building.name.removesuffix(PARTIAL)[:-KEY]
    ours = re.compile(rf"{re.escape(start)}[0-9a-f]{{{KEY}}}{re.escape(PARTIAL)}")
    return sorted(
        path
        for path in building.parent.iterdir()
        if ours.fullmatch(path.name) and path != building and path.is_dir() and not path.is_symlink()
    )


def remove_others(building: Path, say: Callable[[str], None]) -> None:
    """Removes what :func:`others` finds, but what another process works on, and says so."""
    for other in others(building):
        with suppress(ValueError, OSError), locked(other):
            shutil.rmtree(other)
            say(f"removed {other}, which was of other settings or files")


def check_empty(place: Path) -> None:
    """Refuses a place where something lies already."""
    if place.is_dir() and any(place.iterdir()):
        raise DataError(f"{place}: expected a new or empty folder, got one with files; choose another")
    if (place.exists() or place.is_symlink()) and not place.is_dir():
        raise DataError(f"{place}: expected a new or empty folder, got a file or a link to none; choose another")


@contextmanager
def refusals(place: Path) -> Iterator[None]:
    """Turns errors of the disk and of dying processes into one line that says what to do."""
    kept = "what is finished is kept: run it again to go on"
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"{place}: expected a disk to write the prepared corpus to, got {error.strerror or error}; make room, or "
            f"choose another folder (--output, or HF_DATASETS_CACHE for the cache); {kept}"
        ) from error
    except ValueError as error:
        raise DataError(str(error)) from error
    except BrokenProcessPool as error:
        raise DataError(
            f"{place}: expected workers that end their work, got one that died; take fewer workers if memory "
            f"is short; {kept}"
        ) from error
