"""What was made: the counts of each part, that they add up, and a fingerprint of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ...shared.text import DataError
from ..text.embedded import SPLITS, Split
from .folder import Counts, Origin, batches_of
from .parts import REASONS, Fate, Keys
from .reading import Input, Part
from .samples import SKIPPED

# What training sees of a row; the texts are in their keys and wordpieces.
HASHED = ("source_ids", "target_ids", "word_pairs", "word_types", "source_key", "target_key")


class Summary:
    """Counts the samples of a part and hashes them, whichever files and batches they lie in."""

    def __init__(self, origins: Sequence[Origin]) -> None:
        self.counts = Counts()
        self._origins = origins
        # A hash for each stream of numbers: one hash of all would depend on where batches end.
        self._hashes = {(name, i): hashlib.blake2b(digest_size=16) for name in HASHED for i in range(2)}

    def add(self, files: Iterable[Path]) -> None:
        """Takes the samples of some files."""
        for path in files:
            for batch in batches_of(path):
                self._count(batch)
                for name in HASHED:
                    for i, stream in enumerate(_streams(batch.column(name))):
                        self._hashes[name, i].update(stream)

    def digest(self) -> str:
        """Returns the hash of all samples."""
        return "".join(one.hexdigest() for one in self._hashes.values())

    def _count(self, batch: Any) -> None:
        words = pc.list_value_length(batch.column("word_pairs")).to_numpy(zero_copy_only=False)
        origins = batch.column("origin").to_numpy()
        counts = self.counts
        counts.rows += len(batch)
        counts.rows_with_words += int((words > 0).sum())
        counts.word_pairs += int(words.sum())
        skipped = batch.column("skipped_words").flatten().to_numpy(zero_copy_only=False).reshape(-1, len(SKIPPED))
        for reason, count in zip(SKIPPED, skipped.sum(axis=0).tolist(), strict=True):
            counts.skipped_words[reason] = counts.skipped_words.get(reason, 0) + count
        for number in np.unique(origins).tolist():
            of_origin = words[origins == number]
            language = counts.languages.setdefault(
                self._origins[number].languages, {"rows": 0, "rows_with_words": 0, "word_pairs": 0}
            )
            language["rows"] += len(of_origin)
            language["rows_with_words"] += int((of_origin > 0).sum())
            language["word_pairs"] += int(of_origin.sum())


def count_pairs(
    counts: Counts,
    split: Split,
    *,
    inputs: Sequence[Input],
    read: Part,
    keys: Keys,
    fates: np.ndarray,
    too_long: int,
    folder: Path,
) -> None:
    """Counts the pairs of a part and those skipped by reason; checks that with the rows they are all that were given.

    Args:
        counts: those of the part's samples; gets the others.
        inputs: all parallel text.
        read: what was read of it.
        keys, fates: of all pairs.
        too_long: pairs of the part that were too long.
        folder: where all this lies, for the error.

    Raises:
        DataError: they are not.
    """
    numbers = [number for number, (given_for, _) in enumerate(inputs) if given_for == split]
    own, here = keys.given_for == SPLITS.index(split), fates == Fate[split]
    others = np.isin(fates, [Fate[other] for other in SPLITS if other != split])
    counts.skipped_pairs = {
        "bad line": sum(read.bad[number] for number in numbers),
        "empty": sum(read.empty[number] for number in numbers),
        **{reason: int((own & (fates == fate)).sum()) for fate, reason in REASONS.items()},
        "too long": too_long,
    }
    # Some were given for training and became pairs of a held-out part.
    given = sum(read.given[number] for number in numbers)
    counts.pairs = given - int((own & others).sum()) + int((here & ~own).sum())
    found = counts.rows + sum(counts.skipped_pairs.values())
    if found != counts.pairs:
        raise DataError(
            f"{split}: expected {counts.pairs:,} sentence pairs, as many as were given, got {found:,}: {counts.rows:,} "
            f"rows and skipped {counts.skipped_pairs}; what was made is damaged: remove {folder} and prepare it again"
        )


def _streams(column: Any) -> Iterator[bytes]:
    """Yields the lengths of a column's lists, and its values."""
    if str(column.type).startswith("list"):
        yield pc.list_value_length(column).to_numpy(zero_copy_only=False).tobytes()
    while str(column.type).startswith(("list", "fixed_size_list")):
        column = column.flatten()
    yield column.to_numpy(zero_copy_only=False).tobytes()
