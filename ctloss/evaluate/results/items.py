"""What each item of a test set adds to a score: kept beside the scores, so that models can be compared item by item."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...shared.files import write_atomically

if TYPE_CHECKING:
    import numpy as np

FOLDER = "items"
# Largest difference of a score from what its items sum to.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Items:
    """A score's parts, one for each item: the score is the sum of the numerators over that of the denominators.

    An accuracy has hits as numerators; an F1 has 2 × right over predicted + gold.

    Args:
        language, metric, seed: of the score.
        asked: what the items are, see :func:`digest_of_items`: models are compared where it is equal.
        numerators: (n,) numbers or booleans.
        denominators: (n,); None where each is 1.
        aligned: a name common to all languages in which item i is the same; empty where there are no others.
    """

    language: str
    metric: str
    asked: str
    numerators: np.ndarray
    denominators: np.ndarray | None = None
    seed: int | None = None
    aligned: str = ""

    @property
    def value(self) -> float:
        """The score; 0 where the denominators sum to 0."""
        below = float(len(self.numerators) if self.denominators is None else self.denominators.sum())
        return float(self.numerators.sum()) / below if below else 0.0


def digest_of_items(items: Iterable[object]) -> str:
    """Returns a short digest of what is asked, in its order: texts, rows with their labels, ids.

    Example:
        >>> digest_of_items(["one", "two"]) == digest_of_items(["two", "one"])
        False
    """
    return hashlib.sha256("\n".join(map(repr, items)).encode()).hexdigest()[:16]


def write_items(folder: str | Path, task: str, items: Sequence[Items]) -> None:
    """Writes a task's items as FOLDER/items/TASK.npz, whole or not at all; without any, removes an earlier file."""
    import numpy as np

    path = Path(folder) / FOLDER / f"{task}.npz"
    if not items:
        path.unlink(missing_ok=True)
        return
    arrays: dict[str, np.ndarray] = {}
    index: list[list[list[str | int | None]]] = []
    # One array for all that fit together: a test set in 200 languages has 40,000 directions.
    alike: dict[tuple[int, bool], list[Items]] = {}
    for item in items:
        alike.setdefault((len(item.numerators), item.denominators is None), []).append(item)
    for number, ((_, plain), rows) in enumerate(alike.items()):
        arrays[f"numerators{number}"] = _narrow(np.stack([row.numerators for row in rows]))
        if not plain:
            arrays[f"denominators{number}"] = _narrow(np.stack([np.asarray(row.denominators) for row in rows]))
        index.append([[row.language, row.metric, row.asked, row.seed, row.aligned] for row in rows])
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def _narrow(values: np.ndarray) -> np.ndarray:
    import numpy as np

    for kind in (np.bool_, np.uint8, np.uint16):
        if np.array_equal(narrow := values.astype(kind), values):
            return narrow
    return values.astype(np.float64)


def read_items(folder: str | Path, task: str, values: Iterable[tuple[str, str, int | None, float]]) -> list[Items]:
    """Returns the items kept of a task; none, with a warning, if the file is damaged or belongs to other scores.

    Args:
        values: language, metric, seed and value of the task's scores. Items that do not sum to one of them are another
            run's.
    """
    path = Path(folder) / FOLDER / f"{task}.npz"
    if not path.exists():
        return []
    try:
        found = _read(path)
    # Of damaged bytes numpy, zipfile, zlib, ast and json raise a dozen kinds of errors; none of them lists its own.
    except Exception as error:
        reason = str(error)[:80] or type(error).__name__
        warnings.warn(f"{path}: left out of comparisons: damaged ({reason}); evaluate again", stacklevel=2)
        return []
    by_name: dict[tuple[str, str, int | None], list[float]] = {}
    for language, metric, seed, value in values:
        by_name.setdefault((language, metric, seed), []).append(value)
    for item in found:
        there = by_name.get((item.language, item.metric, item.seed), [])
        if not any(abs(item.value - value) < TOLERANCE for value in there):
            warnings.warn(
                f"{path}: left out of comparisons: it belongs to other scores than results.json; evaluate again in "
                "another --output",
                stacklevel=2,
            )
            return []
    return found


def _read(path: Path) -> list[Items]:
    import numpy as np

    found = []
    with zipfile.ZipFile(path) as archive:
        # numpy stops reading a member before zipfile compares its checksum.
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} has another checksum")
    with np.load(path, allow_pickle=False) as kept:
        for number, rows in enumerate(json.loads(kept["index"].tobytes())):
            above = kept[f"numerators{number}"]
            below = kept[f"denominators{number}"] if f"denominators{number}" in kept else [None] * len(above)
            for (language, metric, asked, seed, aligned), one, other in zip(rows, above, below, strict=True):
                found.append(Items(language, metric, asked, one, other, seed, aligned))
    return found
