"""Which columns of a table hold the texts of which languages: of JSON lines, parquet and data sets alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...shared.languages import find_code, is_language, primary
from ...shared.text import DataError, is_unicode

NESTED = "translation"
BY_ROLE = (("source", "target"), ("src", "tgt"))


class Column(NamedTuple):
    """A column, or a field of the column ``translation``."""

    name: str
    nested: bool = False

    def __str__(self) -> str:
        return f"{NESTED}.{self.name}" if self.nested else self.name

    def of(self, row: Any) -> Any:
        """Returns a row's value, None where there is none."""
        inner = row.get(NESTED) if self.nested and isinstance(row, dict) else row
        return inner.get(self.name) if isinstance(inner, dict) else None


class Columns(NamedTuple):
    """The columns of a language pair."""

    source: Column
    target: Column
    source_language: str
    target_language: str


def columns_of(
    place: str,
    names: Sequence[str],
    nested: Sequence[str],
    languages: Sequence[str],
    named: tuple[str, str] | None,
) -> list[Columns]:
    """Finds the columns of each language pair of a table.

    They are named by languages, in the column ``translation`` or at the top, or else ``source`` and ``target``, or
    ``src`` and ``tgt``. The first of ``languages`` is paired with each of the others that the table has.

    Args:
        place: the table, for errors.
        names: columns of texts.
        nested: fields of texts in the column ``translation``.
        languages: those asked for; none for all that there are, English first.
        named: the languages that the table is named after.

    Raises:
        DataError: there are no such columns.
    """
    wanted = languages or english_first(named or ())
    for there, inner in ((nested, True), (names, False)):
        found = {code: Column(name, inner) for code in wanted if (name := find_code(code, there)) is not None}
        if not languages and len(found) < 2:
            # A row's number is often named id, which would be Indonesian.
            codes = [name for name in there if is_language(name) and (inner or name != "id")]
            found = {code: Column(code, inner) for code in english_first(codes)}
        if len(found) > 1 and (not languages or languages[0] in found):
            (pivot, column), *others = found.items()
            return [Columns(column, other, pivot, language) for language, other in others]
    for pair in BY_ROLE:
        if set(pair) <= set(names):
            if named is not None and languages and not _fits(named, languages):
                raise DataError(
                    f"{place}: expected the languages that it is named after, {' then '.join(named)}, got "
                    f"{' '.join(languages)}; omit --languages, or rename the file"
                )
            chosen = named if named is not None else tuple(languages)
            if len(chosen) != 2:
                raise DataError(
                    f"{place}: expected to know the languages of {pair[0]} and {pair[1]}, got "
                    f"{' '.join(languages) or 'none'}; give --languages with both, or name the file after them, as "
                    "in corpus.en-fr.jsonl"
                )
            return [Columns(Column(pair[0]), Column(pair[1]), chosen[0], chosen[1])]
    asked = f"texts in {' and '.join(wanted)}" if wanted else "texts in two languages"
    raise DataError(
        f"{place}: expected {asked} (as columns en, fr or translation.en, translation.fr, or source, target), got "
        f"{', '.join([*names, *(f'{NESTED}.{name}' for name in nested)]) or 'no column of texts'}; name the columns "
        "so, or give --languages"
    )


def columns_in_row(
    place: str, row: Mapping[str, Any], languages: Sequence[str], named: tuple[str, str] | None
) -> list[Columns]:
    """Finds the columns of each language pair of a table by one of its rows; see :func:`columns_of`.

    Raises:
        DataError: the row has not those texts.
    """
    nested = row.get(NESTED)
    texts = [
        [key for key, value in level.items() if isinstance(value, str)]
        for level in (row, nested)
        if isinstance(level, Mapping)
    ]
    return columns_of(place, texts[0], texts[1] if len(texts) > 1 else [], languages, named)


def english_first(codes: Iterable[str]) -> list[str]:
    """Returns languages in their order, but English first, which is then paired with each of the others."""
    return sorted(codes, key=lambda code: primary(code) != "en")


def fault_of(columns: Columns, source: Any, target: Any) -> str:
    """Returns why two values are no pair of texts; an empty text if they are one."""
    for column, value in ((columns.source, source), (columns.target, target)):
        if not isinstance(value, str):
            return f"expected a text as {column}, got {'none' if value is None else type(value).__name__}"
        if not is_unicode(value):
            return f"expected Unicode text as {column}, got half of a surrogate pair"
    return ""


def _fits(pair: tuple[str, str], languages: Sequence[str]) -> bool:
    return find_code(pair[0], languages[:1]) is not None and find_code(pair[1], languages[1:]) is not None
