"""Word pairs that come with sentences: links of an alignment file, and those that the corpus has."""

from __future__ import annotations

import pytest

from ctloss.shared.text import DataError
from ctloss.train.text.alignment import GoldWords, linked_words
from ctloss.train.text.sentences import ParallelSentence


def words(source: str, target: str, line: str) -> list[tuple[str, str]]:
    found = linked_words(ParallelSentence(source, target, "en", "fr"), line, "x.align, line 1")
    return [(source[a:b], target[c:d]) for (a, b), (c, d) in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("0-0 1-2 2-1", [("The", "La"), ("red", "rouge"), ("house", "maison")]),
        # A token with two links is no half of a word pair; a link that is repeated is one link.
        ("0-0 1-2 1-1 2-1", [("The", "La")]),
        ("0-0\t0-0 00-0", [("The", "La")]),
        # Punctuation is stripped, and is no word.
        ("3-3 2-1", [("house", "maison")]),
        ("4-0", [("well-kept", "La")]),
    ],
)
def test_links_of_one_word_to_one(line: str, expected: list[tuple[str, str]]) -> None:
    assert words("The red (house) ! well-kept.", "La maison, rouge .", line) == expected


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u3000", "\u2028", "\u0085"], ids=ascii)
def test_other_spaces_are_within_tokens(space: str) -> None:
    """Were they to part tokens, all later positions would shift silently."""
    source, target = f"a{space}b {space} dog", f"{space} un{space}chien noir"
    assert words(source, target, "2-2 1-0") == [("dog", "noir")]
    assert words(source, target, "0-1") == [(f"a{space}b", f"un{space}chien")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0:1", "expected links such as 0-0 2-1, got '0:1'"),
        ("0p1", "expected links such as 0-0 2-1, got '0p1'; write only sure links"),
        ("0-0 0-2", r"expected positions below 3 and 2 \(the numbers of tokens\), got 0-2"),
        ("3-0", r"expected positions below 3 and 2 \(the numbers of tokens\), got 3-0"),
        ("0-0\u00a01-1", "expected links such as"),
    ],
)
def test_refused_links(line: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^x.align, line 1: {message}"):
        words("the red house", "maison rouge", line)


def test_words_of_the_corpus_are_taken_by_batch() -> None:
    pair = ((0, 1), (2, 3))
    sentences = [ParallelSentence("a", "b", "en", "fr", given) for given in (None, (pair,), (), (pair, pair))]
    assert GoldWords().word_pairs(sentences) == [[], [pair], [], [pair, pair]]
    assert GoldWords().word_pairs([]) == []
