"""What a preparation and a prepared folder are checked for: sums, checksums, what was left beside, what cannot be."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

import pyarrow as pa

from ctloss.shared.files import locked
from ctloss.shared.options import OptionError
from ctloss.shared.text import DataError
from ctloss.train import prepare
from ctloss.train.__main__ import main
from ctloss.train.prepared import folder as folders
from ctloss.train.prepared import mapping, reading
from ctloss.train.prepared.folder import TOKENIZER, Prepared, open_prepared
from ctloss.train.prepared.samples import MakeSamples
from ctloss.train.recipe import Data, EncoderChoice
from support.tiny_runs import write_corpus

SMALL = EncoderChoice(vocabulary=200)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus: Path) -> Prepared:
    return made(corpus, corpus.parent / "whole")


def made(corpus: Path, folder: Path, **changes: Any) -> Prepared:
    return prepare(settings(corpus, **changes), SMALL, folder, workers=1, say=changes.pop("say", Mock()))


def settings(corpus: Path, **changes: Any) -> Data:
    return Data(**{"corpus": (str(corpus),), "evaluation_pairs": 4, **changes})


def test_pairs_that_are_too_long_are_counted_across_a_kill(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "FEWEST", 64)
    monkeypatch.setattr(mapping, "BATCH", 16)
    lines = corpus.read_text(encoding="utf-8").splitlines()
    long = [f"a {'very ' * number}long queue\tla queue {'très ' * number}longue" for number in range(20, 60)]
    mixed = tmp_path / "mixed.en-fr.tsv"
    mixed.write_text("\n".join([*lines, *long]) + "\n", encoding="utf-8")
    data = settings(mixed, max_length=14)
    calls, make = itertools.count(), MakeSamples._made

    def failing(self: MakeSamples, table: pa.Table, indices: list[int]) -> pa.Table:
        if next(calls) == 10:
            raise MemoryError
        return make(self, table, indices)

    with monkeypatch.context() as patch:
        patch.setattr(MakeSamples, "_made", failing)
        with pytest.raises(MemoryError):
            prepare(data, SMALL, tmp_path / "made", workers=1, say=Mock())
    counts = prepare(data, SMALL, tmp_path / "made", workers=1, say=Mock()).counts
    assert sum(count.skipped_pairs["too long"] for count in counts.values()) == len(long)
    assert sum(count.rows for count in counts.values()) == len(lines)


def drop_row(make: Callable[..., Any]) -> Callable[..., Any]:
    """Loses a row of every batch without a word."""
    return lambda *given: (found := make(*given)).slice(0, max(0, len(found) - 1))


@pytest.mark.parametrize(("owner", "name"), [(reading, "_batch"), (MakeSamples, "_made")], ids=["reading", "samples"])
def test_a_row_that_is_lost_is_missed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(owner, name, drop_row(getattr(owner, name)))
    with pytest.raises(
        DataError, match=r"train: expected \d+ sentence pairs, as many as were given, got \d+: \d+ rows"
    ):
        made(corpus, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def flip(path: Path) -> None:
    """Changes a bit in the middle of a file, not its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["train", "validation", "test", TOKENIZER])
def test_a_bit_that_changed_is_found(corpus: Path, whole: Prepared, part: str) -> None:
    victim = max((whole.path / part).iterdir(), key=lambda path: path.stat().st_size)
    usual = victim.read_bytes()
    flip(victim)
    try:
        for data, place in ((Data(prepared=str(whole.path)), None), (settings(corpus), whole.path)):
            with pytest.raises(
                DataError, match=rf"{victim.name}: expected the content that .*; the prepared .* damaged"
            ):
                prepare(data, SMALL, place)
    finally:
        victim.write_bytes(usual)
    assert prepare(settings(corpus), SMALL, whole.path) == whole


def test_a_run_compares_what_a_second_or_two_read(
    corpus: Path, whole: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    [samples] = whole.arrow_files("train")
    usual = samples.read_bytes()
    monkeypatch.setattr(folders, "CHECKED", len(usual) - 1)
    flip(samples)
    try:
        assert prepare(Data(prepared=str(whole.path)), SMALL) == whole
        with pytest.raises(DataError, match="expected the content that"):
            prepare(settings(corpus), SMALL, whole.path)
    finally:
        samples.write_bytes(usual)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model": 3}', '{"added_tokens": 1, "model": {}}'])
def test_a_damaged_tokenizer_is_told_what_to_do(whole: Prepared, content: str) -> None:
    file = whole.path / TOKENIZER / "tokenizer.json"
    usual = file.read_bytes()
    file.write_text(content)
    try:
        with pytest.raises(DataError, match=r"expected the tokenizer that .*prepare' wrote, got a damaged one; remove"):
            whole.tokenizer()
    finally:
        file.write_bytes(usual)


def test_a_tokenizer_that_a_crash_emptied_is_made_again(
    corpus: Path, tmp_path: Path, whole: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MakeSamples, "_made", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            made(corpus, tmp_path / "made")
    [building] = tmp_path.glob("made-*.partial")
    (building / TOKENIZER / "tokenizer.json").write_text("")
    assert made(corpus, tmp_path / "made").fingerprint == whole.fingerprint


def test_what_other_settings_left_is_named_and_then_removed(corpus: Path, tmp_path: Path) -> None:
    stale, busy, mine = (tmp_path / f"made-{name}.partial" for name in ("0" * 8, "1" * 8, "notes"))
    for path in (stale, busy, mine):
        path.mkdir()
        (path / "file").write_text("x")
    say = Mock()
    with locked(busy):
        prepare(settings(corpus), SMALL, tmp_path / "made", workers=1, say=say)
    said = [call.args[0] for call in say.call_args_list]
    assert f"{stale} is of other settings or files; it is removed when this preparation is finished" in said
    assert f"removed {stale}, which was of other settings or files" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", busy.name, mine.name]


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_numbers_of_workers_that_are_none_are_refused(corpus: Path, tmp_path: Path, workers: Any) -> None:
    with pytest.raises(OptionError, match="workers: expected"):
        prepare(settings(corpus), SMALL, tmp_path / "made", workers=workers)


def test_names_that_are_not_utf_8_are_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.en-fr.tsv")
    Path(name).write_bytes(corpus.read_bytes())
    for given in (["--corpus", name], ["--corpus", str(corpus), "--output", name]):
        assert main(["prepare", *given]) == 2
        [said] = capsys.readouterr().err.splitlines()
        assert "expected a name in UTF-8, got '" in said
        assert said.endswith(r"caf\udce9.en-fr.tsv'; rename it")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_held_out_part_that_is_the_corpus_is_refused(corpus: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(DataError, match=rf"{part}: expected text that is in no other part, got .* which is the corpus"):
        made(corpus, tmp_path / "made", **{part: (str(corpus.parent / "." / corpus.name),)})
    copied = tmp_path / "copy.en-fr.tsv"
    copied.write_bytes(corpus.read_bytes())
    with pytest.raises(DataError, match="got none out of 360, of which 180 have a text of validation or test; give"):
        made(corpus, tmp_path / "made", **{part: (str(copied),)})


def test_one_file_for_both_held_out_parts_is_refused(corpus: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.en-fr.tsv"
    held.write_text("A green tree\tUn arbre vert\nMy friend\tMon ami\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"test: expected text that is in no other part, got .* which is validation too"
    ):
        made(corpus, tmp_path / "made", validation=(str(held),), test=(str(held),))
    assert open_prepared(made(corpus, tmp_path / "made", validation=(str(held),)).path).counts["validation"].rows == 2
