"""What preparation refuses, and when: before the long passes, and in words about what was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

import pyarrow as pa
import pyarrow.parquet as pq

from ctloss.shared.options import OptionError
from ctloss.shared.text import DataError
from ctloss.train import prepare
from ctloss.train.prepared import build
from ctloss.train.prepared.folder import DOCUMENT, Prepared, open_prepared
from ctloss.train.recipe import Data, EncoderChoice
from support.tiny_runs import write_corpus

SMALL = EncoderChoice(vocabulary=200)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def made(corpus: Path, folder: Path, **changes: Any) -> Prepared:
    data = Data(**{"corpus": (str(corpus),), "evaluation_pairs": 4, **changes})
    return prepare(data, SMALL, folder, workers=1, say=Mock())


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "read_inputs", Mock(side_effect=AssertionError("the corpus was read")))


@pytest.mark.usefixtures("no_reading")
def test_a_place_that_is_taken_is_refused_before_anything_is_read(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, got in {"full": "one with files", "file": "a file", "link": "a link to none"}.items():
        with pytest.raises(DataError, match=f"expected a new or empty folder, got .*{got}.*; choose another"):
            made(corpus, tmp_path / name)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lexicon": ("{}/three.tsv",)}, "three.tsv, line 1: expected two columns"),
        ({"align": "{}/nothing"}, "expected the name or folder of a Hugging Face encoder, got"),
    ],
    ids=["lexicon", "aligner"],
)
def test_sources_of_words_are_refused_before_anything_is_read(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "three.tsv").write_text("cat\tchat\tgato\n")
    place = str(tmp_path)
    given = {
        name: tuple(one.format(place) for one in value) if isinstance(value, tuple) else value.format(place)
        for name, value in changes.items()
    }
    with pytest.raises(DataError, match=message):
        made(corpus, tmp_path / "made", **given)


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize(
    ("entry", "expected"), [("en-fr=nan", "NAME=TIMES"), ("held.en-fr.tsv=2", "names among en-fr")]
)
def test_a_mixing_is_refused_before_anything_is_read(corpus: Path, tmp_path: Path, entry: str, expected: str) -> None:
    held = tmp_path / "held.en-fr.tsv"
    held.write_text("A green tree\tUn arbre vert\nMy friend\tMon ami\n", encoding="utf-8")
    with pytest.raises(OptionError, match=f"mixing: expected {expected}.*, got"):
        made(corpus, tmp_path / "made", mixing=(entry,), validation=(str(held),))


@pytest.mark.usefixtures("no_reading")
def test_an_encoder_that_does_not_exist_is_refused_before_anything_is_read(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="encoder: expected the name or folder of a Hugging Face encoder, got"):
        prepare(Data(corpus=(str(corpus),)), EncoderChoice(encoder=str(tmp_path / "no")), tmp_path / "made", workers=1)


def test_an_empty_corpus_is_named(tmp_path: Path) -> None:
    (tmp_path / "void.en-fr.tsv").touch()
    with pytest.raises(
        DataError, match=r"expected sentence pairs, got none in .*void\.en-fr\.tsv; give files with text"
    ):
        made(tmp_path / "void.en-fr.tsv", tmp_path / "made")


def test_a_table_named_after_other_languages_is_refused(tmp_path: Path) -> None:
    table = pa.table({"source": ["a house"] * 9, "target": ["une maison"] * 9})
    pq.write_table(table, tmp_path / "text.en-fr.parquet")
    for languages in (("en", "de"), ("fr", "en")):
        with pytest.raises(DataError, match="expected the languages that it is named after, en then fr, got"):
            made(tmp_path / "text.en-fr.parquet", tmp_path / "made", languages=languages)


def test_a_prepared_corpus_leaves_no_room_for_another(corpus: Path, tmp_path: Path) -> None:
    prepared = made(corpus, tmp_path / "made")
    with pytest.raises(DataError, match="pairs: expected none with the prepared corpus"):
        prepare(Data(prepared=str(prepared.path)), SMALL, pairs={"en-fr": [("a", "b")]})


def test_home_is_where_the_tilde_leads(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepared = made(corpus, Path("~/made"))
    assert open_prepared("~/made").fingerprint == prepared.fingerprint


def test_no_more_rows_are_measured_than_asked_for(corpus: Path, tmp_path: Path) -> None:
    lines = [f"a{i} b{i}\tc{i} d{i}" for i in range(40)]
    (tmp_path / "test.en-fr.tsv").write_text("\n".join(lines), encoding="utf-8")
    prepared = made(corpus, tmp_path / "made", test=(str(tmp_path / "test.en-fr.tsv"),))
    assert prepared.counts["test"].rows == 40
    assert len(prepared.rows("test")) == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("origins", []),
        ("files", {}),
        ("settings", {}),
        ("origins", [{"name": 1, "source_language": [], "target_language": 2}]),
    ],
    ids=["no origins", "no files", "no settings", "other kinds"],
)
def test_a_document_that_lacks_parts_is_damaged(corpus: Path, tmp_path: Path, name: str, value: Any) -> None:
    prepared = made(corpus, tmp_path / "made")
    document = json.loads((prepared.path / DOCUMENT).read_text(encoding="utf-8"))
    (prepared.path / DOCUMENT).write_text(json.dumps(document | {name: value}), encoding="utf-8")
    with pytest.raises(DataError, match="remove the folder and make it again"):
        open_prepared(prepared.path)


def test_a_finished_build_that_was_not_named_yet_is_not_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = made(corpus, tmp_path / "made")
    prepared.path.rename(tmp_path / f"made-{prepared.key[:8]}.partial")
    monkeypatch.setattr(build._Build, "run", Mock(side_effect=AssertionError("it was made again")))
    assert made(corpus, tmp_path / "made").fingerprint == prepared.fingerprint
