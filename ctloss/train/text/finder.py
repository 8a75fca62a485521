"""Which of the word pairs that a source proposes become training pairs."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from ...shared.languages import primary
from .sentences import ParallelSentence, WordPair
from .words import StopWords, fold, is_once, is_stop_word, stop_words

# Of the rules in this room: what was found by others is not reused.
RULES = 2


class WordSource(Protocol):
    """Where word pairs come from: Lexicon, GoldWords, CooccurrenceAligner or any class with these methods."""

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        """Returns for each sentence pairs of character spans of words that translate each other.

        What is found in a sentence does not depend on the others.
        """


class Found(NamedTuple):
    """The word pairs of some sentences.

    Attributes:
        pairs: for each sentence the pairs kept, in the order in which they were proposed.
        skipped: how many others were proposed, by reason: ``stop word``, ``not unique`` (a word occurs again in its
            sentence), ``ambiguous`` (a word is in several of the pairs left).
    """

    pairs: list[list[WordPair]]
    skipped: Counter[str]


def rules_of(kind: StopWords, languages: Iterable[str]) -> str:
    """Returns a hash of what decides about words besides their source: rules, Unicode's tables and stop words.

    Args:
        kind: whose lists of stop words.
        languages: codes of the languages whose lists are asked.
    """
    digest = hashlib.blake2b(repr((RULES, unicodedata.unidata_version)).encode(), digest_size=16)
    for language in sorted(set(map(primary, languages))):
        digest.update(repr((language, sorted(stop_words(language, kind)))).encode())
    return digest.hexdigest()


class WordFinder:
    """Finds the word pairs of sentences: those of a source that can be training pairs (Chen et al. 2022).

    Neither word of a pair is a stop word; each occurs exactly once in its sentence, ignoring case; and neither is in
    another pair left.

    Args:
        source: proposes the word pairs.
        stop_words: whose lists of stop words: ``"short"`` or ``"iso"``, see :func:`ctloss.train.text.words.stop_words`.

    Example:
        >>> from ctloss.train.text.lexicon import Lexicon
        >>> lexicon = Lexicon.from_entries("en", "fr", [("the", "le"), ("dog", "chien"), ("cat", "chat")])
        >>> sentence = ParallelSentence("The dog sees the cat, a cat", "Le chien voit le chat", "en", "fr")
        >>> found = WordFinder(lexicon).find([sentence])
        >>> found.pairs, dict(found.skipped)
        ([[((4, 7), (3, 8))]], {'stop word': 4, 'not unique': 2})
    """

    def __init__(self, source: WordSource, stop_words: StopWords = "short") -> None:
        self._source, self._stop_words = source, stop_words

    def find(self, sentences: Sequence[ParallelSentence]) -> Found:
        """Returns the word pairs of each sentence, and how many others the source proposed."""
        skipped: Counter[str] = Counter()
        proposals = self._source.word_pairs(sentences)
        pairs = [
            self._kept(sentence, proposed, skipped) if proposed else []
            for sentence, proposed in zip(sentences, proposals, strict=True)
        ]
        return Found(pairs, skipped)

    def _kept(self, sentence: ParallelSentence, proposed: list[WordPair], skipped: Counter[str]) -> list[WordPair]:
        source = _Side(sentence.source, sentence.source_language, self._stop_words)
        target = _Side(sentence.target, sentence.target_language, self._stop_words)
        usable = []
        for pair in dict.fromkeys(proposed):
            reason = source.refusal(*pair[0]) or target.refusal(*pair[1])
            if reason:
                skipped[reason] += 1
            else:
                usable.append(pair)
        if len(usable) < 2:
            return usable
        sources, targets = Counter(a for a, _ in usable), Counter(b for _, b in usable)
        kept = [(a, b) for a, b in usable if sources[a] == targets[b] == 1]
        if len(kept) < len(usable):
            skipped["ambiguous"] += len(usable) - len(kept)
        return kept


class _Side:
    """One text of a sentence pair."""

    def __init__(self, text: str, language: str, kind: StopWords) -> None:
        self._text, self._folded, self._language, self._kind = text, fold(text), language, kind

    def refusal(self, start: int, end: int) -> str | None:
        """Returns why the word at a span is in no training pair; None if it may be."""
        word = fold(self._text[start:end])
        if is_stop_word(word, self._language, self._kind):
            return "stop word"
        return None if is_once(self._folded, word, self._language) else "not unique"
