"""The output folder: which run it belongs to, and what can be resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctloss.shared.files import locked
from ctloss.train import RecipeError, pretrain
from ctloss.train.output import checkpoints
from support.tiny_runs import small_recipe, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("changed", ["corpus", "lexicon"])
def test_a_run_on_changed_data_is_not_resumed(tmp_path: Path, changed: str) -> None:
    corpus, lexicon = write_corpus(tmp_path), tmp_path / "lexicon.en-fr.tsv"
    lexicon.write_text("cat\tchat\ndog\tchien\nbird\toiseau\nbread\tpain\n", encoding="utf-8")
    recipe = small_recipe(corpus, lexicon=(str(lexicon),), max_steps=2, checkpoint_every=2, pictured_words=0)
    output = tmp_path / "run"
    pretrain(recipe, output)
    (output / "results.json").unlink()
    path = corpus if changed == "corpus" else lexicon
    path.write_text(path.read_text(encoding="utf-8").replace("bread\t", "loaf\t").replace("bread", "loaf"))
    with pytest.raises(RecipeError, match="was started with, got other content in: corpus; restore the files"):
        pretrain(recipe, output, resume=True)
    path.write_text(path.read_text(encoding="utf-8").replace("loaf\t", "bread\t").replace("loaf", "bread"))
    assert pretrain(recipe, output, resume=True).facts["steps"] == 2


def test_resuming_removes_only_what_a_run_left(corpus: Path, tmp_path: Path) -> None:
    recipe, output = small_recipe(corpus, max_steps=2, checkpoint_every=2, pictured_words=0), tmp_path / "run"
    pretrain(recipe, output)
    (output / "results.json").unlink()
    mine = ["checkpoint-best/weights", "notes.partial", "checkpoints/checkpoint-mine/weights", "checkpoint-7/weights"]
    left = ["checkpoints/checkpoint-9/weights", "checkpoints/checkpoint-9.partial/weights", "results.json.partial"]
    for name in [*mine, *left]:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("x", encoding="utf-8")
    pretrain(recipe, output, resume=True)
    assert [name for name in mine if not (output / name).exists()] == []
    assert [name for name in left if (output / name).exists()] == []


def test_folder_takes_one_run_at_a_time(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with locked(tmp_path / "run"), pytest.raises(RecipeError, match="where one is going on"):
        pretrain(small_recipe(corpus), tmp_path / "run")
    with locked(tmp_path / "run"):
        pass


def test_a_damaged_checkpoint_is_removed_and_an_older_one_resumed(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, output = small_recipe(corpus, max_steps=4, checkpoint_every=2, pictured_words=0), tmp_path / "run"
    pretrain(recipe, output)
    (output / "results.json").unlink()
    weights = (output / "model.safetensors").read_bytes()
    (_, older), (_, newer) = checkpoints(output)
    # As the former version marked it: with sizes, without checksums.
    marker = older / "complete.json"
    files = json.loads(marker.read_text(encoding="utf-8"))["files"]
    marker.write_text(json.dumps({"files": {name: entry["size"] for name, entry in files.items()}}), encoding="utf-8")
    damaged = bytearray((newer / "optimizer.safetensors").read_bytes())
    damaged[-1] ^= 1
    (newer / "optimizer.safetensors").write_bytes(damaged)
    written = marker.stat().st_mtime_ns

    assert pretrain(recipe, output, resume=True).facts["steps"] == 4
    assert f"incomplete or damaged: {newer}" in capsys.readouterr().err
    assert marker.stat().st_mtime_ns == written
    assert (output / "model.safetensors").read_bytes() == weights
