"""The two kinds of stop word lists: what they hold, and what counts as a stop word."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("stopwordsiso")

from ctloss.train.text import words
from ctloss.train.text.words import StopWords, is_stop_word, stop_words

SHORT = [
    *("ar", "cs", "da", "de", "en", "es", "fi", "fr", "hi", "id", "it"),
    *("ja", "ko", "nl", "pl", "pt", "ru", "sv", "tr", "vi", "zh"),
]
# Words with a meaning, several of which stopwords-iso lists.
CONTENT = {
    "en": "man woman world problem room work time day year house people life name year thing good new see go like",
    "de": "mann frau welt problem zimmer arbeit zeit tag jahr haus leben gut neu gehen",
    "fr": "homme femme monde problème chambre travail temps jour année maison été personne bien or",
    "es": "hombre mujer mundo problema casa trabajo tiempo día año vida estado bueno",
    "it": "uomo donna mondo problema casa lavoro tempo giorno anno vita stato",
    "pt": "homem mulher mundo problema casa trabalho tempo dia ano vida estado segundo",
    "ru": "человек мир дом работа время день год жизнь мужчина женщина",
    "zh": "人 世界 工作 家 房间 问题 时间 年 大 小 看",
    "ja": "人 世界 仕事 家 部屋 問題 時間 年 犬",
    "ar": "رجل عالم بيت عمل يوم سنة مشكلة",
    "hi": "आदमी दुनिया घर काम दिन साल समस्या",
    "sv": "man kvinna värld hus arbete dag år",
    "vi": "người nhà việc ngày năm đi con",
}
FUNCTION = {
    "ar": "في من هذا",
    "cs": "a my by který",
    "da": "et og vi skulle",
    "de": "der und nicht würde",
    "en": "The of and she would",
    "es": "la y nosotros había",
    "fi": "ja minä olisi",
    "fr": "le et nous était",
    "hi": "और हम है",
    "id": "dan saya yang",
    "it": "il e noi aveva",
    "ja": "は 私 です",
    "ko": "나는 그리고 있다",
    "nl": "het en wij zou",
    "pl": "i my by który",
    "pt": "o e nós havia",
    "ru": "и мы бы который",
    "sv": "ett och vi skulle",
    "tr": "ve biz için",
    "vi": "và tôi của",
    "zh": "的 我们 因为",
}


def test_every_short_list_is_there() -> None:
    for language in SHORT:
        assert 100 < len(stop_words(language)) < 450, language


@pytest.mark.parametrize("language", SHORT)
def test_short_lists_hold_function_words_and_no_content_words(language: str) -> None:
    assert all(is_stop_word(word, language) for word in FUNCTION[language].split())
    assert not [word for word in CONTENT.get(language, "").split() if is_stop_word(word, language)]


@pytest.mark.parametrize("language", SHORT)
def test_short_lists_are_words_as_texts_hold_them(language: str) -> None:
    path = Path(words.__file__).with_name("stop_words") / f"{language}.txt"
    for line in path.read_text(encoding="utf-8").splitlines():
        assert len(line) <= 160
        listed = [] if line.startswith("#") else line.split(" ")
        assert [word.lower() for word in listed] == listed
        assert not [word for word in listed if not is_stop_word(word, language)]


@pytest.mark.parametrize("kind", ["short", "iso"])
def test_codes_of_one_language_share_its_list(kind: StopWords) -> None:
    assert stop_words("eng_Latn", kind) == stop_words("en", kind) != frozenset()
    assert stop_words("deu", kind) == stop_words("de-AT", kind) != frozenset()
    assert stop_words("zho_Hans", kind) == stop_words("zh", kind) != frozenset()
    assert stop_words("xx", kind) == stop_words("", kind) == stop_words("../words", kind) == frozenset()


def test_the_kinds_differ() -> None:
    assert is_stop_word("world", "en", "iso")
    assert not is_stop_word("world", "en", "short")
    assert all(stop_words(language, "iso") for language in SHORT)


@pytest.mark.parametrize(
    ("word", "language", "expected"),
    [
        ("of the", "en", True),
        ("the house", "en", False),
        ("Don't", "en", True),
        ("QUELQU’UN", "fr", True),
        ("кто-то", "ru", True),
        ("dass", "de", True),
        ("DASS", "de", True),
        ("我们", "zh", True),
        ("的我", "zh", False),
        ("", "en", False),
        ("❤", "en", False),
    ],
)
def test_words_of_stop_words_only_are_stop_words(word: str, language: str, expected: bool) -> None:
    assert is_stop_word(word, language) is expected
