"""Word positioned samples, read a batch at a time, and the word translations held out of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..text.sentences import mixed, stable_hash

if TYPE_CHECKING:
    import pyarrow

# The first bytes of Arrow's file format; its streaming format, which datasets writes, has none.
ARROW_FILE = b"ARROW1"


def held_out(word_types: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Tells which word translations are held out: a fixed share, which depends only on their hashes and the seed.

    A translation is held out in every sentence and every corpus, or in none.

    Args:
        word_types: hashes of (source language, source word, target language, target word), uint64, any shape.
        share: expected share of the types that are held out, in [0, 1).
        seed: another seed gives another choice.

    Returns:
        bool, same shape.
    """
    if not 0 <= share < 1:
        raise ValueError(f"expected a held-out share in [0, 1), got {share}; choose one in that range")
    own = np.uint64(stable_hash("held out", str(seed)))
    return mixed(np.asarray(word_types, dtype=np.uint64) ^ own) < np.uint64(int(share * 2**64))


@dataclass(frozen=True)
class Lists:
    """Lists of different lengths, one after the other.

    Attributes:
        values: the entries of all lists, (sum of lengths, ...).
        lengths: (lists,) int64.
    """

    values: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Where each list starts among the values, (lists,) int64."""
        return np.cumsum(self.lengths) - self.lengths

    def where(self, chosen: np.ndarray) -> Lists:
        """Returns the lists with only those entries that are chosen, a bool for each of the values."""
        owners = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return Lists(self.values[chosen], np.bincount(owners[chosen], minlength=len(self.lengths)))


@dataclass(frozen=True)
class Rows:
    """The rows of a batch, as WPSDataset reads them.

    Attributes:
        epoch: the epoch that the rows are read for.
        index: their numbers, (n,) int64. Copies of a row in one epoch have numbers of their own.
        source_ids, target_ids: wordpieces, special tokens included; int32.
        word_pairs: (k, 4) int32 (source start, source end, target start, target end): positions in the ids, end
            exclusive; None if no words were asked for.
        everyone: numbers of the rows of all processes that share the batch, (m,) int64.
        source_words, target_words: hashes of (language, word) of everyone's word pairs, uint64; None as above.
    """

    epoch: int
    index: np.ndarray
    source_ids: Lists
    target_ids: Lists
    word_pairs: Lists | None
    everyone: np.ndarray
    source_words: Lists | None
    target_words: Lists | None


class WPSDataset(Dataset[Rows]):
    """The training rows of a prepared corpus.

    It is read a batch at a time: ``dataset.__getitems__((epoch, rows))`` or ``((epoch, rows, everyone))`` are
    :class:`Rows`, and PlanSampler yields such keys, so that a DataLoader hands them over whole. Word pairs exclude
    held-out word translations. A row r of an epoch that sees it several times has the numbers r, r + len(dataset), ...

    Args:
        table: the rows, or the Arrow files that hold them, which are memory-mapped. Worker processes that are not
            forked map files again, but get a copy of a table. Columns: ``source``, ``target`` (texts), ``source_ids``,
            ``target_ids``, ``word_pairs``, ``word_types``, ``source_words``, ``target_words``, ``source_key``,
            ``target_key`` and ``origin``; see ctloss.train.prepared.
        require_words: keep only rows with a training word pair, as multi-level training needs.
        words: whether to read word pairs and words.
        held_out_share: share of the word translations excluded from the word pairs.
        held_out_seed: seed of that choice.

    Raises:
        ValueError: there are no rows, or none has a training word pair.
    """

    def __init__(
        self,
        table: pyarrow.Table | Sequence[str | Path],
        *,
        require_words: bool = False,
        words: bool = True,
        held_out_share: float = 0.0,
        held_out_seed: int = 0,
    ) -> None:
        self._given = [Path(file) for file in table] if isinstance(table, list | tuple) else table
        self.words = words
        self.held_out_share, self.held_out_seed = held_out_share, held_out_seed
        every = self._table.num_rows
        # None stands for all rows: millions of numbers that would only count.
        self._rows: np.ndarray | None = None
        if require_words:
            self._rows = np.flatnonzero(self._has_training_words())
        self._length = every if self._rows is None else len(self._rows)
        if not self._length:
            raise ValueError(
                f"expected rows with word pairs, got none among {every}; multi-level training needs a lexicon or "
                "alignments that fit the corpus: see the counts of the preparation"
                if every
                else "expected rows to train on, got none; prepare a corpus with sentence pairs"
            )

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, key: tuple[Any, ...]) -> Rows:
        epoch, index, *shared = key
        everyone = shared[0] if shared else index
        rows, all_rows = self._places(index), self._places(everyone)
        pairs = sources = targets = None
        if self.words:
            pairs = self._trained(rows, "word_pairs")
            sources, targets = (self._trained(all_rows, f"{side}_words") for side in ("source", "target"))
        source, target = (self._column(f"{side}_ids").read(rows) for side in ("source", "target"))
        return Rows(int(epoch), index, source, target, pairs, everyone, sources, targets)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "_columns")}

    @property
    def lengths(self) -> np.ndarray:
        """Wordpieces of source and target, special tokens included: (rows, 2) int32."""
        import pyarrow.compute as pc

        found = np.empty((len(self), 2), dtype=np.int32)
        for side, name in enumerate(("source_ids", "target_ids")):
            found[:, side] = self._of_rows(pc.list_value_length(self._table[name]).to_numpy())
        return found

    @property
    def keys(self) -> np.ndarray:
        """Hashes of the normalised source and target texts: (rows, 2) uint64; equal texts have equal hashes."""
        found = np.empty((len(self), 2), dtype=np.uint64)
        for side, name in enumerate(("source_key", "target_key")):
            found[:, side] = self._of_rows(self._table[name].to_numpy())
        return found

    @property
    def origins(self) -> np.ndarray:
        """The number of each row's origin, (rows,) int16."""
        return self._of_rows(self._table["origin"].to_numpy())

    def text(self, index: int) -> dict[str, str]:
        """Returns source and target of a row."""
        place = int(self._places(np.array([index]))[0])
        return {name: self._table[name][place].as_py() for name in ("source", "target")}

    @cached_property
    def _table(self) -> pyarrow.Table:
        import pyarrow as pa

        return pa.concat_tables(map(_mapped, self._given)) if isinstance(self._given, list) else self._given

    @cached_property
    def _columns(self) -> dict[str, _Column]:
        return {}

    def _column(self, name: str) -> _Column:
        if name not in self._columns:
            self._columns[name] = _Column(self._table[name])
        return self._columns[name]

    def _places(self, index: np.ndarray) -> np.ndarray:
        places = np.asarray(index, dtype=np.int64) % self._length
        return places if self._rows is None else self._rows[places]

    def _of_rows(self, values: np.ndarray) -> np.ndarray:
        return values if self._rows is None else values[self._rows]

    def _trained(self, places: np.ndarray, name: str) -> Lists:
        """The entries of a column of word pairs that belong to translations which are not held out."""
        found = self._column(name).read(places)
        if not self.held_out_share:
            return found
        types = self._column("word_types").read(places).values
        return found.where(~held_out(types, self.held_out_share, self.held_out_seed))

    def _has_training_words(self) -> np.ndarray:
        def of_chunk(types: np.ndarray, offsets: np.ndarray) -> np.ndarray:
            # Sums up to each place, so that an empty list is no special case.
            trained = ~held_out(types, self.held_out_share, self.held_out_seed)
            before = np.concatenate([[0], np.cumsum(trained)])
            return before[offsets[1:]] > before[offsets[:-1]]

        chunks = [of_chunk(types, offsets) for types, offsets in self._column("word_types").chunks()]
        return np.concatenate(chunks) if chunks else np.empty(0, dtype=bool)


class _Column:
    """A list column of a table, whose cells are read as NumPy arrays without a copy."""

    def __init__(self, column: pyarrow.ChunkedArray) -> None:
        self._chunks = column.chunks
        self._starts = np.cumsum([0, *map(len, self._chunks)])
        self._views: dict[int, tuple[np.ndarray, Any]] = {}

    def read(self, places: np.ndarray) -> Lists:
        """Returns the cells of some rows."""
        chunks = np.searchsorted(self._starts, places, side="right") - 1
        cells = []
        for chunk, row in zip(chunks.tolist(), (places - self._starts[chunks]).tolist(), strict=True):
            values, offsets = self._views.get(chunk) or self._view(chunk)
            cells.append(values[offsets[row] : offsets[row + 1]])
        return Lists(np.concatenate(cells), np.fromiter(map(len, cells), dtype=np.int64, count=len(cells)))

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the values of each part of the column, and the offsets of its cells among them."""
        return map(_values_and_offsets, self._chunks)

    def _view(self, chunk: int) -> tuple[np.ndarray, Any]:
        values, offsets = _values_and_offsets(self._chunks[chunk])
        # A memory view yields Python's integers, which make slices faster than NumPy's.
        self._views[chunk] = values, offsets.data
        return self._views[chunk]


def _values_and_offsets(lists: pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa

    values = lists.values
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy().reshape(-1, values.type.list_size), lists.offsets.to_numpy()
    return values.to_numpy(), lists.offsets.to_numpy()


def _mapped(file: Path) -> pyarrow.Table:
    import pyarrow as pa

    source = pa.memory_map(str(file))
    with file.open("rb") as start:
        reader = pa.ipc.open_file if start.read(len(ARROW_FILE)) == ARROW_FILE else pa.ipc.open_stream
    return reader(source).read_all()
