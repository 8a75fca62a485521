"""Readers of parallel data: Tatoeba, line-aligned files, BUCC, gold word alignments, word lists."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from ...shared.alignments import read_links, tokens
from ...shared.languages import XTREME_CODES, is_language
from ...shared.text import (
    DataError,
    aligned_files,
    decoded_lines,
    read_lines,
    require_equal_counts,
    stripped,
    text_file,
    text_files,
)


@dataclass(frozen=True)
class Pairs:
    """Sentences in two languages, each a line of its file; ``second[j]`` translates ``first[gold[j]]``, if known."""

    languages: tuple[str, str]
    first: list[str]
    second: list[str]
    gold: list[int] | None
    files: tuple[Path, Path] = (Path(), Path())


@dataclass(frozen=True)
class Corpora:
    """Two monolingual corpora of (id, sentence), each a line of its file.

    ``gold`` holds the pairs of ids that translate each other, if known.
    """

    languages: tuple[str, str]
    first: list[tuple[str, str]]
    second: list[tuple[str, str]]
    gold: set[tuple[str, str]] | None
    files: tuple[Path, Path] = (Path(), Path())


@dataclass(frozen=True)
class AlignedWords:
    """A sentence pair in words and its zero-based links (position, position); sure links are also possible ones."""

    first: list[str]
    second: list[str]
    sure: frozenset[tuple[int, int]]
    possible: frozenset[tuple[int, int]]


def read_tatoeba(folder: Path, languages: Sequence[str] | None = None) -> list[Pairs]:
    """Reads Tatoeba's test sets: sentences in a language and their English translations.

    There are two layouts: ``tatoeba.deu-eng.deu`` with ``tatoeba.deu-eng.eng``, line-aligned, and XTREME's ``de-en.de``
    with ``de-en.en``, whose English lines are sorted. For the latter ``test-de.tsv``, XTREME's label file, gives the
    line (from 0) of de-en.de that each English line translates; without it the pairs are unknown.

    Languages are codes of three or two letters; by default all in the folder.

    Raises:
        DataError: a language is missing, or a file is malformed.
    """
    stems = {name.removesuffix(".eng"): False for name in text_files(folder, "tatoeba.*-eng.eng")}
    stems |= {name.removesuffix(".en"): True for name in text_files(folder, "*-en.en")}
    code_of = {stem: stem.removeprefix("tatoeba.").rpartition("-")[0] for stem in stems}
    chosen = []
    for language in dict.fromkeys(languages) if languages is not None else code_of.values():
        found = [stem for stem, code in code_of.items() if language in (code, XTREME_CODES.get(code))]
        if not found:
            place, other = folder / f"tatoeba.{language}-eng.{language}", f"{language}-en.{language}"
            raise no_such_file(place, f"Tatoeba's sentences in {language!r}", code_of.values(), f" (nor {other})")
        chosen.append(found[0])
    if not chosen:
        raise DataError(f"{folder}: expected files such as tatoeba.deu-eng.deu and tatoeba.deu-eng.eng, got none")
    pairs = []
    for stem in dict.fromkeys(chosen):
        code, sorted_by_english = code_of[stem], stems[stem]
        english = "en" if sorted_by_english else "eng"
        first_path, second_path = (_there(folder / f"{stem}.{language}") for language in (code, english))
        first, second = read_lines(first_path), read_lines(second_path)
        require_equal_counts({first_path: len(first), second_path: len(second)})
        gold: list[int] | None = list(range(len(first)))
        if sorted_by_english:
            labels = text_file(folder / f"test-{code}.tsv")
            gold = None if labels is None else _read_labels(labels, second_path, len(first))
        pairs.append(Pairs((code, english), first, second, gold, (first_path, second_path)))
    return pairs


def _read_labels(path: Path, english: Path, n: int) -> list[int]:
    lines = read_lines(path)
    require_equal_counts({path: len(lines), english: n})
    seen: set[int] = set()
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or int(line) >= n or int(line) in seen:
            raise DataError(
                f"{path}, line {number}: expected a line number from 0 to {n - 1}, each once, got {line!r}; "
                "give XTREME's own label file"
            )
        seen.add(int(line))
    return [int(line) for line in lines]


def read_aligned(prefix: Path, languages: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Reads at least two line-aligned files PREFIX.LANGUAGE; by default all that are there.

    A warning names the files PREFIX.ENDING that are left out because the ending is no language.

    Raises:
        DataError: a language is missing, the numbers of lines differ, or a file is malformed.
    """
    files = aligned_files(prefix, languages)
    if languages is None and (others := files_beside(prefix, files)):
        warnings.warn(
            f"{prefix}: read as {', '.join(files)}; left out, since their endings are no language codes: "
            f"{', '.join(others)}",
            stacklevel=3,
        )
    texts = {language: read_lines(path) for language, path in files.items()}
    require_equal_counts({path: len(texts[language]) for language, path in files.items()})
    return texts


def files_beside(prefix: Path, languages: Iterable[str]) -> list[str]:
    """Returns the names of the files PREFIX.ENDING whose endings are not among ``languages``."""
    names = text_files(prefix.parent, f"{escape(prefix.name)}.*")
    return [name for name in names if name.removeprefix(f"{prefix.name}.") not in set(languages)]


def read_bucc(folder: Path, languages: Sequence[str] | None = None, split: str = "dev") -> list[Corpora]:
    """Reads BUCC's corpora in XTREME's layout: zh-en.dev.zh and zh-en.dev.en, ID TAB SENTENCE, and zh-en.dev.gold.

    Languages are those paired with English; by default all in the folder. XTREME does not publish the gold pairs of the
    split ``"test"``.

    Raises:
        DataError: a language is missing, or a file is malformed.
    """
    there = [name.partition("-en.")[0] for name in text_files(folder, f"*-en.{split}.en")]
    corpora = []
    for language in dict.fromkeys(there if languages is None else languages):
        stem = f"{language}-en.{split}"
        if language not in there:
            raise no_such_file(folder / f"{stem}.en", f"BUCC's corpora of {language!r} and English", there)
        files = (_there(folder / f"{stem}.{language}"), _there(folder / f"{stem}.en"))
        first, second = map(_read_identified, files)
        path, gold = text_file(folder / f"{stem}.gold"), None
        if path is not None:
            gold, known = set(), (dict(first), dict(second))
            for number, line in enumerate(read_lines(path), start=1):
                a, _, b = line.partition("\t")
                if a not in known[0] or b not in known[1]:
                    raise DataError(
                        f"{path}, line {number}: expected two ids separated by a tab, the first from {stem}.{language} "
                        f"and the second from {stem}.en, got {line[:80]!r}; use the three files of one release"
                    )
                gold.add((a, b))
        corpora.append(Corpora((language, "en"), first, second, gold, files))
    if not corpora:
        raise DataError(f"{folder}: expected files such as zh-en.{split}.zh and zh-en.{split}.en, got none")
    return corpora


def _read_identified(path: Path) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        identifier, _, sentence = (part.strip() for part in line.partition("\t"))
        if not (stripped(identifier) and stripped(sentence)) or identifier in found:
            raise DataError(
                f"{path}, line {number}: expected ID TAB SENTENCE with a unique id, got {line[:80]!r}; "
                "put one tab between the two, and give each id once"
            )
        found[identifier] = sentence
    return list(found.items())


def read_alignments(prefix: Path, *, one_based: bool = False) -> list[AlignedWords]:
    """Reads gold word alignments: PREFIX.txt or PREFIX.src-tgt, SOURCE ||| TARGET in words, and PREFIX.gold.

    This is awesome-align's format. A line of the gold file holds links: ``i-j`` sure, ``ipj`` possible. Words and links
    are separated as :func:`ctloss.shared.alignments.token_spans` says.

    Args:
        one_based: whether the file counts positions from one, as awesome-align's ``aer.py --oneRef`` takes it; what is
            returned always counts from zero.

    Raises:
        DataError: the numbers of lines differ, a line is malformed, or a position lies outside its sentence.
    """
    text_path = text_file(prefix.parent / f"{prefix.name}.src-tgt")
    if text_path is None or text_file(prefix.parent / f"{prefix.name}.txt") is not None:
        text_path = _there(prefix.parent / f"{prefix.name}.txt")
    gold_path = _there(prefix.parent / f"{prefix.name}.gold")
    texts, links = ([line for _, line in decoded_lines(path)] for path in (text_path, gold_path))
    require_equal_counts({text_path: len(texts), gold_path: len(links)})
    aligned = []
    for number, (text, line) in enumerate(zip(texts, links, strict=True), start=1):
        # Bars with no space around them are part of a word.
        sides = [tokens(side) for side in re.split(r"(?:^|[ \t])\|\|\|(?=[ \t]|$)", text)]
        if len(sides) != 2 or not all(stripped(" ".join(side)) for side in sides):
            raise DataError(
                f"{text_path}, line {number}: expected SOURCE ||| TARGET with words on both sides, got {text[:80]!r}"
            )
        sure: set[tuple[int, int]] = set()
        possible: set[tuple[int, int]] = set()
        for given, link in read_links(line):
            place = None if link is None else (link[0] - one_based, link[2] - one_based)
            if place is None or min(place) < 0 or place[0] >= len(sides[0]) or place[1] >= len(sides[1]):
                limits = ("i from 1 to", "j from 1 to") if one_based else ("i below", "j below")
                raise DataError(
                    f"{gold_path}, line {number}: expected links i-j or ipj with {limits[0]} {len(sides[0])} and "
                    f"{limits[1]} {len(sides[1])} (the numbers of words), got {given!r}; "
                    f"{'count from one' if one_based else 'count from zero, or say that the file counts from one'}"
                )
            (possible if link is not None and link[1] == "p" else sure).add(place)
        aligned.append(AlignedWords(sides[0], sides[1], frozenset(sure), frozenset(sure | possible)))
    if not aligned:
        raise DataError(f"{text_path}: expected lines of text, got an empty file; give the whole file")
    return aligned


def read_found_links(
    path: Path, gold: Sequence[AlignedWords], *, one_based: bool = False
) -> list[set[tuple[int, int]]]:
    """Reads the links that an aligner found, a line of ``i-j`` for each sentence pair, as awesome-align writes them.

    Args:
        gold: the sentence pairs that were aligned.
        one_based: whether the file counts from one, as ``aer.py --oneHyp`` takes it.

    Raises:
        DataError: there are more or fewer lines than pairs, or a link is malformed or lies outside its sentences.
    """
    lines = [line for _, line in decoded_lines(path)]
    if len(lines) != len(gold):
        raise DataError(
            f"{path}: expected {len(gold)} lines, one a sentence pair, got {len(lines)}; align the same text"
        )
    found = []
    for number, (line, pair) in enumerate(zip(lines, gold, strict=True), start=1):
        links: set[tuple[int, int]] = set()
        for given, link in read_links(line):
            place = (-1, -1) if link is None else (link[0] - one_based, link[2] - one_based)
            if min(place) < 0 or place[0] >= len(pair.first) or place[1] >= len(pair.second):
                raise DataError(
                    f"{path}, line {number}: expected links i-j within {len(pair.first)} and {len(pair.second)} words, "
                    f"counted from {int(one_based)}, got {given!r}; align the same text, or count otherwise"
                )
            links.add(place)
        found.append(links)
    return found


def read_lexicon(folder: Path, languages: Sequence[str] | None = None) -> dict[str, list[list[str]]]:
    """Reads line-aligned word lists LANGUAGE.txt or LANGUAGE_anything.txt: line i of each names the same meaning.

    Returns:
        By language, the variants on each line, which are separated by commas; a line without visible characters has
        none.

    Raises:
        DataError: a language is missing or has no words, the numbers of lines differ, or fewer than two languages are
            asked for.
    """
    files: dict[str, Path] = {}
    for name, path in text_files(folder, "*.txt").items():
        code = name.removesuffix(".txt").partition("_")[0]
        if is_language(code) and code in files:
            raise DataError(f"{path}: expected one word list per language, got {files[code].name} too; remove one")
        if is_language(code):
            files[code] = path
    wanted = list(dict.fromkeys(files if languages is None else languages))
    for language in wanted:
        if language not in files:
            raise no_such_file(folder / f"{language}.txt", f"the words of {language!r}", files)
    if len(wanted) < 2:
        raise DataError(
            f"{folder}: expected word lists of at least two languages, such as en.txt and fr.txt, got "
            f"{', '.join(wanted) or 'none'}; add the others"
        )
    lists = {language: read_lines(files[language], empty=True) for language in wanted}
    for language, lines in lists.items():
        if not any(lines):
            raise DataError(f"{files[language]}, line 1: expected words, got only empty lines; give the whole file")
    require_equal_counts({files[language]: len(lines) for language, lines in lists.items()})
    split = re.compile("[,，]")
    return {
        language: [[word for part in split.split(line) if (word := stripped(part))] for line in lines]
        for language, lines in lists.items()
    }


def _there(path: Path) -> Path:
    """Returns a file's path or that of its compressed form; the plain one if there is neither."""
    return text_file(path) or path


def no_such_file(path: Path, wanted: str, there: Iterable[str], nor: str = "") -> DataError:
    """Returns the error about a language without a file, which names those that there are."""
    return DataError(f"{path}: expected {wanted}, got no such file{nor}; the folder has {', '.join(there) or 'none'}")
