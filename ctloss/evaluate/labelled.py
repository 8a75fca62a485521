"""Labelled files of XNLI, PAWS-X, POS and NER: where they lie, and their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path

from .conllu import sentences
from .score import DataError
from .tasks import LabelledPair, Row, TaggedSentence, Task

HUB = "hub:"
# What may surround a word: other spaces may be one.
BLANKS = " \t\r"


def read_split(
    data: str | Path, task: Task, split: str, languages: Sequence[str] | None = None
) -> dict[str, list[Row]]:
    """Reads a split of a task in several languages.

    Args:
        data: a folder, or ``"hub:NAME"`` for a data set of the Hugging Face hub (see :mod:`ctloss.evaluate.hub`). The
            folder, or a folder in it named after the task, holds XTREME's files SPLIT-LANGUAGE.tsv, or Universal
            Dependencies' files LANGUAGE_TREEBANK-ud-SPLIT with the ending tsv or conllu. Several treebanks of a
            language are read one after another, in the order of their names.
        task: what the rows are labelled for.
        split: ``"train"``, ``"dev"`` or ``"test"``.
        languages: codes as in the files' names; None for all that are there.

    Returns:
        Rows by language.

    Raises:
        DataError: no file for a language, a malformed line, an unknown label, labels in a part of a file only, or,
            where item i is the same in all languages, a file with fewer items than another.
    """
    if str(data).startswith(HUB):
        from .hub import read_hub

        return read_hub(str(data).removeprefix(HUB), task, split, languages)
    found = find_files(Path(data), task, split)
    rows = {
        language: read_files(files_of(found, Path(data), task, split, language), task, language)
        for language in (sorted(found) if languages is None else languages)
    }
    if not rows:
        raise _missing(Path(data), task, split, None, found)
    if task.parallel:
        check_equal_lengths(rows, {language: str(found[language][-1]) for language in rows})
    return rows


def find_files(data: Path, task: Task, split: str) -> dict[str, list[Path]]:
    """Returns the files of a split by language; of the folders that :func:`read_split` names, the first with any."""
    for folder in (*(data / name for name in task.folders), data):
        found = {
            path.name[len(split) + 1 : -len(".tsv")]: [path] for path in sorted(folder.glob(f"{escape(split)}-*.tsv"))
        }
        if not found and task.name == "udpos":
            for path in sorted(folder.glob(f"*-ud-{escape(split)}.*")):
                if treebank := re.fullmatch(r"([a-z]+)_[^.]*\.(tsv|conllu)", path.name):
                    found.setdefault(treebank[1], []).append(path)
        if found:
            return found
    return {}


def files_of(found: Mapping[str, list[Path]], data: Path, task: Task, split: str, language: str) -> list[Path]:
    """Returns a language's files of those that :func:`find_files` found.

    Raises:
        DataError: there is none, or one treebank twice, as tsv and as CoNLL-U.
    """
    if language not in found:
        raise _missing(data, task, split, language, found)
    files = found[language]
    if len({path.stem for path in files}) < len(files):
        raise DataError(
            f"{files[0].parent}: expected each treebank once, got {', '.join(path.name for path in files)}; "
            "keep either the tsv or the CoNLL-U file"
        )
    return files


def read_files(paths: Sequence[Path], task: Task, language: str = "en") -> list[Row]:
    """Reads labelled files one after another; see :func:`read_pairs` and :func:`read_tagged`.

    Raises:
        DataError: as they do, and where some of the files have labels and others none.
    """
    rows: list[Row] = []
    for path in paths:
        more: Sequence[Row] = (
            read_pairs(path, task.labels) if task.unit == "pair" else read_tagged(path, task.labels, language)
        )
        if rows and is_labelled(more) != is_labelled(rows):
            raise DataError(f"{path}: expected labels as in {paths[0]}, got a file that differs; use one kind of file")
        rows += more
    return rows


def is_labelled(rows: Sequence[Row]) -> bool:
    """Tells whether rows carry their labels; readers see to it that all or none do."""
    first = rows[0]
    return (first.label if isinstance(first, LabelledPair) else first.tags) is not None


def read_pairs(path: Path, labels: Sequence[str]) -> list[Row]:
    """Reads lines SENTENCE tab SENTENCE tab LABEL; a fourth column is left unread.

    Test files of XTREME have no labels: two columns. Sentences are taken as they stand, as XTREME's own reader does:
    quotation marks that a CSV writer put around them, or doubled in them, stay.

    Raises:
        DataError: a line with another number of columns, an empty sentence, an unknown label, a file that is empty or
            has labels on some lines only.
    """
    rows: list[Row] = []
    for number, line in decoded_lines(path):
        columns = line.split("\t")
        if not 2 <= len(columns) <= 4:
            raise DataError(
                f"{path}, line {number}: expected SENTENCE, SENTENCE and LABEL between tabs, got {len(columns)} "
                "columns; correct the line"
            )
        first, second = columns[0].strip(), columns[1].strip()
        if not first or not second:
            raise DataError(f"{path}, line {number}: expected two sentences, got an empty one; correct the line")
        label = columns[2].strip() if len(columns) > 2 else None
        check_label(f"{path}, line {number}", label, labels)
        check_alike(f"{path}, line {number}", label is None, not is_labelled(rows) if rows else None)
        rows.append(LabelledPair(first, second, label))
    return _some(path, rows)


def read_tagged(path: Path, labels: Sequence[str], language: str = "en") -> list[Row]:
    """Reads lines WORD tab TAG with a blank line after each sentence, or a CoNLL-U file if the name ends so.

    Test files of XTREME have no tags: one column. The last sentence needs no blank line after it. A word may be a space
    of another kind than ASCII's, such as the ideographic one.

    Raises:
        DataError: a line with another number of columns, an empty word, an unknown tag, a file that is empty or has
            tags on some lines only; for CoNLL-U see :func:`ctloss.evaluate.conllu.sentences`.
    """
    if path.suffix == ".conllu":
        return _some(path, list(sentences(path, decoded_lines(path), language)))
    rows: list[Row] = []
    words: list[str] = []
    tags: list[str | None] = []

    def end_sentence() -> None:
        if words:
            rows.append(TaggedSentence(tuple(words), None if tags[0] is None else tuple(str(tag) for tag in tags)))
            words.clear()
            tags.clear()

    untagged: bool | None = None
    for number, line in decoded_lines(path):
        if not line.strip(BLANKS):
            end_sentence()
            continue
        columns = line.split("\t")
        if len(columns) > 2:
            raise DataError(
                f"{path}, line {number}: expected WORD and TAG between tabs, got {len(columns)} columns; correct it"
            )
        word, tag = columns[0].strip(BLANKS), columns[1].strip() if len(columns) == 2 else None
        if not word:
            raise DataError(f"{path}, line {number}: expected a word before the tab, got none; correct the line")
        check_label(f"{path}, line {number}", tag, labels)
        check_alike(f"{path}, line {number}", tag is None, untagged)
        untagged = tag is None
        words.append(word)
        tags.append(tag)
    end_sentence()
    return _some(path, rows)


def check_equal_lengths(rows: Mapping[str, Sequence[Row]], names: Mapping[str, str]) -> None:
    """Refuses a language with fewer items than another, where item i is the same in all.

    Raises:
        DataError: names the short one.
    """
    longest = max(rows, key=lambda language: len(rows[language]))
    for language, items in rows.items():
        if len(items) < len(rows[longest]):
            raise DataError(
                f"{names[language]}, line {len(items) + 1}: expected {len(rows[longest])} items as in "
                f"{names[longest]}, got {len(items)}; the file is short: fetch it again"
            )


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, text without its line end) of a UTF-8 file; only LF ends a line.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: expected a readable text file, got {error.strerror}; check the path") from error
    with file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: expected UTF-8, got byte 0x{raw[error.start]:02x}; convert the file"
                ) from error
            yield number, text.removesuffix("\n").removesuffix("\r")


def check_label(place: str, label: str | None, labels: Sequence[str]) -> None:
    """Refuses a label that the task does not have.

    Raises:
        DataError: names the place.
    """
    if label is not None and label not in labels:
        raise DataError(
            f"{place}: expected a label of {', '.join(labels)}, got {label!r}; correct the label, or the task that it "
            "is read for"
        )


def check_alike(place: str, bare: bool, bare_before: bool | None) -> None:
    """Refuses an item with a label after one without, and the other way round.

    Args:
        place: of the item.
        bare: whether it has no label.
        bare_before: whether the one before had none; None if there is none before.

    Raises:
        DataError: names the place.
    """
    if bare_before is not None and bare != bare_before:
        expected, got = ("a label as before", "none") if bare else ("no label as before", "one")
        raise DataError(f"{place}: expected {expected}, got {got}; label all or none")


def _some(path: Path, rows: Sequence[Row]) -> list[Row]:
    if not rows:
        raise DataError(f"{path}, line 1: expected labelled items, got an empty file; fetch it again")
    return list(rows)


def _missing(data: Path, task: Task, split: str, language: str | None, found: Mapping[str, list[Path]]) -> DataError:
    name = f"{split}-{language or 'LANGUAGE'}.tsv"
    names = f"{name} or {language or 'LANGUAGE'}_TREEBANK-ud-{split}.conllu" if task.name == "udpos" else name
    there = f"languages {', '.join(sorted(found))}" if found else f"no {split} file"
    return DataError(
        f"{data}: expected {names} there or in a folder {' or '.join(task.folders)} of it, got {there}; "
        "give the folder that holds the files, or other languages"
    )
