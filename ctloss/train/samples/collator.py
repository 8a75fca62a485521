"""Rows to tensors: padding, the draw of a row's word pair, and masked copies for masked language modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from .dataset import Lists, Rows
from .draws import Purpose, uniform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
SIDES = ("source", "target")


class Collator:
    """Makes a batch of what WPSDataset reads; what it draws for a row depends only on (seed, epoch, number of the row).

    Other rows of the batch, padding, worker processes and restarts therefore change no draw. One of a row's word pairs
    is drawn uniformly. Masked language modelling follows Devlin et al. 2019: each wordpiece that is not a special token
    is chosen with ``mlm_probability``; 80 % of those become the mask token, 10 % a random ordinary wordpiece, and 10 %
    stay. Masking happens on copies: the contrastive branch sees the clean text.

    Args:
        tokenizer: defines the ids of padding, mask and special tokens, and the number of wordpieces.
        seed: at least 0.
        words: whether to draw word pairs; every row must then have one.
        mlm_probability: share of the wordpieces to predict, in [0, 1); without masked copies if 0.
        same_words: with words, ``"mask"`` gives ids to rows, see below, and ``"keep"`` does not.

    Returns from a call, for n rows, with S the longest source of the batch and T the longest target:
        ``source_ids`` (n, S), ``target_ids`` (n, T): int64, padded with the padding token;
        ``source_mask``, ``target_mask``: same shapes, int64, 1 on tokens and 0 on padding;
        ``index`` (n,): int64;
        with words: ``source_span``, ``target_span`` (n, 2): int64, wordpieces [start, end) of the drawn words;
        with words and ``same_words="mask"``: ``word_ids`` (n,): int64, equal for two rows if a chain of equal words
        connects them, see :func:`connected`, among the rows of all processes that share the batch: the ``ids`` of
        ctloss's losses, by which such rows are no negatives of each other;
        with mlm_probability > 0: ``source_masked_ids``, ``target_masked_ids`` and ``source_labels``,
        ``target_labels``: int64, shapes as the ids; a label is the original id where it is to be predicted, else -100.

    Raises:
        ValueError: an argument is out of range, the tokenizer lacks a padding or mask token, or a row lacks words.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        words: bool = True,
        mlm_probability: float = 0.15,
        same_words: Literal["mask", "keep"] = "mask",
    ) -> None:
        if seed < 0:
            raise ValueError(f"expected seed of at least 0, got {seed}")
        if not 0 <= mlm_probability < 1:
            raise ValueError(f"expected mlm_probability in [0, 1), got {mlm_probability}; the paper's is 0.15")
        if tokenizer.pad_token_id is None:
            raise ValueError("expected a tokenizer with a padding token, got one without; set tokenizer.pad_token")
        if mlm_probability and tokenizer.mask_token_id is None:
            raise ValueError(
                "expected a tokenizer with a mask token, got one without; set tokenizer.mask_token, or turn masked "
                "language modelling off with mlm_probability=0"
            )
        self.seed, self.words, self.mlm_probability, self.same_words = seed, words, mlm_probability, same_words
        self._pad_id, self._mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        self._special = np.zeros(len(tokenizer), dtype=bool)
        self._special[tokenizer.all_special_ids] = True
        self._ordinary = np.flatnonzero(~self._special).astype(np.int32)

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        batch = {"index": rows.index.astype(np.int64)}
        for side, ids in zip(SIDES, (rows.source_ids, rows.target_ids), strict=True):
            real = np.arange(ids.lengths.max(initial=0)) < ids.lengths[:, None]
            batch[f"{side}_ids"] = _padded(ids.values, real, self._pad_id)
            batch[f"{side}_mask"] = real.astype(np.int64)
            if self.mlm_probability:
                masked, labels = self._masked(rows, ids, side)
                batch[f"{side}_masked_ids"] = _padded(masked, real, self._pad_id)
                batch[f"{side}_labels"] = _padded(labels, real, IGNORED)
        if self.words:
            batch |= self._drawn_words(rows)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _drawn_words(self, rows: Rows) -> dict[str, np.ndarray]:
        if rows.word_pairs is None or rows.source_words is None or rows.target_words is None:
            raise ValueError(
                "expected rows with word pairs, got rows read without; make the dataset with words=True, or the "
                "collator with words=False"
            )
        pairs = rows.word_pairs.values[self._drawn(rows.epoch, rows.index, rows.word_pairs)].astype(np.int64)
        found = {"source_span": pairs[:, :2].copy(), "target_span": pairs[:, 2:].copy()}
        if self.same_words == "mask":
            drawn = self._drawn(rows.epoch, rows.everyone, rows.source_words)
            ids = connected(rows.source_words.values[drawn], rows.target_words.values[drawn])
            order = np.argsort(rows.everyone)
            found["word_ids"] = ids[order[np.searchsorted(rows.everyone, rows.index, sorter=order)]]
        return found

    def _drawn(self, epoch: int, index: np.ndarray, pairs: Lists) -> np.ndarray:
        """Where the drawn word pair of each row stands among those of all rows."""
        if not pairs.lengths.all():
            raise ValueError(
                f"expected a word pair in every row, got none in row {index[np.argmin(pairs.lengths)]}; "
                "make the dataset with require_words=True, or the collator with words=False"
            )
        draws = uniform(self.seed, epoch, Purpose.WORD, index)
        return pairs.starts + (draws * pairs.lengths).astype(np.int64)

    def _masked(self, rows: Rows, ids: Lists, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the wordpieces, some of them masked, and the labels."""
        owners = np.repeat(rows.index, ids.lengths)
        positions = np.arange(len(owners)) - np.repeat(ids.starts, ids.lengths)

        def draws(what: str, where: np.ndarray) -> np.ndarray:
            purpose = Purpose[f"{side.upper()}_{what}"]
            return uniform(self.seed, rows.epoch, purpose, owners[where], positions[where])

        ordinary = np.flatnonzero(~self._special[ids.values])
        chosen = ordinary[draws("CHOSEN", ordinary) < self.mlm_probability]
        kind = draws("KIND", chosen)
        others = self._ordinary[(draws("OTHER", chosen) * len(self._ordinary)).astype(np.int64)]
        masked, labels = ids.values.copy(), np.full_like(ids.values, IGNORED)
        labels[chosen] = ids.values[chosen]
        masked[chosen] = np.where(kind < 0.8, self._mask_id, np.where(kind < 0.9, others, ids.values[chosen]))
        return masked, labels


def connected(source_words: np.ndarray, target_words: np.ndarray) -> np.ndarray:
    """Numbers rows so that two have the same number if a chain of rows connects them, each with a word of the next.

    Two rows have a word in common if their source words are equal, or their target words, or the source word of one
    and the target word of the other.

    Args:
        source_words, target_words: hashes of each row's words, (n,); equal words of a language have equal hashes.

    Returns:
        (n,) int64: the number of the first row that each row is connected with.

    Example:
        >>> connected(np.array([10, 11, 12, 11]), np.array([20, 21, 20, 22]))
        array([0, 1, 0, 1])
    """
    count = len(source_words)
    words, number = np.unique(np.concatenate([source_words, target_words]), return_inverse=True)
    source, target = number.reshape(2, count)
    first = np.arange(count)
    while True:
        least = np.full(len(words), count)
        np.minimum.at(least, source, first)
        np.minimum.at(least, target, first)
        found = np.minimum(least[source], least[target])
        if np.array_equal(found, first):
            return first
        # A row's first is connected with it, and so is the first of that one: long chains take few rounds.
        first = found[found]


def _padded(values: np.ndarray, real: np.ndarray, fill: int) -> np.ndarray:
    table = np.full(real.shape, fill, dtype=np.int64)
    table[real] = values
    return table
