"""Windows over texts that are too long to be read beside a question at once, and the answers found in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.finetune import Features

# Questions tokenized at a time.
CHUNK = 2000


@dataclass(frozen=True)
class Window:
    """A question with a part of its text, as a model reads them.

    Args:
        row: index of the question.
        features: ids, mask and perhaps types, each (length,).
        offsets: the characters of the text from and to which each wordpiece reaches, (length, 2).
        inside: which wordpieces are of the text, (length,).
        own: for which of them no other window has more context around, (length,).
        first, last: whether the text begins and whether it ends here.
    """

    row: int
    features: Features
    offsets: np.ndarray
    inside: np.ndarray
    own: np.ndarray
    first: bool
    last: bool

    def places(self, start: int, end: int) -> tuple[int, int] | None:
        """Returns the first and the last wordpiece of a part of the text; None unless all of it is in this window."""
        reached = np.flatnonzero(self.inside & (self.offsets[:, 1] > start) & (self.offsets[:, 0] < end))
        if not len(reached):
            return None
        low, high = int(reached[0]), int(reached[-1])
        edges = np.flatnonzero(self.inside)
        begun_before = low == edges[0] and self.offsets[low, 0] > start and not self.first
        goes_on = high == edges[-1] and self.offsets[high, 1] < end and not self.last
        return None if begun_before or goes_on else (low, high)


class Windows:
    """Splits texts into windows that start ``doc_stride`` wordpieces after each other, as in BERT's script for SQuAD.

    Raises:
        ValueError: with the question and special tokens, a window has no room for the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int, max_question_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._doc_stride = doc_stride
        self._special = tokenizer.num_special_tokens_to_add(pair=True)
        room = max_length - self._special
        if room < 2:
            raise ValueError(
                f"expected a max_length of at least {self._special + 2}, the special tokens and a wordpiece each of "
                f"question and text, got {max_length}; raise it"
            )
        self._longest_question = min(max_question_length, room // 2)

    def of(self, rows: Sequence[Question]) -> Iterator[Window]:
        """Yields the windows of questions, those of one question in the order of its text."""
        from tqdm import tqdm

        for start in tqdm(range(0, len(rows), CHUNK), desc="tokenizing", disable=len(rows) <= CHUNK):
            chunk = rows[start : start + CHUNK]
            questions, lengths = self._cut([row.question for row in chunk])
            alike: dict[int, list[int]] = defaultdict(list)
            for index, length in enumerate(lengths):
                alike[length].append(index)
            for length, members in alike.items():
                texts = [(questions[index], chunk[index].context) for index in members]
                for place, window in self._split(texts, length):
                    yield self._window(start + members[place], window)

    def _cut(self, questions: Sequence[str]) -> tuple[list[str], list[int]]:
        """Returns questions cut to the longest allowed, and their lengths in wordpieces."""

        def read(texts: list[str]) -> Any:
            return self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)

        whole = read([*questions])
        cut = [
            text if len(ids) <= self._longest_question else text[: offsets[self._longest_question - 1][1]]
            for text, ids, offsets in zip(questions, whole["input_ids"], whole["offset_mapping"], strict=True)
        ]
        # What is left of a question may be split in another way.
        return cut, [len(ids) for ids in read(cut)["input_ids"]]

    def _split(self, texts: Sequence[tuple[str, str]], length: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields each window of (question, text) and the pair's index, for questions of ``length`` wordpieces."""
        room = self._max_length - self._special - length
        step = min(self._doc_stride, room)
        read: Any = self._tokenizer(
            [question for question, _ in texts],
            [text for _, text in texts],
            truncation="only_second",
            max_length=self._max_length,
            stride=room - step,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        pairs = read.pop("overflow_to_sample_mapping")
        offsets = read.pop("offset_mapping")
        parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for index, pair in enumerate(pairs):
            inside = np.array([side == 1 for side in read.sequence_ids(index)])
            features = {name: np.array(values[index], dtype=np.int64) for name, values in read.items()}
            found = {"features": features, "offsets": np.array(offsets[index], dtype=np.int32), "inside": inside}
            parts[pair].append(found)
        for pair, windows in parts.items():
            owned = own_pieces([int(window["inside"].sum()) for window in windows], step)
            for number, (window, own) in enumerate(zip(windows, owned, strict=True)):
                mask = np.zeros_like(window["inside"])
                mask[window["inside"]] = own
                yield pair, {**window, "own": mask, "first": number == 0, "last": number == len(windows) - 1}

    def _window(self, row: int, found: dict[str, Any]) -> Window:
        return Window(row, **found)


def own_pieces(lengths: Sequence[int], step: int) -> list[np.ndarray]:
    """Returns for each window of a text which of its wordpieces have the most context in it, as BERT's script does.

    That is the smaller of the numbers of wordpieces before and after it; where windows are equal, that of the longer
    one (a hundredth of its length counts too), then the earlier one. An answer starts only where this holds, so that
    it is never found in a window that shows less around it than another.

    Args:
        lengths: of the windows, in wordpieces of the text.
        step: from the start of one window to that of the next.

    Example:
        >>> [own.astype(int).tolist() for own in own_pieces([4, 4], 2)]
        [[1, 1, 1, 0], [0, 1, 1, 1]]
    """
    total = (len(lengths) - 1) * step + lengths[-1]
    best, owner = np.full(total, -np.inf), np.zeros(total, dtype=np.int64)
    for number, length in enumerate(lengths):
        places = np.arange(length)
        context = np.minimum(places, length - 1 - places) + 0.01 * length
        span = slice(number * step, number * step + length)
        better = context > best[span]
        best[span][better] = context[better]
        owner[span][better] = number
    return [owner[number * step : number * step + length] == number for number, length in enumerate(lengths)]


def best_answers(
    windows: Sequence[Window],
    starts: np.ndarray,
    ends: np.ndarray,
    rows: Sequence[Question],
    *,
    n_best: int,
    max_answer_length: int,
) -> list[str]:
    """Returns the likeliest answer to each question: the span with the largest sum of two logits over its windows.

    A span starts at one of a window's ``n_best`` likeliest starts and ends at one of its ``n_best`` likeliest ends,
    both of the text, and has at most ``max_answer_length`` wordpieces. Without such a span the answer is empty.

    Args:
        windows: of all questions, in any order.
        starts, ends: logits, (windows, length); those after a window's end are ignored.
    """
    answers, highest = [""] * len(rows), [-np.inf] * len(rows)
    for window, start, end in zip(windows, starts, ends, strict=True):
        length = len(window.inside)
        low, high = likeliest(start[:length], n_best), likeliest(end[:length], n_best)
        low, high = low[window.own[low]], high[window.inside[high]]
        if not (len(low) and len(high)):
            continue
        sums = start[low][:, None].astype(np.float64) + end[high][None, :]
        span = high[None, :] - low[:, None]
        sums[(span < 0) | (span >= max_answer_length)] = -np.inf
        first, last = np.unravel_index(int(sums.argmax()), sums.shape)
        if sums[first, last] > highest[window.row]:
            highest[window.row] = float(sums[first, last])
            begin, stop = window.offsets[low[first], 0], window.offsets[high[last], 1]
            answers[window.row] = rows[window.row].context[begin:stop].strip()
    return answers


def likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """Returns the places of the ``count`` largest, the largest first; of equal ones, the earlier first."""
    return np.argsort(-logits, kind="stable")[:count]
