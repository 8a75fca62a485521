"""Words of a text before tokenization: where they are, which are stop words, which occur once."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

from ...shared.languages import primary
from .sentences import Span

# Written without spaces between words: each character counts as a word of its own.
UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue", "wuu"})


@cache
def is_unspaced(language: str) -> bool:
    """Tells whether a language is written without spaces between words."""
    return primary(language) in UNSPACED


def word_spans(text: str, language: str) -> list[Span]:
    """Returns the character spans (start, end), end exclusive, of the words of a text, in order.

    Words are runs of letters, combining marks and digits; apostrophes and hyphens split them. In languages written
    without spaces every character is a word, but runs of Latin letters and digits stay together.

    Example:
        >>> text = "L'eau, c'est bon."
        >>> [text[start:end] for start, end in word_spans(text, "fr")]
        ['L', 'eau', 'c', 'est', 'bon']
        >>> [("我有2只狗ok"[start:end]) for start, end in word_spans("我有2只狗ok", "zh")]
        ['我', '有', '2', '只', '狗', 'ok']
    """
    return [match.span() for match in _word_pattern(is_unspaced(language)).finditer(text)]


@cache
def stop_words(language: str) -> frozenset[str]:
    """Returns the stop words of a language, case folded, from the stopwords-iso lists; empty if there is no list.

    Example:
        >>> "the" in stop_words("en"), stop_words("xx")
        (True, frozenset())
    """
    import stopwordsiso

    code = primary(language)
    if not stopwordsiso.has_lang(code):
        return frozenset()
    return frozenset(word.casefold() for word in stopwordsiso.stopwords(code))


@lru_cache(maxsize=1 << 16)
def is_stop_word(word: str, language: str) -> bool:
    """Tells whether a word is on its language's list, or consists only of such words.

    Example:
        >>> [is_stop_word(word, "en") for word in ("The", "house", "of the", "the house")]
        [True, False, True, False]
    """
    listed = stop_words(language)
    folded = word.casefold()
    if folded in listed:
        return True
    spans = word_spans(folded, language)
    # Unspaced languages list single characters that also occur in longer words: there only the whole word counts.
    return len(spans) > 1 and not is_unspaced(language) and all(folded[start:end] in listed for start, end in spans)


def occurs_once(text: str, span: Span, language: str) -> bool:
    """Tells whether the word at a span occurs nowhere else in the text, ignoring case.

    Only whole words count elsewhere; in languages written without spaces every occurrence counts.

    Example:
        >>> occurs_once("A dog and a hot dog", (2, 5), "en"), occurs_once("A dog and a dogma", (2, 5), "en")
        (False, True)
        >>> occurs_once("上午和晚上", (0, 1), "zh")
        False
    """
    word, folded = text[span[0] : span[1]].casefold(), text.casefold()
    if folded.count(word) == 1:
        return True
    if is_unspaced(language):
        return False
    return sum(1 for _ in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", folded)) <= 1


@cache
def _word_pattern(unspaced: bool) -> re.Pattern[str]:
    # Python's \w excludes combining marks, which would split words of Hindi, Thai and vocalised Arabic or Hebrew.
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc"))
    if unspaced:
        return re.compile(rf"[0-9A-Za-z\u00c0-\u024f]+|[^\W_][{marks}]*")
    return re.compile(rf"(?:[^\W_]|[{marks}])+")
