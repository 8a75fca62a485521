"""Sentence templates: a frame in six languages with slots that name a concept class and a form.

``{p.nom}`` is slot p in its form nom, ``{v.past@p}`` the past of v agreeing with p, ``{q@o}`` the form of q that
agrees with o, ``{o!mw}`` a form set without a span (a measure word), ``{was@o}`` a function word agreeing with o.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from .tables import LANGUAGES, Entry, Form, concept_tables, function_words

_SLOT = re.compile(r"\{(\w+)(?:([.!])([\w.]+))?(?:@(\w+))?\}")
_ARABIC_LETTER = re.compile("[\u0621-\u064a]")


class Piece(NamedTuple):
    """A slot of a frame: which concept (by position among the slots, or a function word), in which form."""

    position: int
    function_word: Entry | None
    form: str
    agrees_with: int | None
    spanned: bool


@dataclass(frozen=True)
class Template:
    """One frame in six languages and the concepts each of its slots admits."""

    name: str
    fillers: tuple[tuple[Entry, ...], ...]
    frames: dict[str, tuple[str | Piece, ...]]

    @property
    def combinations(self) -> int:
        """Number of ways to fill the slots, impossible repetitions included."""
        return math.prod(map(len, self.fillers))

    def fill(self, number: int) -> tuple[Entry, ...]:
        """The fillers of combination `number`, its mixed-radix digits."""
        chosen = []
        for choices in self.fillers:
            number, digit = divmod(number, len(choices))
            chosen.append(choices[digit])
        return tuple(chosen)

    def render(self, language: str, chosen: tuple[Entry, ...]) -> tuple[str, dict[str, tuple[int, int]]]:
        """Text of the filled frame and the character span (end exclusive) of every content word in it."""
        text, spans = "", {}
        for piece in self.frames[language]:
            if isinstance(piece, str):
                text += piece
                continue
            form = _find_form(piece, language, chosen)
            text += form.before
            if piece.spanned:
                start, end = len(text), len(text) + len(form.word)
                # Arabic writes clitics joined to their word: the span is the whole written word.
                while language == "ar" and start and _ARABIC_LETTER.match(text[start - 1]):
                    start -= 1
                spans[chosen[piece.position].id] = (start, end)
            text += form.word + form.after
        return _capitalise(text), spans


def _find_form(piece: Piece, language: str, chosen: tuple[Entry, ...]) -> Form:
    agreement = "" if piece.agrees_with is None else chosen[piece.agrees_with].agreement_class(language)
    entry = piece.function_word or chosen[piece.position]
    form = entry.form(language, piece.form, agreement)
    if form is None:
        raise ValueError(f"{entry.kind}.tsv: {entry.id!r} has no form {piece.form!r} {agreement!r} in {language}")
    return form


def _capitalise(text: str) -> str:
    first = 1 if text[0] in "¿¡" else 0
    return text[:first] + text[first].upper() + text[first + 1 :]


def _parse_frame(text: str, slots: list[str]) -> tuple[str | Piece, ...]:
    frame: list[str | Piece] = []
    end = 0
    for match in _SLOT.finditer(text):
        if match.start() > end:
            frame.append(text[end : match.start()])
        name, mark, form, agrees = match.groups()
        function_word = None if name in slots else function_words()[name]
        frame.append(
            Piece(
                position=slots.index(name) if name in slots else -1,
                function_word=function_word,
                form=form or "",
                agrees_with=slots.index(agrees) if agrees else None,
                spanned=function_word is None and mark != "!",
            )
        )
        end = match.end()
    frame.append(text[end:])
    return tuple(frame)


def _admitted(spec: str, position: int, frames: dict[str, tuple[str | Piece, ...]]) -> tuple[Entry, ...]:
    """Concepts of the classes or ids named in `spec` that list every form the frames ask of this slot."""
    tables = concept_tables()
    included = {word for word in spec.split(",") if not word.startswith("-")}
    excluded = {word[1:] for word in spec.split(",") if word.startswith("-")}
    known = {entry.kind for entry in tables.values()} | set(tables)
    if unknown := (included | excluded) - known:
        raise ValueError(f"templates.txt: expected concept classes or ids, got {sorted(unknown)}")
    asked = [
        (language, piece.form)
        for language, frame in frames.items()
        for piece in frame
        if isinstance(piece, Piece) and piece.position == position and piece.agrees_with is None
    ]
    named = [
        entry
        for entry in tables.values()
        if {entry.id, entry.kind} & included and not {entry.id, entry.kind} & excluded
    ]
    admitted = tuple(entry for entry in named if all(entry.form(language, form) for language, form in asked))
    if lacking := [entry.id for entry in named if entry not in admitted and entry.id in included]:
        raise ValueError(f"templates.txt: {lacking} named in {spec!r} lack a form that the frames ask for")
    return admitted


def _parse_template(block: str) -> Template:
    lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith("#"))
    slots = dict(item.split("=") for item in lines["slots"].split())
    frames = {language: _parse_frame(lines[language], list(slots)) for language in LANGUAGES}
    fillers = tuple(_admitted(spec, position, frames) for position, spec in enumerate(slots.values()))
    return Template(lines["template"], fillers, frames)


@cache
def templates() -> tuple[Template, ...]:
    """All templates of ``templates.txt``, in file order."""
    text = files(__package__).joinpath("templates.txt").read_text(encoding="utf-8")
    return tuple(_parse_template(block.strip()) for block in text.split("\n\n") if "template: " in block)
