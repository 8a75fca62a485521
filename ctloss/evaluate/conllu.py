"""Words and universal parts of speech from CoNLL-U files, cut into words as XTREME cuts them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .score import DataError
from .tasks import UPOS, TaggedSentence

# XTREME's order of preference where several parts of a contraction hang equally high in the tree.
PREFERRED = {
    "es": ("VERB", "AUX", "PRON", "ADP", "DET"),
    "fr": ("VERB", "AUX", "PRON", "NOUN", "ADJ", "ADV", "ADP", "DET", "PART", "SCONJ"),
    "it": ("VERB", "AUX", "ADV", "PRON", "ADP", "DET", "INTJ"),
}
PREFERRED_ELSEWHERE = (
    *("VERB", "NOUN", "PROPN", "PRON", "ADJ", "NUM", "ADV", "INTJ"),
    *("AUX", "ADP", "DET", "PART", "CCONJ", "SCONJ", "X", "PUNCT"),
)


@dataclass
class _Sentence:
    forms: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    # (first, last, form, line) of every contraction, numbered from 1.
    fused: list[tuple[int, int, str, int]] = field(default_factory=list)


def sentences(path: Path, lines: Iterable[tuple[int, str]], language: str) -> Iterator[TaggedSentence]:
    """Yields the sentences of a CoNLL-U file.

    A contraction (a line ``4-5``) is one word, tagged as the part nearest the tree's root and, among equals, by an
    order of preference: this is how XTREME's files came from Universal Dependencies. Empty nodes (``4.1``) are left
    out, and so are spaces and zero-width non-joiners within a word.

    Args:
        path: named in errors.
        lines: (number from 1, text) of its lines.
        language: two-letter code, for the order of preference.

    Raises:
        DataError: a line without ten columns, an id out of turn, an unknown tag, a contraction whose parts are missing,
            words without text, or a file cut short.
    """
    current, number = _Sentence(), 0
    for number, line in lines:
        if not line.strip():
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
            f"{path}, line {number}: expected the 10 columns of CoNLL-U between tabs, got {len(columns)}; "
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
                f"{path}, line {line}: expected contractions apart, got one within another; correct the ids"
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
    """Returns how many words hang above one, in a tree that may have loops by mistake."""
    above: set[int] = set()
    while True:
        head = heads[position - 1]
        if not head.isascii() or not head.isdecimal() or int(head) > len(heads):
            raise DataError(
                f"{path}, line {line}: expected the parts' HEAD to be a word of the sentence, got {head!r} at word "
                f"{position}; the tag of a contraction is that of its highest part"
            )
        position = int(head)
        if position == 0 or position in above:
            return len(above)
        above.add(position)
