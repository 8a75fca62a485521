"""Wordpieces that cover exactly a word."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from tokenizers import Tokenizer
from transformers import BertTokenizer

from ctloss.train.prepared.pieces import WordByWord, wordpiece_span
from ctloss.train.text.tokenizer import splits_at_spaces
from ctloss.train.text.words import word_spans
from support.tiny_text import ODD_TEXT, wordpiece_tokenizer


@given(st.lists(st.sampled_from(["house", "rivière", "l'eau", "L’été", "狗", "(maison)", "…", "x-ray"]), min_size=1))
def test_every_span_covers_exactly_its_word(words: list[str]) -> None:
    tokenizer = wordpiece_tokenizer(["house rivière l'eau été maison x-ray"], vocabulary=60)
    text = " ".join(words)
    encoding = tokenizer(text).encodings[0]
    for start, end in word_spans(text, "fr"):
        span = wordpiece_span(encoding, text, (start, end), tokenizer.unk_token_id)
        if text[start:end] == "狗":
            assert span is None
        else:
            assert span is not None
            covered = [encoding.offsets[i] for i in range(*span)]
            assert (covered[0][0], covered[-1][1]) == (start, end)


@pytest.mark.parametrize("word", [(9, 11), (10, 15), (0, 16), (3, 5), (5, 5), (-1, 3)])
def test_halves_of_wordpieces_and_places_outside_have_no_span(word: tuple[int, int]) -> None:
    tokenizer = wordpiece_tokenizer(["the red house"] * 3, vocabulary=100)
    text = "The red  houses"
    assert wordpiece_span(tokenizer(text).encodings[0], text, word) is None


SMALL = wordpiece_tokenizer(
    ["the red house la maison rouge 红房子 บ้านสีแดง x-ray"] * 3, vocabulary=150
).backend_tokenizer
BERT = {
    lower_case: BertTokenizer(
        vocab={word: i for i, word in enumerate(SMALL.get_vocab())}, do_lower_case=lower_case
    ).backend_tokenizer
    for lower_case in (False, True)
}


@pytest.mark.parametrize("tokenizer", [SMALL, *BERT.values()], ids=["small", "BERT", "BERT, lower-casing"])
@given(data=st.data())
def test_texts_word_by_word_are_texts_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    word = st.one_of(
        st.sampled_from(["House", "rouge.", "红房子", "บ้านสีแดง", "[SEP]", "", "é", "e\u0301", "a" * 230]), ODD_TEXT
    )
    texts = data.draw(st.lists(st.lists(word, max_size=6).map(" ".join), min_size=1, max_size=4))
    encode = WordByWord(tokenizer)
    for text, found in zip(texts * 2, [*encode(texts), *encode(texts)], strict=True):
        whole = tokenizer.encode(text)
        assert found.ids == whole.ids
        assert [found.char_to_token(i) for i in range(len(text))] == [whole.char_to_token(i) for i in range(len(text))]
        pieces = [i for i, special in enumerate(whole.special_tokens_mask) if not special]
        assert [found.token_to_chars(i) for i in pieces] == [whole.token_to_chars(i) for i in pieces]


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "_"}},
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
    ],
    ids=["another splitter", "no splitter", "spaces that are replaced", "truncation"],
)
def test_a_tokenizer_that_sees_beyond_spaces_gets_whole_texts(change: dict[str, object]) -> None:
    definition = json.loads(BERT[False].to_str())
    tokenizer = Tokenizer.from_str(json.dumps(definition | change))
    assert not splits_at_spaces(tokenizer)
    text = "the red  house"
    assert WordByWord(tokenizer)([text])[0].ids == tokenizer.encode(text).ids


def test_words_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctloss.train.prepared.pieces.REMEMBERED", 2)
    encode = WordByWord(SMALL)
    for text in ("the red house", "la maison", "red maison rouge la the", "the"):
        assert encode([text])[0].ids == SMALL.encode(text).ids
