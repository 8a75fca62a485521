"""Batches in which no text occurs twice, on whichever side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from sentence_transformers import DefaultBatchSampler

NO_TEXTS = frozenset({"dataset_name"})
"""A column that the trainer adds."""
READ_AT_ONCE = 4096


class DistinctTextsBatchSampler(DefaultBatchSampler):
    """No text occurs twice in a batch, neither in one column nor in two: it would be a false negative.

    Pass the class: ``SentenceTransformerTrainingArguments(batch_sampler=DistinctTextsBatchSampler)``. A row whose text
    is already in the batch waits for a later batch that can take it. Labels may repeat. An epoch's batches are a
    function of the seed and the epoch alone, and there are exactly ``len(sampler)`` of them, as many as in epoch 0: an
    epoch with fewer repeats its first ones, one with none takes those of epoch 0, and one with more leaves out its last
    ones, which are the smallest.

    Args:
        dataset: a ``datasets.Dataset`` with columns of texts.
        batch_size: rows a batch.
        drop_last: leave out batches that cannot be filled, at an epoch's end; otherwise they are smaller, and every
            row of epoch 0 is in one batch.
        valid_label_columns: names of columns that hold labels.
        generator: not used.
        seed: at least 0.
        window: batches of which neighbours are of like length: 1 for random batches, 64 for little padding;
            ``batch_sampler=partial(DistinctTextsBatchSampler, window=64)``.

    Raises:
        TypeError: for a stream instead of a dataset, or a column of something other than texts.
        ValueError: for a batch_size below 2 or a window below 1, a dataset without texts, or one that fills no batch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        window: int = 1,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
            raise TypeError(
                "dataset: expected a datasets.Dataset, whose rows can be taken in any order, got "
                f"{type(dataset).__name__}; load it without streaming=True"
            )
        if batch_size < 2 or window < 1:
            raise ValueError(
                "batch_size, window: expected at least 2 rows (a row's negatives are the others) and at least 1 batch, "
                f"got {batch_size} and {window}; raise them"
            )
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        left_out = NO_TEXTS | set(valid_label_columns or ())
        self.window = window
        self._texts, self._lengths = _read(dataset, [name for name in dataset.column_names if name not in left_out])
        self._drawn: tuple[int, list[list[int]]] = (0, self._fill(0))
        self._number = len(self._drawn[1])
        if not self._number:
            raise ValueError(
                f"batch_size: expected enough rows with distinct texts for a batch of {batch_size}, got {len(dataset)} "
                "rows; lower batch_size, or set drop_last=False"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._number

    def __iter__(self) -> Iterator[list[int]]:
        if self._drawn[0] != self.epoch:
            # Rows that fill a batch in one order may fill none in another.
            self._drawn = (self.epoch, self._fill(self.epoch) or self._fill(0))
        batches = self._drawn[1]
        yield from (batches[number % len(batches)] for number in range(self._number))

    def _fill(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        rows = torch.randperm(len(self._lengths), generator=generator).numpy()
        if self.window == 1:
            return list(_filled(rows.tolist(), self._texts, self.batch_size, self.drop_last))
        size = self.window * self.batch_size
        parts = [
            part[np.argsort(self._lengths[part], kind="stable")]
            for part in np.split(rows, range(size, len(rows), size))
        ]
        # What one window leaves over goes on with rows of like length.
        ordered = np.concatenate([part[::-1] if number % 2 else part for number, part in enumerate(parts)])
        batches = list(_filled(ordered.tolist(), self._texts, self.batch_size, self.drop_last))
        full = [batch for batch in batches if len(batch) == self.batch_size]
        order = torch.randperm(len(full), generator=generator).tolist()
        return [full[number] for number in order] + batches[len(full) :]


def _read(dataset: Any, columns: list[str]) -> tuple[list[list[int]], np.ndarray]:
    """The texts of each row, as numbers without repetition, and how many characters they have.

    Raises:
        TypeError, ValueError: for columns that hold no texts.
    """
    if not columns:
        raise ValueError("dataset: expected columns of texts, got labels only; add the texts")
    texts: list[list[int]] = []
    lengths: list[int] = []
    for start in range(0, len(dataset), READ_AT_ONCE):
        part = dataset[start : start + READ_AT_ONCE]
        for row in zip(*(part[name] for name in columns), strict=True):
            texts.append(list({_number(name, text) for name, text in zip(columns, row, strict=True)}))
            lengths.append(sum(map(len, row)))
    return texts, np.array(lengths, dtype=np.int64)


def _number(name: str, text: object) -> int:
    if not isinstance(text, str):
        raise TypeError(
            f"dataset: expected texts in column {name!r}, got {type(text).__name__}; leave the column out, or name it "
            "label if it holds labels"
        )
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _filled(rows: list[int], texts: Sequence[Sequence[int]], batch_size: int, drop_last: bool) -> Iterator[list[int]]:
    """Batches of the rows in their order; those that are not full, if wanted, come last."""
    waiting = _Waiting(texts)
    position = 0
    rest: list[list[int]] = []
    while position < len(rows) or waiting:
        present: set[int] = set()
        batch = waiting.take(present, batch_size)
        while len(batch) < batch_size and position < len(rows):
            row = rows[position]
            position += 1
            met = next((text for text in texts[row] if text in present), None)
            if met is None:
                present.update(texts[row])
                batch.append(row)
            else:
                waiting.add(row, met)
        if len(batch) == batch_size:
            yield batch
        else:
            rest.append(batch)
    if not drop_last:
        yield from sorted(rest, key=len, reverse=True)


class _Waiting:
    """Rows that wait for a batch without one of their texts, by that text: of each, one at most fits in a batch."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts
        self._rows: dict[int, deque[int]] = {}
        self._turns: deque[int] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, row: int, text: int) -> None:
        if text not in self._rows:
            self._rows[text] = deque()
            self._turns.append(text)
        self._rows[text].append(row)

    def take(self, present: set[int], most: int) -> list[int]:
        """Rows that fit together; adds their texts to those present."""
        taken: list[int] = []
        for _ in range(len(self._turns)):
            if len(taken) == most:
                break
            text = self._turns.popleft()
            rows = self._rows[text]
            if present.isdisjoint(self._texts[rows[0]]):
                taken.append(rows.popleft())
                present.update(self._texts[taken[-1]])
            if rows:
                self._turns.append(text)
            else:
                del self._rows[text]
        return taken
