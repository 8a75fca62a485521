"""Where a word is among the wordpieces of its sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..text.sentences import Span

if TYPE_CHECKING:
    from tokenizers import Encoding


def wordpiece_span(encoding: Encoding, text: str, word: Span, unknown_id: int | None = None) -> Span | None:
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
