"""Sentences that say nothing: refused with file and line in every task, whoever finds out, reader or tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, normalizers
from transformers import BertTokenizer

from ctloss.evaluate import (
    DataError,
    Encoder,
    FinetuneOptions,
    evaluate_alignment,
    evaluate_bucc,
    evaluate_pairs,
    evaluate_tatoeba,
    evaluate_words,
    evaluate_xnli,
)
from ctloss.evaluate.data.labelled import XNLI, read_pairs
from ctloss.evaluate.models.encoder import EmptySentence
from ctloss.shared.text import stripped
from support import tiny_tasks
from support.tiny_encoder import saved, tiny_bert, word_tokenizer, write
from support.tiny_results import refused

WORDS = ["the", "red", "dog", "one", "two"]
# Nothing shows of these. A mark without a letter shows, but the tokenizers of these tests drop marks.
UNSEEN = ["\u200b", "\ufeff\u2060", "\x07\x1b", "\u00ad\u200e", "\u3164", " \u200b\u3000"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = saved(tmp_path_factory.mktemp("models") / "bert", WORDS)
    vocabulary = BertTokenizer.from_pretrained(path).get_vocab()
    BertTokenizer(vocab=vocabulary, do_lower_case=True, strip_accents=True).save_pretrained(path)
    return path


def dropping(tokenizer: Any) -> Any:
    """Lets a tokenizer drop marks, as those do that strip accents."""
    own = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex("\u0301"), ""), own])
    return tokenizer


@pytest.fixture
def encoder() -> Encoder:
    tokenizer = dropping(word_tokenizer(WORDS))
    assert tokenizer("the \u0301")["input_ids"] == tokenizer("the")["input_ids"]
    return Encoder(tiny_bert(len(tokenizer)), tokenizer=tokenizer, pooling="mean")


@pytest.mark.parametrize("text", UNSEEN, ids=ascii)
def test_what_does_not_show(text: str) -> None:
    assert stripped(text) == ""
    assert stripped(f"{text}a").endswith("a")


def two(bad: str) -> list[str]:
    return ["the dog", bad]


TASKS: dict[str, tuple[Callable[..., object], Callable[[Path, str], tuple[Path, Path]]]] = {}


def task(run: Callable[..., object]) -> Callable[..., Any]:
    """Registers what writes a task's files with a bad line 2; it returns what is read, and the file of the bad line."""

    def add(prepare: Callable[[Path, str], tuple[Path, Path]]) -> Callable[[Path, str], tuple[Path, Path]]:
        TASKS[prepare.__name__] = (run, prepare)
        return prepare

    return add


@task(evaluate_tatoeba)
def tatoeba(folder: Path, bad: str) -> tuple[Path, Path]:
    write(folder, tatoeba__deu___eng__deu=two(bad), tatoeba__deu___eng__eng=two("red"))
    return folder, folder / "tatoeba.deu-eng.deu"


@task(evaluate_tatoeba)
def tatoeba_english(folder: Path, bad: str) -> tuple[Path, Path]:
    write(folder, de___en__de=two("red"), de___en__en=two(bad), test___de__tsv=["0", "1"])
    return folder, folder / "de-en.en"


@task(evaluate_pairs)
def pairs(folder: Path, bad: str) -> tuple[Path, Path]:
    write(folder, x__en=two("red"), x__fr=two(bad))
    return folder / "x", folder / "x.fr"


@task(evaluate_bucc)
def bucc(folder: Path, bad: str) -> tuple[Path, Path]:
    write(folder, zh___en__dev__zh=["z0\tthe dog", f"z1\t{bad}", "z2\tthe dog"], zh___en__dev__en=["e0\tred"])
    write(folder, zh___en__dev__gold=["z0\te0"])
    return folder, folder / "zh-en.dev.zh"


@task(evaluate_alignment)
def align(folder: Path, bad: str) -> tuple[Path, Path]:
    write(folder, en___fr__txt=["the dog ||| red", f"the ||| {bad}"], en___fr__gold=["0-0", ""])
    return folder, folder / "en-fr.txt"


@pytest.mark.parametrize("bad", [*UNSEEN, "\u0301"], ids=ascii)
@pytest.mark.parametrize("name", TASKS)
def test_a_sentence_that_says_nothing_is_refused(tmp_path: Path, encoder: Encoder, name: str, bad: str) -> None:
    run, prepare = TASKS[name]
    data, path = prepare(tmp_path, bad)
    with refused("expected .*, got ", where=path, line=2):
        run(encoder, data)
    data, _ = prepare(tmp_path, "two")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(encoder, data)


@pytest.mark.parametrize("bad", [*UNSEEN, "\u0301"], ids=ascii)
@pytest.mark.parametrize("side", [0, 1])
def test_pairs_with_a_side_that_says_nothing_are_refused(tmp_path: Path, folder: Path, bad: str, side: int) -> None:
    tiny_tasks.write_task(tmp_path, "xnli")
    path = tmp_path / "xnli" / "test-xx.tsv"
    lines = path.read_text().splitlines()
    columns = lines[1].split("\t")
    columns[side] = bad
    path.write_text("\n".join([lines[0], "\t".join(columns), *lines[2:]]) + "\n")
    options = FinetuneOptions(batch_size=8, max_steps=1, max_length=32, hold_out=0.1, output=tmp_path / "out")
    with refused("expected .*, got ", where=path, line=2):
        evaluate_xnli(str(folder), tmp_path, ["xx"], options)
    # Nothing is trained before the test files are known to be sound.
    assert not (tmp_path / "out").exists()


def test_where_a_pair_lies_is_no_part_of_it(tmp_path: Path) -> None:
    """Runs are told apart by their rows: moved files are the same rows."""
    read = []
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("one\ttwo\tneutral\n")
        read.append(read_pairs(tmp_path / name, XNLI.labels))
    assert read[0] == read[1]
    assert repr(read[0]) == repr(read[1])


def test_words_that_say_nothing_have_no_meaning(tmp_path: Path, encoder: Encoder) -> None:
    """In a word list a line may be empty; a list of such words only is refused."""
    write(tmp_path, en__txt=["red", "dog", "one"], fr__txt=["one", "\u200b,\x07", "\u0301"])
    scores = evaluate_words(encoder, tmp_path).scores
    assert {score.about for score in scores if score.language == "en-fr"} == {"1 words"}
    write(tmp_path, fr__txt=["", "\u0301", "\u0301\u0301"])
    with pytest.raises(DataError, match="expected words in 'fr' that the tokenizer reads, got 2 of which nothing"):
        evaluate_words(encoder, tmp_path)
    write(tmp_path, fr__txt=["\u200b", "", "\u200b"])
    with refused("expected words, got only empty lines", where=tmp_path / "fr.txt", line=1):
        evaluate_words(encoder, tmp_path)


@pytest.mark.parametrize("prefix", ["", "the red "])
def test_an_encoder_names_the_sentence(encoder: Encoder, prefix: str) -> None:
    encoder.prefix = prefix
    for bad in ("", " ", *UNSEEN[:4], "\u0301"):
        with pytest.raises(EmptySentence, match=r"^sentence 1: expected a sentence that the tokenizer reads") as error:
            encoder.sentences(["dog", bad])
        assert error.value.number == 1


def test_sentences_cut_behind_the_prefix_are_not_empty(encoder: Encoder) -> None:
    encoder.prefix, encoder.max_length = "the red dog one ", 6
    with pytest.warns(UserWarning, match="2 of 2 sentences have more than 6 tokens"):
        assert encoder.sentences(["dog", "two"]).shape == (2, 16)


def test_sentences_that_are_unknown_as_a_whole_are_counted(encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match=r"knows nothing of 2 of 3 sentences: all of it is \[UNK\]"):
        encoder.sentences(["der Hund", "the Hund", "ein"])


def test_text_is_composed(folder: Path) -> None:
    """In NFD a tokenizer would read every word with an accent as unknown."""
    tokenizer = word_tokenizer(["café"])
    encoder = Encoder(tiny_bert(len(tokenizer)), tokenizer=tokenizer, pooling="mean")
    composed, apart = encoder.sentences(["café", "cafe\u0301"])
    np.testing.assert_array_equal(composed, apart)
    one, other = encoder.pieces([["café"], ["cafe\u0301"]])
    np.testing.assert_array_equal(one.vectors, other.vectors)
