"""Prepares drawn text of every form, and checks that each line given is either a row or counted as skipped.

    python -m benchmarks.pretraining.fuzz --lines 100000 --seed 0
    python -m benchmarks.pretraining.fuzz --lines 4000 --commands

A line is drawn bytes, text of some block of Unicode, controls, nothing, words, or up to 1 MB of one of these. Corpora
are line-aligned files, TSV, JSON lines, parquet files and Moses zips, plain or compressed, two of them at a time; some
lines are no pairs at all. The command prints what became of the lines. It ends with status 1 at the first corpus whose
lines do not add up or that cannot be prepared, and leaves that corpus where it says.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq

from ctloss.train import open_prepared, prepare
from ctloss.train.prepared.folder import Prepared
from ctloss.train.recipe import Data, EncoderChoice

LONGEST = 1_000_000
# Of a file, at its start: pairs that can be read, so that its columns are known and no part is empty.
SOUND = 40
LANGUAGES = ("fr", "zh", "ar", "th", "my", "hi")
CONTROLS = "".join(map(chr, [*range(10), *range(11, 33), *range(0x7F, 0xA1)])) + (
    "\u00ad\u034f\u200b\u200c\u200d\u200e\u2028\u2029\ufeff\ufffc\ufffd\U000e0001"
)
WORDS = [
    "the",
    "le",
    "of",
    "de",
    "dog",
    "chien",
    "dogs",
    "house",
    "maison",
    "L'eau",
    "Straße",
    "STRASSE",
    "2",
    "狗",
    "ก",
]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@cache
def blocks() -> list[str]:
    """The assigned characters of each block of 128 that has any."""
    there = (
        "".join(c for c in map(chr, range(first, first + 128)) if unicodedata.category(c) not in ("Cn", "Co", "Cs"))
        for first in range(128, 0x110000, 128)
    )
    return [block for block in there if block]


def text(draw: random.Random) -> str:
    """A text without LF, of any kind."""
    kind = draw.random()
    if kind < 0.05:
        found = ""
    elif kind < 0.5:
        found = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
    elif kind < 0.85:
        found = "".join(draw.choices(draw.choice(blocks()) + " ", k=draw.randint(1, 40)))
    elif kind < 0.97:
        found = "".join(draw.choices([*CONTROLS, *WORDS], k=draw.randint(1, 15)))
    else:
        found = "".join(draw.choices(draw.choice(blocks()), k=draw.randint(1, 40))) * draw.randint(1, 20)
    if found and draw.random() < 1 / 3000:
        found *= max(1, draw.randint(LONGEST // 10, LONGEST) // len(found.encode()))
    return found.replace("\n", " ")


def line(draw: random.Random) -> bytes:
    """A line without its end: a text, or bytes."""
    if draw.random() < 0.1:
        return draw.randbytes(draw.randint(1, 60)).replace(b"\n", b" ")
    return text(draw).encode()


def sound(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """Pairs that can be read, all of them different."""
    return [(f"a dog {draw.getrandbits(40):x}", f"un chien {draw.getrandbits(40):x}") for _ in range(count)]


def aligned(draw: random.Random, count: int) -> list[bytes]:
    """Two files with as many lines each."""
    first = sound(draw, SOUND)
    sides = [[pair[side].encode() for pair in first] for side in (0, 1)]
    for side in sides:
        side += [line(draw) for _ in range(count - SOUND)]
        if not side[-1]:
            side[-1] = b"."
    ends = draw.choice([b"\n", b"\r\n"])
    return [ends.join(side) + (ends if draw.random() < 0.5 else b"") for side in sides]


def tsv(draw: random.Random, count: int) -> bytes:
    """A file of pairs and of lines that are none."""
    lines = ["\t".join(pair).encode() for pair in sound(draw, SOUND)]
    while len(lines) < count - 1:
        # A tab within a side makes one column too many.
        lines.append(b"\t".join(line(draw) for _ in range(draw.choice([2] * 9 + [1, 3]))))
        if draw.random() < 0.05:
            lines[-1] = draw.choice(lines)
    # Empty lines at the end are none.
    return b"\n".join([*lines, b"the end\tla fin"]) + b"\n"


def json_lines(draw: random.Random, count: int) -> bytes:
    """A file of objects, some without texts, and of lines that are no objects."""
    lines = [json.dumps({"en": a, "xx": b}).encode() for a, b in sound(draw, SOUND)]
    while len(lines) < count - 1:
        row: dict[str, object] = {"en": text(draw), "xx": text(draw)}
        kind = draw.random()
        if kind < 0.05:
            row["xx"] = draw.choice([None, 1, [], {}, "\ud800", "\udc80x"])
        elif kind < 0.08:
            del row["en"]
        whole = json.dumps(row, ensure_ascii=draw.random() < 0.5 or 0 < kind < 0.05).encode()
        lines.append(whole if kind < 0.9 else draw.choice([line(draw), whole[: len(whole) // 2], b"[" * 3000, b"NaN"]))
    return b"\n".join([*lines, b'{"en": "the end", "xx": "la fin"}']) + b"\n"


def parquet(draw: random.Random, count: int) -> bytes:
    """A table, some texts of which are missing."""
    rows = sound(draw, SOUND) + [(text(draw), text(draw)) for _ in range(count - SOUND)]
    columns = [
        [pair[side] if draw.random() < 0.97 or place < SOUND else None for place, pair in enumerate(rows)]
        for side in (0, 1)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, names=["en", "xx"]), buffer, row_group_size=draw.randint(1, 3000))
    return buffer.getvalue()


def write(folder: Path, draw: random.Random, language: str, number: int, count: int) -> str:
    """Writes a corpus of so many lines in a form of its own; returns what names it."""
    ending = draw.choice(list(COMPRESSIONS))
    packed = COMPRESSIONS[ending]
    form = draw.choice(["aligned", "tsv", "jsonl", "parquet", "zip"])
    name = f"{number}.en-{language}"
    if form == "aligned":
        for code, content in zip(("en", language), aligned(draw, count), strict=True):
            (folder / f"{name}.{code}{ending}").write_bytes(packed(content))
        return str(folder / name)
    if form == "zip":
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for code, content in zip(("en", language), aligned(draw, count), strict=True):
                archive.writestr(f"corpus.en-{language}.{code}", content)
        return str(folder / f"{name}.zip")
    if form == "tsv":
        content = tsv(draw, count)
    elif form == "jsonl":
        content = json_lines(draw, count).replace(b'"xx"', f'"{language}"'.encode())
    else:
        table = pq.read_table(io.BytesIO(parquet(draw, count))).rename_columns(["en", language])
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        content = buffer.getvalue()
    path = folder / f"{name}.{form}{ending}"
    path.write_bytes(packed(content))
    return str(path)


def prepared(folder: Path, names: list[str], draw: random.Random, *, commands: bool) -> Prepared:
    """Prepares a corpus, in this process or by the command."""
    options: dict[str, Any] = {
        "evaluation_pairs": 4,
        "max_length": draw.choice([16, 32, 128]),
        "max_bad_lines": 10**9,
        "stop_words": draw.choice(["short", "iso"]),
        **({"max_pairs": draw.randint(20, 2000)} if draw.random() < 0.3 else {}),
    }
    vocabulary, workers = draw.choice([200, 2000]), 1 + (draw.random() < 0.1)
    place = folder / "prepared"
    if not commands:
        data = Data(corpus=tuple(names), **options)
        return prepare(data, EncoderChoice(vocabulary=vocabulary), place, workers=workers, say=Mock())
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "ctloss.train", "prepare", "--corpus", *names, "--output", str(place), *given]
    subprocess.run([*command, "--vocabulary", str(vocabulary), "--workers", str(workers)], check=True)
    return open_prepared(place)


def fuzz(folder: Path, lines: int, seed: int, *, each: int = 2000, commands: bool = False) -> Counter[str]:
    """Draws and prepares corpora of ``each`` lines until there are ``lines``; returns what became of them.

    Raises:
        AssertionError: the lines of a corpus do not add up.
    """
    found: Counter[str] = Counter()
    while found["lines"] < lines:
        draw = random.Random(f"{seed} {found['corpora']}")
        place = folder / str(found["corpora"])
        place.mkdir(parents=True)
        sizes = [each // 2, each - each // 2]
        names = [write(place, draw, draw.choice(LANGUAGES), number, size) for number, size in enumerate(sizes)]
        made = prepared(place, names, draw, commands=commands)
        rows = {split: made.table(split).num_rows for split in made.counts}
        skipped: Counter[str] = Counter()
        for count in made.counts.values():
            skipped.update(count.skipped_pairs)
        assert rows == {split: count.rows for split, count in made.counts.items()}, rows
        assert sum(rows.values()) + skipped.total() == each, (rows, skipped, each)
        assert skipped["bad line"] == made.bad_lines, (skipped, made.bad_lines)
        made.check(whole=True)
        found.update(skipped)
        found.update(corpora=1, lines=each, rows=sum(rows.values()))
        found.update(bytes=sum(path.stat().st_size for path in place.iterdir() if path.is_file()))
        shutil.rmtree(place)
    return found


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lines", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--each", type=int, default=2000, help="lines of a corpus, at least 100 (default: 2000)")
    options.add_argument("--commands", action="store_true", help="prepare by the command, in a process each")
    given = options.parse_args()
    if given.each < 100:
        options.error(f"expected --each of at least 100 lines, got {given.each}")
    folder = Path(tempfile.mkdtemp(prefix="ctloss-fuzz-"))
    started = time.process_time()
    try:
        found = fuzz(folder, given.lines, given.seed, each=given.each, commands=given.commands)
    except BaseException:
        print(f"the corpus is left in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    for name, count in found.items():
        print(f"{name}: {count:,}")
    print(f"every line is a row or counted as skipped; {time.process_time() - started:.0f} s of CPU in this process")


if __name__ == "__main__":
    main()
