"""Word pairs by co-occurrence: counted and chosen as the definition says, whatever lies on disk."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctloss.shared.options import OptionError
from ctloss.shared.text import DataError
from ctloss.train.text import cooccurrence
from ctloss.train.text.cooccurrence import CooccurrenceAligner
from ctloss.train.text.sentences import ParallelSentence, Span, WordPair
from ctloss.train.text.words import word_spans
from support.tiny_text import parallel

NOUNS = [("house", "maison"), ("dog", "chien"), ("teacher", "professeur"), ("river", "rivière")]


def in_batches(corpus: Sequence[ParallelSentence], size: int = 3) -> Iterator[Sequence[ParallelSentence]]:
    for start in range(0, len(corpus), size):
        yield corpus[start : start + size]


def count(corpus: Sequence[ParallelSentence], folder: Path, **options: float) -> CooccurrenceAligner:
    return CooccurrenceAligner.count(lambda: in_batches(corpus), folder, **options)  # type: ignore[arg-type]


def texts_of(sentence: ParallelSentence, pairs: Sequence[WordPair]) -> list[tuple[str, str]]:
    return [(sentence.source[slice(*a)], sentence.target[slice(*b)]) for a, b in pairs]


def first_places(text: str, language: str) -> dict[str, Span]:
    """Words of an invented language, which has spaces and no stop words."""
    found: dict[str, Span] = {}
    for start, end in word_spans(text, language):
        found.setdefault(text[start:end].casefold(), (start, end))
    return found


def by_definition(
    corpus: Sequence[ParallelSentence], sentence: ParallelSentence, least_count: int, least_dice: float
) -> list[WordPair]:
    """The class's docstring in plain loops."""
    same = [
        (first_places(other.source, "xa"), first_places(other.target, "xb"))
        for other in corpus
        if other.target_language == sentence.target_language
    ]
    c_a = Counter(a for sources, _ in same for a in sources)
    c_b = Counter(b for _, targets in same for b in targets)
    together = Counter((a, b) for sources, targets in same for a in sources for b in targets)
    sources, targets = first_places(sentence.source, "xa"), first_places(sentence.target, "xb")

    def score(a: str, b: str) -> tuple[float, int]:
        dice = 2 * together[a, b] / (c_a[a] + c_b[b]) if together[a, b] >= least_count else 0.0
        return (dice, len(a) + len(b)) if dice >= least_dice else (0.0, 0)

    pairs = []
    for a in sources:
        best = max(targets, key=lambda b: score(a, b), default=None)
        if best is not None and score(a, best)[0] and max(sources, key=lambda other: score(other, best)) == a:
            pairs.append((sources[a], targets[best]))
    return pairs


SIDE = st.lists(st.sampled_from(["a", "B", "cc", "ddd", "E", "ff", "g"]), max_size=7).map(" ".join)


@given(
    texts=st.lists(st.tuples(SIDE, SIDE, st.sampled_from(["xb", "xc"])), min_size=1, max_size=12),
    least_count=st.integers(1, 3),
    least_dice=st.floats(0.05, 1.0),
    capacity=st.integers(2, 20),
    batch=st.integers(1, 5),
)
def test_pairs_are_those_of_the_definition(
    texts: list[tuple[str, str, str]], least_count: int, least_dice: float, capacity: int, batch: int
) -> None:
    corpus = [ParallelSentence(source, target, "xa", language) for source, target, language in texts]
    with TemporaryDirectory() as folder:
        aligner = CooccurrenceAligner.count(
            lambda: in_batches(corpus, batch),
            folder,
            least_count=least_count,
            least_dice=least_dice,
            capacity=capacity,
        )
        found = aligner.word_pairs(corpus)
    assert found == [by_definition(corpus, sentence, least_count, least_dice) for sentence in corpus]


def test_words_and_pairs_in_many_parts_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = parallel((f"{a[0]} {b[0]} {c[0]}", f"{b[1]} {c[1]} {a[1]}") for a, b, c in permutations(NOUNS, 3))
    at_once = count(corpus, tmp_path / "a")
    expected = at_once.word_pairs(corpus)
    assert {
        pair for sentence, pairs in zip(corpus, expected, strict=True) for pair in texts_of(sentence, pairs)
    } == set(NOUNS)
    monkeypatch.setattr(cooccurrence, "CROSSED", 4)
    monkeypatch.setattr(cooccurrence, "REMEMBERED", 2)
    in_parts = count(corpus, tmp_path / "b", capacity=5)
    assert in_parts.word_pairs(corpus) == expected
    assert in_parts.fingerprint() == at_once.fingerprint()


def test_translations_are_found_without_stop_words(tmp_path: Path) -> None:
    corpus = parallel((f"the {a[0]} and the {b[0]}", f"le {a[1]} et le {b[1]}") for a, b in permutations(NOUNS, 2))
    aligner = count(corpus, tmp_path / "a")
    found = {pair for s, pairs in zip(corpus, aligner.word_pairs(corpus), strict=True) for pair in texts_of(s, pairs)}
    assert found == set(NOUNS)
    assert aligner.fingerprint() != count(corpus[1:], tmp_path / "b").fingerprint()
    assert aligner.fingerprint() != count(corpus, tmp_path / "c", least_count=2).fingerprint()
    assert aligner.fingerprint() == count(corpus[::-1], tmp_path / "d").fingerprint()


def test_longer_run_of_chinese_characters_wins(tmp_path: Path) -> None:
    corpus = parallel([("grapes", "葡萄"), ("grapes grow", "葡萄生长"), ("eat grapes", "吃葡萄")], target="zh")
    aligner = count(corpus, tmp_path)
    assert texts_of(corpus[1], aligner.word_pairs(corpus)[1]) == [("grapes", "葡萄")]


def test_sentences_are_read_once_and_reported(tmp_path: Path) -> None:
    corpus = parallel([("dog", "chien")] * 7)
    calls: list[int] = []
    read: list[int] = []

    def batches() -> Iterator[Sequence[ParallelSentence]]:
        calls.append(1)
        return in_batches(corpus)

    CooccurrenceAligner.count(batches, tmp_path, progress=read.append)
    assert (len(calls), read) == (1, [3, 3, 1])


def test_words_beyond_the_most_take_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "MOST_WORDS", 2)
    corpus = parallel([("one two dog", "un deux chien")] * 3, "xa", "xb")
    assert texts_of(corpus[0], count(corpus, tmp_path).word_pairs(corpus[:1])[0]) == [("one", "deux")]


def test_without_text_there_are_no_pairs(tmp_path: Path) -> None:
    aligner = count([], tmp_path)
    assert aligner.word_pairs([]) == []
    assert aligner.word_pairs(parallel([("a dog", "un chien"), ("", "")])) == [[], []]


def test_pickle_holds_the_path_only_and_the_folder_only_the_tables(tmp_path: Path) -> None:
    corpus = parallel([("dog", "chien")] * 400)
    aligner = count(corpus, tmp_path)
    expected = aligner.word_pairs(corpus[:1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*cooccurrence.TABLES, "cooccurrence.json"])
    assert len(pickle.dumps(aligner)) < 300
    for other in (pickle.loads(pickle.dumps(aligner)), CooccurrenceAligner.open(tmp_path)):
        assert other.word_pairs(corpus[:1]) == expected
        assert other.fingerprint() == aligner.fingerprint()


def test_missing_and_damaged_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected counts of word pairs, got none"):
        CooccurrenceAligner.open(tmp_path)
    count(parallel([("dog", "chien")] * 3), tmp_path)
    (tmp_path / "pairs").write_bytes(b"1234")
    with pytest.raises(DataError, match="expected whole tables"):
        CooccurrenceAligner.open(tmp_path)
    (tmp_path / "cooccurrence.json").write_text("[]")
    with pytest.raises(DataError, match="got none"):
        CooccurrenceAligner.open(tmp_path)


def test_a_failed_count_leaves_no_aligner(tmp_path: Path) -> None:
    corpus = parallel([("dog", "chien")] * 3)
    count(corpus, tmp_path)

    def broken() -> Iterator[Sequence[ParallelSentence]]:
        yield corpus
        raise DataError("line 4: damaged")

    with pytest.raises(DataError, match="line 4"):
        CooccurrenceAligner.count(broken, tmp_path)
    with pytest.raises(DataError, match="got none"):
        CooccurrenceAligner.open(tmp_path)
    assert not (tmp_path / "counting").exists()


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected to write the counts"):
        count(parallel([("dog", "chien")]), tmp_path / "file" / "tables")


@pytest.mark.parametrize("options", [{"least_count": 0}, {"least_dice": 0.0}, {"least_dice": 1.5}])
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}: expected"):
        count(parallel([("dog", "chien")]), tmp_path, **options)
