"""The fourth pass: sentence pairs as wordpieces, with the spans of word pairs; in several processes."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import numpy as np
import pyarrow as pa

from ...shared.files import writing_file
from ...shared.languages import primary
from ..text.finder import WordFinder
from ..text.sentences import ParallelSentence, WordPair, stable_hash
from ..text.words import fold
from .folder import SAMPLES, TEXTS
from .parts import KEYS
from .pieces import WordByWord, Wordpieces, wordpiece_span
from .reading import sentences

# Of word pairs that are proposed; the column skipped_words holds their counts in the first row of each batch.
SKIPPED = ("stop word", "not unique", "ambiguous", "span not verified")
WRITTEN = SAMPLES.append(pa.field("skipped_words", pa.list_(pa.int32())))
WRITTEN_HELD_OUT = pa.schema([*WRITTEN, *(pa.field(name, pa.list_(pa.string())) for name in TEXTS)])


@dataclass(frozen=True)
class Tools:
    """What a process needs to make samples: too large to be sent with every call, so each process loads it once."""

    tokenizer: WordByWord
    unknown: int | None
    finder: WordFinder
    languages: list[tuple[str, str]]
    fates: np.ndarray
    keys: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def write(
        path: Path,
        *,
        finder: WordFinder,
        tokenizer: Path,
        unknown: int | None,
        languages: Sequence[tuple[str, str]],
        arrays: Sequence[Path],
    ) -> None:
        """Writes what :func:`load_tools` reads.

        Args:
            path: the file to write, of a new name.
            finder: finds word pairs.
            tokenizer: its ``tokenizer.json``.
            unknown: id of the unknown wordpiece.
            languages: language pair of each origin.
            arrays: files of the fate and of the source's and the target's key of every row.
        """
        path.write_bytes(dumps((finder, str(tokenizer), unknown, list(languages), list(map(str, arrays)))))


@lru_cache(maxsize=1)
def load_tools(path: str) -> Tools:
    """Returns what :meth:`Tools.write` wrote, in this process and in those forked from it later."""
    from tokenizers import Tokenizer

    finder, file, unknown, languages, arrays = loads(Path(path).read_bytes())
    fates, *keys = (np.load(array, mmap_mode="r") for array in arrays)
    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Tools(WordByWord(tokenizer), unknown, finder, languages, fates, (keys[0], keys[1]))


def write_marks(path: Path, rows: int) -> Path:
    """Writes a file with a mark for each row, none of them set, unless a killed process left it; returns its path."""
    if not path.is_file():
        with writing_file(path) as partial, partial.open("wb") as file:
            np.save(file, np.zeros(rows, dtype=bool))
    return path


def open_marks(path: Path) -> np.ndarray:
    """Returns the marks in a file, (rows,) bool, which processes that write to them share."""
    marks: np.ndarray = np.load(path, mmap_mode="r+")
    return marks


@dataclass(frozen=True)
class MakeSamples:
    """Turns rows of the first pass into samples; small to pickle.

    Rows of a held-out part are given with their keys, and get the texts of their words.

    Attributes:
        tools: the file that :meth:`Tools.write` wrote.
        max_length: wordpieces of a side, special tokens included; longer pairs are left out.
        too_long: the file of a mark for each row given, see :func:`open_marks`; set where a pair is left out.
        fate: of the rows to take; None for rows of a held-out part, all of which are taken.
    """

    tools: str
    max_length: int
    too_long: Path
    fate: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns made: those of training, or with the words' texts those of the held-out parts."""
        return WRITTEN_HELD_OUT if self.fate is None else WRITTEN

    def __call__(self, table: pa.Table, first: int) -> pa.Table:
        # To look for garbage among millions of small objects, none of them in circles, would cost a fifth of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._made(table, first)
        finally:
            if collecting:
                gc.enable()

    def _made(self, table: pa.Table, first: int) -> pa.Table:
        tools = load_tools(self.tools)
        rows = np.arange(first, first + len(table))
        if self.fate is not None:
            these = slice(first, first + len(table))
            rows = rows[tools.fates[these] == self.fate]
            for name, keys in zip(KEYS, tools.keys, strict=True):
                table = table.append_column(name, pa.array(keys[these]))
            table = table.filter(pa.array(tools.fates[these] == self.fate))
        if not len(table):
            return self.schema.empty_table()
        given = sentences(table, tools.languages)
        encodings = tools.tokenizer([s.source for s in given] + [s.target for s in given])
        found = zip(encodings[: len(given)], encodings[len(given) :], strict=True)
        fits = [max(len(source.ids), len(target.ids)) <= self.max_length for source, target in found]
        open_marks(self.too_long)[rows] = ~np.array(fits)
        made_of = _Rows(tools, texts=self.fate is None)
        kept = [i for i, fit in enumerate(fits) if fit]
        made_of.add([given[i] for i in kept], [encodings[i] for i in kept], [encodings[len(given) + i] for i in kept])
        table = table if len(kept) == len(given) else table.filter(pa.array(fits))
        copied = {name: table.column(name) for name in ("source", "target", "origin", *KEYS)}
        made = copied | made_of.columns()
        return pa.Table.from_arrays([made[name] for name in self.schema.names], schema=self.schema)


class _Rows:
    """The columns that are made, of one batch."""

    def __init__(self, tools: Tools, *, texts: bool) -> None:
        self._tools, self._texts = tools, texts
        self._ids: tuple[list[list[int]], list[list[int]]] = ([], [])
        self._spans: list[list[tuple[int, int, int, int]]] = []
        self._words: list[list[tuple[str, str]]] = []
        self._hashes: list[list[tuple[int, int, int]]] = []
        self._skipped: Counter[str] = Counter()

    def add(self, given: list[ParallelSentence], sources: list[Wordpieces], targets: list[Wordpieces]) -> None:
        """Takes sentence pairs and their encodings."""
        found = self._tools.finder.find(given)
        self._skipped.update(found.skipped)
        for sentence, pairs, *encodings in zip(given, found.pairs, sources, targets, strict=True):
            self._add_one(sentence, pairs, encodings[0], encodings[1])

    def columns(self) -> dict[str, pa.Array]:
        """Returns them by name."""
        length = len(self._spans)
        skipped = [[self._skipped[reason] for reason in SKIPPED]] + [[]] * (length - 1)
        spans = _lists(self._spans, np.int32, 4)
        made = {
            "source_ids": _lists(self._ids[0], np.int32),
            "target_ids": _lists(self._ids[1], np.int32),
            "word_pairs": spans,
            "skipped_words": _lists(skipped[:length], np.int32),
        }
        for i, name in enumerate(("word_types", "source_words", "target_words")):
            made[name] = _lists([[hashes[i] for hashes in row] for row in self._hashes], np.uint64)
        for i, name in enumerate(TEXTS if self._texts else ()):
            made[name] = pa.array([[words[i] for words in row] for row in self._words], pa.list_(pa.string()))
        return made

    def _add_one(
        self, sentence: ParallelSentence, pairs: list[WordPair], source: Wordpieces, target: Wordpieces
    ) -> None:
        # Of an encoding, ids is a new list each time.
        source_ids, target_ids = source.ids, target.ids
        self._ids[0].append(source_ids)
        self._ids[1].append(target_ids)
        spans, words, hashes = [], [], []
        unknown = self._tools.unknown
        if pairs:
            source_unknown, target_unknown = (unknown if unknown in ids else None for ids in (source_ids, target_ids))
            languages = primary(sentence.source_language), primary(sentence.target_language)
        for a, b in pairs:
            here = wordpiece_span(source, sentence.source, a, source_unknown)
            there = wordpiece_span(target, sentence.target, b, target_unknown)
            if here is None or there is None:
                self._skipped["span not verified"] += 1
                continue
            x, y = fold(sentence.source[slice(*a)]), fold(sentence.target[slice(*b)])
            spans.append((*here, *there))
            words.append((x, y))
            hashes.append((_hash(languages[0], x, languages[1], y), _hash(languages[0], x), _hash(languages[1], y)))
        self._spans.append(spans)
        self._words.append(words)
        self._hashes.append(hashes)


def _lists(rows: Sequence[Sequence[Any]], dtype: Any, width: int = 0) -> pa.Array:
    """Returns lists of numbers, or of lists of ``width`` numbers, as an Arrow array."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values: Any = chain.from_iterable(rows)
    if width:
        flat = np.fromiter(chain.from_iterable(values), dtype, offsets[-1] * width)
        return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(pa.array(flat), width))
    return pa.ListArray.from_arrays(offsets, pa.array(np.fromiter(values, dtype, offsets[-1])))


@lru_cache(maxsize=1 << 18)
def _hash(*parts: str) -> int:
    return stable_hash(*parts)
