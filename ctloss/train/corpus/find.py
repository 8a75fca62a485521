"""The bitexts that --corpus names: what form each of them has, and which languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...shared.languages import find_code, is_language, meaning
from ...shared.text import DataError, aligned_files, files_of, home_path, plain_name, text_file, zip_members
from .bitext import Bitext, identity_of
from .columns import Columns, english_first
from .lines import counting, json_columns, read_aligned, read_json, read_tsv
from .names import languages_in
from .tables import HUB, count_parquet, dataset_bitexts, load_hub, parquet_columns, read_parquet

JSON = (".jsonl", ".ndjson", ".json")


def find_bitexts(names: Sequence[str], languages: Sequence[str], alignments: Sequence[str] = ()) -> list[Bitext]:
    """Finds the bitexts of some names, in their order: one for each language pair of each of them.

    A name is a file that ends in .tsv, .jsonl, .parquet or .zip (a Moses archive of OPUS), compressed or not; the
    common part PREFIX of line-aligned files PREFIX.LANGUAGE; or ``hub:NAME`` or ``hub:NAME/CONFIGURATION``, a data set.

    Args:
        names: as above; several may have the same languages.
        languages: the first is paired with each of the others; none for all that there are, English first.
        alignments: word alignments in Pharaoh format, one file for each bitext in their order.

    Raises:
        DataError: a file is missing or not what its name says, or languages are missing or cannot be told.
    """
    asked = tuple(languages)
    _refuse_twins(asked)
    found = [bitext for name in names for bitext in _bitexts(name, asked, only=len(names) == 1)]
    there = {code for bitext in found for code in (bitext.source_language, bitext.target_language)}
    for language in asked:
        if language not in there:
            raise DataError(
                f"languages: expected those of the corpus, {', '.join(sorted(there))}, got {language!r} too; add its "
                "files, or leave it out"
            )
    if alignments and len(alignments) != len(found):
        raise DataError(
            f"alignments: expected a file for each of the {len(found)} language pairs, in their order, "
            f"got {len(alignments)}; add or drop some"
        )
    return [_aligned(*pair) for pair in zip(found, map(home_path, alignments), strict=True)] if alignments else found


def _bitexts(name: str, languages: tuple[str, ...], *, only: bool) -> list[Bitext]:
    if name.startswith(HUB):
        dataset, config = load_hub(name)
        named = languages_in(config or name.rpartition("/")[2], languages)
        return dataset_bitexts(dataset, name, languages, named)
    path = home_path(name)
    ending = Path(plain_name(path)).suffix
    if ending not in (".tsv", ".parquet", ".zip", *JSON):
        return _line_aligned(name, path, languages, only=only)
    path = text_file(path) or path
    identity = identity_of([path])
    if ending == ".zip":
        return _archived(name, path, languages, identity)
    stem = plain_name(path).removesuffix(ending)
    if ending == ".tsv":
        named_as = _tsv_languages(name, stem, languages)
        return [Bitext(name, *named_as, identity, partial(read_tsv, path), counting(path))]
    named = languages_in(stem, languages)
    columns_in: Callable[..., list[Columns]] = parquet_columns if ending == ".parquet" else json_columns
    read, count = (read_parquet, count_parquet) if ending == ".parquet" else (read_json, counting)
    return [
        Bitext(
            name,
            columns.source_language,
            columns.target_language,
            f"{identity} {columns.source} {columns.target}",
            partial(read, path, columns),
            count(path),
        )
        for columns in columns_in(path, languages, named)
    ]


def _line_aligned(name: str, prefix: Path, languages: tuple[str, ...], *, only: bool) -> list[Bitext]:
    if languages and not only:
        # Of several prefixes, each needs to have only some of the languages.
        endings = files_of(prefix)
        some = [code for code in languages if find_code(code, endings) is not None]
        languages = tuple(some) if len(some) > 1 and some[0] == languages[0] else languages
    files = aligned_files(prefix, languages or None)
    pivot, *others = languages or english_first(files)
    return [_of_files(name, pivot, other, files) for other in others]


def _of_files(name: str, pivot: str, other: str, files: dict[str, Path], archive: Path | None = None) -> Bitext:
    pair = files[pivot], files[other]
    identity = identity_of(pair) if archive is None else identity_of([archive], *map(str, pair))
    return Bitext(name, pivot, other, identity, partial(read_aligned, *pair), counting(pair[0]))


def _archived(name: str, path: Path, languages: tuple[str, ...], identity: str) -> list[Bitext]:
    """Returns the bitexts of a Moses archive: X.en-fr.en and X.en-fr.fr, next to files of other kinds."""
    members: dict[str, dict[str, Path]] = {}
    for member in zip_members(path):
        stem, _, ending = plain_name(member).rpartition(".")
        members.setdefault(str(member.parent / stem), {})[ending] = member
    found = []
    for files in members.values():
        wanted = languages or tuple(english_first(filter(is_language, files)))
        chosen = {code: files[found_as] for code in wanted if (found_as := find_code(code, files)) is not None}
        if len(chosen) > 1 and next(iter(chosen)) == wanted[0]:
            pivot, *others = chosen
            found += [_of_files(name, pivot, other, chosen, path) for other in others]
    if not found:
        there = sorted(member.relative_to(path).as_posix() for files in members.values() for member in files.values())
        raise DataError(
            f"{name}: expected line-aligned files such as corpus.en-fr.en and corpus.en-fr.fr"
            f"{f' in {languages[0]} and one of ' + ', '.join(languages[1:]) if languages else ''}, got "
            f"{', '.join(there[:10]) or 'no file'}; give a Moses archive, or its files unpacked"
        )
    return found


def _tsv_languages(name: str, stem: str, languages: tuple[str, ...]) -> tuple[str, str]:
    named = languages_in(stem, languages)
    if named and languages and not (named[0] == languages[0] and named[1] in languages[1:]):
        raise DataError(
            f"languages: expected those that {name} is named after, {named[0]} then {named[1]}, got "
            f"{' '.join(languages)}; omit --languages, or rename the file"
        )
    if not named and len(languages) == 2:
        return languages[0], languages[1]
    if not named:
        raise DataError(
            f"{name}: expected a name that ends in the languages of its columns, like en-fr.tsv; rename the file, or "
            "give --languages with both"
        )
    return named


def _aligned(bitext: Bitext, alignment: Path) -> Bitext:
    alignment = text_file(alignment) or alignment
    return replace(bitext, alignment=alignment, identity=f"{bitext.identity} {identity_of([alignment])}")


def _refuse_twins(languages: tuple[str, ...]) -> None:
    meanings: dict[str, str] = {}
    for code in languages:
        if (other := meanings.setdefault(meaning(code), code)) != code:
            raise DataError(f"languages: expected different languages, got {other} and {code}, which are one; drop one")
