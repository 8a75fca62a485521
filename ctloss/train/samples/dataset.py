"""Word positioned samples as a dataset, and the word translations held out of training."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..text.sentences import stable_hash
from .wps import read_manifest, read_table

if TYPE_CHECKING:
    import pyarrow


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
    ids, end exclusive). ``word_pairs`` excludes held-out word translations.

    Keys are ``index`` (epoch 0) or ``(epoch, index)``, as PlanSampler yields them: draws for a row depend on the epoch,
    which reaches every worker process in this way.

    Args:
        folder: where build_wps wrote.
        require_words: keep only rows with a training word pair, as multi-level training needs.
        held_out_share: share of the word translations excluded from ``word_pairs``.
        held_out_seed: seed of that choice.

    Raises:
        ValueError: the folder holds no finished build, or no row has a training word pair.
    """

    def __init__(
        self, folder: str | Path, *, require_words: bool = False, held_out_share: float = 0.0, held_out_seed: int = 0
    ) -> None:
        if read_manifest(folder) is None:
            raise ValueError(
                f"expected a finished build of word positioned samples in {folder}, got none; run build_wps first"
            )
        self.folder = Path(folder)
        self.held_out_share, self.held_out_seed = held_out_share, held_out_seed
        every = len(self._columns["source"])
        self._rows = np.arange(every)
        if require_words:
            self._rows = np.flatnonzero(self._training_words_by_row())
            if not len(self._rows):
                raise ValueError(
                    f"expected rows with word pairs in {folder}, got none among {every}; multi-level training needs "
                    "a lexicon or alignments that fit the corpus: see the counts of the build"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        row = int(self._rows[index])
        pairs = self._cell("word_pairs", row).flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        if self.held_out_share and len(pairs):
            types = self._cell("word_types", row).to_numpy(zero_copy_only=False)
            pairs = pairs[~held_out(types, self.held_out_share, self.held_out_seed)]
        return {
            "index": int(index) % len(self._rows),
            "epoch": int(epoch),
            "source_ids": self._cell("source_ids", row).to_numpy(),
            "target_ids": self._cell("target_ids", row).to_numpy(),
            "word_pairs": pairs,
        }

    def __getstate__(self) -> dict[str, Any]:
        # Each worker maps the file itself instead of receiving a copy.
        return {key: value for key, value in self.__dict__.items() if key != "_columns"}

    @property
    def lengths(self) -> np.ndarray:
        """Wordpieces of source and target, special tokens included: (rows, 2) int32."""
        import pyarrow.compute as pc

        columns = [pc.list_value_length(self._columns[f"{side}_ids"]).to_numpy() for side in ("source", "target")]
        return np.stack(columns, axis=1)[self._rows]

    @property
    def keys(self) -> np.ndarray:
        """Hashes of the normalised source and target texts: (rows, 2) uint64; equal texts have equal hashes."""
        columns = [self._columns[f"{side}_key"].to_numpy() for side in ("source", "target")]
        return np.stack(columns, axis=1)[self._rows]

    def text(self, index: int) -> dict[str, str]:
        """Returns source, target, source_language and target_language of a row."""
        names = ("source", "target", "source_language", "target_language")
        return {name: self._columns[name][int(self._rows[index])].as_py() for name in names}

    @cached_property
    def _columns(self) -> dict[str, pyarrow.ChunkedArray]:
        table = read_table(self.folder)
        return dict(zip(table.column_names, table.columns, strict=True))

    def _cell(self, column: str, row: int) -> pyarrow.Array:
        return self._columns[column][row].values

    def _training_words_by_row(self) -> np.ndarray:
        import pyarrow.compute as pc

        types = self._columns["word_types"].combine_chunks()
        trained = ~held_out(types.flatten().to_numpy(zero_copy_only=False), self.held_out_share, self.held_out_seed)
        return np.bincount(pc.list_parent_indices(types).to_numpy()[trained], minlength=len(types))
