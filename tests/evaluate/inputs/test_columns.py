"""Columns and tokens: tabs, spaces, other spaces that part nothing, and the prefix of raw WikiANN."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from ctloss.evaluate import DataError, FinetuneOptions, Outcome, evaluate_alignment, evaluate_udpos
from ctloss.evaluate.data.labelled import PANX, UDPOS, TaggedSentence, read_files, read_tagged
from ctloss.evaluate.data.parallel import read_alignments
from support import tiny_tasks
from support.tiny_encoder import Table, write
from support.tiny_results import refused, value

WORDS, TAGS = ("In", "10\u00a0000", "Berlin"), ("O", "O", "B-LOC")
# Spaces and line separators that are part of a token.
INNER = ["\u00a0", "\u202f", "\u3000", "\u2028", "\u0085", "\x1f"]


def zstandard(content: bytes) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue())


def rows_of(path: Path, text: str, language: str = "de") -> list[tuple[tuple[str, ...], tuple[str, ...] | None]]:
    path.write_text(text, encoding="utf-8", newline="")
    rows = read_tagged(path, PANX.labels, language)
    return [(row.words, row.tags) for row in rows if isinstance(row, TaggedSentence)]


@pytest.mark.parametrize("parted", ["\t", " ", "   "], ids=["tab", "space", "spaces"])
@pytest.mark.parametrize("start", ["", "de:"], ids=["plain", "WikiANN"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"], ids=["LF", "CRLF", "space"])
def test_columns_are_parted_by_tabs_or_else_by_spaces(tmp_path: Path, parted: str, start: str, end: str) -> None:
    lines = [f"{start}{word}{parted}{tag}" for word, tag in zip(WORDS, TAGS, strict=True)]
    text = end.join([*lines, "", *lines, ""])
    assert rows_of(tmp_path / "test-de.tsv", text) == [(WORDS, TAGS)] * 2


def test_tabs_take_precedence_over_spaces(tmp_path: Path) -> None:
    """Words with spaces, as in Vietnamese, are whole in a file with tabs."""
    assert rows_of(tmp_path / "test-vi.tsv", "Việt Nam\tB-LOC\n") == [(("Việt Nam",), ("B-LOC",))]
    assert rows_of(tmp_path / "test-vi.tsv", "Việt\nNam\n") == [(("Việt", "Nam"), None)]
    # A tab after the last column is no column.
    assert rows_of(tmp_path / "test-vi.tsv", "a O\t\nb O\n") == [(("a", "b"), ("O", "O"))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("de:In\tO\nde::\tO\n", ("In", ":")),
        ("de:In\tO\nBerlin\tB-LOC\n", ("de:In", "Berlin")),
        ("de:In\tO\nfr:Paris\tB-LOC\n", ("de:In", "fr:Paris")),
        ("12:30\tO\n12:45\tO\n", ("12:30", "12:45")),
        ("de:\tO\nde:a\tO\n", ("de:", "de:a")),
        ("zh-classical:山\tO\n", ("山",)),
    ],
)
def test_the_prefix_goes_only_if_every_word_has_it(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    [(found, _)] = rows_of(tmp_path / "test-de.tsv", text)
    assert found == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("In O\nBerlin\n", "line 2: expected a label as before, got none"),
        ("In IN O\n", "line 1: expected WORD and TAG separated by a tab or a space, got 3 columns"),
        ("In\tO\nBerlin B-LOC\n", "line 2: expected a label as before, got none"),
        ("In XX\n", "line 1: expected a label of B-LOC"),
    ],
)
def test_refused_columns(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / "test-de.tsv", text)


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)],
    ids=["gz", "bz2", "xz", "zst"],
)
def test_every_reader_reads_compressed_files(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    def store(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.{ending}"
        path.write_bytes(compress(text.encode()))
        return path

    tree = store("xx_a-ud-test.conllu", "1\tcat\t_\tNOUN\t_\t_\t0\troot\t_\t_\n\n")
    plain = store("test-xx.tsv", "cat NOUN\n")
    expected = [TaggedSentence(("cat",), ("NOUN",))]
    assert read_files([tree], UDPOS) == read_files([plain], UDPOS) == expected
    store("en-fr.txt", "a b ||| c\n")
    store("en-fr.gold", "0-0 1p0\n")
    [pair] = read_alignments(tmp_path / "en-fr")
    assert (pair.first, pair.second) == (["a", "b"], ["c"])
    assert (sorted(pair.sure), sorted(pair.possible)) == ([(0, 0)], [(0, 0), (1, 0)])


@pytest.mark.parametrize("space", INNER, ids=lambda space: f"U+{ord(space):04X}")
def test_only_ascii_spaces_and_tabs_part_the_words_of_gold_alignments(tmp_path: Path, space: str) -> None:
    """Were another space to part them, or one at an end to be lost, all later positions would shift silently."""
    first, second = ["a", f"1{space}000", space, "b"], [space, f"{space}c", "d"]
    text = f"{' '.join(first[:2])}\t{'  '.join(first[2:])} ||| {' '.join(second)} "
    write(tmp_path, en___fr__txt=[text, text], en___fr__gold=["0-1\t1-0  3p2", ""])
    pairs = read_alignments(tmp_path / "en-fr")
    assert [(pair.first, pair.second) for pair in pairs] == [(first, second)] * 2
    assert sorted(pairs[0].sure) == [(0, 1), (1, 0)]
    assert sorted(pairs[0].possible) == [(0, 1), (1, 0), (3, 2)]
    with refused("expected links i-j or ipj with i below 4 and j below 3", where=tmp_path / "en-fr.gold", line=1):
        write(tmp_path, en___fr__gold=["4-0", ""])
        read_alignments(tmp_path / "en-fr")
    with refused("expected links", where=tmp_path / "en-fr.gold", line=2):
        write(tmp_path, en___fr__gold=["", f"0-0{space}1-1"])
        read_alignments(tmp_path / "en-fr")


def test_scores_of_alignments_do_not_shift(tmp_path: Path) -> None:
    words = Table({"10\u00a0000": [1, 0, 0], "a": [0, 1, 0], "b": [0, 0, 1]})
    write(tmp_path, en___fr__txt=["10\u00a0000 a b ||| b 10\u00a0000 a"], en___fr__gold=["0-1 1-2 2-0"])
    assert value(evaluate_alignment(words, tmp_path), "en-fr", "aer") == 0


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, model: str) -> tuple[Outcome, list[str], Path]:
    """What fine-tuning gives where one language's test rows have no tags, its warnings, and the folder it wrote."""
    data, output = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("tuned")
    tiny_tasks.write_task(data, "udpos")
    (data / "udpos" / "test-yy.tsv").write_text("the\ncat\n\n")
    options = FinetuneOptions(batch_size=8, max_steps=1, max_length=32, output=output)
    before = os.umask(0o027)
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            outcome = evaluate_udpos(model, data, ["xx", "yy"], options)
    finally:
        os.umask(before)
    return outcome, [str(warning.message) for warning in raised], output


def test_a_language_without_tags_is_named(tuned: tuple[Outcome, list[str], Path]) -> None:
    """XTREME's own test files are such: there are predictions, but no score."""
    outcome, raised, _ = tuned
    assert "udpos: the test rows in 'yy' have no labels: there are predictions but no score" in raised
    assert {score.language for score in outcome.scores} == {"xx", "mean"}
    assert len(outcome.predictions["yy"]) == 2


def test_models_that_are_kept_have_the_usual_mode(tuned: tuple[Outcome, list[str], Path]) -> None:
    _, _, output = tuned
    assert list(output.rglob("model.safetensors"))
    assert {path.stat().st_mode & 0o777 for path in output.rglob("*") if path.is_file()} == {0o640}
