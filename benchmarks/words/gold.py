"""Gold word alignments as sentences for a word source, and its word pairs as links between their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ctloss.evaluate import AlignedWords, alignment_error, read_alignments
from ctloss.shared.text import DataError, text_files
from ctloss.train.text.sentences import ParallelSentence, Span, WordPair
from ctloss.train.text.words import is_unspaced


@dataclass(frozen=True)
class GoldSet:
    """Sentence pairs in tokens with their gold links; the name begins with the languages, like ``"en-fr.golden"``."""

    name: str
    pairs: list[AlignedWords]

    @property
    def languages(self) -> tuple[str, str]:
        """The languages of the two sides."""
        source, _, target = self.name.partition(".")[0].partition("-")
        return source, target

    @cached_property
    def sentences(self) -> list[ParallelSentence]:
        """Running text: tokens are joined with spaces, or without in a language that is written so."""
        source, target = self.languages
        return [
            ParallelSentence(_joined(pair.first, source), _joined(pair.second, target), source, target)
            for pair in self.pairs
        ]

    def scores(self, found: Sequence[Sequence[WordPair]]) -> dict[str, float]:
        """AER, precision and recall of word pairs, and how many there are in a sentence pair."""
        links = [self._links(pair, words) for pair, words in zip(self.pairs, found, strict=True)]
        return {**alignment_error(links, self.pairs), "pairs": sum(map(len, found)) / len(found)}

    def _links(self, pair: AlignedWords, words: Sequence[WordPair]) -> set[tuple[int, int]]:
        """All tokens of a word are linked with all tokens of its translation."""
        sources, targets = (
            token_spans(tokens, language)
            for tokens, language in zip((pair.first, pair.second), self.languages, strict=True)
        )
        return {(i, j) for a, b in words for i in _touched(sources, a) for j in _touched(targets, b)}


def read_gold_sets(folder: Path) -> list[GoldSet]:
    """Read NAME.txt and NAME.gold of every name in a folder."""
    names = [name.removesuffix(".gold") for name in text_files(folder, "*.gold")]
    if not names:
        raise DataError(f"{folder}: expected gold alignments such as en-fr.txt and en-fr.gold, got none")
    return [GoldSet(name, read_alignments(folder / name)) for name in names]


def token_spans(tokens: Sequence[str], language: str) -> list[Span]:
    """Where the tokens are in the text that they are joined to.

    Example:
        >>> token_spans(["a", "dog"], "en"), token_spans(["一", "葡萄"], "zh")
        ([(0, 1), (2, 5)], [(0, 1), (1, 3)])
    """
    spans, start, gap = [], 0, 0 if is_unspaced(language) else 1
    for token in tokens:
        spans.append((start, start + len(token)))
        start += len(token) + gap
    return spans


def _joined(tokens: Sequence[str], language: str) -> str:
    return ("" if is_unspaced(language) else " ").join(tokens)


def _touched(tokens: Sequence[Span], word: Span) -> list[int]:
    return [k for k, (start, end) in enumerate(tokens) if start < word[1] and end > word[0]]
