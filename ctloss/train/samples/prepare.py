"""From a recipe's corpus to word positioned samples: three disjoint parts, and the source of their word pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from ...shared.text import DataError, aligned_files, plain_name
from ..recipe import Data
from ..text.alignment import GoldWords, with_alignments
from ..text.cooccurrence import CooccurrenceAligner
from ..text.corpus import Sentences, read_embedded, read_lines, read_tsv, take_split
from ..text.embedded import SPLITS, Split
from ..text.finder import WordSource
from ..text.lexicon import Lexicon, find_lexicon_lines
from ..text.sentences import ParallelSentence, stable_hash, text_key
from .wps import WPSCounts, build_wps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Corpus:
    """The parts of a corpus and the source of its word pairs.

    Attributes:
        parts: training, validation and test sentences; no text of the latter two occurs in the first.
        words: proposes the word pairs.
        notes: what was excluded and users should know of.
    """

    parts: dict[Split, Sentences]
    words: WordSource
    notes: tuple[str, ...] = ()


def read_corpus(data: Data, *, evaluation_pairs: int, seed: int) -> Corpus:
    """Reads the corpus of a recipe and splits it.

    Validation and test sentences come from the files that the recipe names for them. Without such files they are taken
    out of the corpus by a hash of the source sentence: about one and a half times ``evaluation_pairs`` of the smallest
    language pair, at most a tenth of it.

    Args:
        data: the recipe's data.
        evaluation_pairs: sentence pairs that validation and test should have per language pair.
        seed: of the choice of validation and test sentences.

    Raises:
        DataError: a file is not what its format promises, or languages are missing.
    """
    if data.corpus == (EMBEDDED,):
        _only_embedded(data)
        pivot = data.languages[0] if data.languages else "en"
        parts = {split: read_embedded(split, languages=data.languages or None, pivot=pivot) for split in SPLITS}
        return Corpus({**parts, "train": limited(parts["train"], data.max_pairs)}, GoldWords())
    pairs = _with_words(_language_pairs(data.corpus, data.languages), data.alignments)
    everything = joined(pairs)
    smallest = min(map(_count, pairs))
    share = min(0.1, 1.5 * evaluation_pairs / max(1, smallest))
    shares = {"validation": 0.0 if data.validation else share, "test": 0.0 if data.test else share}
    given: dict[Split, tuple[str, ...]] = {"validation": data.validation, "test": data.test}
    parts = {}
    for split, path in given.items():
        parts[split] = (
            joined(_language_pairs(path, data.languages))
            if path
            else take_split(everything, split, **shares, seed=seed)
        )
    training = take_split(everything, "train", **shares, seed=seed)
    parts["train"] = limited(without(training, [*parts["validation"], *parts["test"]]), data.max_pairs)
    notes: tuple[str, ...] = ()
    if data.validation or data.test:
        # A validation or test file may repeat sentences of the other part; they stay only in test.
        before, parts["validation"] = parts["validation"], without(parts["validation"], parts["test"])
        if shared := _count(before) - _count(parts["validation"]):
            notes = (f"validation: skipped {shared:,} pairs whose texts are also in test",)
    return Corpus(parts, _word_source(data, parts["train"]), notes)


def build_samples(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, folder: Path, *, max_length: int, progress: bool
) -> dict[Split, WPSCounts]:
    """Builds the word positioned samples of each part in its own folder, or reuses them; returns the counts.

    Raises:
        DataError: no sentence pair of a part is left.
    """
    counts = {}
    for split in SPLITS:
        try:
            counts[split] = build_wps(
                corpus.parts[split],
                tokenizer,
                corpus.words,
                folder=folder / split,
                max_length=max_length,
                progress=progress and split == "train",
            )
        except DataError:
            raise
        except ValueError as error:
            hint = "" if split == "train" else f", or separate pairs with --{split}"
            raise DataError(f"{split}: {error}{hint}") from error
    return counts


def texts(sentences: Iterable[ParallelSentence]) -> Iterator[str]:
    """Yields both sides of every sentence pair."""
    for sentence in sentences:
        yield sentence.source
        yield sentence.target


def joined(parts: list[Sentences]) -> Sentences:
    """Returns the sentences of several corpora, one after the other."""
    return Sentences(lambda: (sentence for part in parts for sentence in part))


def without(sentences: Sentences, held: Iterable[ParallelSentence]) -> Sentences:
    """Returns the sentences neither side of which is a text of the held-out ones, ignoring case and spacing."""
    known = {stable_hash(text_key(text)) for text in texts(held)}

    def fresh(sentence: ParallelSentence) -> bool:
        return not {stable_hash(text_key(text)) for text in (sentence.source, sentence.target)} & known

    return Sentences(lambda: filter(fresh, sentences))


def limited(sentences: Sentences, most: int | None) -> Sentences:
    """Returns at most ``most`` sentence pairs, those with the smallest hashes; all of them for None."""
    if most is None:
        return sentences

    def place(sentence: ParallelSentence) -> int:
        return stable_hash("limited", sentence.source, sentence.target_language, sentence.target)

    smallest = sorted(map(place, sentences))[:most]
    return Sentences(lambda: (sentence for sentence in sentences if smallest and place(sentence) <= smallest[-1]))


def _count(sentences: Sentences) -> int:
    return sum(1 for _ in sentences)


def _only_embedded(data: Data) -> None:
    for name in ("validation", "test", "lexicon", "alignments"):
        if getattr(data, name):
            raise DataError(
                f"{name}: expected nothing with the embedded corpus, which has its own parts and word pairs, "
                f"got {getattr(data, name)!r}; leave it out, or name a corpus"
            )


def _language_pairs(names: tuple[str, ...], languages: tuple[str, ...]) -> list[Sentences]:
    tables = [name for name in names if plain_name(name).endswith(".tsv")]
    if tables and len(tables) == len(names):
        return [read_tsv(name, *_columns(name, languages, only_file=len(names) == 1)) for name in names]
    if len(names) != 1:
        raise DataError(
            f"corpus: expected one prefix of line-aligned files, or files that all end in .tsv, got {', '.join(names)}"
            "; give one or the other"
        )
    files = aligned_files(names[0], languages or None)
    pivot = languages[0] if languages else "en" if "en" in files else next(iter(files))
    return [read_lines({pivot: files[pivot], code: path}, pivot=pivot) for code, path in files.items() if code != pivot]


def _columns(name: str, languages: tuple[str, ...], *, only_file: bool = True) -> tuple[str, str]:
    match = re.search(r"(?<![a-z])([a-z]{2,3})-([a-z]{2,3})\.tsv$", plain_name(name))
    if match and languages and (match[1] != languages[0] or match[2] not in languages[1:]):
        raise DataError(
            f"languages: expected those that {name} is named after, {match[1]} then {match[2]}, got "
            f"{' '.join(languages)}; omit --languages, or rename the file"
        )
    if not match and only_file and len(languages) == 2:
        return languages[0], languages[1]
    if not match:
        raise DataError(
            f"{name}: expected a name that ends in the languages of its columns, like en-fr.tsv; rename the file, or "
            "make it the only one, with --languages en fr"
        )
    return match[1], match[2]


def _with_words(pairs: list[Sentences], alignments: tuple[str, ...]) -> list[Sentences]:
    if alignments and len(alignments) != len(pairs):
        raise DataError(
            f"alignments: expected a file for each of the {len(pairs)} language pairs, in their order, "
            f"got {len(alignments)}; add or drop some"
        )
    return [with_alignments(pair, path) for pair, path in zip(pairs, alignments, strict=True)] if alignments else pairs


def _word_source(data: Data, training: Sentences) -> WordSource:
    if data.alignments:
        return GoldWords()
    if not data.lexicon:
        return CooccurrenceAligner.count(lambda: [list(training)], mkdtemp())
    if Path(data.lexicon[0]).is_dir():
        return Lexicon.read_lines(find_lexicon_lines(data.lexicon[0]))
    return Lexicon.read_tsv(data.lexicon[0], *_columns(data.lexicon[0], data.languages))
