"""Words of a text before tokenization: where they are, which are stop words, which occur once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from ...shared.languages import primary
from ...shared.text import nfc
from .sentences import Span

# Written without spaces between words: each character counts as a word of its own.
UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue", "wuu", "nan", "hak", "gan", "hsn", "lzh", "shn"})
# The same of a code that names its script (ISO 15924): nan_Hant, shn_Mymr.
_UNSPACED_SCRIPTS = frozenset({"hans", "hant", "hani", "jpan", "hira", "kana", "thai", "laoo", "khmr", "mymr"})
# Thai and Lao, Myanmar, Khmer, Tai Le to Khmer symbols, Tai Tham, kana and Han with their signs, more Myanmar,
# compatibility ideographs, half-width kana, and the kana and Han beyond the basic plane.
UNSPACED_CHARACTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u3005-\u3007\u3021-\u3029\u3031-\u3035"
    "\u303b-\u303c\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    "\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# Python's \w excludes combining marks, which would split words of Hindi, Thai and vocalised Arabic or Hebrew.
_MARKS = frozenset(c for c in map(chr, range(0x300, 0xE01F0)) if unicodedata.category(c) in ("Mn", "Mc"))
# Inside a word of Persian or Hindi they only say how its letters join.
_JOINERS = "\u200c\u200d"
_ASCII_WORD = re.compile("[0-9A-Za-z]+")

StopWords = Literal["short", "iso"]
_SHORT_LISTS = Path(__file__).with_name("stop_words")


@cache
def is_unspaced(language: str) -> bool:
    """Tells whether a language is written without spaces between words, by its code or the script in its code.

    Example:
        >>> [is_unspaced(code) for code in ("zho_Hans", "tha", "nan-Hant", "ko", "")]
        [True, True, True, False, False]
    """
    subtags = language.lower().replace("_", "-").split("-")[1:]
    return primary(language) in UNSPACED or not _UNSPACED_SCRIPTS.isdisjoint(subtags)


def word_spans(text: str, language: str) -> list[Span]:
    """Returns the character spans (start, end), end exclusive, of the words of a text, in order.

    Words are runs of letters, digits and the combining marks that follow them; apostrophes and hyphens split them. In
    languages written without spaces, a character of such a script is a word with its marks; runs of other scripts, such
    as Latin, stay together.

    Example:
        >>> text = "L'eau, c'est bon."
        >>> [text[start:end] for start, end in word_spans(text, "fr")]
        ['L', 'eau', 'c', 'est', 'bon']
        >>> [("我有2只狗ok"[start:end]) for start, end in word_spans("我有2只狗ok", "zh")]
        ['我', '有', '2', '只', '狗', 'ok']
    """
    return [match.span() for match in _pattern(text, language).finditer(text)]


def folded_words(text: str, language: str) -> list[str]:
    """Returns the words at :func:`word_spans`, each as :func:`fold` writes it.

    Example:
        >>> folded_words("Die Straße", "de")
        ['die', 'strasse']
    """
    pattern = _pattern(text, language)
    folded = text.casefold()
    # Letters fold to letters and marks, and marks to themselves, all but U+0345: words stay words.
    if unicodedata.is_normalized("NFC", folded) and "\u0345" not in text:
        return pattern.findall(folded)
    return [fold(word) for word in pattern.findall(text)]


def fold(text: str) -> str:
    """Returns a text in the form in which words are compared: case folded, NFC. Its length may differ."""
    return text.lower() if text.isascii() else nfc(text.casefold())


@cache
def stop_words(language: str, kind: StopWords = "short") -> frozenset[str]:
    """Returns the stop words of a language, folded; empty if there is no list.

    ``"short"`` are lists of our own: words that only hold a sentence together (articles, pronouns, prepositions,
    conjunctions, particles, auxiliaries, in all their forms), one file per language in ``stop_words/``; a word that is
    as often one with a meaning, such as French *or* (gold), is not. ``"iso"`` are the lists of stopwords-iso, which
    the recipe ``paper`` takes; they also hold words with a meaning, such as "man", "world" and "work".

    Example:
        >>> "the" in stop_words("en"), "world" in stop_words("en"), "world" in stop_words("en", "iso")
        (True, False, True)
        >>> stop_words("xx")
        frozenset()
    """
    return frozenset(fold(word) for word in _listed(primary(language), kind))


@lru_cache(maxsize=1 << 16)
def is_stop_word(word: str, language: str, kind: StopWords = "short") -> bool:
    """Tells whether a word is on its language's list, or consists only of such words.

    Example:
        >>> [is_stop_word(word, "en") for word in ("The", "house", "of the", "the house")]
        [True, False, True, False]
    """
    listed = stop_words(language, kind)
    if fold(word) in listed:
        return True
    # Unspaced languages list single characters that also occur in longer words: there only the whole word counts.
    parts = [] if is_unspaced(language) else folded_words(word, language)
    return len(parts) > 1 and listed.issuperset(parts)


def occurs_once(text: str, span: Span, language: str) -> bool:
    """Tells whether the word at a span occurs nowhere else in the text, ignoring case.

    Only whole words count elsewhere; in languages written without spaces every occurrence counts.

    Example:
        >>> occurs_once("A dog and a hot dog", (2, 5), "en"), occurs_once("A dog and a dogma", (2, 5), "en")
        (False, True)
        >>> occurs_once("上午和晚上", (0, 1), "zh")
        False
    """
    return is_once(fold(text), fold(text[span[0] : span[1]]), language)


def is_once(folded: str, word: str, language: str) -> bool:
    """Tells what :func:`occurs_once` tells, of a folded text and a folded word that occurs in it."""
    if not word:
        return True
    start, found, unspaced = folded.find(word), 0, is_unspaced(language)
    while start >= 0 and found < 2:
        end = start + len(word)
        found += unspaced or not (
            (start > 0 and _in_word(folded[start - 1])) or (end < len(folded) and _in_word(folded[end]))
        )
        start = folded.find(word, start + 1)
    return found < 2


def _in_word(character: str) -> bool:
    return character.isalnum() or character in _MARKS or character in _JOINERS


def _pattern(text: str, language: str) -> re.Pattern[str]:
    return _ASCII_WORD if text.isascii() else _word_pattern(is_unspaced(language))


@cache
def _word_pattern(unspaced: bool) -> re.Pattern[str]:
    marks = _ranges(_MARKS)
    if not unspaced:
        return re.compile(rf"[^\W_](?:[^\W_]+|[{marks}]+|[{_JOINERS}]+(?=[^\W_]|[{marks}]))*")
    single = UNSPACED_CHARACTERS
    return re.compile(rf"(?![{single}])[^\W_](?:(?![{single}])[^\W_]|(?![{single}])[{marks}])*|[^\W_][{marks}]*")


def _ranges(characters: Iterable[str]) -> str:
    """Returns characters as ranges of a regular expression's class."""
    ranges: list[tuple[int, int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


def _listed(code: str, kind: StopWords) -> Iterable[str]:
    if kind == "short":
        path = _SHORT_LISTS / f"{code}.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if code.isalnum() and path.is_file() else []
        return [word for line in lines if not line.startswith("#") for word in line.split()]
    import stopwordsiso

    return stopwordsiso.stopwords(code) if stopwordsiso.has_lang(code) else ()
