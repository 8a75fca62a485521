"""The output folder: whose it is, what may be gone on with, and checkpoints that count only when whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctloss.train import RecipeError, pretrain
from ctloss.train.output import checkpoints, is_complete, locked, remove_incomplete, remove_old, writing_folder
from support.tiny_runs import small_recipe, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("changed", ["corpus", "lexicon"])
def test_other_data_are_not_gone_on_with(tmp_path: Path, changed: str) -> None:
    corpus, lexicon = write_corpus(tmp_path), tmp_path / "lexicon.en-fr.tsv"
    lexicon.write_text("cat\tchat\ndog\tchien\nbird\toiseau\nbread\tpain\n", encoding="utf-8")
    recipe = small_recipe(corpus, lexicon=str(lexicon), max_steps=2, checkpoint_every=2, pictured_words=0)
    output = tmp_path / "run"
    pretrain(recipe, output)
    (output / "results.json").unlink()
    path = corpus if changed == "corpus" else lexicon
    path.write_text(path.read_text(encoding="utf-8").replace("bread\t", "loaf\t").replace("bread", "loaf"))
    with pytest.raises(RecipeError, match=r"was started with, got another content of: .*train") as refusal:
        pretrain(recipe, output, resume=True)
    assert ("tokenizer" in str(refusal.value)) == (changed == "corpus")
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


def test_incomplete_checkpoints_do_not_count(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        with writing_folder(tmp_path / f"checkpoint-{step}") as folder:
            (folder / "weights").write_bytes(bytes(step))
    (tmp_path / "checkpoint-8" / "weights").write_bytes(b"short")
    (tmp_path / "checkpoint-12" / "complete.json").unlink()
    (tmp_path / "checkpoint-16.partial").mkdir()
    assert [step for step, _ in checkpoints(tmp_path)] == [4]
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_folder_whose_writing_fails_is_not_there(tmp_path: Path) -> None:
    def fill() -> None:
        with writing_folder(tmp_path / "checkpoint-1") as folder:
            (folder / "weights").write_bytes(b"1")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk"):
        fill()
    assert not (tmp_path / "checkpoint-1").exists()
    assert not is_complete(tmp_path / "checkpoint-1.partial")


def test_old_checkpoints_go(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        with writing_folder(tmp_path / f"checkpoint-{step}") as folder:
            (folder / "weights").write_bytes(b"1")
    remove_old(tmp_path, keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [10, 100]
