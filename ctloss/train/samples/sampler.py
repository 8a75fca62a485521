"""Which rows form which batch: rows of similar length, no false negatives, the same after every restart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from .filling import Filler

# Of an epoch in which rows come again: its plan has some 50 bytes a row.
MOST_ROWS = 1 << 28
# What WPSDataset reads: an epoch, a process's rows and, where processes share a batch, the rows of all of them.
Key = tuple[int, np.ndarray] | tuple[int, np.ndarray, np.ndarray]


class BatchPlan:
    """The batches of every epoch, as pure functions of (seed, epoch).

    An epoch shuffles the rows, splits them into windows of about ``window`` batches, orders each window by both
    lengths, one window upwards and the next downwards, and fills batches in that order: rows of similar length share a
    batch (little padding with sides padded apart), and every epoch groups the rows differently. No batch holds a text
    twice on either side, which would be a false negative: a row whose text is already in the batch waits for a later
    batch that can take it. Finally the batches are shuffled.

    Every epoch has ``len(plan)`` batches, as many as epoch 0, so step k of a run is batch ``k % len(plan)`` of epoch
    ``k // len(plan)``. Rows left over at the end of an epoch are skipped, as are batches beyond that number; an epoch
    with fewer repeats its first ones. All batches have ``batch_size`` rows.

    Args:
        lengths: wordpieces of source and target, (rows, 2) integers.
        keys: hashes of source and target text, (rows, 2) integers; equal texts have equal hashes.
        batch_size: rows per batch.
        seed: at least 0.
        window: batches per window; 1 gives random batches, more give less padding.
        times: how often an epoch sees each row, (rows,), at least 0; once if left out. Of the rows that it sees
            2.25 times, a random quarter, another one in every epoch, is there three times and the others twice.

    Raises:
        ValueError: a shape or value is not as above, or there are too few rows for one batch.

    Example:
        >>> plan = BatchPlan(np.ones((10, 2)), np.arange(20).reshape(10, 2), batch_size=4, seed=0)
        >>> len(plan), sorted(len(set(batch)) for batch in plan.epoch(0))
        (2, [4, 4])
    """

    def __init__(
        self,
        lengths: np.ndarray,
        keys: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        window: int = 128,
        times: np.ndarray | None = None,
    ) -> None:
        lengths, keys = np.asarray(lengths), np.asarray(keys)
        if keys.ndim != 2 or keys.shape[1] != 2 or lengths.shape != keys.shape:
            raise ValueError(
                f"expected lengths and keys of shape (rows, 2), got shapes {lengths.shape} and {keys.shape}"
            )
        if batch_size < 2:
            raise ValueError(
                f"expected a batch_size of at least 2 (a row's negatives are the others), got {batch_size}"
            )
        if seed < 0 or window < 1:
            raise ValueError(f"expected a seed of at least 0 and a window of at least 1, got {seed} and {window}")
        self.batch_size, self.seed, self.window = batch_size, seed, window
        self._lengths, self._keys = lengths, keys
        self._times = None if times is None else _checked(np.asarray(times, dtype=np.float64), len(keys))
        batches = self._fill(0)
        self._number = len(batches)
        if not self._number:
            seen = len(self._drawn(0))
            raise ValueError(
                f"expected enough rows with distinct texts for a batch of {batch_size}, got {seen} rows with "
                f"{len(np.unique(keys))} distinct texts; lower batch_size or give more sentence pairs"
            )
        self._cached = (0, self._shuffled(batches, 0))

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._number

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns the batches of an epoch, (len(plan), batch_size) int64 row indices.

        The copies of a row r that an epoch sees several times are r, r + rows, r + 2 rows and so on.
        """
        if self._cached[0] != epoch:
            self._cached = (epoch, self._shuffled(self._fill(epoch), epoch))
        return self._cached[1]

    def _shuffled(self, batches: np.ndarray, epoch: int) -> np.ndarray:
        order = self._generator(epoch, stream=1).permutation(len(batches))
        return batches[np.resize(order, self._number)]

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, epoch, stream]))

    def _drawn(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, with their copies, in random order."""
        count = len(self._lengths)
        order = self._generator(epoch, stream=0)
        if self._times is None:
            return order.permutation(count)
        generator = self._generator(epoch, stream=2)
        copies = np.floor(self._times).astype(np.int64)
        for share in np.unique(self._times % 1):
            # An exact number of rows, so that epochs are of one size.
            rows = np.flatnonzero(self._times % 1 == share)
            copies[generator.choice(rows, round(share * len(rows)), replace=False)] += 1
        rows = np.repeat(np.arange(count), copies)
        return order.permutation(rows + count * (np.arange(len(rows)) - np.repeat(np.cumsum(copies) - copies, copies)))

    def _fill(self, epoch: int) -> np.ndarray:
        rows = self._drawn(epoch)
        size = self.window * self.batch_size
        filler = Filler(self._keys, self.batch_size, most_carried=max(self.batch_size, size // 4))
        for number, drawn in enumerate(np.array_split(rows, max(1, round(len(rows) / size)))):
            order = _by_length(self._lengths[drawn % len(self._lengths)], self.batch_size)
            # What one window leaves over, its last rows, goes on with rows of similar length.
            filler.add(drawn, order[::-1] if number % 2 else order)
        return filler.finish()


def _by_length(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """The places of rows in an order in which neighbours are alike in both lengths, of source and of target.

    Strips of like source length are sorted by target length. With √b of them in b batches, a strip has √b batches, and
    about as much is padded on one side as on the other.
    """
    source, target = lengths.T.astype(np.int64)
    counts = np.bincount(source)
    strips = max(1, round(math.sqrt(len(source) / batch_size)))
    strip = ((np.cumsum(counts) - counts / 2) * strips / max(1, len(source))).astype(np.int64)[source]
    # Target lengths alternately rise and fall, so that a batch that spans two strips does not combine the longest
    # targets of one with the shortest of the other.
    return np.lexsort((np.where(strip % 2, target, -target), strip))


def _checked(times: np.ndarray, rows: int) -> np.ndarray:
    if times.shape != (rows,) or not np.all((times >= 0) & np.isfinite(times)):
        raise ValueError(f"expected {rows} numbers of times, at least 0, got shape {times.shape} and {times}")
    if times.sum() > MOST_ROWS:
        raise ValueError(
            f"expected an epoch of at most {MOST_ROWS:,} rows, got {times.sum():,.0f}; lower the times (mixing)"
        )
    return times


class PlanSampler(Sampler[Key]):
    """A plan's batches of an epoch as a DataLoader's ``batch_sampler``.

    Yields the keys of WPSDataset: (epoch, rows). With several processes, each takes batches rank, rank + world_size,
    ... of the epoch; batches beyond the last multiple of world_size are skipped, so that all have the same number. With
    ``split`` all processes take every batch together instead, each its own rows of it, so that no text occurs twice
    among the rows of all processes either; a key is then (epoch, rows, rows of all processes).

    Args:
        plan: the batches.
        epoch: called at the start of an iteration; returns the epoch to draw. There is no ``set_epoch``, because
            versions of Trainer differ in whether they call it when a run is resumed.
        rank: this process's number, from 0.
        world_size: number of processes.
        split: whether batches are split among the processes, the first rows going to the first.

    Raises:
        ValueError: rank is not below world_size, there are fewer batches than processes, or batches that are to be
            split have another number of rows than a multiple of world_size.
    """

    drop_last = True

    def __init__(
        self,
        plan: BatchPlan,
        *,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
        split: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"expected a rank from 0 to below world_size, got {rank} of {world_size}")
        if split and plan.batch_size % world_size:
            raise ValueError(
                f"expected batches that split evenly among {world_size} processes, got batches of {plan.batch_size}; "
                "make the plan's batch_size a multiple of their number"
            )
        if not split and len(plan) < world_size:
            raise ValueError(
                f"expected at least a batch for each of {world_size} processes, got {len(plan)} batches of "
                f"{plan.batch_size}; lower the batch size or the number of processes"
            )
        self.plan, self.rank, self.world_size, self.split = plan, rank, world_size, split
        self.batch_size = plan.batch_size // world_size if split else plan.batch_size
        self._epoch = epoch

    def __len__(self) -> int:
        """This process's batches per epoch."""
        return len(self.plan) if self.split else len(self.plan) // self.world_size

    def __iter__(self) -> Iterator[Key]:
        epoch = self._epoch()
        batches = self.plan.epoch(epoch)
        if self.split:
            first = self.rank * self.batch_size
            for everyone in batches:
                yield epoch, everyone[first : first + self.batch_size], everyone
        else:
            for rows in batches[self.rank : len(self) * self.world_size : self.world_size]:
                yield epoch, rows
