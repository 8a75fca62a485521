"""The wordpieces of sentences, and where a word is among them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Protocol

from ..text.sentences import Span
from ..text.tokenizer import splits_at_spaces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of a word: the ids of its wordpieces, and first and last character of each, one after the other.
Word = tuple[tuple[int, ...], tuple[int, ...]]
# Some 60 MB.
REMEMBERED = 1 << 17


class Wordpieces(Protocol):
    """What is asked of the wordpieces of a text; an Encoding of the tokenizers library answers it."""

    @property
    def ids(self) -> list[int]:
        """With special tokens."""

    def char_to_token(self, position: int) -> int | None:
        """The first wordpiece that holds a character of the text."""

    def token_to_chars(self, number: int) -> Span | None:
        """The characters of the text that a wordpiece stands for."""


class WordByWord:
    """Encodes texts as a tokenizer does, but each distinct word only once, if it treats words apart from one another.

    Most words of a text have been seen before, and looking them up costs a fraction of a tokenizer's work. Where spaces
    do not part what the tokenizer does, it encodes whole texts.

    Args:
        tokenizer: without truncation and padding.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._apart = splits_at_spaces(tokenizer)
        self._known: dict[str, Word] = {}
        if self._apart:
            whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
            before = whole.special_tokens_mask.index(0)
            self._before, self._after = whole.ids[:before], whole.ids[before + len(bare) :]

    def __call__(self, texts: Sequence[str]) -> Sequence[Wordpieces]:
        """Returns the wordpieces of each text."""
        if not self._apart:
            return self._tokenizer.encode_batch(texts)
        parted = [text.split(" ") for text in texts]
        new = {word for words in parted for word in words if word not in self._known}
        if len(self._known) + len(new) > REMEMBERED:
            self._known = {}
            new = {word for words in parted for word in words}
        found = list(new)
        for word, encoding in zip(found, self._tokenizer.encode_batch(found, add_special_tokens=False), strict=True):
            # Tuples of numbers, unlike lists, cost the garbage collector nothing.
            self._known[word] = (tuple(encoding.ids), tuple(chain.from_iterable(encoding.offsets)))
        known = self._known
        return [_Text([known[word] for word in words], words, self._before, self._after) for words in parted]


class _Text:
    """The wordpieces of a text, put together from those of its words; positions are worked out when asked for."""

    def __init__(self, found: list[Word], words: list[str], before: list[int], after: list[int]) -> None:
        self._found, self._words, self._special = found, words, len(before)
        self.ids = [*before]
        for ids, _ in found:
            self.ids += ids
        self.ids += after

    def __len__(self) -> int:
        return len(self.ids)

    def char_to_token(self, position: int) -> int | None:
        number = bisect_right(self._starts, position) - 1
        inside = position - self._starts[number]
        offsets = self._found[number][1]
        for piece in range(0, len(offsets), 2):
            if offsets[piece] <= inside < offsets[piece + 1]:
                return self._first[number] + piece // 2
        return None

    def token_to_chars(self, number: int) -> Span | None:
        word = bisect_right(self._first, number) - 1
        piece = number - self._first[word] if word >= 0 else -1
        if not 0 <= piece < len(self._found[word][0]):
            return None
        start, end = self._found[word][1][2 * piece : 2 * piece + 2]
        return self._starts[word] + start, self._starts[word] + end

    @cached_property
    def _starts(self) -> list[int]:
        """The first character of each word."""
        return list(accumulate((len(word) + 1 for word in self._words[:-1]), initial=0))

    @cached_property
    def _first(self) -> list[int]:
        """The number of each word's first wordpiece."""
        return list(accumulate((len(ids) for ids, _ in self._found[:-1]), initial=self._special))


def wordpiece_span(encoding: Wordpieces, text: str, word: Span, unknown_id: int | None = None) -> Span | None:
    """Returns the run of wordpieces that covers a word exactly: (start, end) in ``encoding.ids``, end exclusive.

    None if no run of wordpieces covers exactly the characters of the word (a wordpiece extends beyond it, characters
    are missing) or one of them is unknown.

    Args:
        encoding: the tokenizer's encoding of ``text``, special tokens included.
        text: the encoded text.
        word: the word's character span in ``text``, end exclusive.
        unknown_id: id of the unknown wordpiece.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "hot": 1, "dog": 2, "##s": 3}, unk_token="[UNK]"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        >>> wordpiece_span(tokenizer.encode("hot dogs"), "hot dogs", (4, 8))
        (1, 3)
        >>> wordpiece_span(tokenizer.encode("hot dogs"), "hot dogs", (4, 7))  # "dog" is a wordpiece
        (1, 2)
        >>> wordpiece_span(tokenizer.encode("hot dogs"), "hot dogs", (4, 6)) is None  # "do" is not
        True
    """
    start, end = word
    if not 0 <= start < end <= len(text):
        return None
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None or first > last:
        return None
    before, after = encoding.token_to_chars(first), encoding.token_to_chars(last)
    if before is None or after is None:
        return None
    # Some tokenizers include the space before a word in its first wordpiece.
    if text[before[0] : after[1]].strip() != text[start:end]:
        return None
    if unknown_id is not None and unknown_id in encoding.ids[first : last + 1]:
        return None
    return first, last + 1
