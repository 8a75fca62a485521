"""Labelled tasks, the files of their data, and the rows those files hold; questions are read by ``questions``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Literal

from ...shared.languages import CODE
from ...shared.text import DataError, decoded_lines, plain_name, stripped, text_files
from .questions import Question, check_ids, expected_files, find_questions, read_squad

UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
# In place of a label's number: cross-entropy ignores it.
IGNORED = -100
# What may surround a word; other spaces can be words themselves.
BLANKS = " \t\r"
# XTREME's order of preference where several parts of a contraction are equally high in the tree.
PREFERRED = {
    "es": ("VERB", "AUX", "PRON", "ADP", "DET"),
    "fr": ("VERB", "AUX", "PRON", "NOUN", "ADJ", "ADV", "ADP", "DET", "PART", "SCONJ"),
    "it": ("VERB", "AUX", "ADV", "PRON", "ADP", "DET", "INTJ"),
}
PREFERRED_ELSEWHERE = (
    *("VERB", "NOUN", "PROPN", "PRON", "ADJ", "NUM", "ADV", "INTJ"),
    *("AUX", "ADP", "DET", "PART", "CCONJ", "SCONJ", "X", "PUNCT"),
)


@dataclass(frozen=True)
class Task:
    """A labelled task.

    Args:
        name: XTREME's name for it, which is also the folder of its data and of its submission.
        unit: what carries a label, a pair of sentences or a word; or what is answered by a part of its text.
        labels: all labels; their order numbers them.
        parallel: whether item i is the same in every language, so that all files of a split have equal lengths.
        folders: names that the folder of its data may have.
    """

    name: str
    unit: Literal["pair", "word", "question"]
    labels: tuple[str, ...]
    parallel: bool
    folders: tuple[str, ...]


XNLI = Task("xnli", "pair", ("contradiction", "entailment", "neutral"), True, ("xnli",))
PAWSX = Task("pawsx", "pair", ("0", "1"), True, ("pawsx",))
UDPOS = Task("udpos", "word", UPOS, False, ("udpos", "ud"))
PANX = Task("panx", "word", ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"), False, ("panx", "ner"))
# The two labels are what a wordpiece may be of an answer.
XQUAD, MLQA, TYDIQA = (Task(name, "question", ("start", "end"), False, (name,)) for name in ("xquad", "mlqa", "tydiqa"))


@dataclass(frozen=True)
class LabelledPair:
    """Two sentences and the label of the pair, None in a test set without labels; ``place`` is its file and line."""

    first: str
    second: str
    label: str | None
    # No part of what the pair is: runs are told apart by the representations of their rows.
    place: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class TaggedSentence:
    """The words of a sentence and a tag for each, None in a test set without tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None


Row = LabelledPair | TaggedSentence | Question


def read_folder(data: Path, task: Task, split: str, languages: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Reads a split of a task from a folder; see :func:`ctloss.evaluate.data.sources.read_split`."""
    found = find_files(data, task, split)
    rows = {
        language: read_files(_files_in(language, found, data, task, split), task, language)
        for language in (sorted(found) if languages is None else languages)
    }
    if not rows:
        raise _missing(data, task, split, None, found)
    # XTREME's own training file of TyDiQA-GoldP has ids that repeat.
    for items in rows.values() if split != "train" else ():
        check_ids([item for item in items if isinstance(item, Question)])
    if task.parallel:
        check_equal_lengths(rows, {language: str(found[language][-1]) for language in rows})
    return rows


def find_files(data: Path, task: Task, split: str) -> dict[str, list[Path]]:
    """Returns a split's files by language, from the first folder with any: one named after the task, or ``data``."""
    if task.unit == "question":
        return find_questions(data, task.name, split, task.folders)
    for folder in (*(data / name for name in task.folders), data):
        files = text_files(folder, f"{escape(split)}-*.tsv")
        found = {name[len(split) + 1 : -len(".tsv")]: [path] for name, path in files.items()}
        if not found and task.name == "udpos":
            for name, path in text_files(folder, f"*-ud-{escape(split)}.*").items():
                if treebank := re.fullmatch(r"([a-z]+)_[^.]*\.(tsv|conllu)", name):
                    found.setdefault(treebank[1], []).append(path)
        if found:
            return found
    return {}


def _files_in(language: str, found: Mapping[str, list[Path]], data: Path, task: Task, split: str) -> list[Path]:
    if language not in found:
        raise _missing(data, task, split, language, found)
    files = found[language]
    if len({Path(plain_name(path)).stem for path in files}) < len(files):
        raise DataError(
            f"{files[0].parent}: expected each treebank once, got {', '.join(path.name for path in files)}; "
            "keep either the tsv or the CoNLL-U file"
        )
    return files


def _missing(data: Path, task: Task, split: str, language: str | None, found: Mapping[str, list[Path]]) -> DataError:
    name = f"{split}-{language or 'LANGUAGE'}.tsv"
    if task.unit == "question":
        name = expected_files(task.name, split, language)
    names = f"{name} or {language or 'LANGUAGE'}_TREEBANK-ud-{split}.conllu" if task.name == "udpos" else name
    there = f"languages {', '.join(sorted(found))}" if found else f"no {split} file"
    return DataError(
        f"{data}: expected {names} there or in its folder {' or '.join(task.folders)}, got {there}; "
        "give the folder that holds the files, or other languages"
    )


def read_files(paths: Sequence[Path], task: Task, language: str = "en") -> list[Row]:
    """Reads labelled files one after another; see :func:`read_pairs`, :func:`read_tagged` and
    :func:`ctloss.evaluate.data.questions.read_squad`.

    Raises:
        DataError: as they do, and where some of the files have labels and others do not.
    """
    rows: list[Row] = []
    for path in paths:
        more: Sequence[Row]
        if task.unit == "question":
            more = read_squad(path)
        elif task.unit == "pair":
            more = read_pairs(path, task.labels)
        else:
            more = read_tagged(path, task.labels, language)
        if rows and is_labelled(more) != is_labelled(rows):
            raise DataError(f"{path}: expected labels as in {paths[0]}, got a file that differs; use one kind of file")
        rows += more
    return rows


def is_labelled(rows: Sequence[Row]) -> bool:
    """Tells whether rows carry their labels; the readers make sure that all or none do."""
    first = rows[0]
    if isinstance(first, Question):
        return bool(first.answers)
    return (first.label if isinstance(first, LabelledPair) else first.tags) is not None


def read_pairs(path: Path, labels: Sequence[str]) -> list[Row]:
    """Reads lines SENTENCE tab SENTENCE tab LABEL; a fourth column is ignored.

    XTREME's test files have no labels: two columns. Sentences are taken as they stand, as XTREME's own reader does:
    quotation marks that a CSV writer put around them, or doubled in them, stay.

    Raises:
        DataError: a line has another number of columns, an empty sentence or an unknown label; or the file is empty or
            has labels on some lines only.
    """
    rows: list[Row] = []
    for number, line in decoded_lines(path):
        columns = line.split("\t")
        if not 2 <= len(columns) <= 4:
            raise DataError(
                f"{path}, line {number}: expected SENTENCE, SENTENCE and LABEL separated by tabs, got {len(columns)} "
                "columns; correct the line"
            )
        place = f"{path}, line {number}"
        first, second = columns[0].strip(), columns[1].strip()
        check_sentences(place, first, second)
        label = columns[2].strip() if len(columns) > 2 else None
        check_label(place, label, labels)
        check_alike(place, label is None, not is_labelled(rows) if rows else None)
        rows.append(LabelledPair(first, second, label, place))
    return _some(path, rows)


def read_tagged(path: Path, labels: Sequence[str], language: str = "en") -> list[Row]:
    """Reads lines WORD tab TAG with a blank line after each sentence, or a CoNLL-U file if the name ends that way.

    In a file without tabs, ASCII spaces part the columns. XTREME's test files have no tags: one column. The last
    sentence needs no blank line after it. A word may be a space other than ASCII's, such as the ideographic one. The
    language before every word of raw WikiANN (``de:Berlin``) is taken off, see :func:`without_language`.

    Raises:
        DataError: a line has another number of columns, an empty word or an unknown tag; or the file is empty or has
            tags on some lines only. For CoNLL-U see :func:`read_conllu`.
    """
    if plain_name(path).endswith(".conllu"):
        return _some(path, list(read_conllu(path, language)))
    rows: list[Row] = []
    words: list[str] = []
    tags: list[str | None] = []

    def end_sentence() -> None:
        if words:
            rows.append(TaggedSentence(tuple(words), None if tags[0] is None else tuple(str(tag) for tag in tags)))
            words.clear()
            tags.clear()

    untagged: bool | None = None
    lines = list(decoded_lines(path))
    tabs = any("\t" in line.strip(BLANKS) for _, line in lines)
    for number, line in lines:
        if not line.strip(BLANKS):
            end_sentence()
            continue
        columns = line.split("\t") if tabs else re.split(" +", line.strip(BLANKS))
        if len(columns) > 2:
            raise DataError(
                f"{path}, line {number}: expected WORD and TAG separated by a tab{'' if tabs else ' or a space'}, got "
                f"{len(columns)} columns; correct the line"
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
    return _some(path, without_language(rows))


def without_language(rows: Sequence[Row]) -> list[Row]:
    """Takes the language code and colon off all words of tagged sentences, if every one of them begins with the same.

    Example:
        >>> without_language([TaggedSentence(("de:In", "de:Berlin", "de::"), None)])
        [TaggedSentence(words=('In', 'Berlin', ':'), tags=None)]
        >>> without_language([TaggedSentence(("de:In", "Berlin"), None)])
        [TaggedSentence(words=('de:In', 'Berlin'), tags=None)]
    """
    tagged = [row for row in rows if isinstance(row, TaggedSentence)]
    start = "".join(tagged[0].words[0].partition(":")[:2]) if tagged else ""
    if not start.endswith(":") or not CODE.fullmatch(start[:-1]):
        return list(rows)
    if not all(word.startswith(start) and len(word) > len(start) for row in tagged for word in row.words):
        return list(rows)
    return [replace(row, words=tuple(word.removeprefix(start) for word in row.words)) for row in tagged]


def _some(path: Path, rows: Sequence[Row]) -> list[Row]:
    if not rows:
        raise DataError(f"{path}, line 1: expected labelled items, got an empty file; fetch it again")
    return list(rows)


@dataclass
class _Sentence:
    forms: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    # (first, last, form, line) of every contraction, numbered from 1.
    fused: list[tuple[int, int, str, int]] = field(default_factory=list)


def read_conllu(path: Path, language: str) -> Iterator[TaggedSentence]:
    """Yields the sentences of a CoNLL-U file, split into words as XTREME splits them.

    A contraction (a line ``4-5``) is one word, tagged like its part nearest the tree's root and, among equals, by the
    order of preference of the language (two letters): this is how XTREME's files were made from Universal Dependencies.
    Empty nodes (``4.1``) are left out, and so are spaces and zero-width non-joiners within a word.

    Raises:
        DataError: a line without ten columns, an id out of order, an unknown tag, a contraction whose parts are
            missing, words without text, or a file that was cut short.
    """
    current, number = _Sentence(), 0
    for number, line in decoded_lines(path):
        if not line.strip(BLANKS):
            if current.forms:
                yield _joined(path, number, current, language)
            current = _Sentence()
        elif not line.startswith("#"):
            _add(path, number, line, current)
    if current.forms:
        raise DataError(
            f"{path}, line {number}: expected a blank line after the last sentence, got the end of the file; "
            "it seems cut short: fetch it again"
        )


def _add(path: Path, number: int, line: str, current: _Sentence) -> None:
    columns = line.split("\t")
    if len(columns) != 10:
        raise DataError(
            f"{path}, line {number}: expected CoNLL-U's 10 columns separated by tabs, got {len(columns)}; "
            "correct the line"
        )
    position, form, tag, head = columns[0], columns[1], columns[3], columns[6]
    expected = len(current.forms) + 1
    form = form.replace("\u200c", "").replace(" ", "")
    if re.fullmatch(r"\d+\.\d+", position):
        return
    if contraction := re.fullmatch(r"(\d+)-(\d+)", position):
        first, last = int(contraction[1]), int(contraction[2])
        if first != expected or last < first:
            raise DataError(f"{path}, line {number}: expected a range from {expected}, got {position}; correct the id")
        current.fused.append((first, last, form, number))
        return
    if position != str(expected):
        raise DataError(
            f"{path}, line {number}: expected id {expected}, got {position!r}; every sentence counts its words from 1 "
            "and ends with a blank line"
        )
    if tag not in UPOS:
        raise DataError(f"{path}, line {number}: expected a tag of {', '.join(UPOS)}, got {tag!r}; correct the tag")
    if not form:
        raise DataError(f"{path}, line {number}: expected a word, got none; correct the form")
    current.forms.append(form)
    current.tags.append(tag)
    current.heads.append(head)


def _joined(path: Path, number: int, current: _Sentence, language: str) -> TaggedSentence:
    count = len(current.forms)
    if count > 1 and set(current.forms) == {"_"}:
        raise DataError(
            f"{path}, line {number}: expected words, got a sentence of underscores; this treebank is distributed "
            "without its text: add the text as its README says"
        )
    words, tags, position = [], [], 1
    for first, last, form, line in current.fused:
        if last > count:
            raise DataError(
                f"{path}, line {line}: expected words up to id {last}, got {count}; parts of {form!r} are missing"
            )
        if first < position:
            raise DataError(
                f"{path}, line {line}: expected separate contractions, got one within another; correct the ids"
            )
        words += [*current.forms[position - 1 : first - 1], form]
        tags += [*current.tags[position - 1 : first - 1], _tag_of(path, line, current, first, last, language)]
        position = last + 1
    return TaggedSentence((*words, *current.forms[position - 1 :]), (*tags, *current.tags[position - 1 :]))


def _tag_of(path: Path, line: int, current: _Sentence, first: int, last: int, language: str) -> str:
    preferred = PREFERRED.get(language, PREFERRED_ELSEWHERE)

    def rank(position: int) -> tuple[int, int]:
        tag = current.tags[position - 1]
        return _depth(path, line, current.heads, position), preferred.index(tag) if tag in preferred else len(preferred)

    return current.tags[min(range(first, last + 1), key=rank) - 1]


def _depth(path: Path, line: int, heads: list[str], position: int) -> int:
    """Returns how many words are above one, in a tree that may contain loops by mistake."""
    above: set[int] = set()
    while True:
        head = heads[position - 1]
        if not head.isascii() or not head.isdecimal() or int(head) > len(heads):
            raise DataError(
                f"{path}, line {line}: expected the parts' HEAD to be a word of the sentence, got {head!r} at word "
                f"{position}; a contraction takes the tag of its highest part"
            )
        position = int(head)
        if position == 0 or position in above:
            return len(above)
        above.add(position)


def check_equal_lengths(rows: Mapping[str, Sequence[Row]], names: Mapping[str, str]) -> None:
    """Raises DataError for a language with fewer items than another, where item i is the same in all."""
    longest = max(rows, key=lambda language: len(rows[language]))
    for language, items in rows.items():
        if len(items) < len(rows[longest]):
            raise DataError(
                f"{names[language]}, line {len(items) + 1}: expected {len(rows[longest])} items as in "
                f"{names[longest]}, got {len(items)}; the file is short: fetch it again"
            )


def check_sentences(place: str, *sentences: str) -> None:
    """Raises DataError for a sentence without a character that can be seen."""
    for sentence in sentences:
        if not stripped(sentence):
            shown = f" ({sentence[:40]!r}, which cannot be seen)" if sentence.strip() else ""
            raise DataError(f"{place}: expected two sentences, got an empty one{shown}; correct the line")


def check_label(place: str, label: str | None, labels: Sequence[str]) -> None:
    """Raises DataError for a label that the task does not have."""
    if label is not None and label not in labels:
        raise DataError(
            f"{place}: expected a label of {', '.join(labels)}, got {label!r}; correct the label, or read the file for "
            "the task it belongs to"
        )


def check_alike(place: str, bare: bool, bare_before: bool | None) -> None:
    """Raises DataError for an item without a label (bare) after one with it, and the other way round.

    Before the first item ``bare_before`` is None.
    """
    if bare_before is not None and bare != bare_before:
        expected, got = ("a label as before", "none") if bare else ("no label as before", "one")
        raise DataError(f"{place}: expected {expected}, got {got}; label all or none")
