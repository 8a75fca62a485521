"""Tatoeba, line-aligned retrieval and BUCC: by hand, against scikit-learn, and on faulty files."""

from __future__ import annotations

import gzip
import lzma
import random
import shutil
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score
from sklearn.metrics.pairwise import cosine_similarity

from ctloss.evaluate import DataError, Encoder, Outcome, PairsOptions, evaluate_bucc, evaluate_pairs, evaluate_tatoeba
from ctloss.evaluate.data.parallel import read_aligned, read_bucc, read_tatoeba
from ctloss.evaluate.tasks.retrieval import HALVES, SAME_SET, above, best_threshold, measure, mine, scores_of_halves
from ctloss.shared.languages import XTREME_CODES
from support.tiny_encoder import Table, saved, write
from support.tiny_results import refused, value

pytestmark = pytest.mark.numeric

# Cosines of the German rows to the English: eins is nearest to one, zwei to one, drei to three;
# of the English to the German: one to eins, two to drei, three to drei.
NUMBERS = Table(
    {"eins": [1.0, 0.0, 0.0], "zwei": [0.9, 0.3, 0.0], "drei": [0.0, 0.2, 1.0]}
    | {"one": [2.0, 0.1, 0.0], "two": [0.0, 0.5, 0.6], "three": [0.0, 0.0, 3.0]}
)
GERMAN, ENGLISH = ["eins", "zwei", "drei"], ["one", "two", "three"]


def test_tatoeba_by_hand(tmp_path: Path) -> None:
    write(tmp_path, tatoeba__deu___eng__deu=GERMAN, tatoeba__deu___eng__eng=ENGLISH)
    outcome = evaluate_tatoeba(NUMBERS, tmp_path)
    assert value(outcome, "deu-eng", "accuracy") == pytest.approx(2 / 3)
    assert value(outcome, "eng-deu", "accuracy") == pytest.approx(2 / 3)
    assert value(outcome, "eng-X", "accuracy") == pytest.approx(2 / 3)
    # one, three, two in the order of code points find lines 0, 2 and 2.
    assert outcome.predictions == {"de": ["0", "2", "2"]}


def test_tatoeba_in_xtreme_layout(tmp_path: Path) -> None:
    """The English lines are sorted there; XTREME's labels say which line each one translates."""
    write(tmp_path, de___en__de=GERMAN, de___en__en=sorted(ENGLISH))
    without = evaluate_tatoeba(NUMBERS, tmp_path, ["de"])
    assert without == Outcome([], {"de": ["0", "2", "2"]})
    write(tmp_path, test___de__tsv=["0", "2", "1"])
    outcome = evaluate_tatoeba(NUMBERS, tmp_path)
    assert outcome.predictions == without.predictions
    assert value(outcome, "eng-de", "accuracy") == value(outcome, "de-eng", "accuracy") == pytest.approx(2 / 3)


def test_tatoeba_scores_what_it_predicts_of_equally_near_sentences(tmp_path: Path) -> None:
    """Lines 0 and 2 are equal: two translates line 0 and finds it first; three translates line 2 and finds 1."""
    encoder = Table({"eins": [1, 0], "zwei": [0, 1], "one": [0, 2], "three": [0, 1], "two": [3, 0]})
    write(tmp_path, de___en__de=["eins", "zwei", "eins"], de___en__en=["one", "three", "two"])
    write(tmp_path, test___de__tsv=["1", "2", "0"])
    outcome = evaluate_tatoeba(encoder, tmp_path)
    assert outcome.predictions == {"de": ["1", "1", "0"]}
    assert value(outcome, "eng-de", "accuracy") == pytest.approx(2 / 3)


def test_tatoeba_means_are_over_languages(tmp_path: Path) -> None:
    write(tmp_path, tatoeba__deu___eng__deu=GERMAN, tatoeba__deu___eng__eng=ENGLISH)
    write(tmp_path, tatoeba__nld___eng__nld=["one", "eins"], tatoeba__nld___eng__eng=["one", "eins"])
    outcome = evaluate_tatoeba(NUMBERS, tmp_path)
    assert list(outcome.predictions) == ["de", "nl"]
    assert value(outcome, "eng-X", "accuracy") == pytest.approx((2 / 3 + 1) / 2)
    assert list(evaluate_tatoeba(NUMBERS, tmp_path, ["nl"]).predictions) == ["nl"]


def test_pairs_by_hand(tmp_path: Path) -> None:
    write(tmp_path, test__de=GERMAN, test__en=ENGLISH, test__fr=GERMAN, test__ids=["1", "2", "3"])
    with pytest.warns(UserWarning, match=r"left out, .*: test\.ids$"):
        outcome = evaluate_pairs(NUMBERS, tmp_path / "test")
    assert value(outcome, "de-fr", "accuracy") == 1
    assert value(outcome, "en-de", "accuracy") == pytest.approx(2 / 3)
    assert value(outcome, "mean", "accuracy") == pytest.approx((4 * 2 / 3 + 2) / 6)
    assert {score.task for score in outcome.scores} == {"test"}
    pivoted = evaluate_pairs(NUMBERS, tmp_path / "test", ["de", "fr", "en"], PairsOptions(pivot="en", task="captions"))
    assert {score.language for score in pivoted.scores} == {"de-en", "en-de", "fr-en", "en-fr", "mean"}
    assert {score.task for score in pivoted.scores} == {"captions"}


def test_margins_agree_with_their_definition() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 6)) + 1, rng.normal(size=(50, 6)) + 1
    cosines = cosine_similarity(x, y)
    largest = [np.sort(table, axis=1)[:, -4:].mean(axis=1) for table in (cosines, cosines.T)]
    margins = cosines / ((largest[0][:, None] + largest[1][None, :]) / 2)
    found = mine(x, y, 4)
    assert [score for *_, score in found] == sorted((score for *_, score in found), reverse=True)
    for i, j, score in found:
        assert score == pytest.approx(margins[i, j], abs=1e-5)
    assert len({i for i, *_ in found}) == len({j for _, j, _ in found}) == len(found) <= 30
    # The largest margin belongs to neighbours of each other, so nothing can be accepted before it.
    i, j, score = found[0]
    neighbours = np.argsort(-cosines, axis=1)[:, :4]
    assert score == pytest.approx(np.take_along_axis(margins, neighbours, axis=1).max(), abs=1e-5)
    assert j in neighbours[i]


def test_rows_of_zeros_are_never_mined() -> None:
    assert mine(np.zeros((3, 2)), np.ones((2, 2))) == []


scored_pairs = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12)
Pair = tuple[str, str]


def mined_of(items: list[tuple[int, bool]], unfound: int) -> tuple[dict[Pair, float], set[Pair]]:
    """Mined pairs by their score, and the gold ones: those that are right, and some that were not found."""
    mined = {(f"a{i}", f"b{i}"): float(score) for i, (score, _) in enumerate(items)}
    right = {pair for pair, (_, right) in zip(mined, items, strict=True) if right}
    return mined, right | {(f"x{i}", f"y{i}") for i in range(unfound)}


@given(scored_pairs, st.integers(0, 4))
def test_threshold_is_the_best_of_all(items: list[tuple[int, bool]], unfound: int) -> None:
    mined, gold = mined_of(items, unfound)
    reached = measure(above(mined, best_threshold(mined, gold)), gold)
    candidates = [measure(above(mined, score), gold).f1 for score in mined.values()]
    assert reached.f1 == max(candidates, default=0)


@given(scored_pairs, st.integers(0, 4), st.integers(0, 5))
def test_measures_agree_with_scikit_learn(items: list[tuple[int, bool]], unfound: int, threshold: int) -> None:
    mined, gold = mined_of(items, unfound)
    kept = above(mined, threshold)
    pairs = sorted(set(mined) | gold)
    truth, guess = [pair in gold for pair in pairs], [pair in kept for pair in pairs]
    found = measure(kept, gold)
    for name, judge in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert getattr(found, name) == pytest.approx(judge(truth, guess, zero_division=0))


def test_nothing_right_gives_a_threshold_that_keeps_nothing() -> None:
    assert above({("a", "b"): 9.0}, best_threshold({("a", "b"): 9.0}, {("c", "d")})) == []


def test_halves_are_scored_by_each_others_threshold() -> None:
    identifiers = [f"a{i}" for i in range(8)]
    mined = {(name, name.upper()): 10.0 - i for i, name in enumerate(identifiers)}
    gold = {(name, name.upper()) for name in identifiers[:5]}
    ordered = sorted(identifiers)
    random.Random(7).shuffle(ordered)
    sides = [{pair: s for pair, s in mined.items() if pair[0] in half} for half in (ordered[:4], ordered[4:])]
    thresholds = [best_threshold(side, gold & side.keys()) for side in sides]
    expected = tuple(measure(above(sides[i], thresholds[1 - i]), gold & sides[i].keys()) for i in (1, 0))
    assert scores_of_halves(mined, gold, identifiers, 7) == expected


def bucc(folder: Path) -> tuple[Path, Table]:
    """Eight foreign and ten English sentences, one of them twice; the first six pairs are parallel."""
    rng = np.random.default_rng(5)
    base = rng.normal(size=(8, 16))
    vectors = {f"f{i}": base[i] for i in range(8)}
    vectors |= {f"e{i}": base[i] + 0.1 * rng.normal(size=16) for i in range(6)}
    vectors |= {f"e{i}": rng.normal(size=16) for i in range(6, 9)}
    english = [*(f"e{i}" for i in range(9)), "e8"]
    write(
        folder,
        zh___en__dev__zh=[f"zh-{i}\tf{i}" for i in range(8)],
        zh___en__dev__en=[f"en-{i}\t{text}" for i, text in enumerate(english)],
        zh___en__dev__gold=[f"zh-{i}\ten-{i}" for i in range(6)],
    )
    return folder, Table({text: list(vector) for text, vector in vectors.items()})


def test_bucc_end_to_end(tmp_path: Path) -> None:
    folder, encoder = bucc(tmp_path)
    outcome = evaluate_bucc(encoder, folder)
    assert value(outcome, "zh-en", "f1_same_set", about=SAME_SET) == value(outcome, "mean", "f1_same_set") == 1
    assert sorted(outcome.predictions["zh"]) == [f"zh-{i}\ten-{i}" for i in range(6)]
    assert 0.5 < value(outcome, "zh-en", "f1", about=HALVES) <= 1
    assert "XTREME" in SAME_SET
    assert "other half" in HALVES


def test_bucc_repeated_sentences_are_no_candidates(tmp_path: Path) -> None:
    folder, encoder = bucc(tmp_path)
    encoder.vectors["e8"] = encoder.vectors["f7"]
    outcome = evaluate_bucc(encoder, folder)
    assert not any(line.endswith(("en-8", "en-9")) for line in outcome.predictions["zh"])


def test_bucc_test_split_is_cut_at_the_threshold_of_dev(tmp_path: Path) -> None:
    folder, encoder = bucc(tmp_path)
    for side in ("zh", "en"):
        shutil.copy(folder / f"zh-en.dev.{side}", folder / f"zh-en.test.{side}")
    outcome = evaluate_bucc(encoder, folder)
    assert sorted(outcome.predictions["zh"]) == [f"zh-{i}\ten-{i}" for i in range(6)]
    assert "f1_test" not in {score.metric for score in outcome.scores}
    write(folder, zh___en__test__gold=[f"zh-{i}\ten-{i}" for i in range(3)])
    assert value(evaluate_bucc(encoder, folder), "zh-en", "f1_test") == pytest.approx(2 * 3 / (6 + 3))
    plain = folder / "zh-en.test.en"
    (folder / "zh-en.test.en.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert value(evaluate_bucc(encoder, folder), "zh-en", "f1_test") == pytest.approx(2 * 3 / (6 + 3))


def test_tiny_bert_finds_identical_sentences(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(12)]
    model = saved(tmp_path / "model", words)
    lines = [f"{a} {b}" for a, b in pairwise(words)]
    data = write(tmp_path / "data", tatoeba__deu___eng__deu=lines, tatoeba__deu___eng__eng=lines)
    with pytest.warns(UserWarning, match="last layer"):
        outcome = evaluate_tatoeba(model, data)
    assert value(outcome, "eng-deu", "accuracy") == value(outcome, "deu-eng", "accuracy_centred") == 1
    assert -1 < value(outcome, "deu-eng", "random_pair_cosine") < 1


@pytest.mark.parametrize(
    ("decode", "ending"),
    [
        (lambda text: unicodedata.normalize("NFD", text).encode(), ""),
        (lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), ""),
        (lambda text: gzip.compress(text.encode()), ".gz"),
        (lambda text: lzma.compress(text.encode()), ".xz"),
    ],
    ids=["NFD", "BOM and CRLF", "gz", "xz"],
)
def test_tatoeba_scores_the_same_however_its_text_is_stored(
    tmp_path: Path, decode: Callable[[str], bytes], ending: str
) -> None:
    """In NFD a tokenizer would read every word with an accent as unknown."""
    words = ["café", "über", "señor", "naïve", "façade", "žluť"]
    encoder = Encoder(saved(tmp_path / "model", words), pooling="mean")
    lines = [f"{a} {b}" for a, b in pairwise(words)]
    plain = write(tmp_path / "plain", tatoeba__deu___eng__deu=lines, tatoeba__deu___eng__eng=lines)
    stored = tmp_path / "stored"
    stored.mkdir()
    for path in plain.iterdir():
        (stored / (path.name + ending)).write_bytes(decode(path.read_text(encoding="utf-8")))
    outcome = evaluate_tatoeba(encoder, stored)
    assert outcome == evaluate_tatoeba(encoder, plain)
    assert value(outcome, "eng-deu", "accuracy") == 1


def test_tatoeba_refusals(tmp_path: Path) -> None:
    with refused("expected files such as tatoeba.deu-eng.deu", where=tmp_path):
        read_tatoeba(tmp_path)
    write(tmp_path, tatoeba__deu___eng__deu=GERMAN, tatoeba__deu___eng__eng=ENGLISH[:2])
    with refused("'xyz', got no such file.*the folder has deu", where=tmp_path / "tatoeba.xyz-eng.xyz"):
        read_tatoeba(tmp_path, ["deu", "xyz"])
    with refused("expected 3 lines as in tatoeba.deu-eng.deu, got 2", where=tmp_path / "tatoeba.deu-eng.eng", line=3):
        read_tatoeba(tmp_path, ["de"])
    (tmp_path / "tatoeba.deu-eng.deu").unlink()
    with refused("readable text file, got No such file", where=tmp_path / "tatoeba.deu-eng.deu"):
        read_tatoeba(tmp_path)
    folder = write(tmp_path / "xtreme", de___en__de=GERMAN, de___en__en=ENGLISH)
    for wrong in ("3", "0", "one"):
        write(folder, test___de__tsv=["0", wrong, "1"])
        with refused(f"a line number from 0 to 2, each once, got '{wrong}'", where=folder / "test-de.tsv", line=2):
            read_tatoeba(folder, ["de"])


def test_text_refusals(tmp_path: Path) -> None:
    write(tmp_path, t__de=GERMAN)
    for text, message, line in (
        (b"one\n\nthree\n", "expected text, got an empty line", 2),
        (b"one\ntwo\n\xff\n", "expected UTF-8, got byte 0xff", 3),
        (b"", "expected lines of text, got an empty file", None),
    ):
        (tmp_path / "t.en").write_bytes(text)
        with refused(message, where=tmp_path / "t.en", line=line):
            read_aligned(tmp_path / "t")
    with refused("sentences in 'fr', got no such file; there are files of de, en", where=tmp_path / "t.fr"):
        read_aligned(tmp_path / "t", ["de", "fr"])
    with refused("expected at least two files", where=tmp_path / "t"):
        read_aligned(tmp_path / "t", ["de"])
    write(tmp_path, t__en=ENGLISH)
    with pytest.raises(DataError, match="expected the pivot among the languages, got de, en"):
        evaluate_pairs(NUMBERS, tmp_path / "t", options=PairsOptions(pivot="fr"))
    write(tmp_path, t__de=GERMAN[:1], t__en=ENGLISH[:1])
    with pytest.raises(DataError, match=r"^t: de-en: expected at least two pairs, got 1"):
        evaluate_pairs(NUMBERS, tmp_path / "t")


def test_lines_end_only_at_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "t.de").write_bytes("\ufeffa\u2028b\r\nc\x0cd".encode())
    (tmp_path / "t.en").write_bytes(b"x\ny\n")
    assert read_aligned(tmp_path / "t") == {"de": ["a\u2028b", "c\x0cd"], "en": ["x", "y"]}


def test_bucc_spaces_around_a_sentence_are_no_part_of_it(tmp_path: Path) -> None:
    folder, _ = bucc(tmp_path)
    write(folder, zh___en__dev__zh=["zh-0\t\u3000f0", "zh-1\tf1 "], zh___en__dev__gold=["zh-1\ten-1"])
    assert read_bucc(folder)[0].first == [("zh-0", "f0"), ("zh-1", "f1")]


def test_bucc_refusals(tmp_path: Path) -> None:
    with refused("expected files such as zh-en.dev.zh", where=tmp_path):
        read_bucc(tmp_path)
    folder, encoder = bucc(tmp_path)
    with refused("corpora of 'ru' and English, got no such file; the folder has zh", where=folder / "ru-en.dev.en"):
        read_bucc(folder, ["ru"])
    (folder / "zh-en.dev.gold").unlink()
    with refused("expected the gold pairs", where=folder / "zh-en.dev.gold"):
        evaluate_bucc(encoder, folder)
    for ending, lines, message in (
        ("gold", ["zh-0\ten-0", "zh-1 en-1"], "expected two ids separated by a tab"),
        ("zh", ["zh-0\tf0", "zh-1 f1"], "expected ID TAB SENTENCE"),
        ("zh", ["zh-0\tf0", "zh-0\tf1"], "expected ID TAB SENTENCE with a unique id"),
    ):
        write(folder, **{f"zh___en__dev__{ending}": lines})
        with refused(message, where=folder / f"zh-en.dev.{ending}", line=2):
            read_bucc(folder)


@pytest.mark.data
def test_real_files_are_read(real_data: Path) -> None:
    counts = {pairs.languages[0]: len(pairs.first) for pairs in read_tatoeba(real_data / "tatoeba")}
    assert len(counts) == 28
    assert {counts[code] for code in counts.keys() - {"jav", "tel", "tam", "tha", "kaz", "mal"}} == {1000}
    assert counts.keys() <= XTREME_CODES.keys()
    [corpora] = read_bucc(real_data / "bucc")
    assert (len(corpora.first), len(corpora.second), len(corpora.gold or ())) == (8624, 13589, 257)
    captions = read_aligned(real_data / "multi30k" / "test_2016_flickr")
    assert {language: len(lines) for language, lines in captions.items()} == dict.fromkeys(captions, 1000)
    assert list(captions) == ["cs", "de", "en", "fr"]
