"""The corpus that comes with the package, as bitexts with their gold word pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ...shared.files import digest_of_files
from ...shared.languages import primary
from ...shared.text import DataError
from ..text import embedded
from ..text.embedded import LANGUAGES, Split, sentences
from .bitext import Bitext, Rows


def embedded_bitexts(split: Split, languages: Sequence[str]) -> list[Bitext]:
    """Returns the embedded corpus: its first language paired with each of the others. No sentence is in two splits.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        languages: those wanted; none for all, English first.

    Raises:
        DataError: the corpus has not such a language.
    """
    for language in languages:
        if primary(language) not in LANGUAGES:
            raise DataError(
                f"expected languages among {', '.join(LANGUAGES)}, got {language!r}; "
                "the embedded corpus has no others: use files of your own for them"
            )
    pivot, *others = languages or ("en", *(language for language in LANGUAGES if language != "en"))
    folder = Path(embedded.__file__).parent
    identity = digest_of_files(
        sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".tsv", ".txt")), start=split
    )

    def bitext(other: str) -> Bitext:
        keys = primary(pivot), primary(other)

        def read(size: int) -> Iterator[Rows]:
            items, first = sentences(split), 1
            while chunk := list(islice(items, size)):
                sources, targets = ([item.texts[key] for item in chunk] for key in keys)
                words = [tuple((spans[keys[0]], spans[keys[1]]) for spans in item.words.values()) for item in chunk]
                yield Rows(first, sources, targets, [], words)
                first += len(chunk)

        return Bitext("embedded", pivot, other, f"{identity} {' '.join(keys)}", read)

    return [bitext(other) for other in others]
