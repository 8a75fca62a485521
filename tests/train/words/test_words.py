"""Where words are, how they are folded, and which occur once: against loops over characters, on text of any kind."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from ctloss.train.text.words import fold, folded_words, is_unspaced, occurs_once, word_spans
from support.tiny_text import ODD_TEXT

LANGUAGES = ("en", "zho_Hans", "tha")
UNSPACED_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "HALFWIDTH KATAKANA", "IDEOGRAPHIC")


def is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc")


def is_single(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED_NAMES)


def plain_spans(text: str, language: str) -> list[tuple[int, int]]:
    """The rules of word_spans, one character at a time."""
    spans: list[tuple[int, int]] = []
    place = 0
    while place < len(text):
        if not text[place].isalnum():
            place += 1
            continue
        end = place + 1
        single = is_unspaced(language) and is_single(text[place])
        while end < len(text):
            rest = text[end:].lstrip("\u200c\u200d")
            if is_mark(text[end]):
                if is_unspaced(language) and not single and is_single(text[end]):
                    break
                end += 1
            elif not single and text[end].isalnum() and not (is_unspaced(language) and is_single(text[end])):
                end += 1
            elif (
                not is_unspaced(language)
                and len(rest) < len(text) - end
                and rest
                and (rest[0].isalnum() or is_mark(rest[0]))
            ):
                end = len(text) - len(rest)
            else:
                break
        spans.append((place, end))
        place = end
    return spans


@given(ODD_TEXT, st.sampled_from(LANGUAGES))
def test_words_are_what_a_loop_over_characters_finds(text: str, language: str) -> None:
    spans = word_spans(text, language)
    assert spans == plain_spans(text, language)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert folded_words(text, language) == [fold(text[start:end]) for start, end in spans]


def test_folding_moves_no_character_out_of_its_class() -> None:
    """What lets words be found in a folded text: letters become letters and marks, and the rest stays what it is."""
    moved = set()
    for character in map(chr, range(sys.maxunicode + 1)):
        folded = character.casefold()
        first, others = folded[0], folded[1:]
        if folded != character:
            kinds = [(c.isalnum(), is_mark(c), is_single(c)) for c in (character, first)]
            if kinds[0] != kinds[1] or not all((c.isalnum() or is_mark(c)) and not is_single(c) for c in others):
                moved.add(character)
    assert moved == {"\u0345"}


@pytest.mark.parametrize("text", ["\u0345a", "\u0345", "ᾳ\u0345 α", "cafe\u0301 \u0345"])
def test_the_mark_that_folds_to_a_letter_begins_no_word(text: str) -> None:
    assert folded_words(text, "el") == [fold(text[start:end]) for start, end in word_spans(text, "el")]


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("hi", "हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("fr", "don't l’eau", ["don", "t", "l", "eau"]),
        ("fa", "می\u200cخواهم بروم\u200c", ["می\u200cخواهم", "بروم"]),
        ("en", "\u0301a ❤\ufe0f b", ["a", "b"]),
        ("en", "狗狗 dog", ["狗狗", "dog"]),
        ("zho_Hans", "我有2只狗ok", ["我", "有", "2", "只", "狗", "ok"]),
        ("jpn_Jpan", "カーをПриветです", ["カ", "ー", "を", "Привет", "で", "す"]),
        ("tha", "กี่ชั่วโมง", ["กี่", "ชั่", "ว", "โ", "ม", "ง"]),
        ("ko", "한국어 책", ["한국어", "책"]),
        ("en", "", []),
    ],
)
def test_words_by_hand(language: str, text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in word_spans(text, language)] == words


@pytest.mark.parametrize(
    "code", ["zh", "zh-TW", "zho_Hans", "cmn", "jpn", "ja", "th", "tha", "lao", "khm", "mya", "nan_Hant"]
)
def test_unspaced_languages_under_any_code(code: str) -> None:
    assert is_unspaced(code)


@pytest.mark.parametrize("code", ["en", "eng_Latn", "ko", "vi", "hi", "ar", "", "xx"])
def test_spaced_languages(code: str) -> None:
    assert not is_unspaced(code)


def plain_occurrences(text: str, word: str, language: str) -> int:
    text, word = fold(text), fold(word)
    found = 0
    for start in range(len(text)):
        if text.startswith(word, start):
            around = [c for c in (text[:start][-1:], text[start + len(word) :][:1]) if c]
            inside = any(c.isalnum() or is_mark(c) or c in "\u200c\u200d" for c in around)
            found += is_unspaced(language) or not inside
    return found


@given(ODD_TEXT, st.sampled_from(LANGUAGES))
def test_a_word_occurs_once_if_no_other_place_holds_it(text: str, language: str) -> None:
    for start, end in word_spans(text, language):
        assert occurs_once(text, (start, end), language) == (plain_occurrences(text, text[start:end], language) <= 1)


@given(st.lists(st.sampled_from(["dog", "Dog", "dogs", "hot-dog", "cat", "."]), min_size=1, max_size=8))
def test_occurs_once_counts_whole_words(words: list[str]) -> None:
    text = " ".join(words)
    for span in word_spans(text, "en"):
        spelled = [text[slice(*other)].casefold() for other in word_spans(text, "en")]
        assert occurs_once(text, span, "en") == (spelled.count(text[slice(*span)].casefold()) == 1)


def test_a_word_that_overlaps_itself_occurs_twice() -> None:
    assert not occurs_once("哈哈哈", (0, 2), "zh")
    assert occurs_once("哈哈", (0, 2), "zh")
    assert not occurs_once("bye bye bye", (0, 7), "en")


@pytest.mark.parametrize(
    ("text", "language"), [("ह हि", "hi"), ("كت كِتاب", "ar"), ("می می\u200cخواهم", "fa"), ("a a\u0301b", "en")]
)
def test_marks_and_joiners_are_inside_words(text: str, language: str) -> None:
    [first, second] = word_spans(text, language)
    assert occurs_once(text, first, language)
    assert occurs_once(text, second, language)
