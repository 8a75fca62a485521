"""The second pass: which sentence pairs are for training, validation and test, chosen by hashes of their texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..text.embedded import SPLITS, Split
from ..text.sentences import mixed, stable_hash, text_key
from .folder import Origin, batches_of

KEYS = ("source_key", "target_key")
HASHES = pa.schema({name: pa.uint64() for name in KEYS})


class Fate(IntEnum):
    """What becomes of a sentence pair: the part that it is in, or why it is in none."""

    train = 0
    validation = 1
    test = 2
    duplicate = 3
    held_out = 4
    beyond = 5


# Of the last three, as people read them.
REASONS = {Fate.duplicate: "duplicate", Fate.held_out: "held out", Fate.beyond: "beyond max_pairs"}


@dataclass(frozen=True)
class Keys:
    """Hashes of the texts of all pairs, and where each pair is from.

    Attributes:
        source, target: hashes of the normalised texts: (pairs,) uint64.
        languages: number of the language pair: (pairs,) int16.
        given_for: number of the part that the pair is given for, in the order of SPLITS: (pairs,) int8.
    """

    source: np.ndarray
    target: np.ndarray
    languages: np.ndarray
    given_for: np.ndarray


def hash_texts(table: pa.Table, first: int) -> pa.Table:
    """Returns the keys of rows of the first pass."""
    columns = [
        pa.array([stable_hash(text_key(text)) for text in table.column(name).to_pylist()], pa.uint64())
        for name in ("source", "target")
    ]
    return pa.Table.from_arrays(columns, schema=HASHES)


def read_keys(
    files: Iterable[Path], hashes: Iterable[Path], origins: Sequence[Origin], splits: Sequence[Split]
) -> Keys:
    """Reads the keys of all rows, never their texts.

    Args:
        files: with the rows' origins.
        hashes: what :func:`hash_texts` made of them.
        origins: of the rows, by number.
        splits: the parts that these are given for.
    """
    names = list(dict.fromkeys(origin.languages for origin in origins))
    languages = np.array([names.index(one.languages) for one in origins], dtype=np.int16)
    given_for = np.array([SPLITS.index(split) for split in splits], dtype=np.int8)
    origin = _column(files, "origin", np.int16)
    hashes = list(hashes)
    source, target = (_column(hashes, name, np.uint64) for name in KEYS)
    return Keys(source, target, languages[origin], given_for[origin])


def _column(files: Iterable[Path], name: str, dtype: Any) -> np.ndarray:
    found = [batch.column(name).to_numpy() for path in files for batch in batches_of(path)]
    return np.concatenate(found, dtype=dtype) if found else np.empty(0, dtype)


def divide(keys: Keys, *, given: Sequence[Split], wanted: int, max_pairs: int | None) -> np.ndarray:
    """Decides the fate of every pair; the same for equal pairs, whatever their order and files.

    A held-out part that is not given is taken out of the corpus: of each language pair the ``wanted`` source texts with
    the smallest hashes, at most a tenth of them. All pairs of a source text, in every language pair, are in one part.
    No text of a held-out part, on either side, is in training, and none of test in validation.

    Args:
        keys: the texts' hashes.
        given: the held-out parts that have text of their own.
        wanted: distinct source texts per language pair in each part that is taken out of the corpus.
        max_pairs: at most this many training pairs, those with the smallest hashes; None for all.

    Returns:
        Fate of each pair: (pairs,) uint8.
    """
    fate = keys.given_for.astype(np.uint8)
    pairs = mixed(keys.source ^ mixed(keys.target ^ mixed(keys.languages.astype(np.uint64))))
    for number in range(len(SPLITS)):
        rows = np.flatnonzero(keys.given_for == number)
        again = np.ones(len(rows), dtype=bool)
        again[np.unique(pairs[rows], return_index=True)[1]] = False
        fate[rows[again]] = Fate.duplicate

    taken = np.empty(0, dtype=np.uint64)
    corpus = fate == Fate.train
    for split in ("test", "validation"):
        if split in given:
            continue
        salt, chosen = np.uint64(stable_hash("part", split)), []
        for number in np.unique(keys.languages):
            rows = np.flatnonzero(corpus & (keys.languages == number))
            sources = np.unique(keys.source[rows])
            most = min(wanted, len(sources) // 10)
            free = sources[~among(sources, taken)]
            chosen.append(free[np.argsort(mixed(free ^ salt))[:most]])
            fate[rows[among(keys.source[rows], np.sort(chosen[-1]))]] = Fate[split]
        taken = np.unique(np.concatenate([taken, *chosen]))

    _withdraw(fate, keys, Fate.validation, [Fate.test])
    _withdraw(fate, keys, Fate.train, [Fate.validation, Fate.test])
    training = np.flatnonzero(fate == Fate.train)
    if max_pairs is not None and len(training) > max_pairs:
        place = mixed(pairs[training] ^ np.uint64(stable_hash("limited")))
        fate[training[np.argsort(place, kind="stable")[max_pairs:]]] = Fate.beyond
    return fate


def lacking(keys: Keys, fate: np.ndarray, split: Split) -> list[int]:
    """Returns the language pairs of which a part has fewer than two pairs that share no text, by number."""
    rows = np.flatnonzero(fate == Fate[split])
    return [
        int(number)
        for number in np.unique(keys.languages)
        if not _two_apart(keys, rows[keys.languages[rows] == number])
    ]


def among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Tells which values are in a sorted array."""
    if not len(wanted):
        return np.zeros(len(values), dtype=bool)
    return wanted[np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)] == values


def _withdraw(fate: np.ndarray, keys: Keys, split: Fate, others: list[Fate]) -> None:
    """Takes the pairs out of a part that share a text with others, whichever side it is on."""
    held = np.isin(fate, others)
    texts = np.unique(np.concatenate([keys.source[held], keys.target[held]]))
    rows = np.flatnonzero(fate == split)
    shared = among(keys.source[rows], texts) | among(keys.target[rows], texts)
    fate[rows[shared]] = Fate.held_out


def _two_apart(keys: Keys, rows: np.ndarray) -> bool:
    # As the probe does: the first row, and another with neither of its texts.
    if not len(rows):
        return False
    first, others = rows[0], rows[1:]
    return bool(((keys.source[others] != keys.source[first]) & (keys.target[others] != keys.target[first])).any())
