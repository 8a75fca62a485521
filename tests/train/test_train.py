"""Pretraining end to end: what a run leaves, that it repeats, and that a killed run can be resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, AutoTokenizer, TrainerControl, TrainerState, TrainingArguments

from ctloss.train import CCEEncoder, RecipeError, Results, pretrain
from ctloss.train.__main__ import main
from ctloss.train.output import checkpoints
from ctloss.train.reporting.logs import TensorBoard
from ctloss.train.samples.sampler import BatchPlan
from ctloss.train.trainer.schedule import thirds
from support.tiny_runs import assert_same_weights, metrics, small_arguments, small_recipe, write_corpus

ROOT = Path(__file__).resolve().parents[2]
# The child sends itself SIGKILL when a function is called for the n-th time.
KILLED = """
import os, signal, sys
import ctloss.{module} as module
from ctloss.train.__main__ import main

original, calls = {owner}.{name}, 0

def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

{owner}.{name} = killing
main(sys.argv[1:])
"""


FORWARD = {"module": "train.model.objective", "owner": "module.Objective", "name": "forward"}
# The folder of a run and what it measured.
Run = tuple[Path, Results]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    output = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return output, pretrain(small_recipe(corpus), output)


def environment() -> dict[str, str]:
    # Sums depend on the number of threads: the child must use as many as this process.
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    names = [name for name in events.Tags()["scalars"] if "second" not in name and "train/train" not in name]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def test_run_leaves_what_it_promises(uninterrupted: Run) -> None:
    output, results = uninterrupted
    model, tokenizer = AutoModel.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    encoder = CCEEncoder.load(output).eval()
    batch = tokenizer("the cat sees a house", return_tensors="pt")
    with torch.no_grad():
        states = model.eval()(**batch, output_hidden_states=True).hidden_states
        vector = encoder.vectors(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(vector, (states[1] + states[-1]).mean(dim=1))

    kinds = {path.suffix for path in output.rglob("*") if path.is_file() and path.parent.name != "tensorboard"}
    assert kinds == {".json", ".jsonl", ".safetensors", ".md", ".png"}
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "before" in card
    assert "`cz_nce`" in card
    for page in ("", "-dark"):
        assert (output / f"words{page}.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert saved["stages"] == results.stages
    assert list((output / "tensorboard").iterdir())


def test_training_helps(uninterrupted: Run) -> None:
    before, after = (uninterrupted[1].stages[stage]["mean"] for stage in ("before", "after"))
    assert after["sentence_forth"] + after["sentence_back"] > before["sentence_forth"] + before["sentence_back"]
    lines = [line for line in metrics(uninterrupted[0]) if "contrastive" in line]
    assert lines[-1]["contrastive"] < lines[0]["contrastive"]
    assert {"mlm", "z_mean", "z_min", "saturated", "learning_rate"} <= lines[0].keys()
    evaluated = [line for line in metrics(uninterrupted[0]) if "eval_sentence_forth" in line]
    assert [line["step"] for line in evaluated] == [9, 18]


def test_seeded_runs_agree(corpus: Path, uninterrupted: Run, tmp_path: Path) -> None:
    again = pretrain(small_recipe(corpus), tmp_path / "again")
    assert again.stages == uninterrupted[1].stages
    assert_same_weights(uninterrupted[0], tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(uninterrupted[0])


@pytest.mark.parametrize(
    ("function", "call", "saved"),
    [
        (FORWARD, 7, [4]),
        (FORWARD, 12, [4, 8]),
        (FORWARD, 15, [8, 12]),
        ({"module": "shared.files", "owner": "module", "name": "write_atomically"}, 2, [4]),
        ({"module": "train.finished", "owner": "module", "name": "write_atomically"}, 1, [16, 18]),
    ],
    ids=["epoch 0", "epoch 1", "a later epoch", "before a checkpoint's marker", "before the results"],
)
def test_killed_run_is_resumed_bit_for_bit(
    corpus: Path, uninterrupted: Run, tmp_path: Path, function: dict[str, str], call: int, saved: list[int]
) -> None:
    output = tmp_path / "killed"
    script = KILLED.format(**function, call=call)
    arguments = [*small_arguments(corpus), "--output", str(output)]
    child = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert child.returncode == -9, child.stderr
    assert [step for step, _ in checkpoints(output)] == saved
    assert not (output / "results.json").exists()

    results = pretrain(small_recipe(corpus), output, resume=True)
    assert_same_weights(uninterrupted[0], output)
    assert results.stages == uninterrupted[1].stages
    assert metrics(output) == metrics(uninterrupted[0])
    assert tensorboard(output) == tensorboard(uninterrupted[0])


def test_checkpoints_of_that_test_lie_inside_epochs(uninterrupted: Run) -> None:
    epochs = {line["step"]: line["epoch"] for line in metrics(uninterrupted[0]) if "contrastive" in line}
    batches = 18 / epochs[18]
    assert 4 / batches < 1 < 8 / batches < 2
    assert all(step % batches for step in (4, 8, 12))


def test_finished_run_is_left_alone(corpus: Path, uninterrupted: Run, capsys: pytest.CaptureFixture[str]) -> None:
    output, results = uninterrupted
    written = (output / "model.safetensors").stat().st_mtime_ns
    assert pretrain(small_recipe(corpus), output, resume=True).stages == results.stages
    assert (output / "model.safetensors").stat().st_mtime_ns == written
    said = capsys.readouterr().err
    assert "| sentence retrieval, source → target |" in said
    assert "finished already" in said


def test_another_run_is_not_overwritten(corpus: Path, uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds another \(temperature 0.07 there, 0.5 here\); choose another"):
        pretrain(small_recipe(corpus, temperature=0.5), uninterrupted[0], resume=True)
    with pytest.raises(RecipeError, match="add --resume"):
        pretrain(small_recipe(corpus), uninterrupted[0])
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(RecipeError, match="other files in it"):
        pretrain(small_recipe(corpus), tmp_path)


def test_sentence_level_without_head_or_mlm(corpus: Path, tmp_path: Path) -> None:
    choice = {"levels": "sentence", "head": False, "alpha": 0.0, "loss": "info_nce"}
    pretrain(small_recipe(corpus, **choice, max_steps=4, pictured_words=0), tmp_path)
    assert CCEEncoder.load(tmp_path).head is None
    assert not (tmp_path / "cce_head.safetensors").exists()
    assert not (tmp_path / "words.png").exists()
    assert all("mlm" not in line for line in metrics(tmp_path))


def test_given_encoder_is_trained_on(corpus: Path, uninterrupted: Run, tmp_path: Path) -> None:
    recipe = small_recipe(
        corpus, encoder=str(uninterrupted[0]), hidden=128, vocabulary=8000, max_steps=2, pictured_words=0
    )
    results = pretrain(recipe, tmp_path / "further")
    assert list(results.stages) == ["random", "before", "after"]
    assert results.stages["before"]["mean"] == pytest.approx(uninterrupted[1].stages["after"]["mean"])


def test_fewer_batches_than_processes_are_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchPlan, "__len__", lambda plan: 0)
    with pytest.raises(
        RecipeError,
        match=r"per_device_train_batch_size: expected at least a batch for each of 1 processes, got '0 of 8",
    ):
        pretrain(small_recipe(corpus), tmp_path / "few")


def test_missing_packages_are_named() -> None:
    script = "import sys; sys.modules['numpy'] = sys.modules['pyarrow'] = None; import ctloss.train"
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "without numpy, pyarrow; pip install 'ctloss[train]'" in child.stderr


def test_command_line_refuses_with_a_reason(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--corpus", str(corpus), "--batch-size", "1", "--output", str(tmp_path / "x")]) == 2
    assert "per_device_train_batch_size: expected at least 2, got 1" in capsys.readouterr().err
    assert main(["--corpus", str(tmp_path / "none.tsv"), "--output", str(tmp_path / "y")]) == 2
    assert "none.tsv" in capsys.readouterr().err
    assert main(["--corpus", str(corpus), "--batch-size", "5000", "--output", str(tmp_path / "z")]) == 2
    assert "lower batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [
        (0, 600, {0: 1, 199: 1, 200: 0.1, 399: 0.1, 400: 0.01, 499: 0.01, 500: 0.001}),
        (6, 60, {0: 0, 3: 0.5, 6: 1, 20: 0.1}),
    ],
)
def test_schedule_of_the_paper(warmup: int, steps: int, expected: dict[int, float]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = thirds(optimizer, warmup, steps)
    rates = []
    for _ in range(steps + 1):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert [rates[step] for step in expected] == pytest.approx(list(expected.values()))


def test_event_files_of_one_second_keep_their_order(tmp_path: Path) -> None:
    arguments = TrainingArguments()
    for resumed_at in (0, 4):
        callback = TensorBoard(tmp_path)
        callback.on_train_begin(arguments, TrainerState(global_step=resumed_at), TrainerControl())
        for step in range(resumed_at + 1, resumed_at + 8):
            callback.tb_writer.add_scalar("loss", resumed_at, step)
        callback.tb_writer.close()
        if resumed_at == 0:
            # As if written by a process with a larger number, as that of a killed child may be.
            (path,) = tmp_path.iterdir()
            path.rename(path.with_name(path.name.replace(f".{os.getpid()}.", ".999999999.")))
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(s, 0 if s < 5 else 4) for s in range(1, 12)]
