"""Bitexts from Python: data sets, and iterables of sentence pairs, which are kept in a temporary file."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ...shared.text import SHOWN, BadLine, DataError, is_unicode, nfc
from .bitext import Bitext, Rows
from .columns import columns_in_row
from .names import languages_in
from .tables import dataset_bitexts

_BATCH = 2048


def bitexts_of(pairs: Any, languages: Sequence[str]) -> list[Bitext]:
    """Returns the bitexts of Python objects.

    Args:
        pairs: a ``datasets.Dataset`` whose columns :func:`ctloss.train.corpus.columns.columns_of` knows; an iterable
            of (source, target), also one that can be read only once; or a mapping from language pairs such as
            ``"en-fr"`` to these.
        languages: those of the pairs; a data set's columns and a mapping's keys may name them instead.

    Raises:
        DataError: it is none of these, or its languages cannot be told.
    """
    asked = tuple(languages)
    if not isinstance(pairs, Mapping):
        return _bitexts("pairs", pairs, asked, None)
    found = []
    for key, item in pairs.items():
        named = languages_in(key, asked) if isinstance(key, str) else None
        if named is None:
            raise DataError(
                f"pairs: expected keys that are language pairs, such as 'en-fr', got {key!r}; name each by its "
                "languages (of a DatasetDict give one part, as in data['train'])"
            )
        found += _bitexts(f"pairs[{key!r}]", item, named, named)
    if not found:
        raise DataError("pairs: expected at least one language pair, got an empty mapping; add its sentence pairs")
    return found


def _bitexts(name: str, pairs: Any, languages: tuple[str, ...], named: tuple[str, str] | None) -> list[Bitext]:
    from datasets import Dataset, IterableDataset

    if isinstance(pairs, Dataset):
        return dataset_bitexts(pairs, name, languages, named)
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise DataError(
            f"{name}: expected a datasets.Dataset, an iterable of (source, target), or a mapping of language pairs to "
            f"these, got {type(pairs).__name__}; files are named in the recipe's corpus"
        )
    if isinstance(pairs, IterableDataset):
        row: dict[str, Any] = next(iter(pairs), {})
        return [
            _spooled(
                name,
                (columns.source_language, columns.target_language),
                ((columns.source.of(item), columns.target.of(item)) for item in pairs),
            )
            for columns in columns_in_row(name, row, languages, named)
        ]
    if len(languages) != 2:
        raise DataError(
            f"{name}: expected two languages for (source, target), got {' '.join(languages) or 'none'}; give both, as "
            "in languages=('en', 'fr')"
        )
    return [_spooled(name, (languages[0], languages[1]), pairs)]


def _spooled(name: str, languages: tuple[str, str], pairs: Iterable[Any]) -> Bitext:
    """Writes the pairs to a temporary Arrow file, which goes when nothing reads it any longer."""
    import pyarrow

    text = pyarrow.large_string()
    schema = pyarrow.schema([("source", text), ("target", text), ("reason", text)])
    file = tempfile.NamedTemporaryFile(prefix="ctloss-pairs-", suffix=".arrow")  # noqa: SIM115
    digest, items, number = hashlib.sha256(), iter(pairs), 0
    with pyarrow.ipc.new_file(pyarrow.PythonFile(file, "w"), schema) as writer:
        while chunk := list(islice(items, _BATCH)):
            rows = [_checked(item) for item in chunk]
            number += len(rows)
            for row in rows:
                for part in row:
                    encoded = part.encode()
                    digest.update(len(encoded).to_bytes(8, "little") + encoded)
            columns = [pyarrow.array(column, text) for column in zip(*rows, strict=True)]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
    file.flush()

    def read(size: int) -> Iterator[Rows]:
        with pyarrow.memory_map(file.name) as mapped:
            table = pyarrow.ipc.open_file(mapped).read_all()
            for start in range(0, table.num_rows, size):
                part = table.slice(start, size)
                sources, targets, reasons = (column.to_pylist() for column in part.columns)
                bad = [
                    BadLine(name, start + place + 1, reason, sources[place])
                    for place, reason in enumerate(reasons)
                    if reason
                ]
                yield Rows(start + 1, sources, targets, bad)

    return Bitext(name, *languages, digest.hexdigest(), read, lambda: number)


def _checked(item: Any) -> tuple[str, str, str]:
    """Returns source, target and nothing; of an item that is no pair of texts, what it looks like, nothing and why."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return _shown(item), "", f"expected (source, target), got {type(item).__name__}"
    for text in item:
        if not isinstance(text, str):
            return _shown(item), "", f"expected two texts, got {type(text).__name__}"
        if not is_unicode(text):
            return _shown(item), "", "expected Unicode text, got half of a surrogate pair"
    return nfc(item[0]), nfc(item[1]), ""


def _shown(item: Any) -> str:
    return ascii(item)[:SHOWN]
