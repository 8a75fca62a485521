"""Text files decoded in one way: UTF-8, NFC, LF and CRLF, plain or compressed, aligned line by line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from ctloss.shared.text import (
    BadLine,
    DataError,
    Lines,
    aligned_files,
    count_lines,
    decoded_lines,
    files_of,
    home_path,
    line_chunks,
    nfc,
    plain_name,
    read_lines,
    require_equal_counts,
    seekable,
    stripped,
    text_file,
    text_files,
    zip_members,
)

# e and a combining acute accent, which NFC joins.
DECOMPOSED, COMPOSED = "caf" + "e\u0301", "caf\u00e9"


def zstandard(content: bytes) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return packed.getvalue().to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(COMPRESSIONS.get(path.suffix, bytes)(raw))
    return path


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_lines_are_the_same_whatever_the_file(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"text.en{ending}", f"\ufeffone\r\n{DECOMPOSED}\n\nlast")
    assert nfc(DECOMPOSED) == COMPOSED == nfc(COMPOSED)
    assert list(decoded_lines(path)) == [(1, "one"), (2, COMPOSED), (3, ""), (4, "last")]
    assert count_lines(path) == 4
    assert read_lines(path, empty=True) == ["one", COMPOSED, "", "last"]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\ufeff"])
def test_only_lf_and_crlf_end_a_line(tmp_path: Path, inside: str) -> None:
    path = write(tmp_path / "text", f"first\na{inside}b\nlast\r\n")
    assert list(decoded_lines(path)) == [(1, "first"), (2, f"a{inside}b"), (3, "last")]
    assert count_lines(path) == 3
    assert list(decoded_lines(write(path, f"a{inside}\r\n"))) == [(1, f"a{inside}")]


@pytest.mark.parametrize(("content", "count"), [("", 0), ("\n", 1), ("a", 1), ("a\n", 1), ("a\n\n", 2), ("a\n ", 2)])
def test_last_line_needs_no_line_end(tmp_path: Path, content: str, count: int) -> None:
    path = write(tmp_path / "text", content)
    assert count_lines(path) == len(list(decoded_lines(path))) == count


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_other_encodings_are_refused_by_file_and_line(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"text{ending}", b"good\nna\xefve\n")
    with pytest.raises(DataError, match=rf"text{ending}, line 2: expected UTF-8, got byte 0xef at position 2 of the"):
        list(decoded_lines(path))
    with pytest.raises(DataError, match="line 1: expected UTF-8, got byte 0xff"):
        read_lines(write(tmp_path / "utf-16", "text".encode("utf-16")))


@pytest.mark.parametrize("read", [count_lines, read_lines, lambda path: list(decoded_lines(path))])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for name in ("none", "none.gz"):
        with pytest.raises(DataError, match=rf"{name}: expected a readable text file, got No such file or directory"):
            read(tmp_path / name)
    with pytest.raises(DataError, match="expected a readable text file, got Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_compressed_files_are_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"text{ending}", "some text\n" * 100)
    for content, line in ((path.read_bytes()[:-12], "[0-9]+"), (b"not compressed\n", "1")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"text{ending}, line ({line}): expected a whole {ending} file, got a dam"):
            count_lines(path)
        with pytest.raises(DataError, match=rf"text{ending}: expected a whole"), seekable(path):
            pass


def test_bad_lines_are_yielded_beside_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "text", b"\xef\xbb\xbfone\r\nna\xefve\n" + b"\xff" * 500 + b"\nlast")
    second = BadLine(str(path), 2, "expected UTF-8, got byte 0xef at position 2 of the line", "na\ufffdve")
    third = BadLine(str(path), 3, "expected UTF-8, got byte 0xff at position 0 of the line", "\ufffd" * 80)
    assert list(line_chunks(path, 3)) == [Lines(1, ["one", "", ""], [second, third]), Lines(4, ["last"], [])]
    assert list(line_chunks(path, 2)) == [Lines(1, ["one", ""], [second]), Lines(3, ["", "last"], [third])]
    assert list(line_chunks(write(path, ""))) == []
    # Only the file's first line has a byte order mark to leave out.
    write(path, "\ufeffone\n\ufefftwo\n")
    assert [lines.texts for lines in line_chunks(path, 1)] == [["one"], ["\ufefftwo"]]


@pytest.mark.parametrize("text", ["", " \t", "\u200b", "\x00\x07", "\ufeff \u2028\x85", "\u00ad\u200d"])
def test_text_that_cannot_be_seen_is_none(text: str) -> None:
    assert stripped(text) == ""
    assert stripped(f" {text}a{text}b ") == f"{text}a{text}b".strip()


def test_zip_files_are_read_from_within(tmp_path: Path) -> None:
    path = tmp_path / "corpus.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("moses/a.en", "one\ntwo\n" * 50)
        archive.writestr("b.fr.gz", gzip.compress(b"un\n"))
        archive.writestr("../outside", "x")
    assert zip_members(path) == [path / "b.fr.gz", path / "moses" / "a.en"]
    assert list(decoded_lines(path / "moses" / "a.en"))[98:] == [(99, "one"), (100, "two")]
    assert list(decoded_lines(path / "b.fr.gz")) == [(1, "un")]
    packed = write(tmp_path / "corpus.zip.xz", path.read_bytes())
    assert list(decoded_lines(packed / "b.fr.gz")) == [(1, "un")]
    with pytest.raises(DataError, match=r"corpus\.zip/none, line 1: expected a whole \.zip file"):
        list(decoded_lines(path / "none"))
    with pytest.raises(DataError, match=r"other\.zip: expected a whole \.zip file, got a damaged one"):
        zip_members(write(tmp_path / "other.zip", "text"))


def test_compressed_files_are_unpacked_to_be_read_at_any_place(tmp_path: Path) -> None:
    for ending in COMPRESSIONS:
        with seekable(write(tmp_path / f"x{ending}", "some text")) as file:
            assert (file.seek(5), file.read()) == (5, b"text")


def test_the_home_folder_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [home_path(name) for name in ("~/x", "a/~", "~nobody-of-that-name/x")] == [
        tmp_path / "x",
        Path("a/~"),
        Path("~nobody-of-that-name/x"),
    ]


def test_empty_lines_and_files_are_refused_where_text_is_wanted(tmp_path: Path) -> None:
    path = write(tmp_path / "text", " a \n\t\nb\n")
    assert read_lines(path, empty=True) == ["a", "", "b"]
    with pytest.raises(DataError, match="text, line 2: expected text, got an empty line"):
        read_lines(path)
    with pytest.raises(DataError, match="expected lines of text, got an empty file"):
        read_lines(write(path, ""), empty=True)


def test_counts_that_differ_name_the_first_missing_line(tmp_path: Path) -> None:
    require_equal_counts({tmp_path / "a.en": 3, tmp_path / "a.fr": 3})
    with pytest.raises(DataError, match=r"a\.fr, line 3: expected 4 lines as in a\.en, got 2"):
        require_equal_counts({tmp_path / "a.de": 3, tmp_path / "a.en": 4, tmp_path / "a.fr": 2})


def test_compressed_files_are_found_by_their_plain_names(tmp_path: Path) -> None:
    for name in ("b.tsv.gz", "a.tsv", "a.tsv.xz", "c.tsv.bz2", "d.txt"):
        write(tmp_path / name, "x\n")
    (tmp_path / "e.tsv").mkdir()
    assert list(text_files(tmp_path, "*.tsv").items()) == [
        ("a.tsv", tmp_path / "a.tsv"),
        ("b.tsv", tmp_path / "b.tsv.gz"),
        ("c.tsv", tmp_path / "c.tsv.bz2"),
    ]
    assert text_file(tmp_path / "a.tsv") == tmp_path / "a.tsv"
    assert text_file(tmp_path / "b.tsv") == text_file(tmp_path / "b.tsv.gz") == tmp_path / "b.tsv.gz"
    assert text_file(tmp_path / "e.tsv") is text_file(tmp_path / "none") is None
    assert [plain_name(name) for name in ("x.en.gz", "x.gz.en", "x")] == ["x.en", "x.gz.en", "x"]


def test_aligned_files_are_found_by_language(tmp_path: Path) -> None:
    for name in ("en.gz", "en.tar", "pt_BR", "zho_Hans.xz", "fr", "fr.gz", "ids", "md", "tokens", "en-de.fr"):
        write(tmp_path / f"corpus[1].{name}", "x\n")
    write(tmp_path / "corpus[1]x.de", "x\n")
    prefix = tmp_path / "corpus[1]"
    found = aligned_files(prefix)
    assert {code: path.name.removeprefix("corpus[1].") for code, path in found.items()} == {
        "en": "en.gz",
        "fr": "fr",
        "pt_BR": "pt_BR",
        "zho_Hans": "zho_Hans.xz",
    }
    assert list(found) == sorted(found)
    assert list(aligned_files(prefix, ["pt_BR", "en", "pt_BR"])) == ["pt_BR", "en"]
    assert list(aligned_files(str(prefix), ["tokens", "en"])) == ["tokens", "en"]
    # However a language is spelled.
    assert aligned_files(prefix, ["eng", "pt-br"]) == {"eng": found["en"], "pt-br": found["pt_BR"]}
    assert files_of(prefix)["tokens"] == tmp_path / "corpus[1].tokens"
    assert "x.de" not in files_of(prefix)


def test_languages_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "corpus.en", "x\n")
    with pytest.raises(DataError, match=r"corpus: expected at least two files .*corpus\.LANGUAGE .* got .*corpus\.en;"):
        aligned_files(tmp_path / "corpus")
    with pytest.raises(DataError, match=r"expected at least two files .* got none"):
        aligned_files(tmp_path / "other")
    with pytest.raises(
        DataError, match=r"corpus\.de: expected the sentences in 'de', got no such file; .* files of en"
    ):
        aligned_files(tmp_path / "corpus", ["en", "de"])
