"""Files of text, line by line: their names, their encoding, their lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from glob import escape
from pathlib import Path

# Two or three letters that end the names of files which are no text in a language.
SUFFIXES = frozenset(
    {
        *("gz", "bz", "xz", "zst", "zip", "tar", "tgz", "txt", "tsv", "csv", "tmp", "bak"),
        *("ids", "md", "py", "sh", "log", "out", "err", "yml", "xml", "pdf", "png", "npy", "pkl"),
    }
)


class CorpusError(ValueError):
    """A corpus file is not what its format promises; the message names the file and the line."""


def count_lines(path: Path) -> int:
    """Counts the lines of a file; a last line without its LF counts too.

    Raises:
        CorpusError: the file cannot be read.
    """
    count, last = 0, b"\n"
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                count += chunk.count(b"\n")
                last = chunk[-1:]
    except OSError as error:
        raise CorpusError(f"{path}: expected a readable text file, got {error.strerror}; check the path") from error
    return count + (last != b"\n")


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text in NFC without its line end) of a UTF-8 file; a byte order mark is left out.

    Only LF ends a line: str.splitlines would also cut at U+2028 and others, and lose the alignment of lines.

    Raises:
        CorpusError: a line that is not UTF-8.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number}: expected UTF-8, got byte 0x{raw[error.start]:02x} at position "
                    f"{error.start} of the line; convert the file to UTF-8"
                ) from error
            yield number, unicodedata.normalize("NFC", text.removesuffix("\n").removesuffix("\r"))


def find_lines(prefix: str | Path) -> dict[str, Path]:
    """Finds the files PREFIX.LANGUAGE of a line-aligned corpus.

    Args:
        prefix: path up to the dot before the language code: ``data/corpus`` for data/corpus.en, data/corpus.fr.

    Returns:
        Path by language code, sorted by code.

    Raises:
        CorpusError: fewer than two such files exist.
    """
    prefix = Path(prefix)
    files = {
        path.name[len(prefix.name) + 1 :]: path
        for path in sorted(prefix.parent.glob(f"{escape(prefix.name)}.*"))
        if is_language(path.name[len(prefix.name) + 1 :])
    }
    if len(files) < 2:
        raise CorpusError(
            f"{prefix}: expected at least two files {prefix}.LANGUAGE (such as {prefix}.en and {prefix}.fr), "
            f"got {', '.join(str(path) for path in files.values()) or 'none'}; "
            "give the common part of the names, without the dot and the language code"
        )
    return files


def is_language(code: str) -> bool:
    """Tells whether a string looks like a language code: ``fr``, ``ast``, ``pt-BR``, ``zh_Hant``.

    Example:
        >>> [is_language(code) for code in ("fr", "pt-br", "gz", "md", "tokens")]
        [True, True, False, False, False]
    """
    primary, _, region = code.replace("_", "-").partition("-")
    letters = primary.isascii() and primary.isalpha() and primary.islower() and 2 <= len(primary) <= 3
    return letters and primary not in SUFFIXES and (not region or region.isalnum())
