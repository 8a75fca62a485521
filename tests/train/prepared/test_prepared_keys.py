"""What a prepared corpus is known by: it changes whenever the samples may, and only then."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.shared.text import DataError
from ctloss.train.prepared.settings import find_inputs, key
from ctloss.train.recipe import Data, EncoderChoice
from ctloss.train.text import finder, words
from support.tiny_encoder import saved
from support.tiny_runs import OBJECTS, SUBJECTS, VERBS, write_corpus

FINDER = "ctloss.train.text.finder"
Change = Callable[[Path, pytest.MonkeyPatch], object]


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def another_word(folder: Path) -> None:
    path = folder / "encoder" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"apple"', '"apples"'), encoding="utf-8")


def another_list(language: str) -> Change:
    def change(folder: Path, patch: pytest.MonkeyPatch) -> None:
        usual = words.stop_words
        patch.setattr(
            f"{FINDER}.stop_words", lambda code, kind: frozenset({"cat"}) if code == language else usual(code, kind)
        )

    return change


def another_unicode(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{FINDER}.unicodedata", SimpleNamespace(unidata_version="99.0.0"))


ENCODER = {"encoder": "{}/encoder"}
ALIGNER = {"align": "{}/encoder"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    pieces: Iterable[str] = [word for table in (SUBJECTS, VERBS, OBJECTS) for pair in table.items() for word in pair]
    saved(folder / "encoder", ["the", "a", "le", "un", *pieces], positions=200)
    write_corpus(folder)
    return folder


def key_of(folder: Path, options: dict[str, str]) -> str:
    given = {name: value.format(folder) for name, value in options.items()}
    encoder = EncoderChoice(encoder=given.pop("encoder", "small"))
    data = Data(corpus=(str(folder / "en-fr.tsv"),), align=given.pop("align", None))
    return key(data, encoder, find_inputs(data))


@pytest.mark.parametrize(
    ("options", "change", "changes"),
    [
        ({}, another_list("fr"), True),
        ({}, another_list("de"), False),
        ({}, another_unicode, True),
        ({}, lambda folder, patch: patch.setattr(finder, "RULES", 0), True),
        ({}, lambda folder, patch: touch(folder / "en-fr.tsv"), True),
        (ENCODER, lambda folder, patch: touch(folder / "encoder" / "model.safetensors"), False),
        (ENCODER, lambda folder, patch: (folder / "encoder" / "notes.txt").write_text("mine"), False),
        (ENCODER, lambda folder, patch: another_word(folder), True),
        (ALIGNER, lambda folder, patch: touch(folder / "encoder" / "model.safetensors"), True),
        (ALIGNER, lambda folder, patch: (folder / "encoder" / "notes.txt").write_text("mine"), False),
    ],
    ids=[
        *("list", "list of others", "unicode", "rules", "corpus", "weights", "notes", "tokenizer"),
        *("aligner's weights", "aligner's notes"),
    ],
)
def test_a_key_changes_when_the_samples_may_and_only_then(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], change: Change, changes: bool
) -> None:
    folder = tmp_path / "files"
    shutil.copytree(files, folder)
    before = key_of(folder, options)
    assert key_of(folder, options) == before
    change(folder, monkeypatch)
    assert (key_of(folder, options) != before) is changes


def test_a_model_in_the_home_folder_is_the_one_that_the_tilde_leads_to(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(files))
    for options in (ENCODER, ALIGNER):
        there = {name: value.replace("{}", "~") for name, value in options.items()}
        assert key_of(files, there) == key_of(files, options)


def test_data_sets_count_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    keys = []
    for text in ("a cat", "a dog"):
        rows = [json.dumps({"en": text, "fr": "un animal"}) for _ in range(3)]
        (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
        data = Data(corpus=(f"hub:{tmp_path / 'data'}",), languages=("en", "fr"))
        keys.append(key(data, EncoderChoice(), find_inputs(data)))
    assert keys[0] != keys[1]


def test_compressed_alignments_are_found_where_plain_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "en-fr.tsv").write_text("a cat\tun chat\n")
    (tmp_path / "links.gz").write_bytes(gzip.compress(b"0-0 1-1\n"))

    def found(**changes: Any) -> str:
        data = Data(corpus=(str(tmp_path / "en-fr.tsv"),), **changes)
        return key(data, EncoderChoice(), find_inputs(data))

    assert found(alignments=(str(tmp_path / "links"),)) == found(alignments=(str(tmp_path / "links.gz"),)) != found()


@pytest.mark.parametrize(("option", "value"), [("encoder", "{}/none"), ("align", "{}/none")])
def test_models_that_are_missing_are_refused_by_name(files: Path, option: str, value: str) -> None:
    with pytest.raises(DataError, match=f"{option}: expected the name or folder of a Hugging Face encoder, got .*none"):
        key_of(files, {option: value})
