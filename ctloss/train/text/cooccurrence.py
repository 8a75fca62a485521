"""Word pairs by co-occurrence: a small aligner for corpora without a lexicon or alignments."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...shared.files import write_atomically
from ...shared.options import require
from ...shared.text import DataError
from .counting import CAPACITY, Counts, KeyCounter, Keys
from .sentences import ParallelSentence, Span, WordPair, stable_hash
from .words import StopWords, folded_words, is_unspaced, stop_words, word_spans

# Most Chinese words have one or two characters; longer runs only multiply the pairs to count.
LONGEST_RUN = 3
# Words of a side that take part: a sentence has as many pairs as the product of its sides.
MOST_WORDS = 512
# Pairs of words looked at at a time, and a sentence's more.
CROSSED = 1 << 20
# Words whose hashes a process remembers, some 200 bytes each.
REMEMBERED = 1 << 18
FORMAT = "ctloss co-occurrence 1"
DESCRIPTION = "cooccurrence.json"
TABLES = {"words": np.uint64, "word_counts": np.uint32, "pairs": np.uint64, "pair_counts": np.uint32}

Positions = NDArray[np.int64]


class CooccurrenceAligner:
    """Finds word pairs by how often two words occur in the same sentence pairs.

    Let c(a) be the number of sentence pairs with word a in the source, c(b) that with word b in the target, and c(a, b)
    that with both. The Dice coefficient is 2 c(a, b) / (c(a) + c(b)). In a sentence pair, a and b are a word pair if
    each is the other's best by Dice, c(a, b) ≥ ``least_count`` and Dice ≥ ``least_dice``. Stop words are ignored. In
    languages written without spaces, runs of up to three characters without a stop word at either end count as words,
    and of two that score equally the longer wins; word boundaries are guesses there, so a lexicon works better. Of a
    side with more than 512 words the first 512 take part.

    :meth:`count` makes one from sentences of any number of language pairs, :meth:`open` finds it again. Its tables lie
    in a folder and are memory-mapped; a pickled aligner holds only the folder's path.

    Example:
        >>> texts = [("red dog", "chien rouge"), ("big dog", "gros chien"), ("red cat", "chat rouge")]
        >>> corpus = [ParallelSentence(s, t, "xa", "xb") for s, t in texts]
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     aligner = CooccurrenceAligner.count(lambda: [corpus], Path(folder), least_count=2)
        ...     found = aligner.word_pairs(corpus[:1])
        >>> [(corpus[0].source[slice(*a)], corpus[0].target[slice(*b)]) for a, b in found[0]]
        [('red', 'rouge'), ('dog', 'chien')]
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self._folder = folder
        self._description = description
        self._hashes = _Hashes(description["options"]["stop_words"])

    @classmethod
    def count(
        cls,
        batches: Callable[[], Iterable[Sequence[ParallelSentence]]],
        folder: str | Path,
        *,
        least_count: int = 3,
        least_dice: float = 0.15,
        stop_words: StopWords = "short",
        progress: Callable[[int], None] | None = None,
        capacity: int = CAPACITY,
    ) -> CooccurrenceAligner:
        """Counts words and pairs of words, and writes an aligner's tables into a folder.

        The sentences are read once. Memory does not grow with the pairs of words: their keys are sorted ``capacity`` at
        a time and merged from disk. Until the end the folder takes 8 bytes for each word of each sentence, and at most
        12 for each pair of words in it. Pairs below ``least_count`` or ``least_dice`` are not kept; those of a rare and
        a frequent word, whose Dice coefficient cannot reach ``least_dice``, are not even counted.

        Args:
            batches: returns the sentences in batches.
            stop_words: which list of stop words, see :func:`ctloss.train.text.words.stop_words`.
            progress: called with the number of sentences of each batch when they have been read.

        Raises:
            OptionError: ``least_count`` or ``least_dice`` is out of its range.
            DataError: the folder cannot be written to, or the disk is full.
        """
        require(least_count >= 1, "least_count", "at least 1", least_count, "raise it")
        require(0 < least_dice <= 1, "least_dice", "more than 0 and at most 1", least_dice, "change it")
        options = {"least_count": least_count, "least_dice": least_dice, "stop_words": stop_words}
        folder = Path(folder)
        scratch = folder / "counting"
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            (folder / DESCRIPTION).unlink(missing_ok=True)
            _count(batches(), folder, scratch, least_count, least_dice, stop_words, progress, capacity)
            description = {
                "format": FORMAT,
                "options": options,
                "sizes": {name: (folder / name).stat().st_size for name in TABLES},
                "fingerprint": _digest(folder, repr(sorted(options.items()))),
            }
            write_atomically(folder / DESCRIPTION, json.dumps(description, indent=1))
        except OSError as error:
            raise DataError(
                f"{folder}: expected to write the counts of word pairs there, got {error}; "
                "make room, or choose another folder"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return cls(folder, description)

    @classmethod
    def open(cls, folder: str | Path) -> CooccurrenceAligner:
        """Returns the aligner whose tables :meth:`count` wrote into a folder.

        Raises:
            DataError: there are none, or they are not whole.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            whole = description["format"] == FORMAT and all(
                (folder / name).stat().st_size == description["sizes"][name] for name in TABLES
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: expected counts of word pairs, got none ({error}); count them again") from error
        if not whole:
            raise DataError(f"{folder}: expected whole tables of {FORMAT!r}, got others; count the word pairs again")
        return cls(folder, description)

    def __reduce__(self) -> tuple[Any, ...]:
        return CooccurrenceAligner.open, (self._folder,)

    def fingerprint(self) -> str:
        """Returns a hash of the options and the tables."""
        return str(self._description["fingerprint"])

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        """Returns, for each sentence, the spans of words that are each other's best, at their first occurrence."""
        hashes, lengths, spans = self._hashes(sentences)
        found: list[list[WordPair]] = [[] for _ in sentences]
        words, frequencies, codes, together = (self._tables[name] for name in TABLES)
        ids, places, sizes = _known(words, hashes, lengths)
        rows = np.repeat(np.arange(len(sentences)), sizes.sum(axis=1))
        edges = np.array(spans, dtype=np.int64).reshape(-1, 2)[places]
        size = edges[:, 1] - edges[:, 0]
        for a, b in _crossed(sizes):
            hits, at = _find(codes, _code(ids[a], ids[b]))
            a, b = a[hits], b[hits]
            dice = _dice(together[at], frequencies[ids[a]], frequencies[ids[b]])
            best = _best(a, dice, size[a] + size[b]) & _best(b, dice, size[a] + size[b])
            for row, i, j in np.stack([rows[a], places[a], places[b]], axis=1)[best].tolist():
                found[row].append((spans[i], spans[j]))
        return found

    @cached_property
    def _tables(self) -> dict[str, NDArray[Any]]:
        return {name: _mapped(self._folder / name, dtype) for name, dtype in TABLES.items()}


class _Hashes:
    """Hashes of the words that take part, different for each language pair and side; frequent ones are remembered."""

    def __init__(self, stop_words: StopWords) -> None:
        self._stop_words = stop_words
        self._remembered: dict[tuple[str, str, str], dict[str, int]] = {}
        self._number = 0

    def __call__(self, sentences: Sequence[ParallelSentence]) -> tuple[Keys, Positions, list[Span]]:
        """Returns the words' hashes, how many each side has (source, target, source, ...), and where they are."""
        hashes: list[int] = []
        lengths: list[int] = []
        spans: list[Span] = []
        for sentence in sentences:
            languages = (sentence.source_language, sentence.target_language)
            for side, text, language in zip(
                ("source", "target"), (sentence.source, sentence.target), languages, strict=True
            ):
                words = _candidates(text, language, self._stop_words)
                hashes += self._of_side((*languages, side), words)
                lengths.append(len(words))
                spans += words.values()
        return np.array(hashes, dtype=np.uint64), np.array(lengths, dtype=np.int64), spans

    def _of_side(self, side: tuple[str, str, str], words: Iterable[str]) -> list[int]:
        if self._number > REMEMBERED:
            self._remembered.clear()
            self._number = 0
        known = self._remembered.setdefault(side, {})
        before = len(known)
        for word in words:
            if word not in known:
                known[word] = stable_hash(*side, word)
        self._number += len(known) - before
        return [known[word] for word in words]


def _count(
    batches: Iterable[Sequence[ParallelSentence]],
    folder: Path,
    scratch: Path,
    least_count: int,
    least_dice: float,
    stop_words: StopWords,
    progress: Callable[[int], None] | None,
    capacity: int,
) -> None:
    read: list[tuple[int, int]] = []
    with KeyCounter(scratch, capacity=capacity) as counter, (scratch / "sentences").open("wb") as spilled:
        hashes_of = _Hashes(stop_words)
        for batch in batches:
            hashes, lengths, _ = hashes_of(batch)
            counter.add(hashes)
            hashes.tofile(spilled)
            lengths.tofile(spilled)
            read.append((len(hashes), len(lengths)))
            if progress:
                progress(len(batch))
        _write(folder, "word", (_frequent(*block, least_count) for block in counter.counted()))
    words, frequencies = (np.fromfile(folder / name, dtype=TABLES[name]) for name in ("words", "word_counts"))
    with KeyCounter(scratch, capacity=capacity) as counter, (scratch / "sentences").open("rb") as spilled:
        for number, sides in read:
            hashes = np.fromfile(spilled, dtype=np.uint64, count=number)
            ids, _, sizes = _known(words, hashes, np.fromfile(spilled, dtype=np.int64, count=sides))
            for a, b in _crossed(sizes):
                c, d = frequencies[ids[a]], frequencies[ids[b]]
                possible = _dice(np.minimum(c, d), c, d) >= least_dice
                counter.add(_code(ids[a[possible]], ids[b[possible]]))
        _write(folder, "pair", (_close(*block, frequencies, least_count, least_dice) for block in counter.counted()))


def _candidates(text: str, language: str, kind: StopWords) -> dict[str, Span]:
    """Returns the words that take part, folded, and where each occurs first."""
    spans, words, stops = word_spans(text, language), folded_words(text, language), stop_words(language, kind)
    if is_unspaced(language):
        # A run with a stop word at its edge is mostly a word and its neighbour (我姐姐, "my sister"), not one word.
        edge = [word in stops for word in words]
        runs = [
            (i, j)
            for i in range(len(spans))
            for j in range(i, min(i + LONGEST_RUN, len(spans)))
            # Punctuation or a space between two characters ends the run.
            if spans[j][1] - spans[i][0] == sum(end - start for start, end in spans[i : j + 1])
            and not edge[i]
            and not edge[j]
        ]
        words = ["".join(words[i : j + 1]) for i, j in runs]
        spans = [(spans[i][0], spans[j][1]) for i, j in runs]
    found: dict[str, Span] = {}
    for word, span in zip(words, spans, strict=True):
        if word not in stops and word not in found:
            found[word] = span
            if len(found) == MOST_WORDS:
                break
    return found


def _known(words: Keys, hashes: Keys, lengths: Positions) -> tuple[Positions, Positions, Positions]:
    """Returns ids and places of the hashes that are in the table, and the lengths (n, 2) of sides of only those."""
    places, ids = _find(words, hashes)
    sides = np.repeat(np.arange(len(lengths)), lengths)
    return ids, places, np.bincount(sides[places], minlength=len(lengths)).reshape(-1, 2)


def _crossed(sizes: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Yields the places of all pairs of a source's and its target's words, source by source, some sentences at a time.

    Args:
        sizes: the numbers of words of sources and targets (n, 2), which follow one another sentence by sentence.
    """
    sources, targets = sizes.T
    first = np.cumsum(sources + targets) - (sources + targets)
    part = np.cumsum(sources * targets) // CROSSED
    for rows in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(part)) + 1):
        per_source = sources[rows]
        a = _ranges(first[rows], per_source)
        others = np.repeat(targets[rows], per_source)
        yield np.repeat(a, others), _ranges(np.repeat(first[rows] + per_source, per_source), others)


def _ranges(starts: Positions, lengths: Positions) -> Positions:
    """Returns start, start + 1, ... of each range, one after the other."""
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())


def _best(words: Positions, dice: NDArray[np.float64], size: Positions) -> NDArray[np.bool_]:
    """Tells of each pair whether it is its word's best: by Dice, then by size, then the first."""
    order = np.lexsort((-size, -dice, words))
    best = np.zeros(len(words), dtype=bool)
    best[order[np.diff(words[order], prepend=-1) > 0]] = True
    return best


def _dice(together: Counts, a: Counts, b: Counts) -> NDArray[np.float64]:
    return 2.0 * together / (a.astype(np.float64) + b)


def _code(a: Positions, b: Positions) -> Keys:
    return a.astype(np.uint64) << np.uint64(32) | b.astype(np.uint64)


def _find(table: Keys, wanted: Keys) -> tuple[Positions, Positions]:
    """Returns which of the wanted keys are in a sorted table, and where there."""
    at = np.searchsorted(table, wanted)
    inside = np.flatnonzero(at < len(table))
    hits = inside[table[at[inside]] == wanted[inside]]
    return hits, at[hits]


def _frequent(keys: Keys, counts: Counts, least_count: int) -> tuple[Keys, Counts]:
    kept = counts >= least_count
    return keys[kept], counts[kept]


def _close(
    codes: Keys, counts: Counts, frequencies: Counts, least_count: int, least_dice: float
) -> tuple[Keys, Counts]:
    codes, counts = _frequent(codes, counts, least_count)
    a, b = codes >> np.uint64(32), codes & np.uint64(0xFFFFFFFF)
    kept = _dice(counts, frequencies[a], frequencies[b]) >= least_dice
    return codes[kept], counts[kept]


def _write(folder: Path, what: str, blocks: Iterable[tuple[Keys, Counts]]) -> None:
    with (folder / f"{what}s").open("wb") as keys, (folder / f"{what}_counts").open("wb") as counts:
        for block in blocks:
            block[0].tofile(keys)
            block[1].tofile(counts)


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)


def _digest(folder: Path, options: str) -> str:
    digest = hashlib.blake2b(f"{FORMAT} {options}".encode(), digest_size=16)
    for name in TABLES:
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digest.update(name.encode())
    return digest.hexdigest()
