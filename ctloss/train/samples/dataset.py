"""Word positioned samples as a dataset, and the word translations held out of training."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..text.corpus import stable_hash
from .wps import ARROW_NAME, read_manifest

if TYPE_CHECKING:
    import pyarrow


def held_out(word_types: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Tells which word translations are held out: a fixed share of them, decided by their hash and the seed alone.

    A translation is held out in every sentence and every corpus, or in none.

    Args:
        word_types: hashes of (source language, source word, target language, target word), uint64, any shape.
        share: expected share of the types that are held out, in [0, 1).
        seed: another seed, another choice.

    Returns:
        bool, same shape.

    Example:
        >>> types = np.arange(10_000, dtype=np.uint64)
        >>> bool(abs(held_out(types, 0.1, seed=0).mean() - 0.1) < 0.01)
        True
    """
    if not 0 <= share < 1:
        raise ValueError(f"expected a held-out share in [0, 1), got {share}")
    # splitmix64's finaliser (Steele, Lea and Flood 2014) over the hash and the seed's own hash.
    mixed = np.asarray(word_types, dtype=np.uint64) ^ np.uint64(stable_hash("held out", str(seed)))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed < np.uint64(int(share * 2**64))


class WPSDataset(Dataset[dict[str, Any]]):
    """The rows of a build, memory-mapped.

    An item is a dict: ``index`` and ``epoch`` (int), ``source_ids`` and ``target_ids`` (int32 arrays, special tokens
    included), ``word_pairs`` (int32 array (k, 4): source start, source end, target start, target end; positions in the
    ids, end exclusive). Held-out word translations are left out of ``word_pairs``.

    It is indexed by ``index`` (epoch 0) or by ``(epoch, index)``, as PlanSampler gives it: what is drawn for a row
    depends on the epoch, and an epoch that travels with the index reaches every worker.

    Args:
        folder: where build_wps wrote.
        require_words: keep only rows with a training word pair, as multi-level training needs.
        held_out_share: share of the word translations held out of ``word_pairs``.
        held_out_seed: seed of that choice.

    Raises:
        ValueError: the folder holds no finished build, or no row is left.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        require_words: bool = False,
        held_out_share: float = 0.0,
        held_out_seed: int = 0,
    ) -> None:
        if read_manifest(folder) is None:
            raise ValueError(
                f"expected a finished build of word positioned samples in {folder}, got none; run build_wps first"
            )
        self.path = Path(folder) / ARROW_NAME
        self.held_out_share, self.held_out_seed = held_out_share, held_out_seed
        self._rows = np.arange(self._table.num_rows)
        if require_words:
            self._rows = np.flatnonzero(self._training_words_by_row())
            if not len(self._rows):
                raise ValueError(
                    f"expected rows with word pairs in {folder}, got none among {self._table.num_rows}; multi-level "
                    "training needs a lexicon or alignments that fit the corpus: see the counts of the build"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        row = self._rows[index]
        batch, offset = self._locate(row)
        pairs = _cell(batch, "word_pairs", offset)
        pairs = pairs.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        if self.held_out_share and len(pairs):
            types = _cell(batch, "word_types", offset).to_numpy(zero_copy_only=False)
            pairs = pairs[~held_out(types, self.held_out_share, self.held_out_seed)]
        return {
            "index": int(index) % len(self._rows),
            "epoch": int(epoch),
            "source_ids": _cell(batch, "source_ids", offset).to_numpy(),
            "target_ids": _cell(batch, "target_ids", offset).to_numpy(),
            "word_pairs": pairs,
        }

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the file for themselves rather than receive a copy of it.
        return {key: value for key, value in self.__dict__.items() if key not in ("_table", "_batches", "_starts")}

    @property
    def lengths(self) -> np.ndarray:
        """Wordpieces of source and target, special tokens included: (rows, 2) int32."""
        import pyarrow.compute as pc

        columns = [pc.list_value_length(self._table[f"{side}_ids"]).to_numpy() for side in ("source", "target")]
        return np.stack(columns, axis=1)[self._rows]

    @property
    def keys(self) -> np.ndarray:
        """Hashes of the normalised source and target texts: (rows, 2) uint64; equal texts have equal hashes."""
        columns = [self._table[f"{side}_key"].to_numpy() for side in ("source", "target")]
        return np.stack(columns, axis=1)[self._rows]

    def text(self, index: int) -> dict[str, str]:
        """Returns source, target, source_language and target_language of a row."""
        batch, offset = self._locate(self._rows[index])
        names = ("source", "target", "source_language", "target_language")
        return {name: batch.column(name)[offset].as_py() for name in names}

    @cached_property
    def _table(self) -> pyarrow.Table:
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()

    @cached_property
    def _batches(self) -> list[pyarrow.RecordBatch]:
        return self._table.to_batches()

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def _locate(self, row: int) -> tuple[pyarrow.RecordBatch, int]:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._batches[chunk], int(row - self._starts[chunk])

    def _flat(self, column: str) -> np.ndarray:
        return self._table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)

    def _parents(self) -> np.ndarray:
        import pyarrow.compute as pc

        counts = pc.list_value_length(self._table["word_types"]).to_numpy()
        return np.repeat(np.arange(len(counts)), counts)

    def _training_words_by_row(self) -> np.ndarray:
        trained = ~held_out(self._flat("word_types"), self.held_out_share, self.held_out_seed)
        return np.bincount(self._parents()[trained], minlength=self._table.num_rows)


def _cell(batch: pyarrow.RecordBatch, column: str, offset: int) -> pyarrow.Array:
    return batch.column(column)[offset].values
