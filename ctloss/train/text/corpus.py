"""Parallel text: readers of line-aligned files, TSV files and the embedded corpus; all yield ParallelSentence."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .embedded import LANGUAGES, Split, sentences
from .textfiles import CorpusError as CorpusError
from .textfiles import count_lines, decoded_lines
from .textfiles import find_lines as find_lines

Span = tuple[int, int]
WordPair = tuple[Span, Span]


@dataclass(frozen=True)
class ParallelSentence:
    """A sentence and its translation.

    Attributes:
        source: the sentence in ``source_language``.
        target: its translation in ``target_language``.
        source_language: two- or three-letter code, optionally with a region (``"en"``, ``"pt-br"``).
        target_language: code of the translation's language, in the same form.
        words: pairs of character spans (start, end), end exclusive, of words that translate each other; None if the
            corpus says nothing about words.
    """

    source: str
    target: str
    source_language: str
    target_language: str
    words: tuple[WordPair, ...] | None = None


class Sentences(Iterable[ParallelSentence]):
    """Parallel sentences that can be read any number of times, always from the start and in the same order.

    Example:
        >>> pair = ParallelSentence("a dog", "un chien", "en", "fr")
        >>> corpus = Sentences(lambda: iter([pair]))
        >>> list(corpus) == list(corpus) == [pair]
        True
        >>> len(list(corpus + corpus))
        2
    """

    def __init__(self, read: Callable[[], Iterator[ParallelSentence]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[ParallelSentence]:
        return self._read()

    def __add__(self, other: Iterable[ParallelSentence]) -> Sentences:
        def both() -> Iterator[ParallelSentence]:
            yield from self
            yield from other

        return Sentences(both)


def read_lines(files: Mapping[str, str | Path], *, pivot: str = "en", lowercase: bool = False) -> Sentences:
    """Reads line-aligned files, where line i has the same meaning in every file: the pivot with every other language.

    The languages follow one another in the mapping's order. Lines end with LF or CRLF; texts are NFC and stripped. An
    empty line yields an empty text, so that line numbers stay valid for word alignments; a build skips and counts it.

    Args:
        files: path by language code.
        pivot: the source language, paired with each of the others.
        lowercase: lower-case both sides, as the paper does.

    Returns:
        Sentences; text that is not UTF-8 is refused when reading reaches it.

    Raises:
        CorpusError: the pivot or a second language is missing, a file cannot be read, or the line counts differ.
    """
    if pivot not in files or len(files) < 2:
        raise CorpusError(
            f"expected files of {pivot!r} and of at least one other language, got languages {sorted(files)}; "
            "add the missing files or choose another pivot"
        )
    paths = {language: Path(path) for language, path in files.items()}
    counts = {language: count_lines(path) for language, path in paths.items()}
    for language, count in counts.items():
        if count != counts[pivot]:
            shorter, longer = sorted((pivot, language), key=counts.__getitem__)
            raise CorpusError(
                f"{paths[longer]}, line {counts[shorter] + 1}: no such line in {paths[shorter]}; expected files with "
                f"equal numbers of lines, got {counts[longer]} and {counts[shorter]}; align them line by line"
            )

    def read() -> Iterator[ParallelSentence]:
        for language, path in paths.items():
            if language != pivot:
                for (_, source), (_, target) in zip(decoded_lines(paths[pivot]), decoded_lines(path), strict=True):
                    yield _sentence(source, target, pivot, language, lowercase)

    return Sentences(read)


def read_tsv(path: str | Path, source_language: str, target_language: str, *, lowercase: bool = False) -> Sentences:
    """Reads a file of lines ``source TAB target``; texts are NFC and stripped.

    Args:
        path: the file.
        source_language: language code of the first column.
        target_language: language code of the second column.
        lowercase: lower-case both sides, as the paper does.

    Returns:
        Sentences; a line that is not UTF-8 or has not exactly two columns is refused when reading reaches it.

    Raises:
        CorpusError: the file cannot be read.
    """
    path = Path(path)
    count_lines(path)

    def read() -> Iterator[ParallelSentence]:
        for number, line in decoded_lines(path):
            columns = line.split("\t")
            if len(columns) != 2:
                raise CorpusError(
                    f"{path}, line {number}: expected two columns, source TAB target, got {len(columns)}: "
                    f"{line[:80]!r}; leave exactly one tab in each line"
                )
            yield _sentence(columns[0], columns[1], source_language, target_language, lowercase)

    return Sentences(read)


def read_embedded(
    split: Split, *, languages: Iterable[str] | None = None, pivot: str = "en", lowercase: bool = False
) -> Sentences:
    """Reads the corpus that comes with the package, with its gold word pairs: the pivot with every other language.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``; no sentence is in two of them.
        languages: languages to pair with the pivot (default: all of the corpus).
        pivot: the source language.
        lowercase: lower-case both sides, as the paper does.

    Raises:
        CorpusError: an unknown language.
    """
    others = [language for language in (languages or LANGUAGES) if language != pivot]
    for language in (pivot, *others):
        if language not in LANGUAGES:
            raise CorpusError(
                f"expected languages among {', '.join(LANGUAGES)}, got {language!r}; "
                "the embedded corpus has no others: use files of your own for them"
            )

    def read() -> Iterator[ParallelSentence]:
        for language in others:
            for item in sentences(split):
                if pivot in item.texts and language in item.texts:
                    words = tuple(
                        (spans[pivot], spans[language])
                        for spans in item.words.values()
                        if pivot in spans and language in spans
                    )
                    pair = ParallelSentence(item.texts[pivot], item.texts[language], pivot, language, words)
                    yield replace(pair, source=lower(pair.source), target=lower(pair.target)) if lowercase else pair

    return Sentences(read)


def take_split(
    corpus: Iterable[ParallelSentence], split: Split, *, validation: float = 0.01, test: float = 0.01, seed: int = 0
) -> Sentences:
    """Takes one of three disjoint parts of a corpus, chosen by a hash of the source sentence and the seed.

    All translations of a sentence are in the same part, whatever the order or the rest of the corpus.

    Args:
        corpus: parallel sentences, readable more than once.
        split: which part.
        validation: expected share of the validation part.
        test: expected share of the test part.
        seed: another seed gives another split.

    Example:
        >>> corpus = [ParallelSentence(f"dog {i}", f"chien {i}", "en", "fr") for i in range(100)]
        >>> parts = [list(take_split(corpus, s, validation=0.2, test=0.2)) for s in ("train", "validation", "test")]
        >>> sorted(sum(parts, []), key=corpus.index) == corpus and all(parts)
        True
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(
            f"expected shares of validation and test that leave some of the corpus for training, got {validation} and "
            f"{test}; lower them"
        )

    def read() -> Iterator[ParallelSentence]:
        for sentence in corpus:
            share = stable_hash("split", str(seed), text_key(sentence.source)) / 2**64
            part = "test" if share < test else "validation" if share < test + validation else "train"
            if part == split:
                yield sentence

    return Sentences(read)


def lower(text: str) -> str:
    """Lower-cases a text without changing its length, so that character spans stay valid.

    Example:
        >>> lower("Ein İgel"), len(lower("İ"))
        ('ein İgel', 1)
    """
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(small if len(small := c.lower()) == 1 else c for c in text)


def text_key(text: str) -> str:
    """Returns the form in which equal texts are equal: NFKC, case folded, white space collapsed.

    Example:
        >>> text_key(" Le  CHIEN") == text_key("le chien")
        True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def stable_hash(*parts: str) -> int:
    """Returns a 64-bit hash of some texts that is the same in every process and on every machine.

    Example:
        >>> stable_hash("ab", "c") != stable_hash("a", "bc")
        True
    """
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _sentence(
    source: str, target: str, source_language: str, target_language: str, lowercase: bool
) -> ParallelSentence:
    source, target = source.strip(), target.strip()
    if lowercase:
        source, target = lower(source), lower(target)
    return ParallelSentence(source, target, source_language, target_language)
