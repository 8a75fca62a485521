"""Words to wordpieces and back: labels on first pieces, long sentences in several windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True)
class Window:
    """Neighbouring words of a sentence that a model reads at once.

    Args:
        sentence: index of the sentence.
        start: index of the window's first word in it.
        ids: wordpieces with special tokens.
        firsts: position in ``ids`` of each word's first wordpiece.
    """

    sentence: int
    start: int
    ids: tuple[int, ...]
    firsts: tuple[int, ...]

    def labels(self, tags: Sequence[int]) -> list[int]:
        """Returns the labels of ``ids``: a word's tag on its first wordpiece, -100 elsewhere.

        Args:
            tags: the tags of the whole sentence, as numbers.
        """
        labels = [IGNORED] * len(self.ids)
        for offset, position in enumerate(self.firsts):
            labels[position] = tags[self.start + offset]
        return labels


class WordPieces:
    """Cuts sentences into windows; each word is cut into wordpieces by itself.

    A word of no piece, or of more than a window holds, becomes the unknown token, as in XTREME.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: most wordpieces of a window, special tokens included.

    Raises:
        ValueError: a window has no room for a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[str, list[int]] = {}
        unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.mask_token_id
        if unknown is None:
            raise ValueError("expected a tokenizer with an unknown or a mask token, got one with neither; use another")
        self._unknown = [unknown]
        bare = self._ids(["a"], special=False)[0] or self._unknown
        whole = self._ids(["a"], special=True)[0]
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 1)
        self._before, self._after = whole[:at], whole[at + len(bare) :]
        self._room = max_length - len(self._before) - len(self._after)
        if self._room < 1:
            raise ValueError(
                f"expected a max_length over the {len(self._before) + len(self._after)} special tokens, got "
                f"{max_length}; raise it"
            )

    def windows(self, sentences: Sequence[Sequence[str]]) -> list[Window]:
        """Returns the windows of sentences (each its words), every word in exactly one, filled from the left."""
        self._learn(word for words in sentences for word in words)
        windows = []
        for index, words in enumerate(sentences):
            start, ids, firsts = 0, list(self._before), list[int]()
            for number, word in enumerate(words):
                pieces = self._pieces[word]
                if len(ids) - len(self._before) + len(pieces) > self._room:
                    windows.append(Window(index, start, (*ids, *self._after), tuple(firsts)))
                    start, ids, firsts = number, list(self._before), []
                firsts.append(len(ids))
                ids += pieces
            if firsts:
                windows.append(Window(index, start, (*ids, *self._after), tuple(firsts)))
        return windows

    def _learn(self, words: Iterable[str]) -> None:
        new = sorted(set(words) - self._pieces.keys())
        if new:
            for word, pieces in zip(new, self._ids(new, special=False), strict=True):
                self._pieces[word] = pieces if 0 < len(pieces) <= self._room else self._unknown

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        # Without verbose=False a word longer than the model's window would be warned of, which cannot happen below.
        return self._tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]  # type: ignore[return-value]


def join(windows: Sequence[Window], predicted: np.ndarray, lengths: Sequence[int]) -> list[list[int]]:
    """Returns the tag of every word of every sentence.

    Args:
        windows: as cut, in any order.
        predicted: the tag at every wordpiece, (windows, length) integers; what stands after a window's end is not read.
        lengths: number of words of each sentence.
    """
    tags = [[IGNORED] * length for length in lengths]
    for window, row in zip(windows, predicted, strict=True):
        for offset, position in enumerate(window.firsts):
            tags[window.sentence][window.start + offset] = int(row[position])
    return tags
