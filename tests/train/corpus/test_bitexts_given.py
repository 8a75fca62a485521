"""Bitexts from Python, from the embedded corpus, and with word alignments."""

from __future__ import annotations

import gc
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict

from ctloss.shared.text import BadLine, DataError, stripped
from ctloss.train.corpus import Bitext, bitexts_of, embedded_bitexts, find_bitexts

PAIRS = [("One", "Un"), (" Two\n", "e\u0301te\u0301"), ("", "\u200b"), ("Four", "Quatre")]
READ = [("One", "Un"), ("Two", "\u00e9t\u00e9"), ("", ""), ("Four", "Quatre")]


def pairs_of(bitext: Bitext, size: int = 3) -> list[tuple[str, str]]:
    return [pair for chunk in bitext.chunks(size) for pair in zip(chunk.sources, chunk.targets, strict=True)]


def bad_of(bitext: Bitext) -> list[BadLine]:
    return [line for chunk in bitext.chunks(3) for line in chunk.bad]


def once(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    yield from pairs


def table(pairs: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict({"fr": [b for _, b in pairs], "en": [a for a, _ in pairs], "id": ["x"] * len(pairs)})


@pytest.mark.parametrize(
    "given",
    [
        list,
        once,
        iter,
        lambda pairs: [list(pair) for pair in pairs],
        table,
        lambda pairs: table(pairs).to_iterable_dataset(),
    ],
    ids=["list", "generator", "iterator", "lists", "dataset", "iterable dataset"],
)
def test_pairs_from_python_are_read_any_number_of_times(given: Callable[[Any], Any]) -> None:
    [bitext] = bitexts_of(given(PAIRS), ["en", "fr"])
    assert (bitext.source_language, bitext.target_language) == ("en", "fr")
    assert pairs_of(bitext) == READ == pairs_of(bitext, 1)
    # Two readers at a time do not disturb each other.
    assert list(zip(bitext.chunks(1), bitext.chunks(1), strict=True)) == [(chunk, chunk) for chunk in bitext.chunks(1)]
    [again], [other] = bitexts_of(given(PAIRS), ["en", "fr"]), bitexts_of(given(PAIRS[:3]), ["en", "fr"])
    assert again.identity == bitext.identity != other.identity


def test_language_pairs_may_be_named() -> None:
    found = bitexts_of({"en-fr": once(PAIRS), "en-pt-br": PAIRS[:1], "fr-en": table(PAIRS)}, [])
    named = [(bitext.name, bitext.source_language, bitext.target_language) for bitext in found]
    assert named == [
        ("pairs['en-fr']", "en", "fr"),
        ("pairs['en-pt-br']", "en", "pt-br"),
        ("pairs['fr-en']", "fr", "en"),
    ]
    assert [pairs_of(bitext)[0] for bitext in found] == [("One", "Un"), ("One", "Un"), ("Un", "One")]
    # A data set knows its languages.
    assert [(b.source_language, b.target_language) for b in bitexts_of(table(PAIRS), [])] == [("en", "fr")]


def test_items_that_are_no_pairs_are_bad() -> None:
    [bitext] = bitexts_of([("a", "b"), "ab", ("a",), ("a", None), ("\ud800", "b"), {"a": 1}, ("c", "d")], ["en", "fr"])
    assert pairs_of(bitext) == [("a", "b"), ("c", "d")]
    assert (
        bad_of(bitext)
        == bad_of(bitext)
        == [
            BadLine("pairs", 2, "expected (source, target), got str", "'ab'"),
            BadLine("pairs", 3, "expected (source, target), got tuple", "('a',)"),
            BadLine("pairs", 4, "expected two texts, got NoneType", "('a', None)"),
            BadLine("pairs", 5, "expected Unicode text, got half of a surrogate pair", "('\\ud800', 'b')"),
            BadLine("pairs", 6, "expected (source, target), got dict", "{'a': 1}"),
        ]
    )
    rows = Dataset.from_list([{"en": "a", "fr": None}, {"en": "b", "fr": "c"}])
    assert bad_of(bitexts_of(rows, [])[0]) == [BadLine("pairs", 1, "expected a text as fr, got none", "a")]


TEXT = st.text(st.characters(exclude_categories=[]), max_size=6)


@given(st.lists(st.one_of(st.tuples(TEXT, TEXT), st.none(), TEXT, st.tuples(TEXT, st.integers())), max_size=12))
def test_every_item_is_read_or_bad(items: list[Any]) -> None:
    [bitext] = bitexts_of(iter(items), ["en", "fr"])
    good = [
        item
        for item in items
        if isinstance(item, tuple)
        and all(isinstance(t, str) and not any("\ud800" <= c <= "\udfff" for c in t) for t in item)
    ]
    assert pairs_of(bitext) == [tuple(stripped(unicodedata.normalize("NFC", text)) for text in item) for item in good]
    assert len(good) + len(bad_of(bitext)) == len(items)


def test_the_temporary_file_goes_with_its_bitext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = bitexts_of(once(PAIRS), ["en", "fr"])
    assert len(list(tmp_path.iterdir())) == 1
    assert pairs_of(found[0]) == READ
    del found
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pairs", "languages", "message"),
    [
        ("corpus.tsv", ["en", "fr"], r"pairs: expected a datasets\.Dataset, an iterable .*got str; files are named in"),
        (None, ["en", "fr"], r"pairs: expected a datasets\.Dataset.* got NoneType"),
        ([("a", "b")], [], r"pairs: expected two languages for \(source, target\), got none"),
        ([("a", "b")], ["en", "fr", "de"], r"pairs: expected two languages .*, got en fr de"),
        ({"train": [("a", "b")]}, ["en", "fr"], r"pairs: expected keys that are language pairs, .* got 'train'"),
        (DatasetDict(train=table(PAIRS)), [], r"got 'train'; .*of a DatasetDict give one part, as in data\['train'\]"),
        ({}, ["en", "fr"], r"pairs: expected at least one language pair, got an empty mapping"),
        (table(PAIRS), ["en", "de"], r"pairs: expected texts in en and de .*got fr, en, id"),
        (Dataset.from_dict({"source": ["a"], "target": ["b"]}), [], r"pairs: expected to know the languages of source"),
    ],
)
def test_refusals(pairs: Any, languages: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        bitexts_of(pairs, languages)


def test_embedded_corpus_comes_with_word_pairs() -> None:
    everything = embedded_bitexts("validation", [])
    assert [(b.source_language, b.target_language) for b in everything] == [
        ("en", c) for c in ("ar", "es", "fr", "ru", "zh")
    ]
    assert len({bitext.identity for bitext in everything} | {embedded_bitexts("test", [])[0].identity}) == 6
    [bitext] = embedded_bitexts("validation", ["fra", "zh_Hans"])
    assert (bitext.source_language, bitext.target_language) == ("fra", "zh_Hans")
    chunks = list(bitext.chunks(300))
    assert [len(chunk.sources) for chunk in chunks] == [300, 300, 300, 100]
    for chunk in chunks:
        assert chunk.words is not None
        for source, target, words in zip(chunk.sources, chunk.targets, chunk.words, strict=True):
            assert words
            for (a, b), (c, d) in words:
                assert source[a:b] == source[a:b].strip() != ""
                assert target[c:d] == target[c:d].strip() != ""
    with pytest.raises(DataError, match=r"expected languages among ar, .*got 'xx'"):
        embedded_bitexts("train", ["en", "xx"])


def aligned(folder: Path, links: bytes) -> Bitext:
    lines = [
        b"The red house\tLa maison rouge",
        b"bad\xff line\tx",
        b"  A dog  . \t Un chien .",
        b"no tab",
        b"Yes\tOui",
        b"",
    ]
    (folder / "en-fr.tsv").write_bytes(b"\n".join(lines))
    (folder / "en-fr.align").write_bytes(links)
    [bitext] = find_bitexts([f"{folder}/en-fr.tsv"], [], [f"{folder}/en-fr.align"])
    return bitext


@pytest.mark.parametrize("size", [1, 2, 2048])
def test_alignments_have_a_line_for_every_line_given(tmp_path: Path, size: int) -> None:
    bitext = aligned(tmp_path, b"0-0 1-2 2-1\n7-7\n0-0 1-1\n\n0-0\n")
    found = []
    for chunk in bitext.chunks(size):
        assert chunk.words is not None
        for source, target, words in zip(chunk.sources, chunk.targets, chunk.words, strict=True):
            found.append([(source[slice(*a)], target[slice(*b)]) for a, b in words])
    assert found == [
        [("The", "La"), ("red", "rouge"), ("house", "maison")],
        [("A", "Un"), ("dog", "chien")],
        [("Yes", "Oui")],
    ]
    assert [line.line for line in bad_of(bitext)] == [2, 4]


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (b"0-0\n\n\n\n", r"expected one line for each line of .*en-fr\.tsv, got 4 lines for more pairs"),
        (b"0-0\n\n\n\n\n\n", r"expected one line for each line of .*en-fr\.tsv, got 6 lines for fewer pairs"),
        (b"0-0\n\n0-9\n\n\n", r"line 3: expected positions below"),
        (b"0:0\n\n\n\n\n", r"line 1: expected links such as 0-0 2-1, got '0:0'"),
        (b"\xff\n\n\n\n\n", r"line 1: expected UTF-8"),
    ],
)
def test_bad_alignments_are_refused(tmp_path: Path, links: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"en-fr\.align.*{message}"):
        list(aligned(tmp_path, links).chunks())
    with pytest.raises(DataError, match=r"alignments: expected a file for each of the 1 language pairs, .* got 2"):
        find_bitexts([f"{tmp_path}/en-fr.tsv"], [], ["a", "b"])
    with pytest.raises(DataError, match=r"none: expected a readable file"):
        find_bitexts([f"{tmp_path}/en-fr.tsv"], [], [f"{tmp_path}/none"])
