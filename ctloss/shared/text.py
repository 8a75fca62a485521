"""Text files: how they are decoded, how many lines they have, and which ones are aligned line by line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import IO, Any

from .languages import is_language

_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class DataError(ValueError):
    """A file is not what its format promises; the message names the file and, if it can, the line."""


def nfc(text: str) -> str:
    """Returns a text in Unicode's normal form C, the form in which texts are compared and tokenized."""
    return unicodedata.normalize("NFC", text)


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text in NFC without its line end) of a UTF-8 file, compressed or not.

    Files that end in .gz, .bz2 or .xz are decompressed. A byte order mark at the start is left out. Only LF and CRLF
    end a line: str.splitlines would also cut at U+2028 and others, and shift all lines after it.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8.
    """
    for number, raw in enumerate(_raw_lines(path), start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: expected UTF-8, got byte 0x{raw[error.start]:02x} at position {error.start} "
                "of the line; convert the file to UTF-8"
            ) from error
        yield number, nfc(text.removesuffix("\n").removesuffix("\r"))


def read_lines(path: Path, *, empty: bool = False) -> list[str]:
    """Returns the lines of a file, decoded as :func:`decoded_lines` does, without white space at their ends.

    Raises:
        DataError: the file cannot be read, is not UTF-8, has no line, or has an empty one without ``empty``.
    """
    lines = []
    for number, text in decoded_lines(path):
        line = text.strip()
        if not line and not empty:
            raise DataError(f"{path}, line {number}: expected text, got an empty line; remove it, or give its text")
        lines.append(line)
    if not lines:
        raise DataError(f"{path}: expected lines of text, got an empty file; give the whole file")
    return lines


def count_lines(path: Path) -> int:
    """Counts the lines of a file, compressed or not; a last line without its line end counts too.

    Raises:
        DataError: the file cannot be read.
    """
    return sum(1 for _ in _raw_lines(path))


def require_equal_counts(counts: Mapping[Path, int]) -> None:
    """Refuses line-aligned files with different numbers of lines, which ``counts`` gives for each file.

    Raises:
        DataError: names the shortest file and its first missing line.
    """
    longest, shortest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[longest] != counts[shortest]:
        raise DataError(
            f"{shortest}, line {counts[shortest] + 1}: expected {counts[longest]} lines as in {longest.name}, got "
            f"{counts[shortest]}; both files must be whole and aligned line by line"
        )


def plain_name(path: str | Path) -> str:
    """Returns a file's name without the ending of its compression: corpus.en of data/corpus.en.gz."""
    name = Path(path).name
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in _OPENERS else name


def text_files(folder: Path, pattern: str = "*") -> dict[str, Path]:
    """Finds the files in a folder whose names without .gz, .bz2 or .xz match a pattern of ``Path.glob``.

    Returns:
        Path by that name, sorted by name; if a file is there plain and compressed, the plain one. Subfolders are not
        searched.
    """
    found: dict[str, Path] = {}
    for ending in ("", *_OPENERS):
        for path in folder.glob(pattern + ending):
            if path.is_file():
                found.setdefault(path.name.removesuffix(ending), path)
    return dict(sorted((name, path) for name, path in found.items() if name == plain_name(name)))


def text_file(path: Path) -> Path | None:
    """Returns a file's path or that of its compressed form, such as corpus.en.gz for corpus.en; None without either."""
    return text_files(path.parent, escape(path.name)).get(path.name) or (path if path.is_file() else None)


def aligned_files(prefix: str | Path, languages: Sequence[str] | None = None) -> dict[str, Path]:
    """Finds the files PREFIX.LANGUAGE of a line-aligned corpus, compressed (PREFIX.LANGUAGE.gz) or not.

    Args:
        prefix: path up to the dot before the language code: ``data/corpus`` for data/corpus.en and data/corpus.fr.
        languages: codes; by default all that there are files of.

    Returns:
        Path by language code, in the order of ``languages`` or else sorted.

    Raises:
        DataError: a language is missing, or there are fewer than two.
    """
    prefix = Path(prefix)
    start = len(prefix.name) + 1
    found = {name[start:]: path for name, path in text_files(prefix.parent, f"{escape(prefix.name)}.*").items()}
    there = {code: path for code, path in found.items() if is_language(code)}
    wanted = list(dict.fromkeys(there if languages is None else languages))
    for code in wanted:
        if code not in found:
            raise DataError(
                f"{prefix}.{code}: expected the sentences in {code!r}, got no such file; there are files of "
                f"{', '.join(there) or 'no language'}"
            )
    if len(wanted) < 2:
        raise DataError(
            f"{prefix}: expected at least two files {prefix}.LANGUAGE (such as {prefix}.en and {prefix}.fr), got "
            f"{', '.join(str(found[code]) for code in wanted) or 'none'}; give the common part of the names, without "
            "the dot and the language code"
        )
    return {code: found[code] for code in wanted}


def _raw_lines(path: Path) -> Iterator[bytes]:
    opened: Callable[[Path], IO[bytes]] = _OPENERS.get(path.suffix, lambda path: path.open("rb"))
    try:
        with opened(path) as file:
            yield from file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: expected a whole {path.suffix} file, got a damaged one ({error}); fetch or compress it again"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: expected a readable text file, got {reason}; check the path") from error
