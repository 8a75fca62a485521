"""Concept tables: one TSV file per semantic class, one concept per row, with every inflected form written out.

A header cell names a language and the forms its cells list, as ``ru:nom|acc|g``. In a cell the forms stand in that
order, separated by ``|``; ``-`` means that the concept lacks a form. A form may include function words around the word
itself, which is then in brackets: ``l'[hôpital]``, ``last [week]``. The form ``g`` is not a word but the agreement
class (m, f, n, p ...) that adjectives and verbs follow; a column ``g`` holds one class for all languages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

LANGUAGES = ("ar", "en", "es", "fr", "ru", "zh")
TABLES = files(__package__) / "concepts"
FUNCTION_WORDS = "function"


class Form(NamedTuple):
    """One inflected form: the word and the function words written around it."""

    before: str
    word: str
    after: str

    @classmethod
    def parse(cls, text: str) -> Form:
        """Split ``before[word]after``; without brackets the whole text is the word."""
        if "[" not in text:
            return cls("", text, "")
        before, rest = text.split("[")
        word, after = rest.split("]")
        return cls(before, word, after)


@dataclass(frozen=True)
class Entry:
    """A concept with its listed forms in every language."""

    id: str
    kind: str
    agreement: str | None
    forms: dict[str, dict[str, Form]]

    def citation(self, language: str) -> str:
        """Dictionary form: the first form listed."""
        return next(iter(self.forms[language].values())).word

    def agreement_class(self, language: str) -> str:
        """Agreement class (gender or number) of this concept's word in one language; empty if it has none."""
        listed = self.forms[language].get("g")
        return listed.word if listed else self.agreement or ""

    def form(self, language: str, name: str, agreement: str = "") -> Form | None:
        """The listed form `name` that agrees with `agreement`, from the most to the least specific name.

        ``past`` agreeing with ``f`` is ``past.f`` if listed, then ``f``, then ``past``; a compound class such as
        ``mv`` (masculine, vowel-initial) falls back to its first letter.
        """
        listed = self.forms[language]
        if name == "word":
            return Form("", self.citation(language), "")
        classes = (agreement, agreement[:1]) if agreement else ()
        names = [f"{name}.{c}" for c in classes] + list(classes) + [name]
        return next((listed[n] for n in names if n in listed), None)


def _parse_cell(cell: str, names: list[str]) -> dict[str, Form]:
    values = cell.split("|")
    if not names:
        if cell == "-":
            return {}
        return {name: Form.parse(text) for name, text in (value.split("=") for value in values)}
    if len(values) != len(names):
        raise ValueError(f"expected {len(names)} forms {names}, got {len(values)} in {cell!r}")
    return {name: Form.parse(text) for name, text in zip(names, values, strict=True) if text != "-"}


def _parse_table(kind: str, text: str) -> list[Entry]:
    header, *rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    entries = []
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{kind}.tsv, row {row[0]!r}: expected {len(header)} columns, got {len(row)}")
        agreement, forms = None, {}
        for title, cell in zip(header[1:], row[1:], strict=True):
            language, _, names = title.partition(":")
            if language == "g":
                agreement = cell
                continue
            try:
                forms[language] = _parse_cell(cell, names.split("|") if names else [])
            except ValueError as error:
                raise ValueError(f"{kind}.tsv, row {row[0]!r}, column {language}: {error}") from None
        entries.append(Entry(row[0], kind, agreement, forms))
    return entries


@cache
def concept_tables() -> dict[str, Entry]:
    """All content concepts by id, read from the package's TSV files."""
    entries: dict[str, Entry] = {}
    for resource in sorted(TABLES.iterdir(), key=lambda item: item.name):
        kind = resource.name.removesuffix(".tsv")
        if kind == FUNCTION_WORDS:
            continue
        for entry in _parse_table(kind, resource.read_text(encoding="utf-8")):
            if entry.id in entries:
                raise ValueError(f"{kind}.tsv: concept {entry.id!r} is already in {entries[entry.id].kind}.tsv")
            entries[entry.id] = entry
    # Templates name concepts and classes in one list.
    if both := {entry.kind for entry in entries.values()} & set(entries):
        raise ValueError(f"expected concept ids to differ from table names, got {sorted(both)}")
    return entries


@cache
def function_words() -> dict[str, Entry]:
    """Words that only agree with others (copulas, pronouns): they are not concepts and have no span."""
    text = (TABLES / f"{FUNCTION_WORDS}.tsv").read_text(encoding="utf-8")
    return {entry.id: entry for entry in _parse_table(FUNCTION_WORDS, text)}
