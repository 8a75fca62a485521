"""Readers of parallel text and alignments: what they give, and how they refuse."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from ctloss.shared.text import DataError, aligned_files
from ctloss.train.text.alignment import GoldWords, with_alignments
from ctloss.train.text.corpus import read_embedded, read_lines, read_tsv, take_split
from ctloss.train.text.embedded import SPLITS
from ctloss.train.text.sentences import ParallelSentence, text_key
from support.tiny_text import ENGLISH_FRENCH, parallel

WORD = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


def write(folder: Path, **contents: str | bytes) -> dict[str, Path]:
    paths = {}
    for language, content in contents.items():
        paths[language] = folder / f"corpus.{language}"
        paths[language].write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


def words_of(sentence: ParallelSentence, pairs: list) -> list[tuple[str, str]]:
    return [(sentence.source[slice(*a)], sentence.target[slice(*b)]) for a, b in pairs]


def test_line_aligned_files_pair_the_pivot_with_every_other_language(tmp_path: Path) -> None:
    write(tmp_path, en="One\nTwo\n", fr="Un\nDeux\n", de="Eins\r\nZwei")
    sentences = read_lines(aligned_files(tmp_path / "corpus"))
    assert list(sentences) == [
        ParallelSentence("One", "Eins", "en", "de"),
        ParallelSentence("Two", "Zwei", "en", "de"),
        ParallelSentence("One", "Un", "en", "fr"),
        ParallelSentence("Two", "Deux", "en", "fr"),
    ]
    assert list(sentences) == list(sentences)


def test_text_is_nfc_stripped_and_without_byte_order_mark(tmp_path: Path) -> None:
    files = write(tmp_path, en=b"\xef\xbb\xbf A dog \n", fr="  Cafe\u0301\u2028noir \n")
    [sentence] = read_lines(files)
    assert (sentence.source, sentence.target) == ("A dog", "Café\u2028noir")


def test_unequal_line_counts_name_file_and_line(tmp_path: Path) -> None:
    files = write(tmp_path, en="a\nb\n", fr="a\nb\nc")
    with pytest.raises(DataError, match=r"corpus\.en, line 3: expected 3 lines as in corpus\.fr, got 2"):
        read_lines(files)


@pytest.mark.parametrize("reader", ["lines", "tsv"])
def test_bad_utf8_names_file_and_line(tmp_path: Path, reader: str) -> None:
    bad = b"a\tb\nc\td\xff\n"
    files = write(tmp_path, en="a\nb\n", fr=bad)
    readers: dict[str, Callable[[], object]] = {
        "lines": lambda: list(read_lines(files)),
        "tsv": lambda: list(read_tsv(files["fr"], "en", "fr")),
    }
    with pytest.raises(DataError, match=r"corpus\.fr, line 2: expected UTF-8, got byte 0xff at position 3"):
        readers[reader]()


@pytest.mark.parametrize(("line", "columns"), [("a b", 1), ("a\tb\tc", 3), ("", 1)])
def test_malformed_tsv_line_names_file_and_line(tmp_path: Path, line: str, columns: int) -> None:
    files = write(tmp_path, fr=f"a\tb\n{line}\n")
    with pytest.raises(DataError, match=rf"corpus\.fr, line 2: expected two columns.*got {columns}"):
        list(read_tsv(files["fr"], "en", "fr"))


def test_missing_file_and_missing_pivot_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv: expected a readable text file"):
        list(read_tsv(tmp_path / "none.tsv", "en", "fr"))
    with pytest.raises(DataError, match=r"expected files of 'en' .*got languages \['de', 'fr'\]"):
        read_lines(write(tmp_path, de="a", fr="b"))


@given(st.lists(st.tuples(WORD, WORD), max_size=30), st.integers(0, 3))
def test_splits_partition_the_corpus_and_keep_a_sentence_together(pairs: list[tuple[str, str]], seed: int) -> None:
    corpus = parallel(pairs) + parallel(pairs, target="de")
    parts = {split: list(take_split(corpus, split, validation=0.2, test=0.2, seed=seed)) for split in SPLITS}
    assert sorted(map(repr, chain(*parts.values()))) == sorted(map(repr, corpus))
    keys = [{text_key(sentence.source) for sentence in part} for part in parts.values()]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_word_pairs_of_the_embedded_corpus_lie_in_its_texts() -> None:
    for sentence in read_embedded("validation", languages=["fr", "zh"]):
        assert sentence.source_language == "en"
        for source, target in words_of(sentence, GoldWords().word_pairs([sentence])[0]):
            for word in (source, target):
                assert len(word) == len(word.strip()) > 0
    with pytest.raises(DataError, match="got 'xx'"):
        read_embedded("train", languages=["xx"])


def test_pharaoh_alignments_keep_one_to_one_links_and_strip_punctuation(tmp_path: Path) -> None:
    path = tmp_path / "en-fr.align"
    path.write_text("0-0 1-2 2-1\n0-0 1-2 2-1 3-3\n0-0 1-1 4-1\n")
    sentences = with_alignments(parallel(ENGLISH_FRENCH[:3]), path)
    aligned = [words_of(sentence, list(sentence.words or ())) for sentence in sentences]
    assert aligned == [
        [("The", "La"), ("red", "rouge"), ("house", "maison")],
        [("A", "Un"), ("black", "noir"), ("dog", "chien"), ("sleeps", "dort")],
        [("The", "Le")],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-0\n0:1\n", r"line 2: expected links such as 0-0 2-1, got '0:1'"),
        ("0-0\n0-9\n", r"line 2: expected positions below 4 and 4 .*got 0-9"),
        ("0-0\n", r"expected one line for each sentence pair, got 1 lines for more pairs"),
        ("0-0\n0-0\n\n", r"expected one line for each sentence pair, got 3 lines for fewer pairs"),
    ],
)
def test_bad_alignments_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "en-fr.align"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"en-fr\.align.*{message}"):
        list(with_alignments(parallel(ENGLISH_FRENCH[:2]), path))
