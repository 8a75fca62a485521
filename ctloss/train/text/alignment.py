"""Word pairs that come with the sentences, from the corpus itself or from alignment files in Pharaoh format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from ...shared.text import DataError, count_lines, decoded_lines
from .corpus import Sentences
from .sentences import ParallelSentence, Span, WordPair
from .words import word_spans


class GoldWords:
    """Takes the word pairs that come with the sentences: of the embedded corpus, or from with_alignments."""

    def fingerprint(self) -> str:
        """Returns a constant: the word pairs are part of the corpus, which has a fingerprint of its own."""
        return "gold"

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        """Returns the sentences' own word pairs."""
        return [list(sentence.words or ()) for sentence in sentences]


def with_alignments(sentences: Iterable[ParallelSentence], path: str | Path) -> Sentences:
    """Adds the word pairs of an alignment file in Pharaoh format to sentences.

    Line i holds the links of sentence i as ``s-t``, separated by spaces: zero-based positions among the tokens of
    source and target, which are separated by white space. A word pair is a link whose two tokens have no other link.
    Punctuation at the edges of a token is stripped; a token without letters or digits is not a word.

    The sentences are those of one language pair. An unreadable file, a malformed link, a position outside the sentence,
    or a number of lines other than that of the sentences is refused when reading reaches it.
    """
    path = Path(path)

    def read() -> Iterator[ParallelSentence]:
        for item, sentence in zip_longest(decoded_lines(path), sentences):
            if item is None or sentence is None:
                raise DataError(
                    f"{path}: expected one line for each sentence pair, got {count_lines(path)} lines for "
                    f"{'more' if item is None else 'fewer'} pairs; give the alignment of exactly this corpus"
                )
            yield replace(sentence, words=tuple(_linked_words(sentence, item[1], f"{path}, line {item[0]}")))

    return Sentences(read)


def _linked_words(sentence: ParallelSentence, line: str, place: str) -> Iterator[WordPair]:
    sources, targets = _tokens(sentence.source), _tokens(sentence.target)
    links = []
    for link in dict.fromkeys(line.split()):
        match = re.fullmatch(r"([0-9]+)-([0-9]+)", link)
        if not match:
            raise DataError(
                f"{place}: expected links such as 0-0 2-1, got {link!r}; write only sure links, zero-based, as s-t"
            )
        s, t = int(match[1]), int(match[2])
        if s >= len(sources) or t >= len(targets):
            raise DataError(
                f"{place}: expected positions below {len(sources)} and {len(targets)} (the numbers of tokens), got "
                f"{link}; align exactly this corpus, and count from zero"
            )
        links.append((s, t))
    source_uses, target_uses = Counter(s for s, _ in links), Counter(t for _, t in links)
    for s, t in links:
        if source_uses[s] == target_uses[t] == 1:
            source, target = _trim(sentence.source, sources[s]), _trim(sentence.target, targets[t])
            if source and target:
                yield source, target


def _tokens(text: str) -> list[Span]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def _trim(text: str, token: Span) -> Span | None:
    spans = word_spans(text[slice(*token)], "")
    return (token[0] + spans[0][0], token[0] + spans[-1][1]) if spans else None
