"""A prepared corpus: what lies in its folder, and how it is opened."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from ...shared.models import load_tokenizer
from ...shared.text import DataError, home_path
from ..text.embedded import SPLITS, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of the folder and of the rules by which it is made: folders of another number are not opened.
FORMAT = 4
DOCUMENT, TOKENIZER = "prepared.json", "tokenizer"
COMMAND = "python -m ctloss.train prepare"
AGAIN = f"remove the folder and make it again with {COMMAND!r}"
# Bytes of training samples whose checksums are compared whenever a run starts: a second or two of reading.
CHECKED = 1 << 31

_WORDS = pa.list_(pa.uint64())
# source_words and target_words hash (language, word), word_types both of these; the keys hash the normalised texts.
SAMPLES = pa.schema(
    {
        "source": pa.string(),
        "target": pa.string(),
        "origin": pa.int16(),
        "source_ids": pa.list_(pa.int32()),
        "target_ids": pa.list_(pa.int32()),
        "word_pairs": pa.list_(pa.list_(pa.int32(), 4)),
        "word_types": _WORDS,
        "source_words": _WORDS,
        "target_words": _WORDS,
        "source_key": pa.uint64(),
        "target_key": pa.uint64(),
    }
)
# The words as people read them, which only the held-out parts keep.
TEXTS = ("source_word_texts", "target_word_texts")


class Origin(NamedTuple):
    """Where rows come from: the file as people know it, and its languages."""

    name: str
    source_language: str
    target_language: str

    @property
    def languages(self) -> str:
        """The language pair, such as ``"en-fr"``."""
        return f"{self.source_language}-{self.target_language}"


@dataclass
class Counts:
    """What a part keeps, and what it skipped and why.

    Attributes:
        pairs: sentence pairs given, those of lines that could not be read included.
        rows: sentence pairs kept; with those skipped, all that were given.
        rows_with_words: rows with at least one word pair.
        word_pairs: word pairs in all rows.
        skipped_pairs: by reason: ``bad line``, ``empty`` (a side without text), ``duplicate`` (both texts seen before
            in these languages), ``held out`` (a text of the held-out parts), ``beyond max_pairs``, ``too long`` (more
            wordpieces than allowed on either side).
        skipped_words: of the word pairs proposed for the rows, by reason: ``stop word``, ``not unique`` (a word occurs
            again in its sentence), ``ambiguous`` (a word has several translations left), ``span not verified`` (no run
            of known wordpieces covers exactly the word).
        languages: rows, rows with words and word pairs by language pair, such as ``"en-fr"``.
    """

    pairs: int = 0
    rows: int = 0
    rows_with_words: int = 0
    word_pairs: int = 0
    skipped_pairs: dict[str, int] = field(default_factory=dict)
    skipped_words: dict[str, int] = field(default_factory=dict)
    languages: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Returns a summary of a few lines."""

        def reasons(counts: dict[str, int]) -> str:
            return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count) or "none"

        lines = [
            f"{self.rows:,} of {self.pairs:,} sentence pairs kept (skipped: {reasons(self.skipped_pairs)})",
            f"{self.rows_with_words:,} of them with words, {self.word_pairs:,} word pairs "
            f"(skipped: {reasons(self.skipped_words)})",
        ]
        for name, c in self.languages.items():
            lines.append(f"{name}: {c['rows']:,} rows, {c['rows_with_words']:,} with words, {c['word_pairs']:,} pairs")
        return "\n".join(lines)


class Written(NamedTuple):
    """What a file has to be: its size, and the CRC-32 of its bytes."""

    size: int
    crc32: int

    @classmethod
    def of(cls, path: Path) -> Written:
        """Reads a file."""
        size = crc32 = 0
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                size += len(chunk)
                crc32 = zlib.crc32(chunk, crc32)
        return cls(size, crc32)


@dataclass(frozen=True)
class Prepared:
    """A finished folder, see :func:`open_prepared`.

    Attributes:
        path: the folder.
        fingerprint: a hash of its samples and tokenizer; equal content has equal fingerprints, however it was made.
        key: a hash of all that it was made from, see :func:`ctloss.train.prepared.settings.key`.
        settings: the fields of Data and EncoderChoice that it was made with, by name.
        origins: what the column ``origin`` numbers.
        counts: what each part keeps.
        bad_lines: how many lines could not be read.
        notes: what users should know of.
        files: size and checksum of each file.
    """

    path: Path
    fingerprint: str
    key: str
    settings: dict[str, Any]
    origins: list[Origin]
    counts: dict[Split, Counts]
    bad_lines: int
    notes: list[str]
    files: dict[str, Written]

    def table(self, split: Split) -> pa.Table:
        """Returns the rows of a part with the columns of SAMPLES, memory-mapped."""
        return self._read(split).select(SAMPLES.names)

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """Returns rows of ``"validation"`` or ``"test"`` in memory, as many of each language pair as are measured.

        A row has source, target, source_language, target_language, source_ids, target_ids, word_pairs, word_types,
        source_words and target_words (the words themselves, case folded).
        """
        if split == "train":
            raise ValueError("expected 'validation' or 'test', got 'train', which is too large; use table")
        found = []
        # Some repeat a sentence and are not measured.
        room = Counter({origin.languages: int(self.settings["evaluation_pairs"]) * 3 // 2 for origin in self.origins})
        for row in (row for batch in self._read(split).to_batches() for row in batch.to_pylist()):
            origin = self.origins[row.pop("origin")]
            if not room[origin.languages]:
                continue
            room[origin.languages] -= 1
            row["source_words"], row["target_words"] = (row.pop(name) for name in TEXTS)
            del row["source_key"], row["target_key"], row["skipped_words"]
            found.append({**row, "source_language": origin.source_language, "target_language": origin.target_language})
        return found

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer that the samples were made with.

        Raises:
            DataError: it is damaged.
        """
        try:
            return load_tokenizer(self.path / TOKENIZER)
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path / TOKENIZER}: expected the tokenizer that {COMMAND!r} wrote, got a damaged one; {AGAIN}"
            ) from error

    def check(self, *, whole: bool) -> None:
        """Compares files with their checksums: all, or all but training samples beyond the first 2 GiB.

        Raises:
            DataError: a file has other content.
        """
        for name, file in _checked(self.files.items(), whole=whole):
            path = self.path / name
            try:
                same = Written.of(path) == file
            except OSError as error:
                raise DataError(f"{path}: expected a readable file, got {error.strerror}; {AGAIN}") from error
            if not same:
                raise DataError(
                    f"{path}: expected the content that {COMMAND!r} wrote, got other bytes; the prepared corpus is "
                    f"damaged: {AGAIN}"
                )

    def arrow_files(self, split: Split) -> list[Path]:
        """Returns the files that hold the rows of a part, in their order."""
        return [self.path / name for name in sorted(self.files) if name.startswith(f"{split}/")]

    def _read(self, split: Split) -> pa.Table:
        return pa.concat_tables(map(read_arrow, self.arrow_files(split)))


def read_arrow(path: Path) -> pa.Table:
    """Returns the table in an Arrow stream, memory-mapped."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def batches_of(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the record batches of an Arrow stream, memory-mapped."""
    yield from pa.ipc.open_stream(pa.memory_map(str(path)))


def is_finished(folder: Path) -> bool:
    """Tells whether a folder holds a finished preparation, whole or damaged since."""
    return (folder / DOCUMENT).is_file()


def open_prepared(folder: str | Path) -> Prepared:
    """Opens a folder that :func:`ctloss.train.prepared.build.prepare` made, which takes seconds at any size.

    Of the files' content only sizes are looked at; :meth:`Prepared.check` compares checksums.

    Raises:
        DataError: the folder is not one, its preparation was not finished, a file is missing or has another size, or
            another version made it.
    """
    folder = home_path(folder)
    if not is_finished(folder):
        raise DataError(
            f"{folder}: expected a corpus prepared by {COMMAND!r}, got "
            f"{'a folder without ' + DOCUMENT if folder.is_dir() else 'no such folder'}; make it first, or correct the "
            "path"
        )
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
        made = document["format"]
        if made != FORMAT:
            raise DataError(f"{folder}: expected a prepared corpus of format {FORMAT}, got format {made!r}; {AGAIN}")
        prepared = Prepared(
            path=folder,
            fingerprint=str(document["fingerprint"]),
            key=str(document["key"]),
            settings=dict(document["settings"]),
            origins=[Origin(**origin) for origin in document["origins"]],
            counts={split: Counts(**document["counts"][split]) for split in SPLITS},
            bad_lines=int(document["bad_lines"]),
            notes=list(document["notes"]),
            files={name: Written(*map(int, file)) for name, file in document["files"].items()},
        )
        str([str(prepared.counts[split]) for split in SPLITS])  # Counts of other kinds have no such form.
        whole = (
            all(prepared.arrow_files(split) for split in SPLITS) and prepared.origins and "encoder" in prepared.settings
        )
        if not whole or not all(isinstance(part, str) for origin in prepared.origins for part in origin):
            raise ValueError("parts of it are missing")
    except DataError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder / DOCUMENT}: expected what {COMMAND!r} wrote, got other content ({error}); {AGAIN}"
        ) from error
    for name, (size, _) in prepared.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise DataError(
                f"{path}: expected {size:,} bytes, got {'no file' if found is None else f'{found:,}'}; "
                f"the prepared corpus is damaged: {AGAIN}"
            )
    return prepared


def write_document(prepared: Prepared) -> str:
    """Returns the content of ``prepared.json``."""
    document = {"format": FORMAT, **{key: value for key, value in vars(prepared).items() if key != "path"}}
    document["origins"] = [origin._asdict() for origin in prepared.origins]
    document["counts"] = {split: asdict(counts) for split, counts in prepared.counts.items()}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def describe(prepared: Prepared) -> str:
    """Returns what a prepared corpus holds, for people: counts by part and language pair, what was skipped, and why."""
    lines = [f"{split}: {counts}" for split, counts in prepared.counts.items()]
    lines += [f"note: {note}" for note in prepared.notes]
    lines.append(f"{sum(file.size for file in prepared.files.values()) / 1e6:,.1f} MB in {prepared.path}")
    return "\n".join(lines)


def _checked(files: Iterable[tuple[str, Written]], *, whole: bool) -> Iterator[tuple[str, Written]]:
    """Yields the files whose content is looked at."""
    left = CHECKED
    for name, file in files:
        if not whole and name.startswith("train/"):
            left -= file.size
            if left < 0:
                continue
        yield name, file
