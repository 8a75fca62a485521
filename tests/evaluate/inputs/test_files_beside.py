"""Which files are read, which are left out and said to be, and paths below the home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctloss.evaluate import Encoder, VectorOptions, evaluate_pairs, read_results, run
from ctloss.evaluate.__main__ import main
from ctloss.evaluate.data.sources import EVALUATIONS, digest_of_data, find_data
from support import tiny_tasks
from support.tiny_encoder import Table, write
from support.tiny_results import value

NUMBERS = Table({"eins": [1, 0], "zwei": [0, 1], "one": [1, 0.1], "two": [0.1, 1]})
GERMAN, ENGLISH = ["eins", "zwei"], ["two", "one"]


@pytest.mark.parametrize("ending", ["out", "tok", "bak", "log", "txt", "BAK", "orig", "gz.part", "ids"])
def test_files_that_are_no_language_are_left_out_and_named(tmp_path: Path, ending: str) -> None:
    """Output of a program beside the corpus would be scored as a language, or stop the run by its length."""
    write(tmp_path, x__de=GERMAN, x__en=ENGLISH)
    (tmp_path / f"x.{ending}").write_text("one\ntwo\n" if ending in ("out", "tok") else "a\n")
    with pytest.warns(UserWarning, match=rf"x: read as de, en; left out, .* no language codes: x\.{ending}$"):
        outcome = evaluate_pairs(NUMBERS, tmp_path / "x")
    assert {score.language for score in outcome.scores} == {"de-en", "en-de", "mean"}
    assert value(outcome, "mean", "accuracy") == 0


def test_files_left_out_do_not_change_what_a_result_was_made_of(tmp_path: Path) -> None:
    write(tmp_path, x__de=GERMAN, x__en=ENGLISH)
    before = digest_of_data(EVALUATIONS["pairs"], str(tmp_path / "x"), None)
    write(tmp_path, x__log=["run 1"])
    assert digest_of_data(EVALUATIONS["pairs"], str(tmp_path / "x"), None) == before
    # Asked for by name, it is read.
    named = digest_of_data(EVALUATIONS["pairs"], str(tmp_path / "x"), None, ["de", "log"])
    write(tmp_path, x__log=["run 2"])
    assert digest_of_data(EVALUATIONS["pairs"], str(tmp_path / "x"), None, ["de", "log"]) != named != before


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_models_lie_below_the_home_folder(home: Path, model: str) -> None:
    (home / "model").symlink_to(model)
    encoders = [Encoder(name, pooling="mean", device="cpu") for name in ("~/model", Path("~/model"), model)]
    tilde, path, plain = (encoder.sentences(["the cat"]).tolist() for encoder in encoders)
    assert tilde == path == plain


def test_data_lie_below_the_home_folder(home: Path) -> None:
    write(home / "mine", x__de=GERMAN, x__en=ENGLISH)
    write(home / "data" / "tatoeba", de___en__de=GERMAN, de___en__en=ENGLISH)
    found = find_data(["~/data", "pairs=~/mine/x"], {"pairs": None, "tatoeba": None})
    assert found == {"pairs": str(home / "mine" / "x"), "tatoeba": str(home / "data" / "tatoeba")}


def test_every_path_of_the_command_may_be_below_the_home_folder(
    home: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "model").symlink_to(model)
    write(home / "align", en___de__txt=["the cat ||| the cat"], en___de__gold=["0-0 1-1"])
    tiny_tasks.write_task(home / "data", "udpos")
    (home / "own.tsv").write_text((home / "data" / "udpos" / "train-en.tsv").read_text())
    quick = ["--pooling", "mean", "--max-steps", "1", "--finetune-max-length", "32", "--finetune-batch-size", "8"]
    files = ["--train", "pos=~/own.tsv", "--dev", "~/own.tsv", "--languages", "pos=xx", "--before", "~/model"]
    data = ["--data", "align=~/align", "~/data", "--output", "~/out"]
    status = main(["~/model", "--tasks", "align", "pos", *data, *files, *quick])
    assert status == 0, capsys.readouterr().err
    assert set(read_results(home / "out").tasks) == {"align", "pos"}
    assert main(["--beside", "~/out", "--output", "~/both"]) == 0
    assert (home / "both" / "results.md").is_file()
    assert not Path("~").exists()


def test_results_are_kept_whatever_else_appears(tmp_path: Path, model: str) -> None:
    write(tmp_path / "data", x__en=["the cat", "a dog"], x__de=["the cat", "a dog"])
    vectors = VectorOptions(pooling="mean", device="cpu")
    kept = run(model, {"pairs": str(tmp_path / "data" / "x")}, tmp_path / "out", vectors=vectors)
    write(tmp_path / "data", x__log=["run 1"])
    assert run(model, {"pairs": str(tmp_path / "data" / "x")}, tmp_path / "out", vectors=vectors) == kept
