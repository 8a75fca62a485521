"""The command that measures sources of word pairs, on gold alignments and corpora made here."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("seqeval")

from benchmarks.words.__main__ import main
from benchmarks.words.corpora import corpora
from benchmarks.words.gold import GoldSet
from benchmarks.words.growth import measure, sentences
from ctloss.evaluate import AlignedWords


def gold_set(name: str, first: str, second: str, links: set[tuple[int, int]]) -> GoldSet:
    return GoldSet(name, [AlignedWords(first.split(), second.split(), frozenset(links), frozenset(links))])


def test_words_become_links_of_the_tokens_they_touch() -> None:
    gold = gold_set("en-fr.golden", "the dog 's tail", "la queue du chien", {(1, 3), (3, 1), (0, 0)})
    assert gold.languages == ("en", "fr")
    assert gold.sentences[0].source == "the dog 's tail"
    scores = gold.scores([[((4, 7), (12, 17)), ((8, 15), (3, 8))]])
    # dog-chien and tail-queue are right, 's-queue is not; the-la is missing.
    assert scores == pytest.approx({"aer": 1 - 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "pairs": 2})


def test_unspaced_tokens_are_joined_without_spaces() -> None:
    gold = gold_set("zh-en", "我 喜欢 葡萄", "I like grapes", {(1, 1), (2, 2)})
    assert gold.sentences[0].source == "我喜欢葡萄"
    assert gold.scores([[((1, 3), (2, 6)), ((3, 5), (7, 13))]])["aer"] == 0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "align" / "en-fr.txt", "a dog ||| un chien\nred houses ||| maisons rouges\n")
    write(tmp_path / "align" / "en-fr.gold", "0-0 1-1\n0-1 1-0\n")
    write(tmp_path / "lexicon" / "en.txt", "dog\n")
    write(tmp_path / "lexicon" / "fr.txt", "chien\n")
    write(tmp_path / "tatoeba-train" / "en-fr.tsv", "red\trouges\nred cars\tvoitures rouges\n")
    write(tmp_path / "news" / "one.en", "red wine\n\n")
    write(tmp_path / "news" / "one.fr", "vins rouges\n\n")
    return tmp_path


def test_corpora_are_in_the_order_of_the_gold_set(data: Path) -> None:
    found = corpora(data, ("fr", "en"))
    assert {name: len(pairs) for name, pairs in found.items()} == {"tatoeba-train": 2, "news": 2}
    assert found["tatoeba-train"][0].source == "rouges"
    assert corpora(data, ("en", "sv")) == corpora(data, ("de", "fr")) == {}


def test_errors_are_tabulated_and_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = data / "page.md"
    page.write_text("<!-- python -m benchmarks.words errors -->\n<!-- end of python -m benchmarks.words errors -->\n")
    main(["errors", str(data), "--write", str(page)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    # red-rouges, met four times with its gold pair, and dog-chien are found: one right link of four.
    assert [row[:-1] for row in rows if len(row) == 9][2:] == [
        ["en-fr", "co-occurrence", "60.0", "100.0", "25.0", "0.5", "0.5", "100.0"],
        ["en-fr", "lexicon", "60.0", "100.0", "25.0", "0.5", "0.5", "100.0"],
    ]
    assert ["en-fr", "tatoeba-train 2, news 2"] in rows
    assert "| en-fr | lexicon | 60.0 |" in page.read_text()


def test_growth_is_measured_on_the_same_text_each_time() -> None:
    assert list(sentences(3000)) == list(sentences(3000))
    assert sum(map(len, sentences(3000))) == 3000
    found = measure(3000)
    assert found["peak"] >= found["before"] > 0
    assert found["tables"] > 0
