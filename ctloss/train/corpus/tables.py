"""Parallel text in tables: parquet files and data sets of Hugging Face's datasets, read batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...shared.text import SHOWN, BadLine, DataError, home_path, nfc, seekable
from .bitext import Bitext, Rows
from .columns import NESTED, Column, Columns, columns_of, fault_of

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

HUB = "hub:"


def parquet_columns(path: Path, languages: tuple[str, ...], named: tuple[str, str] | None) -> list[Columns]:
    """Finds the columns of a parquet file; see :func:`columns_of`.

    Raises:
        DataError: no such columns, or no such file.
    """
    import pyarrow
    import pyarrow.parquet

    with seekable(path) as file:
        try:
            schema = pyarrow.parquet.ParquetFile(file).schema_arrow
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(path, error) from error
    return columns_of(str(path), *_texts_of(schema), languages, named)


def count_parquet(path: Path) -> Callable[[], int] | None:
    """Returns what tells the rows of a parquet file, None if it would have to be unpacked."""
    import pyarrow.parquet

    return (lambda: int(pyarrow.parquet.read_metadata(path).num_rows)) if path.suffix == ".parquet" else None


def read_parquet(path: Path, columns: Columns, size: int) -> Iterator[Rows]:
    """Reads a parquet file; the line number of a row counts from 1.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(NESTED if column.nested else column.name for column in columns[:2]))
    first = 1
    with seekable(path) as file:
        try:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches(size, columns=names)
            for batch in batches:
                yield _rows(batch, columns, str(path), first)
                first += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(f"{path}, row {first}", error) from error


def dataset_bitexts(
    dataset: Dataset, name: str, languages: tuple[str, ...], named: tuple[str, str] | None = None
) -> list[Bitext]:
    """Returns the bitexts of a data set, one for each language pair.

    Raises:
        DataError: it has no such columns.
    """

    def bitext(columns: Columns) -> Bitext:
        def read(size: int) -> Iterator[Rows]:
            first = 1
            for table in dataset.with_format("arrow").iter(size):
                yield _rows(table, columns, name, first)
                first += table.num_rows

        identity = f"{dataset._fingerprint} {columns.source} {columns.target}"
        languages = columns.source_language, columns.target_language
        return Bitext(name, *languages, identity, read, lambda: len(dataset))

    found = columns_of(name, *_texts_of(dataset.features.arrow_schema), languages, named)
    return [bitext(columns) for columns in found]


def load_hub(name: str) -> tuple[Dataset, str | None]:
    """Loads the training split of ``hub:NAME`` or ``hub:NAME/CONFIG``, a data set of the hub or a local folder.

    Returns:
        The data set, and the configuration if one is named.

    Raises:
        DataError: no such data set, configuration or split, or no connection.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    failed: Exception | None = None
    for data, config in _places(name.removeprefix(HUB)):
        try:
            return load_dataset(data, config, split="train"), config
        except (DatasetNotFoundError, ConnectionError) as error:
            failed = failed or error
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            failed = error
            break
    reason = " ".join(str(failed).split())[:300]
    raise DataError(
        f"{name}: expected a data set with a split 'train', on the hub or in a local folder, got: {reason}; check the "
        "name (hub:NAME or hub:NAME/CONFIGURATION) and the connection"
    ) from failed


def _places(name: str) -> list[tuple[str, str | None]]:
    """Returns what a name may mean: data set and configuration. Data sets of the hub are NAME or OWNER/NAME."""
    path = home_path(name)
    if path.exists():
        return [(str(path), None)]
    if path.parent.is_dir() and path.parent != Path():
        return [(str(path.parent), path.name)]
    head, _, last = name.rpartition("/")
    places: list[tuple[str, str | None]] = [(name, None)] if name.count("/") < 2 else []
    return [*places, (head, last)] if head and head.count("/") < 2 else places or [(name, None)]


def _texts_of(schema: pyarrow.Schema) -> tuple[list[str], list[str]]:
    """Returns the columns of texts, and the fields of texts in the column ``translation``."""
    import pyarrow.types as types

    def is_text(field: Any) -> bool:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        return types.is_string(kind) or types.is_large_string(kind)

    nested = schema.field(NESTED).type if schema.names.count(NESTED) == 1 else None
    inner = list(nested) if nested is not None and types.is_struct(nested) else []
    return [field.name for field in schema if is_text(field)], [field.name for field in inner if is_text(field)]


def _rows(data: pyarrow.RecordBatch | pyarrow.Table, columns: Columns, place: str, first: int) -> Rows:
    sources, targets = _values(data, columns.source), _values(data, columns.target)
    bad = []
    for number, pair in enumerate(zip(sources, targets, strict=True)):
        if reason := fault_of(columns, *pair):
            shown = next((value for value in pair if isinstance(value, str)), "")
            bad.append(BadLine(place, first + number, reason, shown.encode(errors="replace").decode()[:SHOWN]))
            sources[number] = targets[number] = ""
    return Rows(first, [nfc(text) for text in sources], [nfc(text) for text in targets], bad)


def _values(data: pyarrow.RecordBatch | pyarrow.Table, column: Column) -> list[Any]:
    import pyarrow.compute

    if column.nested:
        values = pyarrow.compute.struct_field(data.column(NESTED), column.name)
    else:
        values = data.column(column.name)
    try:
        return values.to_pylist()
    except UnicodeDecodeError:
        return [_value(value) for value in values]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        # What is not UTF-8 is kept in surrogates, which are no text: the row is reported, and the rest of it shown.
        return scalar.as_buffer().to_pybytes().decode(errors="surrogateescape")


def _damaged(place: str | Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{place}: expected a whole parquet file, got a damaged one ({reason}); fetch it again")
