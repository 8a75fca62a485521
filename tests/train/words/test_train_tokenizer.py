"""The tokenizers of training: scripts without spaces, long words, streams of text, and what is saved with them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from ctloss.train.text import tokenizer as module
from ctloss.train.text.tokenizer import definition, read_tokenizer, train_wordpiece
from ctloss.train.text.words import word_spans
from support.tiny_text import ODD_TEXT

UNSPACED = {
    "tha": "เหลือเวลาอีกกี่ชั่วโมงกว่าจะเดินทางไปถึง",
    "khm": "ខ្ញុំនិយាយភាសាខ្មែរ",
    "mya": "ကျွန်တော်မြန်မာစကားပြောတယ်",
    "lao": "ຂ້ອຍເວົ້າພາສາລາວ",
    "jpn": "ひらがなだけでかいたぶんしょうカタカナモ",
    "zho": "我有两只狗",
}


def trained(texts: list[str] | Iterator[str], vocabulary: int = 400) -> PreTrainedTokenizerBase:
    return train_wordpiece(texts, vocabulary=vocabulary, lower_case=True, max_length=128)


@pytest.mark.parametrize("language", UNSPACED)
def test_a_sentence_without_spaces_is_its_characters(language: str) -> None:
    text = UNSPACED[language] * 20
    tokenizer = trained([text])
    encoding = tokenizer(text, add_special_tokens=False).encodings[0]
    assert tokenizer.unk_token_id not in encoding.ids
    words = [encoding.word_to_chars(word) for word in sorted({word for word in encoding.word_ids if word is not None})]
    assert words == word_spans(text, language)


@given(ODD_TEXT)
def test_any_text_has_wordpieces_inside_it(text: str) -> None:
    tokenizer = trained([text, "ab"])
    encoding = tokenizer(text, add_special_tokens=False).encodings[0]
    assert all(0 <= start < end <= len(text) for start, end in encoding.offsets)
    assert tokenizer.unk_token_id not in encoding.ids


def test_a_long_word_has_wordpieces_and_costs_its_length() -> None:
    text = "abcdefghij" * 20_000 + " ok"
    tokenizer = trained([text], vocabulary=60)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert len(ids) < len(text)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert max(len(piece) for piece, _ in pieces) == module.LONGEST_TRAINED


def test_texts_are_read_once_as_a_stream() -> None:
    """An iterator whose texts are never all there, and the same vocabulary as of the list."""
    texts = [f"{a} {b} 狗{a}" for a in ("red", "black", "small") for b in ("dog", "house", "river")]
    living: list[int] = []

    def stream() -> Iterator[str]:
        for number, text in enumerate(texts):
            living.append(number)
            yield text

    assert definition(trained(stream())) == definition(trained(texts))
    assert living == list(range(len(texts)))


def test_a_text_given_again_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the dog", "le chien", "the dog", "the dog"]
    words = trained(texts).get_vocab()
    assert words == trained(texts[:2]).get_vocab()
    monkeypatch.setattr(module, "SHOWN_WORDS", 2)
    assert trained(texts).get_vocab().keys() == words.keys()


def test_words_are_shown_as_often_as_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Counter({"the": 2500, "dog": 3})
    assert Counter(" ".join(module._shown(words)).split()) == words
    monkeypatch.setattr(module, "SHOWN_WORDS", 300)
    assert Counter(" ".join(module._shown(words)).split()) == {"the": 278, "dog": 1}


@settings(max_examples=15)
@given(st.integers(20, 200), st.integers(1, 100))
def test_the_vocabulary_is_never_larger_than_asked(vocabulary: int, characters: int) -> None:
    texts = [chr(0x4E00 + i) * (100 - i) + " " + chr(0xAC00 + i) * 2 for i in range(characters)]
    tokenizer = trained(texts, vocabulary)
    assert len(tokenizer) <= vocabulary
    assert tokenizer.unk_token_id not in tokenizer(texts[0])["input_ids"][1:2]


def test_a_trained_tokenizer_is_saved_as_it_is(tmp_path: Path) -> None:
    tokenizer = trained([*UNSPACED.values(), "the red house"])
    tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert definition(read) == definition(tokenizer)
    texts = [text * 10 for text in UNSPACED.values()]
    assert read(texts, texts)["input_ids"] == tokenizer(texts, texts)["input_ids"]
    assert read(texts)["token_type_ids"] == tokenizer(texts)["token_type_ids"]
    assert read.model_max_length == 128
    assert read.mask_token_id == tokenizer.mask_token_id


@pytest.mark.parametrize("lower_case", [False, True])
def test_given_wordpiece_tokenizers_take_long_words(tmp_path: Path, lower_case: bool) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ก", "##ก", "##า", "a"]
    own = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=False)
    own.save_pretrained(tmp_path / "own")
    text = "กา" * 75
    assert own.tokenize(text) == ["[UNK]"]
    given_ = read_tokenizer(str(tmp_path / "own"), lower_case=lower_case)
    assert given_.tokenize(text) == ["ก", "##า", *["##ก", "##า"] * 74]
    assert given_.tokenize("A") == (["a"] if lower_case else ["[UNK]"])
    assert given_.tokenize(text * 10) == ["[UNK]"]
    given_.save_pretrained(tmp_path / "saved")
    read = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert definition(read) == definition(given_)
    assert read(text)["input_ids"] == given_(text)["input_ids"]
    assert json.loads(definition(read))["model"]["max_input_chars_per_word"] == module.LONGEST_GIVEN


@pytest.mark.data
@pytest.mark.skipif("CTLOSS_DATA" not in os.environ, reason="CTLOSS_DATA names no folder of real text")
def test_mberts_vocabulary_takes_sentences_without_spaces(tmp_path: Path) -> None:
    data = Path(os.environ["CTLOSS_DATA"])
    pieces = (data / "mbert-vocab" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    own = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=False)
    own.save_pretrained(tmp_path)
    tokenizer = read_tokenizer(str(tmp_path), lower_case=False)
    for text in (UNSPACED["tha"] * 4, UNSPACED["jpn"] * 6, UNSPACED["mya"] * 6):
        assert own.tokenize(text) == ["[UNK]"]
        assert len(tokenizer.tokenize(text)) > len(text) // 3
