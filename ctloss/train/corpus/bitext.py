"""A bitext: one language pair of one origin, read chunk by chunk, every line of it read or reported as bad."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ...shared.text import BadLine, DataError, count_lines, decoded_lines, stripped
from ..text.alignment import linked_words
from ..text.sentences import ParallelSentence, WordPair

__all__ = ["BadLine", "Bitext", "Chunk", "Rows", "identity_of"]


class Chunk(NamedTuple):
    """Some sentence pairs, NFC and stripped, and the lines among them that cannot be read.

    An empty side is an empty text. ``words`` has the word pairs of each sentence pair where the corpus comes with them.
    """

    sources: list[str]
    targets: list[str]
    bad: list[BadLine]
    words: list[tuple[WordPair, ...]] | None = None


class Rows(NamedTuple):
    """What a reader gives: both texts of every line from number ``first`` on, in NFC; a bad line has none.

    ``bad`` is sorted by line and names no line twice.
    """

    first: int
    sources: list[str]
    targets: list[str]
    bad: list[BadLine]
    words: list[tuple[WordPair, ...]] | None = None


Reader = Callable[[int], Iterator[Rows]]


@dataclass(frozen=True)
class Bitext:
    """One language pair of one origin; readable any number of times, always in the same order.

    Attributes:
        name: what people know it by: the name that they gave, and the place in it if it holds several.
        source_language, target_language: codes as people spelled them.
        identity: differs whenever the content may.
        read: returns an iterator over all lines, at most so many at a time.
        count: counts the lines in a fraction of the time that reading takes; None where that cannot be.
        alignment: a file in Pharaoh format with a line of word links for each line given, bad ones included.
    """

    name: str
    source_language: str
    target_language: str
    identity: str
    read: Reader = field(repr=False, compare=False)
    count: Callable[[], int] | None = field(default=None, repr=False, compare=False)
    alignment: Path | None = None

    def chunks(self, size: int = 2048) -> Iterator[Chunk]:
        """Yields all sentence pairs, at most ``size`` lines at a time: each line is among the texts or in ``bad``.

        Raises:
            DataError: files of different lengths, or a damaged one; names the file and the line.
        """
        links = None if self.alignment is None else decoded_lines(self.alignment)
        for rows in self.read(size):
            given = self._linked(rows, links) if links is not None else rows.words
            dropped = {line.line - rows.first for line in rows.bad}
            kept = [place for place in range(len(rows.sources)) if place not in dropped] if dropped else None
            yield Chunk(
                [stripped(text) for text in _take(rows.sources, kept)],
                [stripped(text) for text in _take(rows.targets, kept)],
                rows.bad,
                None if given is None else _take(given, kept),
            )
        if links is not None and next(links, None) is not None:
            raise self._wrong_count("fewer")

    def _linked(self, rows: Rows, links: Iterator[tuple[int, str]]) -> list[tuple[WordPair, ...]]:
        lines = list(islice(links, len(rows.sources)))
        if len(lines) < len(rows.sources):
            raise self._wrong_count("more")
        bad = {line.line - rows.first for line in rows.bad}
        words: list[tuple[WordPair, ...]] = []
        for place, (number, line) in enumerate(lines):
            texts = rows.sources[place], rows.targets[place]
            sentence = ParallelSentence(*texts, self.source_language, self.target_language)
            found = () if place in bad else linked_words(sentence, line, f"{self.alignment}, line {number}")
            # The words of the text as it stands in the file are those of the stripped text, so much further left.
            left = [len(text) - len(text.lstrip()) for text in texts]
            words.append(tuple(((a - left[0], b - left[0]), (c - left[1], d - left[1])) for (a, b), (c, d) in found))
        return words

    def _wrong_count(self, pairs: str) -> DataError:
        assert self.alignment is not None
        return DataError(
            f"{self.alignment}: expected one line for each line of {self.name}, got {count_lines(self.alignment)} "
            f"lines for {pairs} pairs; give the alignment of exactly this corpus"
        )


def identity_of(paths: Iterable[Path], *others: str) -> str:
    """Returns what identifies the content of files without reading them: path, size and time of change of each.

    Raises:
        DataError: a file is missing.
    """
    total = hashlib.sha256("\0".join(others).encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: expected a readable file, got {error.strerror}; check the path") from error
        total.update(f"\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return total.hexdigest()


def _take(items: list, places: list[int] | None) -> list:
    return items if places is None else [items[place] for place in places]
