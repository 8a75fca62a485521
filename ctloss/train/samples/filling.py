"""Rows into full batches in a given order, except where a batch would hold a text twice."""

from __future__ import annotations

from collections import deque

import numpy as np


class Filler:
    """Fills batches with rows, some thousands at a time; a row that fits none yet is kept for the next ones.

    Rows whose texts occur once among those at hand, which are most, are placed as whole arrays. The others are placed
    one by one: a row whose text is already in the batch waits for the next batch that can take it.

    Args:
        keys: hashes of source and target text, (rows, 2) integers; equal texts have equal hashes.
        batch_size: rows per batch.
        most_carried: rows that are tried again with the next ones, at most; what is beyond waits for the end. A text
            that much of the corpus repeats would else be tried again and again.
    """

    def __init__(self, keys: np.ndarray, batch_size: int, most_carried: int) -> None:
        self._keys, self._batch_size, self._most_carried = keys, batch_size, most_carried
        self._batches: list[np.ndarray] = []
        self._carried = self._none = np.empty(0, dtype=np.int64)
        self._late: list[np.ndarray] = []

    def add(self, drawn: np.ndarray, order: np.ndarray) -> None:
        """Takes rows, numbered from 0, copies of a row from the number of rows on.

        Args:
            drawn: the rows in the order in which they were drawn, which decides whose copy of a text comes first.
            order: the places among ``drawn`` in the order in which batches are to be filled.
        """
        rows = np.concatenate([self._carried, drawn])
        keys = self._keys[rows % len(self._keys)]
        repeated = _repeated(keys)
        kept = np.ones(len(rows), dtype=bool)
        if repeated.any():
            copies = _copies(keys, repeated)
            kept = copies < _most_batches(copies, self._batch_size)
        before = len(self._carried)
        places = np.concatenate([np.arange(before), before + order])
        places = places[kept[places]]
        batch_of = _greedy(keys[places], repeated[places], self._batch_size)
        by_batch = places[np.argsort(batch_of, kind="stable")]
        left = int(np.count_nonzero(batch_of < 0))
        self._batches.append(rows[by_batch[left:]].reshape(-1, self._batch_size))
        rest = rows[np.concatenate([by_batch[:left], np.flatnonzero(~kept)])]
        self._carried = rest[: self._most_carried]
        self._late.append(rest[self._most_carried :])

    def finish(self) -> np.ndarray:
        """Returns the full batches, (batches, batch_size), after trying again what is left until none fills up."""
        full = -1
        while full < sum(map(len, self._batches)):
            full = sum(map(len, self._batches))
            late = np.concatenate([self._none, *self._late])
            self._late = []
            self.add(late, np.arange(len(late)))
        return np.concatenate([self._none.reshape(0, self._batch_size), *self._batches])


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Whether a text of a row occurs again, on whichever side, (rows,) bool."""
    ordered = np.sort(keys, axis=None)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(again):
        return np.zeros(len(keys), dtype=bool)
    nearest = again[np.minimum(np.searchsorted(again, keys), len(again) - 1)]
    return (nearest == keys).any(axis=1)


def _copies(keys: np.ndarray, repeated: np.ndarray) -> np.ndarray:
    """How many rows come before this one among those with its text: the larger number of its two sides, (rows,).

    First come rows whose other text is rare, which batches can take more easily, then those that were drawn first.
    """
    rows = np.flatnonzero(repeated)
    texts, number, counts = np.unique(keys[rows], return_inverse=True, return_counts=True)
    text = number.reshape(len(rows), 2)
    other = counts[text[:, ::-1]]
    # Rows whose sides are equal hold their text once.
    twice = text[:, 0] != text[:, 1]
    owner = np.concatenate([rows, rows[twice]])
    text = np.concatenate([text[:, 0], text[twice, 1]])
    order = np.lexsort((owner, np.concatenate([other[:, 0], other[twice, 1]]), text))
    owner, text = owner[order], text[order]
    copies = np.zeros(len(keys), dtype=np.int64)
    np.maximum.at(copies, owner, np.arange(len(text)) - np.searchsorted(text, np.arange(len(texts)))[text])
    return copies


def _most_batches(copies: np.ndarray, batch_size: int) -> int:
    """The largest number of batches that could be full if each held a text once."""
    ordered = np.sort(copies)
    most = len(ordered) // batch_size
    # m batches hold at most m copies of a text; fewer batches, fewer copies.
    while (fewer := int(np.searchsorted(ordered, most)) // batch_size) < most:
        most = fewer
    return most


def _greedy(keys: np.ndarray, repeated: np.ndarray, batch_size: int) -> np.ndarray:
    """The batch of each row, (rows,), -1 for rows that are left over; each batch takes the next rows that it can."""
    special = np.flatnonzero(repeated)
    source, target = (keys[special, side].tolist() for side in (0, 1))
    places: list[int] = special.tolist()
    waiting = _Waiting(source, target)
    ends: list[int] = []
    deferred: list[int] = []
    placed: list[tuple[int, int]] = []
    start = current = 0
    while True:
        texts: set[int] = set()
        taken = waiting.take(texts, batch_size)
        end = start + batch_size - len(taken)
        while current < len(places) and places[current] < end:
            if source[current] in texts or target[current] in texts:
                deferred.append(places[current])
                waiting.add(current, source[current] if source[current] in texts else target[current])
                end += 1
            else:
                texts.update((source[current], target[current]))
            current += 1
        if end > len(keys):
            break
        placed += [(places[number], len(ends)) for number in taken]
        ends.append(end)
        start = end
    batch_of = np.full(len(keys), -1)
    batch_of[:start] = np.repeat(np.arange(len(ends)), np.diff([0, *ends]))
    batch_of[deferred] = -1
    for place, batch in placed:
        batch_of[place] = batch
    return batch_of


class _Waiting:
    """Rows that wait for a batch without their text, by that text: one of each at most fits in a batch."""

    def __init__(self, source: list[int], target: list[int]) -> None:
        self._source, self._target = source, target
        self._rows: dict[int, deque[int]] = {}
        self._turns: deque[int] = deque()

    def add(self, number: int, text: int) -> None:
        if text not in self._rows:
            self._rows[text] = deque()
            self._turns.append(text)
        self._rows[text].append(number)

    def take(self, texts: set[int], most: int) -> list[int]:
        """Returns rows that a batch of these texts can take, and adds their texts."""
        taken: list[int] = []
        for _ in range(min(len(self._turns), most)):
            text = self._turns.popleft()
            rows = self._rows[text]
            source, target = self._source[rows[0]], self._target[rows[0]]
            if source not in texts and target not in texts:
                taken.append(rows.popleft())
                texts.update((source, target))
            if rows:
                self._turns.append(text)
            else:
                del self._rows[text]
        return taken
