"""Wordpieces that cover exactly a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.train.prepared.spans import wordpiece_span
from ctloss.train.text.words import word_spans
from support.tiny_text import wordpiece_tokenizer


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
