"""Which proposed word pairs are kept: against the rules written out as loops, on text of any kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from ctloss.train.text.finder import WordFinder, rules_of
from ctloss.train.text.lexicon import Lexicon
from ctloss.train.text.sentences import ParallelSentence, WordPair
from ctloss.train.text.words import is_stop_word, occurs_once, word_spans
from support.tiny_text import ENGLISH_FRENCH, LEXICON, ODD_TEXT, parallel


class Proposals:
    """Proposes the word pairs that come with the sentences."""

    def fingerprint(self) -> str:
        return "proposals"

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        return [list(sentence.words or ()) for sentence in sentences]


@st.composite
def proposed(draw: st.DrawFn) -> ParallelSentence:
    """A sentence pair with word pairs among its words, which may repeat and share words."""
    source, target = draw(ODD_TEXT), draw(ODD_TEXT)
    sources, targets = word_spans(source, "en"), word_spans(target, "zh")
    pairs = st.tuples(st.sampled_from(sources or [(0, 0)]), st.sampled_from(targets or [(0, 0)]))
    words = draw(st.lists(pairs, max_size=8)) if sources and targets else []
    return ParallelSentence(source, target, "en", "zh", tuple(words))


def plainly_found(sentence: ParallelSentence) -> tuple[list[WordPair], Counter[str]]:
    skipped: Counter[str] = Counter()
    left: list[WordPair] = []
    for number, pair in enumerate(sentence.words or ()):
        if pair in (sentence.words or ())[:number]:
            continue
        sides = [(sentence.source, pair[0], "en"), (sentence.target, pair[1], "zh")]
        for text, span, language in sides:
            if is_stop_word(text[slice(*span)], language):
                skipped["stop word"] += 1
                break
            if not occurs_once(text, span, language):
                skipped["not unique"] += 1
                break
        else:
            left.append(pair)
    kept = []
    for a, b in left:
        if [(c, d) for c, d in left if c == a or d == b] == [(a, b)]:
            kept.append((a, b))
        else:
            skipped["ambiguous"] += 1
    return kept, skipped


@given(st.lists(proposed(), max_size=4))
def test_the_rules_written_out_keep_the_same_pairs(sentences: list[ParallelSentence]) -> None:
    found = WordFinder(Proposals()).find(sentences)
    plain = [plainly_found(sentence) for sentence in sentences]
    assert found.pairs == [kept for kept, _ in plain]
    assert found.skipped == sum((skipped for _, skipped in plain), Counter())


@given(st.lists(proposed(), min_size=1, max_size=4))
def test_a_sentence_finds_the_same_in_any_batch(sentences: list[ParallelSentence]) -> None:
    finder = WordFinder(Proposals())
    together = finder.find(sentences)
    alone = [finder.find([sentence]) for sentence in sentences]
    assert together.pairs == [pairs for found in alone for pairs in found.pairs]
    assert together.skipped == sum((found.skipped for found in alone), Counter())


def test_words_are_kept_where_unique_and_no_stop_word() -> None:
    corpus = parallel(ENGLISH_FRENCH)
    found = WordFinder(Lexicon.from_entries("en", "fr", LEXICON)).find(corpus)
    words = [
        [(sentence.source[slice(*a)], sentence.target[slice(*b)]) for a, b in pairs]
        for sentence, pairs in zip(corpus, found.pairs, strict=True)
    ]
    assert words == [
        [("red", "rouge"), ("house", "maison")],
        [("black", "noir"), ("dog", "chien")],
        [],
        [("teacher", "professeur"), ("letter", "lettre")],
        [("garden", "jardin"), ("river", "rivière")],
    ]
    # "The" ↔ "La" in the first row; the fourth has "la" but "the" only; the fifth "The"/"the" with one "la".
    assert found.skipped == {"stop word": 4, "not unique": 4}


def test_ambiguous_words_are_left_out() -> None:
    lexicon = Lexicon.from_entries("en", "fr", [("house", "maison"), ("house", "jardin"), ("dog", "chien")])
    found = WordFinder(lexicon).find(parallel([("The house and the dog", "La maison, le jardin et le chien")]))
    assert found.skipped == {"ambiguous": 2}
    assert [len(pairs) for pairs in found.pairs] == [1]


def test_the_iso_lists_refuse_more() -> None:
    lexicon = Lexicon.from_entries("en", "fr", [("world", "monde"), ("owl", "hibou")])
    corpus = parallel([("An owl sees the world", "Un hibou voit le monde")])
    assert [len(WordFinder(lexicon, kind).find(corpus).pairs[0]) for kind in ("short", "iso")] == [2, 1]


def test_the_rules_follow_stop_words_of_their_languages_and_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    first = rules_of("short", ["en", "fr"])
    assert rules_of("short", ["fra", "en", "en_GB"]) == first
    assert len({first, rules_of("iso", ["en", "fr"]), rules_of("short", ["en", "fr", "de"])}) == 3
    lists = {"en": {"the"}, "fr": {"le"}, "de": {"der"}}
    for changed, same in (("de", True), ("fr", False)):
        with monkeypatch.context() as patch:
            patch.setattr("ctloss.train.text.finder.stop_words", lambda language, kind: frozenset(lists[language]))
            before = rules_of("short", ["en", "fr"])
            lists[changed] = {"another"}
            assert (rules_of("short", ["en", "fr"]) == before) is same
    for place, value in (("RULES", 0), ("unicodedata", SimpleNamespace(unidata_version="0"))):
        with monkeypatch.context() as patch:
            patch.setattr(f"ctloss.train.text.finder.{place}", value)
            assert rules_of("short", ["en", "fr"]) != first
