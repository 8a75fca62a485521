"""Word pairs by co-occurrence: a small aligner for corpora without a lexicon or alignments."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .sentences import ParallelSentence, Span, WordPair
from .words import is_unspaced, stop_words, word_spans

# Most Chinese words have one or two characters; longer runs only multiply the pairs to count.
LONGEST_RUN = 3


@dataclass
class _Counts:
    sources: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)


class CooccurrenceAligner:
    """Finds word pairs by how often two words occur in the same sentence pairs.

    Let c(a) be the number of sentence pairs with word a in the source, c(b) that with word b in the target, and c(a, b)
    that with both. The Dice coefficient is 2 c(a, b) / (c(a) + c(b)). In a sentence pair, a and b are a word pair if
    each is the other's best by Dice, c(a, b) ≥ ``least_count`` and Dice ≥ ``least_dice``. Stop words are ignored. In
    languages written without spaces, runs of up to three characters without a stop word at either end count as words,
    and of two that score equally the longer wins; word boundaries are guesses there, so a lexicon works better.

    The sentences may be of any number of language pairs; they are read twice.

    Example:
        >>> texts = [("red dog", "chien rouge"), ("big dog", "gros chien"), ("red cat", "chat rouge")]
        >>> corpus = [ParallelSentence(s, t, "xa", "xb") for s, t in texts]
        >>> aligner = CooccurrenceAligner(corpus, least_count=2)
        >>> [(corpus[0].source[slice(*a)], corpus[0].target[slice(*b)]) for a, b in aligner.word_pairs(corpus[:1])[0]]
        [('red', 'rouge'), ('dog', 'chien')]
    """

    def __init__(
        self, sentences: Iterable[ParallelSentence], *, least_count: int = 3, least_dice: float = 0.15
    ) -> None:
        if least_count < 1 or not 0 < least_dice <= 1:
            raise ValueError(
                f"expected least_count of at least 1 and least_dice in (0, 1], got {least_count} and {least_dice}"
            )
        self._least_count, self._least_dice = least_count, least_dice
        if isinstance(sentences, Iterator):
            sentences = list(sentences)
        self._counts: dict[tuple[str, str], _Counts] = {}
        digest = hashlib.blake2b(repr(("dice", least_count, least_dice)).encode(), digest_size=16)
        for sentence in sentences:
            counts = self._counts.setdefault((sentence.source_language, sentence.target_language), _Counts())
            counts.sources.update(_candidates(sentence.source, sentence.source_language).keys())
            counts.targets.update(_candidates(sentence.target, sentence.target_language).keys())
            digest.update(repr(sentence).encode())
        self._fingerprint = digest.hexdigest()
        # c(a, b) never exceeds c(a) or c(b): dropping rare words first leaves few pairs to count.
        for counts in self._counts.values():
            counts.sources = Counter({word: c for word, c in counts.sources.items() if c >= least_count})
            counts.targets = Counter({word: c for word, c in counts.targets.items() if c >= least_count})
        for sentence in sentences:
            counts, sources, targets = self._sides(sentence)
            counts.pairs.update((a, b) for a in sources for b in targets)

    def fingerprint(self) -> str:
        """Returns a hash of the options and the counted sentences."""
        return self._fingerprint

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        """Returns for each sentence the character spans of words that are each other's best, at their first occurrence."""
        return [self._of(sentence) for sentence in sentences]

    def _of(self, sentence: ParallelSentence) -> list[WordPair]:
        counts, sources, targets = self._sides(sentence)
        scores: dict[tuple[str, str], tuple[float, int]] = {}
        for a in sources:
            for b in targets:
                together = counts.pairs[a, b]
                if together >= self._least_count:
                    dice = 2 * together / (counts.sources[a] + counts.targets[b])
                    if dice >= self._least_dice:
                        scores[a, b] = (dice, len(a) + len(b))
        best_target: dict[str, str] = {}
        best_source: dict[str, str] = {}
        for (a, b), score in scores.items():
            if a not in best_target or score > scores[a, best_target[a]]:
                best_target[a] = b
            if b not in best_source or score > scores[best_source[b], b]:
                best_source[b] = a
        return [(sources[a], targets[b]) for a, b in best_target.items() if best_source[b] == a]

    def _sides(self, sentence: ParallelSentence) -> tuple[_Counts, dict[str, Span], dict[str, Span]]:
        counts = self._counts.get((sentence.source_language, sentence.target_language), _Counts())
        sources = _candidates(sentence.source, sentence.source_language).items()
        targets = _candidates(sentence.target, sentence.target_language).items()
        counted_sources = {word: span for word, span in sources if word in counts.sources}
        counted_targets = {word: span for word, span in targets if word in counts.targets}
        return counts, counted_sources, counted_targets


def _candidates(text: str, language: str) -> dict[str, Span]:
    spans, stops = word_spans(text, language), stop_words(language)
    if is_unspaced(language):
        # A run with a stop word at its edge is mostly a word and its neighbour (我姐姐, "my sister"), not one word.
        edge = [text[start:end].casefold() in stops for start, end in spans]
        spans = [
            (spans[i][0], spans[j][1])
            for i in range(len(spans))
            for j in range(i, min(i + LONGEST_RUN, len(spans)))
            # Punctuation or a space between two characters ends the run.
            if spans[j][1] - spans[i][0] == sum(end - start for start, end in spans[i : j + 1])
            and not edge[i]
            and not edge[j]
        ]
    found: dict[str, Span] = {}
    for start, end in spans:
        word = text[start:end].casefold()
        if word not in stops:
            found.setdefault(word, (start, end))
    return found
