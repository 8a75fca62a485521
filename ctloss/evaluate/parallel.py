"""Readers of parallel text: Tatoeba, line-aligned files, BUCC, gold word alignments, word lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from .score import DataError

# XTREME names its files by two letters, Tatoeba's by three; cmn, pes and swh are its Chinese, Persian and Swahili.
_CODES = """
    afr:af ara:ar aze:az ben:bn bul:bg cmn:zh deu:de ell:el eng:en est:et eus:eu fin:fi fra:fr heb:he hin:hi
    hun:hu ind:id ita:it jav:jv jpn:ja kat:ka kaz:kk kor:ko lit:lt mal:ml mar:mr nld:nl pes:fa pol:pl por:pt
    ron:ro rus:ru spa:es swh:sw tam:ta tel:te tgl:tl tha:th tur:tr ukr:uk urd:ur vie:vi
"""
TWO_LETTERS = dict(pair.split(":") for pair in _CODES.split())
CODE = re.compile("[a-z]{2,3}(?:[-_][A-Za-z0-9]+)?")


@dataclass(frozen=True)
class Pairs:
    """Sentences of two languages; ``gold[j]`` is the row of the first that ``second[j]`` translates, if known."""

    languages: tuple[str, str]
    first: list[str]
    second: list[str]
    gold: list[int] | None


@dataclass(frozen=True)
class Corpora:
    """Two monolingual corpora, (id, sentence) each, and the pairs of ids that translate each other, if known."""

    languages: tuple[str, str]
    first: list[tuple[str, str]]
    second: list[tuple[str, str]]
    gold: set[tuple[str, str]] | None


@dataclass(frozen=True)
class AlignedWords:
    """A sentence pair in words, and its links (position, position), zero-based; the sure ones are possible too."""

    first: list[str]
    second: list[str]
    sure: frozenset[tuple[int, int]]
    possible: frozenset[tuple[int, int]]


def read_lines(path: Path, *, empty: bool = False) -> list[str]:
    """Returns the lines of a UTF-8 file without white space at their ends; only LF ends a line.

    Raises:
        DataError: the file cannot be read, holds no line, is not UTF-8, or, unless ``empty``, has an empty line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a readable text file, got {error.strerror}; check the path") from error
    lines = []
    for number, raw in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: expected UTF-8, got byte 0x{raw[error.start]:02x}; convert the file to UTF-8"
            ) from error
        if not line and not empty:
            raise DataError(f"{path}, line {number}: expected text, got an empty line; remove it, or give its text")
        lines.append(line)
    if not lines:
        raise DataError(f"{path}: expected lines of text, got an empty file; give the whole file")
    return lines


def require_equal(first: Path, m: int, second: Path, n: int) -> None:
    """Raises DataError unless two line-aligned files have as many lines as each other."""
    if m != n:
        shorter, longer = (first, second) if m < n else (second, first)
        raise DataError(
            f"{shorter}, line {min(m, n) + 1}: expected {max(m, n)} lines as in {longer.name}, got {min(m, n)}; "
            "both files must be whole and line-aligned"
        )


def read_tatoeba(folder: Path, languages: Sequence[str] | None = None) -> list[Pairs]:
    """Reads Tatoeba's test sets: sentences of a language and their English translations.

    Two layouts are known: ``tatoeba.deu-eng.deu`` with ``tatoeba.deu-eng.eng``, line-aligned, and XTREME's ``de-en.de``
    with ``de-en.en``, whose English lines are sorted; there ``test-de.tsv``, XTREME's label file, gives the line
    (from 0) of de-en.de that each English line translates, and without it the pairs stay unknown.

    Args:
        folder: the folder of the files.
        languages: codes, of three letters or two; by default all in the folder.

    Raises:
        DataError: a language is missing, or a file is not what it should be.
    """
    stems = {path.name.removesuffix(".eng"): False for path in sorted(folder.glob("tatoeba.*-eng.eng"))}
    stems |= {path.name.removesuffix(".en"): True for path in sorted(folder.glob("*-en.en"))}
    code_of = {stem: stem.removeprefix("tatoeba.").rpartition("-")[0] for stem in stems}
    chosen = []
    for language in dict.fromkeys(languages) if languages is not None else code_of.values():
        found = [stem for stem, code in code_of.items() if language in (code, TWO_LETTERS.get(code))]
        if not found:
            raise DataError(
                f"{folder / f'tatoeba.{language}-eng.{language}'}: expected Tatoeba's sentences in {language!r}, got "
                f"no such file (nor {language}-en.{language}); the folder has {_listed(code_of.values())}"
            )
        chosen.append(found[0])
    if not chosen:
        raise DataError(f"{folder}: expected files such as tatoeba.deu-eng.deu and tatoeba.deu-eng.eng, got none")
    pairs = []
    for stem in dict.fromkeys(chosen):
        code, sorted_by_english = code_of[stem], stems[stem]
        english = "en" if sorted_by_english else "eng"
        first_path, second_path = folder / f"{stem}.{code}", folder / f"{stem}.{english}"
        first, second = read_lines(first_path), read_lines(second_path)
        require_equal(first_path, len(first), second_path, len(second))
        gold: list[int] | None = list(range(len(first)))
        if sorted_by_english:
            labels = folder / f"test-{code}.tsv"
            gold = _read_labels(labels, second_path, len(first)) if labels.exists() else None
        pairs.append(Pairs((code, english), first, second, gold))
    return pairs


def _read_labels(path: Path, english: Path, n: int) -> list[int]:
    lines = read_lines(path)
    require_equal(path, len(lines), english, n)
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
    """Reads line-aligned files PREFIX.LANGUAGE, at least two; by default all that are there.

    Raises:
        DataError: a language is missing, the numbers of lines differ, or a file is not what it should be.
    """
    start = f"{prefix.name}."
    there = [path.name[len(start) :] for path in sorted(prefix.parent.glob(f"{escape(prefix.name)}.*"))]
    # PREFIX.ids and other companions look like codes but hold no sentences.
    there = [code for code in there if CODE.fullmatch(code) and code not in ("ids", "txt", "tsv", "md", "gz")]
    wanted = list(dict.fromkeys(there if languages is None else languages))
    for language in wanted:
        if not (prefix.parent / f"{start}{language}").is_file():
            raise DataError(
                f"{prefix.parent / f'{start}{language}'}: expected the sentences in {language!r}, got no such file; "
                f"there are {_listed(there)}"
            )
    if len(wanted) < 2:
        raise DataError(f"{prefix}: expected files of two languages or more, {start}de and {start}en, got {wanted}")
    texts = {language: read_lines(prefix.parent / f"{start}{language}") for language in wanted}
    for language in wanted[1:]:
        paths = [prefix.parent / f"{start}{code}" for code in (wanted[0], language)]
        require_equal(paths[0], len(texts[wanted[0]]), paths[1], len(texts[language]))
    return texts


def read_bucc(folder: Path, languages: Sequence[str] | None = None, split: str = "dev") -> list[Corpora]:
    """Reads BUCC's corpora in XTREME's layout: zh-en.dev.zh and zh-en.dev.en, ID TAB SENTENCE, and zh-en.dev.gold.

    Args:
        folder: the folder of the files.
        languages: the languages beside English; by default all in the folder.
        split: ``"dev"``, or ``"test"``, whose gold pairs XTREME keeps to itself.

    Raises:
        DataError: a language is missing, or a file is not what it should be.
    """
    there = [path.name.partition("-en.")[0] for path in sorted(folder.glob(f"*-en.{split}.en"))]
    corpora = []
    for language in dict.fromkeys(there if languages is None else languages):
        stem = f"{language}-en.{split}"
        if language not in there:
            raise DataError(
                f"{folder / f'{stem}.en'}: expected BUCC's corpora of {language!r} and English, got no such file; "
                f"the folder has {_listed(there)}"
            )
        first, second = (_read_sentences(folder / f"{stem}.{code}") for code in (language, "en"))
        path, gold = folder / f"{stem}.gold", None
        if path.exists():
            gold, known = set(), (dict(first), dict(second))
            for number, line in enumerate(read_lines(path), start=1):
                a, _, b = line.partition("\t")
                if a not in known[0] or b not in known[1]:
                    raise DataError(
                        f"{path}, line {number}: expected two ids parted by a tab, the first of {stem}.{language} and "
                        f"the second of {stem}.en, got {line[:80]!r}; give the three files of one release"
                    )
                gold.add((a, b))
        corpora.append(Corpora((language, "en"), first, second, gold))
    if not corpora:
        raise DataError(f"{folder}: expected files such as zh-en.{split}.zh and zh-en.{split}.en, got none")
    return corpora


def _read_sentences(path: Path) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        identifier, _, sentence = (part.strip() for part in line.partition("\t"))
        if not (identifier and sentence) or identifier in found:
            raise DataError(
                f"{path}, line {number}: expected ID TAB SENTENCE with an id of its own, got {line[:80]!r}; "
                "put one tab between the two, and give each id once"
            )
        found[identifier] = sentence
    return list(found.items())


def read_alignments(prefix: Path) -> list[AlignedWords]:
    """Reads gold word alignments: PREFIX.txt, SOURCE ||| TARGET in words, and PREFIX.gold.

    A line of the latter holds links parted by spaces: ``i-j`` sure, ``ipj`` possible, positions from zero.

    Raises:
        DataError: the numbers of lines differ, a line is malformed, or a position lies outside its sentence.
    """
    text_path, gold_path = (prefix.parent / f"{prefix.name}.{ending}" for ending in ("txt", "gold"))
    texts, links = read_lines(text_path), read_lines(gold_path, empty=True)
    require_equal(text_path, len(texts), gold_path, len(links))
    aligned = []
    for number, (text, line) in enumerate(zip(texts, links, strict=True), start=1):
        sides = [side.split() for side in f" {text} ".split(" ||| ")]
        if len(sides) != 2 or not all(sides):
            raise DataError(
                f"{text_path}, line {number}: expected SOURCE ||| TARGET with words on both sides, got {text[:80]!r}"
            )
        sure: set[tuple[int, int]] = set()
        possible: set[tuple[int, int]] = set()
        for link in line.split():
            match = re.fullmatch("([0-9]+)([-p])([0-9]+)", link)
            if not match or int(match[1]) >= len(sides[0]) or int(match[3]) >= len(sides[1]):
                raise DataError(
                    f"{gold_path}, line {number}: expected links i-j or ipj with i below {len(sides[0])} and j below "
                    f"{len(sides[1])} (the numbers of words), got {link!r}; count from zero"
                )
            (sure if match[2] == "-" else possible).add((int(match[1]), int(match[3])))
        aligned.append(AlignedWords(sides[0], sides[1], frozenset(sure), frozenset(sure | possible)))
    return aligned


def read_lexicon(folder: Path, languages: Sequence[str] | None = None) -> dict[str, list[list[str]]]:
    """Reads line-aligned word lists LANGUAGE.txt or LANGUAGE_anything.txt: line i of each names the same meaning.

    Returns:
        Of each language the variants of each line, which are parted by commas; an empty line has none.

    Raises:
        DataError: a language is missing or has no words, the numbers of lines differ, or fewer than two languages are
            asked for.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        code = path.stem.partition("_")[0]
        if CODE.fullmatch(code) and code in files:
            raise DataError(f"{path}: expected one word list a language, got {files[code].name} too; remove one")
        if CODE.fullmatch(code):
            files[code] = path
    wanted = list(dict.fromkeys(files if languages is None else languages))
    for language in wanted:
        if language not in files:
            raise DataError(
                f"{folder / f'{language}.txt'}: expected the words of {language!r}, got no such file; "
                f"the folder has {_listed(files)}"
            )
    if len(wanted) < 2:
        raise DataError(f"{folder}: expected word lists of two languages or more, such as en.txt and fr.txt")
    lists = {language: read_lines(files[language], empty=True) for language in wanted}
    for language, lines in lists.items():
        if not any(lines):
            raise DataError(f"{files[language]}, line 1: expected words, got empty lines alone; give the whole file")
    for language in wanted[1:]:
        require_equal(files[wanted[0]], len(lists[wanted[0]]), files[language], len(lists[language]))
    split = re.compile("[,，]")
    return {
        language: [[word for part in split.split(line) if (word := part.strip())] for line in lines]
        for language, lines in lists.items()
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
