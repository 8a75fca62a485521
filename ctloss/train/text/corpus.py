"""Parallel text: readers of line-aligned files, TSV files and the embedded corpus; all yield ParallelSentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ...shared.text import DataError, count_lines, decoded_lines, require_equal_counts
from .embedded import LANGUAGES, Split, sentences
from .sentences import ParallelSentence, stable_hash, text_key


class Sentences(Iterable[ParallelSentence]):
    """Parallel sentences that can be read any number of times, always from the start and in the same order."""

    def __init__(self, read: Callable[[], Iterator[ParallelSentence]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[ParallelSentence]:
        return self._read()


def read_lines(files: Mapping[str, str | Path], *, pivot: str = "en") -> Sentences:
    """Reads line-aligned files, where line i has the same meaning in every file: the pivot with every other language.

    The languages follow one another in the mapping's order. Lines end with LF or CRLF; texts are NFC and stripped. An
    empty line yields an empty text, so that line numbers stay valid for word alignments; a build skips and counts it.

    Args:
        files: path by language code.
        pivot: the source language.

    Raises:
        DataError: the pivot or a second language is missing, a file cannot be read, or the line counts differ. Text
            that is not UTF-8 is refused when reading reaches it.
    """
    if pivot not in files or len(files) < 2:
        raise DataError(
            f"expected files of {pivot!r} and of at least one other language, got languages {sorted(files)}; "
            "add the missing files or choose another pivot"
        )
    paths = {language: Path(path) for language, path in files.items()}
    require_equal_counts({path: count_lines(path) for path in paths.values()})

    def read() -> Iterator[ParallelSentence]:
        for language, path in paths.items():
            if language != pivot:
                for (_, source), (_, target) in zip(decoded_lines(paths[pivot]), decoded_lines(path), strict=True):
                    yield ParallelSentence(source.strip(), target.strip(), pivot, language)

    return Sentences(read)


def read_tsv(path: str | Path, source_language: str, target_language: str) -> Sentences:
    """Reads a file of lines ``source TAB target``; texts are NFC and stripped.

    What :func:`two_columns` refuses is refused when reading reaches it.
    """

    def read() -> Iterator[ParallelSentence]:
        for source, target in two_columns(Path(path), "source TAB target"):
            yield ParallelSentence(source.strip(), target.strip(), source_language, target_language)

    return Sentences(read)


def two_columns(path: Path, columns: str) -> Iterator[tuple[str, str]]:
    """Yields the columns of each line of a TSV file; ``columns`` says what they are, for errors.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8 or has not exactly two columns.
    """
    for number, line in decoded_lines(path):
        first, *others = line.split("\t")
        if len(others) != 1:
            raise DataError(
                f"{path}, line {number}: expected two columns, {columns}, got {1 + len(others)}: {line[:80]!r}; "
                "leave exactly one tab in each line"
            )
        yield first, others[0]


def read_embedded(split: Split, *, languages: Iterable[str] | None = None, pivot: str = "en") -> Sentences:
    """Reads the corpus that comes with the package, with its gold word pairs: the pivot with every other language.

    By default these are all languages of the corpus. No sentence is in two splits.

    Raises:
        DataError: an unknown language.
    """
    others = [language for language in (languages or LANGUAGES) if language != pivot]
    for language in (pivot, *others):
        if language not in LANGUAGES:
            raise DataError(
                f"expected languages among {', '.join(LANGUAGES)}, got {language!r}; "
                "the embedded corpus has no others: use files of your own for them"
            )

    def read() -> Iterator[ParallelSentence]:
        for language in others:
            for item in sentences(split):
                words = tuple((spans[pivot], spans[language]) for spans in item.words.values())
                yield ParallelSentence(item.texts[pivot], item.texts[language], pivot, language, words)

    return Sentences(read)


def take_split(
    corpus: Iterable[ParallelSentence], split: Split, *, validation: float = 0.01, test: float = 0.01, seed: int = 0
) -> Sentences:
    """Takes one of three disjoint parts of a corpus, chosen by a hash of the source sentence and the seed.

    All translations of a sentence are in the same part, whatever the order or the rest of the corpus. ``validation``
    and ``test`` are the expected shares of those parts.
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
