"""Word translations from a lexicon, found in parallel sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path

from ...shared.languages import is_language, primary
from ...shared.text import DataError, decoded_lines, home_path, plain_name, read_lines, require_equal_counts, text_files
from .sentences import ParallelSentence, Span, WordPair
from .words import folded_words, word_spans

LanguagePair = tuple[str, str]


class Lexicon:
    """Word translations; finds those that occur in a sentence and its translation.

    An entry is its folded words (characters, in languages written without spaces), so entries of several words are
    found too. A sentence is segmented into entries from left to right, longest first: 上 is not found in 晚上 if the
    lexicon has 晚上. Words match only in the listed form; nothing is inflected. A language pair without entries of its
    own takes those of the same languages under other codes: ``en-zh`` serves ``eng_Latn`` and ``zho_Hans``.

    Example:
        >>> lexicon = Lexicon.from_entries("en", "fr", [("house", "maison"), ("house", "domicile"), ("dog", "chien")])
        >>> sentence = ParallelSentence("The dog is in the house.", "Le chien est dans la maison.", "en", "fr")
        >>> [[(sentence.source[slice(*a)], sentence.target[slice(*b)]) for a, b in lexicon.word_pairs([sentence])[0]]]
        [[('dog', 'chien'), ('house', 'maison')]]
    """

    def __init__(self, tables: Mapping[LanguagePair, _Table]) -> None:
        self._tables = dict(tables)
        self._same: dict[LanguagePair, _Table] = {}
        for (source, target), table in self._tables.items():
            self._same.setdefault((primary(source), primary(target)), table)

    @classmethod
    def from_entries(cls, source_language: str, target_language: str, pairs: Iterable[tuple[str, str]]) -> Lexicon:
        """Makes a lexicon of one language pair from (word, translation) pairs; those without letters are left out."""
        table = _Table(_Entries(), _Entries())
        for source, target in pairs:
            table.add(_entry(source, source_language), _entry(target, target_language))
        return cls({(source_language, target_language): table})

    @classmethod
    def read_tsv(cls, path: str | Path, source_language: str, target_language: str) -> Lexicon:
        """Reads lines ``word TAB translation``; each column may list several variants, separated by commas.

        In files that do not end in .tsv, a line without a tab is two words separated by a space, as in MUSE's
        dictionaries. Empty lines are skipped.

        Raises:
            DataError: the file cannot be read, is not UTF-8, has no entry, or a line has not exactly two columns.
        """
        lexicon = cls.from_entries(source_language, target_language, _translations(Path(path)))
        if not len(lexicon):
            raise DataError(f"{path}: expected words and their translations, got none; give the whole file")
        return lexicon

    @classmethod
    def read_lines(cls, files: Mapping[str, str | Path]) -> Lexicon:
        """Reads line-aligned word lists, one per language: line i has the same meaning in each of them.

        A line may list several variants, separated by commas. :func:`find_lexicon_lines` finds the files in a folder.

        Raises:
            DataError: fewer than two files, one cannot be read or is not UTF-8, or their line counts differ.
        """
        if len(files) < 2:
            raise DataError(f"expected word lists of at least two languages, got {sorted(files)}; add the others")
        columns: dict[str, list[list[str]]] = {}
        for language, path in files.items():
            lines = read_lines(Path(path), empty=True)
            columns[language] = [[_entry(variant, language) for variant in _variants(line)] for line in lines]
        require_equal_counts({Path(files[language]): len(lines) for language, lines in columns.items()})
        entries = {language: _Entries(entry for line in lines for entry in line) for language, lines in columns.items()}
        tables = {}
        for source_language, target_language in permutations(columns, 2):
            table = tables[source_language, target_language] = _Table(
                entries[source_language], entries[target_language]
            )
            for sources, targets in zip(columns[source_language], columns[target_language], strict=True):
                for source, target in product(sources, targets):
                    table.add(source, target)
        return cls(tables)

    def __len__(self) -> int:
        """Number of (word, translation) pairs in all language pairs and directions."""
        return sum(len(targets) for table in self._tables.values() for targets in table.translations.values())

    def serves(self, source_language: str, target_language: str) -> bool:
        """Tells whether there is an entry of a language pair."""
        table = self._table(source_language, target_language)
        return table is not None and bool(table.translations)

    def word_pairs(self, sentences: Sequence[ParallelSentence]) -> list[list[WordPair]]:
        """Returns for each sentence the character spans of entries in the source with a translation in the target.

        An entry with several translations there, or several entries with the same one, give every such pair.
        """
        return [self._of(sentence) for sentence in sentences]

    def _of(self, sentence: ParallelSentence) -> list[WordPair]:
        table = self._table(sentence.source_language, sentence.target_language)
        if table is None:
            return []
        translations = table.translations
        sources = [
            found
            for found in table.sources.segments(folded_words(sentence.source, sentence.source_language))
            if found[0] in translations
        ]
        if not sources:
            return []
        targets: dict[str, list[Span]] = {}
        for entry, span in table.targets.segments(folded_words(sentence.target, sentence.target_language)):
            targets.setdefault(entry, []).append(span)
        # Spans of words, from which those of characters follow.
        found = [
            (source_span, target_span)
            for source, source_span in sources
            for target in translations[source]
            if target in targets
            for target_span in targets[target]
        ]
        if not found:
            return []
        starts = word_spans(sentence.source, sentence.source_language)
        ends = word_spans(sentence.target, sentence.target_language)
        return [((starts[a][0], starts[b - 1][1]), (ends[c][0], ends[d - 1][1])) for (a, b), (c, d) in found]

    def _table(self, source_language: str, target_language: str) -> _Table | None:
        table = self._tables.get((source_language, target_language))
        if table is None:
            table = self._same.get((primary(source_language), primary(target_language)))
        return table


class _Entries:
    """The entries of one language: their words, joined by spaces."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self.known: set[str] = set()
        self._longest: dict[str, int] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: str) -> None:
        if entry:
            self.known.add(entry)
            first, words = entry.partition(" ")[0], 1 + entry.count(" ")
            self._longest[first] = max(self._longest.get(first, 0), words)

    def segments(self, words: list[str]) -> Iterator[tuple[str, Span]]:
        """Yields the entries in a list of folded words with their positions, from left to right, longest first."""
        longest, known, end = self._longest, self.known, 0
        for start, word in enumerate(words):
            if start < end or word not in longest:
                continue
            for size in range(min(longest[word], len(words) - start), 0, -1):
                entry = word if size == 1 else " ".join(words[start : start + size])
                if entry in known:
                    end = start + size
                    yield entry, (start, end)
                    break


class _Table:
    """The translations of one language pair, and the entries that its sentences are segmented into."""

    def __init__(self, sources: _Entries, targets: _Entries) -> None:
        self.sources, self.targets = sources, targets
        self.translations: dict[str, dict[str, None]] = {}

    def add(self, source: str, target: str) -> None:
        if source and target:
            self.sources.add(source)
            self.targets.add(target)
            # A dictionary, not a set: the order of what is found must not differ between processes.
            self.translations.setdefault(source, {})[target] = None

    def update(self, other: _Table) -> None:
        for source, targets in other.translations.items():
            for target in targets:
                self.add(source, target)
        for entry in other.sources.known:
            self.sources.add(entry)
        for entry in other.targets.known:
            self.targets.add(entry)

    def reversed(self) -> _Table:
        table = _Table(self.targets, self.sources)
        for source, targets in self.translations.items():
            for target in targets:
                table.add(target, source)
        return table


def read_lexicon(names: Sequence[str], pairs: Sequence[LanguagePair]) -> Lexicon:
    """Reads the lexicons of a run's language pairs.

    A name is a file of words and translations, as :meth:`Lexicon.read_tsv` reads it, or a folder of such files or of
    line-aligned word lists. All may be compressed. A file serves the language pair that ends its name, in this or the
    other direction (en-fr.tsv, en-fr.txt, MUSE's en-fr.0-5000.txt, also for fr-en). One without languages in its name
    serves the only pair, or the pair in its place if there are as many files as pairs. Several may serve one pair.
    Language pairs that no file serves have no entries (:meth:`Lexicon.serves`).

    Args:
        names: files and folders.
        pairs: the language pairs, as their sentences spell them.

    Raises:
        DataError: a file cannot be read or is malformed, serves no language pair, or a folder has no lexicon of one.
    """
    tables: dict[LanguagePair, _Table] = {}
    for place, name in enumerate(names):
        path = home_path(name)
        if path.is_dir():
            _add_folder(tables, path, pairs)
            continue
        served = _served(path, pairs)
        if not served and not _named_languages(path) and (len(pairs) == 1 or len(names) == len(pairs)):
            served = [(pairs[place % len(pairs)], False)]
        if not served:
            raise DataError(
                f"{name}: expected a lexicon of {_listed(pairs)}, which the name must end in (like en-fr.tsv), got "
                f"{' or '.join(map('-'.join, _named_languages(path))) or 'none'}; rename the file"
                + ("" if len(names) == len(pairs) else ", drop it, or give one for each language pair in their order")
            )
        _add_file(tables, path, served)
    return Lexicon(tables)


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


def _add_folder(tables: dict[LanguagePair, _Table], folder: Path, pairs: Sequence[LanguagePair]) -> None:
    files = [(path, served) for path in text_files(folder).values() if (served := _served(path, pairs))]
    for path, served in files:
        _add_file(tables, path, served)
    if files:
        return
    lists = find_lexicon_lines(folder)
    chosen = {code: _same_language(code, lists) for pair in pairs for code in pair}
    complete = [pair for pair in pairs if all(chosen[code] for code in pair)]
    if not complete:
        raise DataError(
            f"{folder}: expected word lists of both languages of {_listed(pairs)}, got {', '.join(lists)}; add the "
            "others, or leave --lexicon out"
        )
    wanted = {code for pair in complete for code in pair}
    whole = Lexicon.read_lines({code: lists[listed] for code in sorted(wanted) if (listed := chosen[code])})
    for pair in complete:
        tables.setdefault(pair, _Table(_Entries(), _Entries())).update(whole._tables[pair])


def _same_language(code: str, lists: Mapping[str, Path]) -> str | None:
    """Returns the code of the word list in a language: the same code, or another of the same language."""
    return code if code in lists else next((other for other in lists if primary(other) == primary(code)), None)


def _add_file(tables: dict[LanguagePair, _Table], path: Path, served: Sequence[tuple[LanguagePair, bool]]) -> None:
    for pair, backwards in served:
        source, target = reversed(pair) if backwards else pair
        table = Lexicon.read_tsv(path, source, target)._tables[source, target]
        tables.setdefault(pair, _Table(_Entries(), _Entries())).update(table.reversed() if backwards else table)


def _served(path: Path, pairs: Sequence[LanguagePair]) -> list[tuple[LanguagePair, bool]]:
    """Returns the language pairs that end a file's name, and whether it names them in the other direction.

    Those that it spells out come before those of the same languages: en-pt-br.tsv serves pt-br rather than pt.
    """
    named = _named_languages(path)
    spelled = [(pair, pair not in named) for pair in pairs if pair in named or pair[::-1] in named]
    if spelled:
        return spelled
    same = {(primary(source), primary(target)) for source, target in named}
    languages = {pair: (primary(pair[0]), primary(pair[1])) for pair in pairs}
    return [(pair, both not in same) for pair, both in languages.items() if both in same or both[::-1] in same]


def _named_languages(path: Path) -> list[LanguagePair]:
    """Returns what two codes may end a file's name: en-zh-tw is en and zh-tw, or en-zh and tw."""
    stem = re.sub(r"\.(tsv|txt|csv|dict)$", "", plain_name(path))
    # MUSE names the parts of a dictionary by the ranks of their words.
    stem = re.sub(r"\.[0-9]+-[0-9]+$", "", stem)
    # Shortest first: en and fr of my_en-fr before my_en and fr.
    starts = [match.start() for match in re.finditer(r"(?<![A-Za-z0-9])[a-z]", stem)][::-1]
    named = []
    for codes in (stem[start:] for start in starts):
        for cut in (match.start() for match in re.finditer("[-_]", codes)):
            if is_language(codes[:cut]) and is_language(codes[cut + 1 :]):
                named.append((codes[:cut], codes[cut + 1 :]))
    return named


def _translations(path: Path) -> Iterator[tuple[str, str]]:
    """Yields every word with every translation of a file."""
    tabs_only = plain_name(path).endswith(".tsv")
    for number, line in decoded_lines(path):
        if not line.strip():
            continue
        tabs = tabs_only or "\t" in line
        columns = line.split("\t") if tabs else line.strip(" ").split(" ")
        if len(columns) != 2:
            raise DataError(
                f"{path}, line {number}: expected two columns, word TAB translation"
                f"{'' if tabs else ' or two words and a space'}, got {len(columns)}: {line[:80]!r}; "
                "leave exactly one tab in each line"
            )
        yield from product(*map(_variants, columns))


def _variants(field: str) -> list[str]:
    # Commas between digits belong to a number.
    return [variant for part in re.split("，|(?<![0-9]),|,(?![0-9])", field) if (variant := part.strip())]


def _entry(word: str, language: str) -> str:
    return " ".join(folded_words(word, language))


def _listed(pairs: Sequence[LanguagePair]) -> str:
    return ", ".join(map("-".join, pairs))
