"""Word pairs that come with the sentences, from the corpus itself or from alignment files in Pharaoh format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...shared.alignments import read_links, token_spans
from ...shared.text import DataError
from .sentences import ParallelSentence, Span, WordPair
from .words import word_spans


class GoldWords:
    """Takes the word pairs that come with the sentences: of the embedded corpus, or from alignment files."""

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        """Returns each sentence's own word pairs."""
        return [list(sentence.words or ()) for sentence in sentences]


def linked_words(sentence: ParallelSentence, line: str, place: str) -> tuple[WordPair, ...]:
    """Returns the word pairs of a sentence that a line of an alignment file in Pharaoh format gives.

    The line holds links ``s-t``, separated by spaces: zero-based positions among the tokens of source and target, which
    :func:`ctloss.shared.alignments.token_spans` finds. A word pair is a link whose two tokens have no other link.
    Punctuation at the edges of a token is stripped; a token without letters or digits is not a word.

    Args:
        sentence: its texts as the file has them, but for ASCII spaces and tabs at their ends: any other character that
            is left out shifts the positions after it.
        place: file and line, for errors.

    Raises:
        DataError: a link is malformed, or its position lies outside the sentence.

    Example:
        >>> linked_words(ParallelSentence("the red house", "la maison rouge", "en", "fr"), "1-2 2-1", "x, line 1")
        (((4, 7), (10, 15)), ((8, 13), (3, 9)))
    """
    sources, targets = token_spans(sentence.source), token_spans(sentence.target)
    links: dict[tuple[int, int], None] = {}
    for text, link in read_links(line):
        if link is None or link[1] != "-":
            raise DataError(
                f"{place}: expected links such as 0-0 2-1, got {text!r}; write only sure links, zero-based, as s-t"
            )
        s, _, t = link
        if s >= len(sources) or t >= len(targets):
            raise DataError(
                f"{place}: expected positions below {len(sources)} and {len(targets)} (the numbers of tokens), got "
                f"{text}; align exactly this corpus, and count from zero"
            )
        links[s, t] = None
    source_uses, target_uses = Counter(s for s, _ in links), Counter(t for _, t in links)
    pairs = (
        (_trim(sentence.source, sources[s]), _trim(sentence.target, targets[t]))
        for s, t in links
        if source_uses[s] == target_uses[t] == 1
    )
    return tuple((source, target) for source, target in pairs if source and target)


def _trim(text: str, token: Span) -> Span | None:
    spans = word_spans(text[slice(*token)], "")
    return (token[0] + spans[0][0], token[0] + spans[-1][1]) if spans else None
