"""Whatever the bytes of a corpus, each of its lines is read or reported, and nothing but DataError is raised."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("datasets")

import pyarrow
import pyarrow.parquet

from ctloss.shared.text import DataError
from ctloss.train.corpus import Bitext, find_bitexts

Pairs = list[tuple[str, str]]

ODD = [
    *(b"", b" ", b"\0", b"\r", b"\r\r", b"\x1c\x0b\x0c", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *(text.encode() for text in ("\u2028", "\x85", "\u200b\u200d", "\ufeff", "e\u0301", "\U0001f600", "क\u093c")),
    *(text.encode() * 4_000 for text in ("a", "字é")),
]
LINE = st.one_of(
    st.sampled_from(ODD),
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(lambda text: text.replace("\n", "").encode()),
)
JSON_VALUE = st.one_of(
    st.none(), st.integers(), st.text(st.characters(), max_size=6), st.lists(st.integers(), max_size=1)
)
ENDINGS = ["", ".gz", ".bz2", ".xz", ".zst"]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def zstandard(content: bytes) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return packed.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1),
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
    ".zst": zstandard,
}


def write(path: Path, lines: Sequence[bytes], end: bytes = b"\n", *, ended: bool = True) -> Path:
    content = end.join(lines) + (end if ended and lines else b"")
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](content))
    return path


def decoded(line: bytes, *, first: bool = False) -> str | None:
    """What a line says, by the standard's definition of UTF-8 and line ends; None if it says nothing."""
    try:
        return line.removeprefix(b"\xef\xbb\xbf" if first else b"").decode().removesuffix("\r")
    except UnicodeDecodeError:
        return None


def shown(text: str) -> str:
    text = unicodedata.normalize("NFC", text).strip()
    return text if any(unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp", "Zs") for c in text) else ""


def read(bitext: Bitext, size: int) -> tuple[Pairs, list[int]]:
    """All pairs, and the numbers of the bad lines."""
    pairs: Pairs = []
    bad: list[int] = []
    for chunk in bitext.chunks(size):
        assert len(chunk.sources) + len(chunk.bad) <= size
        pairs += zip(chunk.sources, chunk.targets, strict=True)
        bad += [line.line for line in chunk.bad]
        assert all(line.reason.startswith("expected ") and len(line.text) <= 80 for line in chunk.bad)
    return pairs, bad


def sides(lines: Sequence[tuple[str | None, str | None]]) -> tuple[Pairs, list[int]]:
    """What reading should give of lines, one of whose sides may be unreadable."""
    good = [(shown(a), shown(b)) for a, b in lines if a is not None and b is not None]
    return good, [number for number, line in enumerate(lines, start=1) if None in line]


@settings(suppress_health_check=SLOW)
@given(
    st.lists(st.tuples(LINE, LINE), max_size=20),
    st.sampled_from(ENDINGS),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.sampled_from([1, 3, 2048]),
)
def test_line_aligned(
    tmp_path: Path, lines: list[tuple[bytes, bytes]], ending: str, end: bytes, zipped: bool, size: int
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    english, french = ([pair[side] for pair in lines] for side in (0, 1))
    files = write(tmp_path / f"x.en-fr.en{ending}", english, end), write(tmp_path / "x.en-fr.fr", french)
    name = tmp_path / "x.en-fr"
    if zipped:
        name = tmp_path / "en-fr.txt.zip"
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in files:
                archive.write(path, path.name)
    [bitext] = find_bitexts([str(name)], [])
    expected = sides([(decoded(a, first=not n), decoded(b, first=not n)) for n, (a, b) in enumerate(lines)])
    assert read(bitext, size) == expected
    assert read(bitext, 2048) == expected


@settings(suppress_health_check=SLOW)
@given(
    st.lists(st.one_of(LINE, st.tuples(LINE, LINE).map(b"\t".join), st.just(b"a\tb")), max_size=20),
    st.sampled_from(ENDINGS),
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from([1, 3, 2048]),
)
def test_tsv(tmp_path: Path, lines: list[bytes], ending: str, ended: bool, empty: int, size: int) -> None:
    path = write(tmp_path / f"news.en-fr.tsv{ending}", [*lines, *[b""] * empty], ended=ended)
    texts = [decoded(line, first=not number) for number, line in enumerate(lines)]
    while texts and texts[-1] is not None and not texts[-1].strip(" "):
        del texts[-1]
    columns = [(None,) if text is None else tuple(text.split("\t")) for text in texts]
    [bitext] = find_bitexts([str(path)], [])
    assert read(bitext, size) == sides([(c[0], c[1]) if len(c) == 2 else (None, None) for c in columns])


def json_line(row: Any, ascii_only: bool) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_only).encode(errors="surrogatepass")


@settings(suppress_health_check=SLOW)
@given(
    st.lists(
        st.one_of(
            LINE,
            st.builds(json_line, st.dictionaries(st.sampled_from(["en", "fr", "x"]), JSON_VALUE), st.booleans()),
            st.sampled_from(
                [b"[" * 2000, b"9" * 5000, b'{"en": "a", "fr": "b"} {}', b"null", b'{"en": "a", "fr": "\\ud800"}']
            ),
        ),
        max_size=20,
    ),
    st.sampled_from(ENDINGS),
    st.booleans(),
)
def test_json_lines(tmp_path: Path, lines: list[bytes], ending: str, nested: bool) -> None:
    rows = [b'{"en": "One", "fr": "Un"}', *lines, b'{"fr": "Deux", "en": "Two", "id": 2}']
    if nested:
        rows = [b'{"translation": ' + row + b', "id": "1"}' for row in rows]
    path = write(tmp_path / f"corpus.jsonl{ending}", rows)
    [bitext] = find_bitexts([str(path)], [])
    pairs, bad = read(bitext, 7)
    expected: Pairs = []
    wrong = []
    for number, row in enumerate(rows, start=1):
        try:
            found = json.loads(row.decode())
            found = found["translation"] if nested else found
            expected.append((shown(found["en"].encode().decode()), shown(found["fr"].encode().decode())))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            wrong.append(number)
    assert (pairs, bad) == (expected, wrong)
    assert pairs[0] == ("One", "Un")
    assert pairs[-1] == ("Two", "Deux")


@settings(suppress_health_check=SLOW)
@given(
    st.lists(st.tuples(st.none() | LINE, st.none() | LINE), max_size=20),
    st.sampled_from(["", ".gz"]),
    st.sampled_from(["top", "nested", "roles"]),
    st.sampled_from([1, 3, 2048]),
)
def test_parquet(
    tmp_path: Path, lines: list[tuple[bytes | None, bytes | None]], ending: str, layout: str, size: int
) -> None:
    english, french = (
        pyarrow.array([pair[side] for pair in lines], pyarrow.binary()).view(pyarrow.string()) for side in (0, 1)
    )
    names = ["source", "target"] if layout == "roles" else ["en", "fr"]
    table = pyarrow.table([french, english], names[::-1])
    if layout == "nested":
        table = pyarrow.table({"translation": pyarrow.StructArray.from_arrays([english, french], names)})
    path = tmp_path / "train.en-fr.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=5)
    if ending:
        path = write(path.with_name(path.name + ending), [path.read_bytes()], ended=False)
    [bitext] = find_bitexts([str(path)], [])

    def text(value: bytes | None) -> str | None:
        # A cell has no line end and no byte order mark to leave out.
        return None if value is None or decoded(value) is None else value.decode()

    assert read(bitext, size) == sides([(text(a), text(b)) for a, b in lines])


@settings(suppress_health_check=SLOW, max_examples=40)
@given(st.sampled_from([*ENDINGS, ".zip", ".parquet"]), st.data())
def test_damaged_files_are_read_or_refused(tmp_path: Path, form: str, data: st.DataObject) -> None:
    lines = [f"line {number}\tligne {number}".encode() for number in range(200)]
    if form == ".zip":
        path = tmp_path / "en-fr.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.en", b"\n".join(lines))
            archive.writestr("x.fr", b"\n".join(lines))
    elif form == ".parquet":
        path = tmp_path / "en-fr.parquet"
        pyarrow.parquet.write_table(
            pyarrow.table({"en": lines, "fr": lines}).cast(pyarrow.schema({"en": "string", "fr": "string"})), path
        )
    else:
        path = write(tmp_path / f"en-fr.tsv{form}", lines)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(
        whole[:place]
        if cut
        else whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :]
    )
    refused = pytest.raises(DataError, match=path.name)
    # A compressed file that ends too early is never taken for a whole one.
    with refused if cut and form and place else suppress(DataError):
        assert all(len(pairs) + len(bad) <= 201 for pairs, bad in [read(b, 50) for b in find_bitexts([str(path)], [])])


def test_lines_may_be_megabytes_long(tmp_path: Path) -> None:
    long = "字 é\u2028" * 10**6
    write(tmp_path / "x.en.xz", [b"one", long.encode(), b"three"])
    write(tmp_path / "x.fr", [b"un", b"deux", b"\xff" + long.encode()])
    [bitext] = find_bitexts([str(tmp_path / "x")], [])
    assert read(bitext, 2048) == ([("one", "un"), (long.strip(), "deux")], [3])
