"""Rows to tensors: padding, the draw of a row's word pair, and masked copies for masked language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
SIDES = ("source", "target")


class Collator:
    """Makes a batch of dataset items; what it draws for a row depends only on (seed, epoch, index of the row).

    Other rows of the batch, padding, worker processes and restarts therefore change no draw. One of a row's word pairs
    is drawn uniformly. Masked language modelling follows Devlin et al. 2019: each wordpiece that is not a special token
    is chosen with ``mlm_probability``; 80 % of those become the mask token, 10 % a random ordinary wordpiece, and 10 %
    stay. Masking happens on copies: the contrastive branch sees the clean text.

    Args:
        tokenizer: defines the ids of padding, mask and special tokens, and the number of wordpieces.
        seed: at least 0.
        words: whether to draw word pairs; every row must then have one.
        mlm_probability: share of the wordpieces to predict, in [0, 1); without masked copies if 0.

    Returns from a call, for n rows, with S the longest source of the batch and T the longest target:
        ``source_ids`` (n, S), ``target_ids`` (n, T): int64, padded with the padding token;
        ``source_mask``, ``target_mask``: same shapes, int64, 1 on tokens and 0 on padding;
        ``index`` (n,): int64;
        with words: ``source_span``, ``target_span`` (n, 2): int64, wordpieces [start, end) of the drawn words;
        with mlm_probability > 0: ``source_masked_ids``, ``target_masked_ids`` and ``source_labels``,
        ``target_labels``: int64, shapes as the ids; a label is the original id where it is to be predicted, else -100.

    Raises:
        ValueError: an argument is out of range, the tokenizer lacks a padding or mask token, or a row lacks words.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, seed: int, words: bool = True, mlm_probability: float = 0.15
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
        self.seed, self.words, self.mlm_probability = seed, words, mlm_probability
        self._pad_id, self._mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        self._special = np.zeros(len(tokenizer), dtype=bool)
        self._special[tokenizer.all_special_ids] = True
        self._ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {"index": torch.tensor([item["index"] for item in items])}
        for side in SIDES:
            ids = [item[f"{side}_ids"] for item in items]
            batch[f"{side}_ids"] = _pad(ids, self._pad_id)
            batch[f"{side}_mask"] = _pad([np.ones_like(row) for row in ids], 0)
        generators = [self._generator(item) for item in items]
        # Always drawn, and before the masks, so that masks are the same at every level of training.
        draws = [generator.random() for generator in generators]
        if self.words:
            pairs = np.stack([_pick(item, draw) for item, draw in zip(items, draws, strict=True)])
            batch["source_span"] = torch.from_numpy(pairs[:, :2].astype(np.int64))
            batch["target_span"] = torch.from_numpy(pairs[:, 2:].astype(np.int64))
        if self.mlm_probability:
            for side in SIDES:
                masked = [self._mask(item[f"{side}_ids"], g) for item, g in zip(items, generators, strict=True)]
                batch[f"{side}_masked_ids"] = _pad([ids for ids, _ in masked], self._pad_id)
                batch[f"{side}_labels"] = _pad([labels for _, labels in masked], IGNORED)
        return batch

    def _generator(self, item: dict[str, Any]) -> np.random.Generator:
        # Philox is counter-based (Salmon et al. 2011): key and counter select the row's own stream, which itself uses
        # the lowest word of the counter.
        return np.random.Generator(np.random.Philox(key=(self.seed, item["epoch"]), counter=(0, 0, 0, item["index"])))

    def _mask(self, ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen, kind, other = generator.random((3, len(ids)))
        predicted = (chosen < self.mlm_probability) & ~self._special[ids]
        random_ids = self._ordinary[(other * len(self._ordinary)).astype(np.int64)]
        replaced = np.where(kind < 0.8, self._mask_id, np.where(kind < 0.9, random_ids, ids))
        return np.where(predicted, replaced, ids), np.where(predicted, ids, IGNORED)


def _pad(rows: Sequence[np.ndarray], value: int) -> Tensor:
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


def _pick(item: dict[str, Any], draw: float) -> np.ndarray:
    pairs = item["word_pairs"]
    if not len(pairs):
        raise ValueError(
            f"expected a word pair in every row, got none in row {item['index']}; "
            "make the dataset with require_words=True, or the collator with words=False"
        )
    return pairs[int(draw * len(pairs))]
