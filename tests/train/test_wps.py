"""Word positioned samples: which word pairs are kept, that their spans are the words, and that a build is sound."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from transformers import PreTrainedTokenizerBase

from ctloss.shared.text import aligned_files
from ctloss.train.samples import wps
from ctloss.train.samples.wps import WPSCounts, build_wps, wordpiece_span
from ctloss.train.text.alignment import GoldWords
from ctloss.train.text.corpus import read_embedded, read_lines, read_tsv
from ctloss.train.text.lexicon import Lexicon, find_lexicon_lines
from ctloss.train.text.sentences import ParallelSentence
from ctloss.train.text.words import is_stop_word, word_spans
from support.tiny_text import ENGLISH_FRENCH, LEXICON, parallel, wordpiece_tokenizer

FRENCH = Lexicon.from_entries("en", "fr", LEXICON)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return wordpiece_tokenizer([text for pair in ENGLISH_FRENCH for text in pair])


def build(
    folder: Path, tokenizer: PreTrainedTokenizerBase, corpus: list, words: Any = FRENCH, **options: Any
) -> WPSCounts:
    return build_wps(corpus, tokenizer, words, folder=folder, progress=False, **options)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = wps.read_table(folder).to_pylist()
    return rows


def fingerprint(folder: Path) -> str:
    return str(json.loads((folder / wps.MANIFEST_NAME).read_text())["fingerprint"])


def test_words_are_kept_where_unique_and_no_stop_word(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    counts = build(tmp_path, tokenizer, parallel(ENGLISH_FRENCH))
    words = [list(zip(row["source_words"], row["target_words"], strict=True)) for row in read_rows(tmp_path)]
    assert words == [
        [("red", "rouge"), ("house", "maison")],
        [("black", "noir"), ("dog", "chien")],
        [],
        [("teacher", "professeur"), ("letter", "lettre")],
        [("garden", "jardin"), ("river", "rivière")],
    ]
    assert (counts.sentences, counts.rows, counts.rows_with_words, counts.word_pairs) == (5, 5, 4, 8)
    assert counts.languages == {"en-fr": {"rows": 5, "rows_with_words": 4, "word_pairs": 8}}
    # "The" ↔ "La" in the first row; the fourth has "la" but "the" only; the fifth "The"/"the" with one "la".
    assert counts.skipped_words == {"stop word": 4, "not unique": 4, "ambiguous": 0, "span not verified": 0}
    assert "5 of 5 sentence pairs kept" in str(counts)


def test_spans_decode_to_their_words(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    build(tmp_path, tokenizer, parallel(ENGLISH_FRENCH))
    for row in read_rows(tmp_path):
        words = zip(row["word_pairs"], row["source_words"], row["target_words"], strict=True)
        for (s0, s1, t0, t1), source, target in words:
            assert tokenizer.decode(row["source_ids"][s0:s1]) == source
            assert tokenizer.decode(row["target_ids"][t0:t1]) == target


def test_skipped_sentences_are_counted_by_reason(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = parallel([("The red house", "La maison rouge"), ("", "Un chien"), ("the  RED house ", "la maison rouge")])
    corpus += parallel([("A dog " * 40, "Un chien"), ("A dog", "Un chien " * 40)])
    counts = build(tmp_path, tokenizer, corpus, max_length=20)
    assert counts.skipped_sentences == {"empty": 1, "duplicate": 1, "too long": 2}
    assert counts.rows == 1


def test_max_length_counts_the_special_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = parallel(ENGLISH_FRENCH)
    longest = max(len(ids) for pair in ENGLISH_FRENCH for ids in tokenizer(list(pair))["input_ids"])
    assert build(tmp_path / "all", tokenizer, corpus, max_length=longest).rows == 5
    assert build(tmp_path / "fewer", tokenizer, corpus, max_length=longest - 1).rows < 5


def test_ambiguous_words_are_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    lexicon = Lexicon.from_entries("en", "fr", [("house", "maison"), ("house", "jardin"), ("dog", "chien")])
    corpus = parallel([("The house and the dog", "La maison, le jardin et le chien")])
    counts = build(tmp_path, tokenizer, corpus, lexicon)
    assert counts.skipped_words["ambiguous"] == 2
    assert counts.word_pairs == 1


def test_words_not_covered_by_wordpieces_are_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    sentence = ParallelSentence("The red house", "La maison 狗", "en", "fr", (((9, 12), (3, 9)), ((4, 7), (10, 11))))
    counts = build(tmp_path, tokenizer, [sentence], GoldWords())
    assert counts.skipped_words["span not verified"] == 2, "half a wordpiece, and an unknown one"
    assert counts.rows == 1


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


def test_an_equal_build_is_reused_and_any_change_rebuilds(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = parallel(ENGLISH_FRENCH)
    first = build(tmp_path, tokenizer, corpus)
    stamp = (tmp_path / wps.ARROW_NAME).stat().st_mtime_ns
    assert build(tmp_path, tokenizer, iter(corpus)) == first
    assert (tmp_path / wps.ARROW_NAME).stat().st_mtime_ns == stamp
    changes: list[dict[str, Any]] = [
        {"corpus": corpus[1:]},
        {"words": Lexicon.from_entries("en", "fr", LEXICON[1:])},
        {"tokenizer": wordpiece_tokenizer(["a b c"], vocabulary=20)},
        {"max_length": 100},
    ]
    for change in changes:
        before = fingerprint(tmp_path)
        build(**({"folder": tmp_path, "tokenizer": tokenizer, "corpus": corpus} | change))
        assert fingerprint(tmp_path) != before


def test_how_sentences_were_truncated_and_padded_last_is_no_change(tmp_path: Path) -> None:
    """Tokenizers save how they truncated and padded last, and a build changes it; a resumed run must not rebuild."""
    tokenizer = wordpiece_tokenizer([f"{s} {t}" for s, t in ENGLISH_FRENCH])
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding()
    states, prints = set(), set()
    for name in ("train", "validation"):
        states.add(tokenizer.backend_tokenizer.to_str())
        counts = build(tmp_path / name, tokenizer, parallel(ENGLISH_FRENCH))
        prints.add(fingerprint(tmp_path / name))
    assert len(states) == 2
    assert len(prints) == 1
    assert counts.rows == len(ENGLISH_FRENCH)


def test_an_interrupted_build_leaves_nothing_that_counts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, tokenizer, parallel(ENGLISH_FRENCH[:2]))
    (tmp_path / f"{wps.ARROW_NAME}.partial").write_bytes(b"left by a killed process")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, tokenizer, parallel(ENGLISH_FRENCH))
    assert wps.read_manifest(tmp_path) is None
    assert build(tmp_path, tokenizer, parallel(ENGLISH_FRENCH)).rows == 5


def test_refusals(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="expected a fast tokenizer"):
        build(tmp_path, object(), parallel(ENGLISH_FRENCH))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected sentence pairs to train on, got none out of 1"):
        build(tmp_path, tokenizer, parallel([("", "chien")]))
    with pytest.raises(ValueError, match=r"expected max_length of at least 3 .*, got 2"):
        build(tmp_path, tokenizer, parallel(ENGLISH_FRENCH), max_length=2)


def test_embedded_gold_words_have_spans_in_every_language(tmp_path: Path) -> None:
    corpus = list(read_embedded("validation"))
    tokenizer = wordpiece_tokenizer((text for s in corpus for text in (s.source, s.target)), vocabulary=3000)
    counts = build(tmp_path, tokenizer, corpus, GoldWords())
    assert counts.rows == len(corpus)
    assert counts.skipped_words["span not verified"] == 0
    for name, language in counts.languages.items():
        assert language["rows_with_words"] > 0.9 * language["rows"], name


@pytest.mark.data
@pytest.mark.skipif("CTLOSS_DATA" not in os.environ, reason="CTLOSS_DATA names no folder of real parallel text")
def test_real_sentences_with_the_lexicon(tmp_path: Path) -> None:
    data = Path(os.environ["CTLOSS_DATA"])
    lexicon = Lexicon.read_lines(find_lexicon_lines(data / "lexicon"))
    corpus = [
        sentence
        for language in ("ar", "es", "fr", "ru", "zh")
        for sentence in islice(read_tsv(data / "tatoeba-train" / f"en-{language}.tsv", "en", language), 1500)
    ]
    tokenizer = wordpiece_tokenizer((text for s in corpus for text in (s.source, s.target)), vocabulary=8000)
    counts = build(tmp_path, tokenizer, corpus, lexicon)
    assert counts.rows > 7000
    for name, language in counts.languages.items():
        assert language["rows_with_words"] > 0.08 * language["rows"], name
    for row in read_rows(tmp_path):
        for side in ("source", "target"):
            text = row[side].casefold()
            for word in row[f"{side}_words"]:
                assert word in text
                assert not is_stop_word(word, row[f"{side}_language"])


@pytest.mark.data
@pytest.mark.skipif("CTLOSS_DATA" not in os.environ, reason="CTLOSS_DATA names no folder of real parallel text")
def test_real_line_aligned_files() -> None:
    files = aligned_files(Path(os.environ["CTLOSS_DATA"]) / "multi30k" / "val")
    sentences = list(read_lines(files))
    assert len(sentences) == 1014 * (len(files) - 1)
    assert all(sentence.source and sentence.target for sentence in sentences)
