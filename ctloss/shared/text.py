"""Text files: how they are opened and decoded, how many lines they have, and which ones are aligned line by line."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import shutil
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from glob import escape
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from .languages import find_code, is_language


class DataError(ValueError):
    """A file is not what its format promises; the message names the file and, if it can, the line."""


class BadLine(NamedTuple):
    """A line that cannot be read, why, and the first characters of it."""

    file: str
    line: int
    reason: str
    text: str


class Lines(NamedTuple):
    """Some lines of a file: the number of the first, their texts, and those that are bad, whose text is empty."""

    first: int
    texts: list[str]
    bad: list[BadLine]


# How much of a bad line is shown.
SHOWN = 80


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"), 1 << 20)


_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}


def nfc(text: str) -> str:
    """Returns a text in Unicode's normal form C, the form in which texts are compared and tokenized."""
    return text if text.isascii() or unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def is_unicode(text: str) -> bool:
    """Tells whether a text can be written as UTF-8: it has no surrogates, which JSON and Python let pass."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def stripped(text: str) -> str:
    """Returns a text without white space at its ends; nothing at all if none of its characters can be seen.

    Zero-width characters and controls cannot: tokenizers drop them, and an encoder would be given no word. Neither can
    a few letters and marks without a form, such as fillers of Hangul and selectors of variants.

    Example:
        >>> stripped(" two words\\n"), stripped("\\u200b\\x07 \\ufeff"), stripped("\\u3164\\ufe0f")
        ('two words', '', '')
    """
    text = text.strip()
    if text.isprintable() and text[:1] not in _FORMLESS:
        return text
    seen = any(unicodedata.category(one) not in _UNSEEN and one not in _FORMLESS for one in text)
    return text if seen else ""


_UNSEEN = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_FORMLESS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0").union(
    map(chr, range(0xFE00, 0xFE10)), map(chr, range(0xE0100, 0xE01F0))
)


def home_path(name: str | Path) -> Path:
    """Returns the path that a user names; ``~`` at its start means the home folder."""
    return Path(os.path.expanduser(name))


def line_chunks(path: Path, size: int = 2048) -> Iterator[Lines]:
    """Yields the lines of a UTF-8 file, compressed or not, ``size`` at a time: in NFC, without their line ends.

    Files that end in .gz, .bz2, .xz or .zst are decompressed; a path that leads into a .zip file names a file in it. A
    byte order mark at the start is left out. Only LF and CRLF end a line: str.splitlines would also cut at U+2028 and
    others, and shift all lines after it.

    Raises:
        DataError: the file cannot be read, or its compressed form is damaged.
    """
    first, raw = 1, _raw_lines(path)
    while chunk := list(islice(raw, size)):
        if first == 1:
            chunk[0] = chunk[0].removeprefix(codecs.BOM_UTF8)
        bad: list[BadLine] = []
        try:
            # No character of several bytes holds an LF: all lines together decode as each of them does, but faster.
            texts = nfc(b"".join(chunk).decode()).split("\n")[: len(chunk)]
        except UnicodeDecodeError:
            texts = [_decoded(path, number, line, bad) for number, line in enumerate(chunk, start=first)]
        yield Lines(first, [text.removesuffix("\r") for text in texts], bad)
        first += len(chunk)


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text) of the lines of a file, as :func:`line_chunks` reads them.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8.
    """
    for lines in line_chunks(path):
        whole = lines.bad[0].line - lines.first if lines.bad else len(lines.texts)
        yield from enumerate(lines.texts[:whole], start=lines.first)
        if lines.bad:
            raise DataError(f"{path}, line {lines.bad[0].line}: {lines.bad[0].reason}; convert the file to UTF-8")


def read_lines(path: Path, *, empty: bool = False) -> list[str]:
    """Returns the lines of a file, decoded as :func:`decoded_lines` does, without white space at their ends.

    A line without a character that can be seen counts as empty, see :func:`stripped`.

    Raises:
        DataError: the file cannot be read, is not UTF-8, has no line, or has an empty one without ``empty``.
    """
    lines = []
    for number, text in decoded_lines(path):
        line = stripped(text)
        if not line and not empty:
            shown = f" ({text[:40]!r}, which cannot be seen)" if text.strip() else ""
            raise DataError(
                f"{path}, line {number}: expected text, got an empty line{shown}; remove it, or give its text"
            )
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
    """Finds the files in a folder whose names without .gz, .bz2, .xz or .zst match a pattern of ``Path.glob``.

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
        languages: codes; by default all that there are files of. A file may spell a code in another way: pt_BR is
            pt-br, and deu is de.

    Returns:
        Path by language code, in the order of ``languages`` or else sorted.

    Raises:
        DataError: a language is missing, or there are fewer than two.
    """
    found = files_of(prefix)
    there = {code: path for code, path in found.items() if is_language(code)}
    wanted = list(dict.fromkeys(there if languages is None else languages))
    files = {}
    for code in wanted:
        spelled = find_code(code, found)
        if spelled is None:
            raise DataError(
                f"{prefix}.{code}: expected the sentences in {code!r}, got no such file; there are files of "
                f"{', '.join(there) or 'no language'}"
            )
        files[code] = found[spelled]
    if len(files) < 2:
        raise DataError(
            f"{prefix}: expected at least two files {prefix}.LANGUAGE (such as {prefix}.en and {prefix}.fr), got "
            f"{', '.join(map(str, files.values())) or 'none'}; give the common part of the names, without the dot and "
            "the language code"
        )
    return files


def files_of(prefix: str | Path) -> dict[str, Path]:
    """Finds the files PREFIX.ENDING, compressed or not, and returns them by ending; see :func:`text_files`."""
    prefix = Path(prefix)
    start = len(prefix.name) + 1
    return {name[start:]: path for name, path in text_files(prefix.parent, f"{escape(prefix.name)}.*").items()}


@contextmanager
def seekable(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to be read at any place; a compressed one is unpacked to a temporary file.

    Raises:
        DataError: the file cannot be read, or its compressed form is damaged.
    """
    with ExitStack() as stack:
        with _refusing(path):
            if path.suffix in _OPENERS:
                whole: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
                with _opened(path) as packed:
                    shutil.copyfileobj(packed, whole, 1 << 20)
                whole.seek(0)
            else:
                whole = stack.enter_context(path.open("rb"))
        yield whole


def zip_members(path: Path) -> list[Path]:
    """Returns the files in a .zip file, as paths that lead into it, sorted.

    Raises:
        DataError: the file cannot be read, or is no such file.
    """
    with seekable(path) as file, _refusing(path), zipfile.ZipFile(file) as archive:
        names = [PurePosixPath(item.filename) for item in archive.infolist() if not item.is_dir()]
    return sorted(path / name for name in names if not name.is_absolute() and ".." not in name.parts)


def _raw_lines(path: Path) -> Iterator[bytes]:
    number = 0
    with _refusing(path, lambda: number + 1), _opened(path) as file:
        for line in file:
            yield line
            number += 1


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        archive = next((p for p in path.parents if plain_name(p).endswith(".zip") and p.is_file()), None)
        if archive is None:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
        else:
            names = zipfile.ZipFile(stack.enter_context(seekable(archive)))
            member = {PurePosixPath(name): name for name in names.namelist()}[PurePosixPath(path.relative_to(archive))]
            file = stack.enter_context(stack.enter_context(names).open(member))
        unpack = _OPENERS.get(path.suffix)
        yield file if unpack is None else stack.enter_context(unpack(file))


@contextmanager
def _refusing(path: Path, line: Callable[[], int] | None = None) -> Iterator[None]:
    """Turns what goes wrong while a file is opened or read into a DataError."""
    try:
        yield
    # zipfile raises RuntimeError for encrypted files and unknown methods, KeyError for files that are not there.
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or str(error)
            raise DataError(f"{path}: expected a readable text file, got {reason}; check the path") from error
        place = f"{path}, line {line()}" if line else str(path)
        form = path.suffix if path.suffix in _OPENERS else ".zip"
        raise DataError(
            f"{place}: expected a whole {form} file, got a damaged one ({error}); fetch or compress it again"
        ) from error


def _decoded(path: Path, number: int, line: bytes, bad: list[BadLine]) -> str:
    try:
        return nfc(line.decode().removesuffix("\n"))
    except UnicodeDecodeError as error:
        reason = f"expected UTF-8, got byte 0x{line[error.start]:02x} at position {error.start} of the line"
        bad.append(BadLine(str(path), number, reason, line[: 4 * SHOWN].decode(errors="replace").strip()[:SHOWN]))
        return ""
