"""A recipe's data split into three parts: contradicting names, and parts that are empty or share sentences."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ctloss.shared.text import DataError
from ctloss.train import tiny
from ctloss.train.recipe import Data
from ctloss.train.samples.prepare import Corpus, build_samples, read_corpus
from ctloss.train.text.tokenizer import train_wordpiece
from support.tiny_runs import write_corpus


def read(**options: object) -> Corpus:
    return read_corpus(tiny().override(**options).data, evaluation_pairs=10, seed=0)


def write(path: Path, *pairs: tuple[str, str]) -> str:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("languages", [("fr", "en"), ("en", "de"), ("de", "en", "es")])
def test_languages_that_contradict_a_name_are_refused(tmp_path: Path, languages: tuple[str, ...]) -> None:
    corpus = str(write_corpus(tmp_path))
    with pytest.raises(DataError, match=r"languages: expected those that .*en-fr\.tsv is named after, en then fr, got"):
        read(corpus=(corpus,), languages=languages)
    assert read(corpus=(corpus,), languages=("en", "fr")).parts.keys() == read(corpus=(corpus,)).parts.keys()


def test_languages_must_hold_for_every_table(tmp_path: Path) -> None:
    tables = [write(tmp_path / f"en-{code}.tsv", ("a cat", f"cat {code}")) for code in ("fr", "de")]
    assert len(list(read(corpus=tuple(tables), languages=("en", "de", "fr")).parts["train"])) <= 2
    with pytest.raises(DataError, match=r"en-de\.tsv is named after"):
        read(corpus=tuple(tables), languages=("en", "fr"))


def test_compressed_files_are_read_as_plain_ones(tmp_path: Path) -> None:
    plain, compressed = write_corpus(tmp_path), tmp_path / "compressed" / "en-fr.tsv.gz"
    compressed.parent.mkdir()
    compressed.write_bytes(gzip.compress(plain.read_bytes()))
    parts, same = (read(corpus=(str(path),), lexicon=(str(path),)).parts for path in (plain, compressed))
    assert {split: list(part) for split, part in parts.items()} == {split: list(part) for split, part in same.items()}


def test_test_keeps_what_validation_shares_with_it(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path))
    test = [(pair.source, pair.target) for pair in read(corpus=(corpus,)).parts["test"]]
    validation = write(tmp_path / "held.en-fr.tsv", *test[:2], ("something else", "autre chose"))
    made = read(corpus=(corpus,), validation=validation)
    assert [pair.source for pair in made.parts["validation"]] == ["something else"]
    assert [(pair.source, pair.target) for pair in made.parts["test"]][:2] == test[:2]
    assert made.notes == ("validation: skipped 2 pairs whose texts are also in test",)


def test_part_without_sentences_is_named(tmp_path: Path) -> None:
    corpus = read(corpus=(write(tmp_path / "en-fr.tsv", ("a cat", "un chat"), ("a dog", "un chien")),))
    tokenizer = train_wordpiece(["a cat dog un chat chien"], vocabulary=100, lower_case=True, max_length=16)
    with pytest.raises(
        DataError, match=r"(validation|test): expected .*give more text, or separate pairs with --"
    ) as e:
        build_samples(corpus, tokenizer, tmp_path / "data", max_length=Data().max_length, progress=False)
    assert "max_length" not in str(e.value)
