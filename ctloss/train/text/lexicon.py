"""Word translations from a lexicon, found in parallel sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import permutations, product
from pathlib import Path

from ...shared.languages import is_language
from ...shared.text import DataError, nfc, read_lines, require_equal_counts, text_files
from .corpus import two_columns
from .sentences import ParallelSentence, Span, WordPair
from .words import word_spans

Entry = tuple[str, ...]
Translations = dict[tuple[str, str], dict[Entry, set[Entry]]]


class Lexicon:
    """Word translations; finds those that occur in a sentence and its translation.

    An entry is stored as its case-folded words (characters, in languages written without spaces), so entries of several
    words are found too. A sentence is segmented into entries from left to right, longest first: 上 is not found in 晚上
    if the lexicon has 晚上. Words match only in the listed form; nothing is inflected. Entries are normalised to NFC,
    like corpora.

    Example:
        >>> lexicon = Lexicon.from_entries("en", "fr", [("house", "maison"), ("house", "domicile"), ("dog", "chien")])
        >>> sentence = ParallelSentence("The dog is in the house.", "Le chien est dans la maison.", "en", "fr")
        >>> [(sentence.source[slice(*a)], sentence.target[slice(*b)]) for a, b in lexicon.word_pairs(sentence)]
        [('dog', 'chien'), ('house', 'maison')]
    """

    def __init__(self, translations: Translations) -> None:
        self._translations = translations
        self._longest: dict[str, dict[str, int]] = {}
        self._entries: dict[str, set[Entry]] = {}
        for (source_language, target_language), table in translations.items():
            self._note(source_language, table)
            self._note(target_language, (entry for targets in table.values() for entry in targets))

    @classmethod
    def from_entries(cls, source_language: str, target_language: str, pairs: Iterable[tuple[str, str]]) -> Lexicon:
        """Makes a lexicon of one language pair from (word, translation) pairs."""
        table: dict[Entry, set[Entry]] = {}
        for source, target in pairs:
            _add(table, _entry(source, source_language), _entry(target, target_language))
        return cls({(source_language, target_language): table})

    @classmethod
    def read_tsv(cls, path: str | Path, source_language: str, target_language: str) -> Lexicon:
        """Reads lines ``word TAB translation``; each column may list several variants, separated by commas.

        Raises:
            DataError: the file cannot be read, is not UTF-8, or a line has not exactly two columns.
        """
        rows = two_columns(Path(path), "word TAB translation")
        pairs = ((a, b) for source, target in rows for a in _variants(source) for b in _variants(target))
        return cls.from_entries(source_language, target_language, pairs)

    @classmethod
    def read_lines(cls, files: Mapping[str, str | Path]) -> Lexicon:
        """Reads line-aligned word lists, one per language: line i has the same meaning in each of them.

        A line may list several variants, separated by commas. :func:`find_lexicon_lines` finds the files in a folder.

        Raises:
            DataError: fewer than two files, one cannot be read or is not UTF-8, or their line counts differ.
        """
        if len(files) < 2:
            raise DataError(f"expected word lists of at least two languages, got {sorted(files)}; add the others")
        columns: dict[str, list[list[Entry]]] = {}
        for language, path in files.items():
            lines = read_lines(Path(path), empty=True)
            columns[language] = [[_entry(variant, language) for variant in _variants(line)] for line in lines]
        require_equal_counts({Path(files[language]): len(lines) for language, lines in columns.items()})
        translations: Translations = {}
        for (source_language, sources), (target_language, targets) in permutations(columns.items(), 2):
            table = translations[source_language, target_language] = {}
            for source_variants, target_variants in zip(sources, targets, strict=True):
                for source, target in product(source_variants, target_variants):
                    _add(table, source, target)
        return cls(translations)

    def __len__(self) -> int:
        """Number of (word, translation) pairs in all language pairs and directions."""
        return sum(len(targets) for table in self._translations.values() for targets in table.values())

    def fingerprint(self) -> str:
        """Returns a hash of the entries; lexicons with equal entries have equal hashes."""
        digest = hashlib.blake2b(b"lexicon", digest_size=16)
        for languages, table in sorted(self._translations.items()):
            for source, targets in sorted(table.items()):
                digest.update(repr((languages, source, sorted(targets))).encode())
        return digest.hexdigest()

    def word_pairs(self, sentence: ParallelSentence) -> list[WordPair]:
        """Returns the character spans of entries in the source with a translation in the target.

        An entry with several translations there, or several entries with the same one, give every such pair.
        """
        languages = (sentence.source_language, sentence.target_language)
        table = self._translations.get(languages)
        if not table:
            return []
        sources = list(self._segments(sentence.source, languages[0]))
        if not any(entry in table for entry, _ in sources):
            return []
        targets: dict[Entry, list[Span]] = {}
        for entry, span in self._segments(sentence.target, languages[1]):
            targets.setdefault(entry, []).append(span)
        return [
            (source_span, target_span)
            for source, source_span in sources
            for target in table.get(source, set()) & targets.keys()
            for target_span in targets[target]
        ]

    def _segments(self, text: str, language: str) -> Iterator[tuple[Entry, Span]]:
        longest, entries = self._longest.get(language, {}), self._entries.get(language, set())
        spans = word_spans(text, language)
        folded = [text[start:end].casefold() for start, end in spans]
        i = 0
        while i < len(spans):
            for size in range(min(longest.get(folded[i], 0), len(spans) - i), 0, -1):
                entry = tuple(folded[i : i + size])
                if entry in entries:
                    yield entry, (spans[i][0], spans[i + size - 1][1])
                    i += size
                    break
            else:
                i += 1

    def _note(self, language: str, entries: Iterable[Entry]) -> None:
        longest, known = self._longest.setdefault(language, {}), self._entries.setdefault(language, set())
        for entry in entries:
            known.add(entry)
            longest[entry[0]] = max(longest.get(entry[0], 0), len(entry))


def find_lexicon_lines(folder: str | Path) -> dict[str, Path]:
    """Finds line-aligned word lists in a folder: LANGUAGE.txt, LANGUAGE_anything.txt or anything.LANGUAGE.

    Raises:
        DataError: fewer than two languages, or two files of one language.
    """
    folder = Path(folder)
    files: dict[str, Path] = {}
    for name, path in text_files(folder).items():
        stem, _, ending = name.rpartition(".")
        code = stem.partition("_")[0] if ending == "txt" else ending
        if stem and is_language(code):
            if code in files:
                raise DataError(
                    f"{folder}: expected one word list a language, got {files[code].name} and {path.name}; remove one"
                )
            files[code] = path
    if len(files) < 2:
        raise DataError(
            f"{folder}: expected word lists of at least two languages (en.txt, fr.txt, ...), "
            f"got {', '.join(path.name for path in files.values()) or 'none'}; add the others, or give a TSV"
        )
    return files


def _variants(field: str) -> list[str]:
    return [variant for part in field.replace("，", ",").split(",") if (variant := part.strip())]


def _entry(word: str, language: str) -> Entry:
    word = nfc(word)
    return tuple(word[start:end].casefold() for start, end in word_spans(word, language))


def _add(table: dict[Entry, set[Entry]], source: Entry, target: Entry) -> None:
    if source and target:
        table.setdefault(source, set()).add(target)
