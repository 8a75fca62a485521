"""Fine-tuning on four tasks end to end, its settings, and resuming after a kill."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from sklearn.metrics import accuracy_score

from ctloss.evaluate import (
    XTREME_OPTIONS,
    DataError,
    FinetuneOptions,
    Outcome,
    QuestionOptions,
    evaluate_panx,
    evaluate_pawsx,
    evaluate_udpos,
    evaluate_xnli,
    write_submission,
)
from ctloss.evaluate.data.labelled import (
    PANX,
    PAWSX,
    UDPOS,
    XNLI,
    LabelledPair,
    TaggedSentence,
    read_pairs,
    read_tagged,
)
from ctloss.evaluate.models import finetune
from ctloss.evaluate.tasks.classification import PairHead, english_rows
from ctloss.evaluate.tasks.tagging import WordHead, entity_f1, pos_f1
from ctloss.shared.files import FORMER_MARKER, MARKER, complete
from support import tiny_tasks
from support.tiny_results import value

pytestmark = pytest.mark.numeric

QUICK = FinetuneOptions(learning_rate=4e-3, batch_size=16, max_steps=40, max_length=32, evaluate_every=20, clip=1.0)
Entry = Callable[..., Outcome]


def test_held_out_rows_are_drawn_by_text_whatever_their_order(tmp_path: Path) -> None:
    """A file sorted by label would hold out one label only, and equal texts on both sides favour learning by heart."""
    rows = tiny_tasks.paraphrase_rows(400, 5)
    parts = []
    for number, ordered in enumerate((rows, sorted(rows, key=lambda row: row[2]))):
        file = tmp_path / f"{number}.tsv"
        tiny_tasks.write_pairs(file, ordered)
        train, held = english_rows(tmp_path, PAWSX, FinetuneOptions(train=(file,), hold_out=0.3))
        parts.append((sorted(map(str, train)), sorted(map(str, held))))
        pairs = [[row for row in part if isinstance(row, LabelledPair)] for part in (train, held)]
        assert {row.label for row in pairs[1]} == {"0", "1"}
        assert not {row.first for row in pairs[0]} & {row.first for row in pairs[1]}
        assert len(train) + len(held) == 400
    assert parts[0] == parts[1]


@pytest.mark.parametrize(("task", "entry"), [(XNLI, evaluate_xnli), (PAWSX, evaluate_pawsx)], ids=["xnli", "pawsx"])
def test_pairs_end_to_end(tmp_path: Path, model: str, task: Any, entry: Entry) -> None:
    tiny_tasks.write_task(tmp_path, task.name)
    outcome = entry(model, tmp_path, options=dataclasses.replace(QUICK, max_steps=60))
    assert sorted(outcome.predictions) == ["en", "xx"]
    for language, answers in outcome.predictions.items():
        rows = read_pairs(tmp_path / task.name / f"test-{language}.tsv", task.labels)
        gold = [row.label for row in rows if isinstance(row, LabelledPair)]
        assert value(outcome, language, "accuracy", about="", seed=1) == accuracy_score(gold, answers) > 0.9
        majority = max(gold.count(label) for label in task.labels) / len(gold)
        assert value(outcome, language, "accuracy", about="majority class", seed=None) == majority < 0.8
    for path in write_submission(tmp_path / "submission", task.name, outcome.predictions):
        language = path.stem.removeprefix("test-")
        assert path.read_text(encoding="utf-8").splitlines() == outcome.predictions[language]


@pytest.mark.parametrize(("task", "entry"), [(UDPOS, evaluate_udpos), (PANX, evaluate_panx)], ids=["udpos", "panx"])
def test_words_end_to_end(tmp_path: Path, model: str, task: Any, entry: Entry) -> None:
    """With windows so short that most sentences are split, every word of every sentence has its prediction."""
    tiny_tasks.write_task(tmp_path, task.name)
    outcome = entry(model, tmp_path, ["xx"], dataclasses.replace(QUICK, max_length=6))
    rows = read_tagged(tmp_path / task.name / "test-xx.tsv", task.labels)
    gold = [row.tags for row in rows if isinstance(row, TaggedSentence) and row.tags is not None]
    predicted = [block.split("\n") for block in "\n".join(outcome.predictions["xx"]).split("\n\n")]
    assert [len(tags) for tags in predicted] == [len(tags) for tags in gold]
    assert (
        value(outcome, "xx", "f1", about="", seed=1) == (pos_f1 if task is UDPOS else entity_f1)(gold, predicted) > 0.9
    )
    right = accuracy_score([tag for tags in gold for tag in tags], [tag for tags in predicted for tag in tags])
    assert value(outcome, "xx", "accuracy", about="words", seed=1) == right > 0.9


def test_a_test_set_without_labels_is_predicted_and_not_scored(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    tiny_tasks.write_pairs(tmp_path / "pawsx" / "test-xx.tsv", tiny_tasks.paraphrase_rows(30, 4), labels=False)
    outcome = evaluate_pawsx(model, tmp_path, options=dataclasses.replace(QUICK, max_steps=1))
    assert {score.language for score in outcome.scores} == {"en", "mean"}
    assert len(outcome.predictions["xx"]) == 30


def test_english_files_by_name_and_held_out_rows(tmp_path: Path, model: str) -> None:
    """PAWS-X trained on its English dev file, a quarter of which chooses the step, with two seeds."""
    tiny_tasks.write_task(tmp_path, "pawsx")
    (tmp_path / "pawsx" / "train-en.tsv").unlink()
    options = dataclasses.replace(
        QUICK, max_steps=2, train=(tmp_path / "pawsx" / "dev-en.tsv",), hold_out=0.25, seeds=(3, 5)
    )
    outcome = evaluate_pawsx(model, tmp_path, ["xx"], options)
    assert [(score.language, score.seed) for score in outcome.scores] == [
        (language, seed) for language in ("xx", "mean") for seed in (3, 5, None)
    ]
    with pytest.raises(DataError, match=r"expected train-en\.tsv"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, train=()))
    with pytest.raises(DataError, match=r"expected enough rows to hold out 0\.999 of them, got 24"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, hold_out=0.999))
    bare = tmp_path / "bare.tsv"
    tiny_tasks.write_pairs(bare, tiny_tasks.paraphrase_rows(3, 0), labels=False)
    with pytest.raises(DataError, match="expected labels in the English train rows, got none"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, train=(bare,)))


@pytest.mark.parametrize("batches", ["random", "by_length"])
def test_resuming_a_killed_run_gives_the_same(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, batches: Literal["random", "by_length"]
) -> None:
    """Killed within an epoch, after a checkpoint and while writing the next: the result is as if nothing had happened.

    The resumed run may write checkpoints more often.
    """
    tiny_tasks.write_task(tmp_path, "udpos")
    # Later steps score higher, so that the models compared have gone through all steps.
    monkeypatch.setattr(WordHead, "score", lambda *_: time.monotonic())
    steps: dict[str, Any] = {
        "max_steps": 18,
        "evaluate_every": 5,
        "checkpoint_every": 4,
        "accumulation": 2,
        "batches": batches,
    }
    options = dataclasses.replace(QUICK, **steps, output=tmp_path / "unbroken")
    unbroken = evaluate_udpos(model, tmp_path, ["xx"], options)

    killed = dataclasses.replace(options, output=tmp_path / "killed")
    folder = tmp_path / "killed" / "udpos" / "seed-1"
    save = finetune._Keeper.on_save

    def kill(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 12:
            (folder / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")
            raise KeyboardInterrupt
        save(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(finetune._Keeper, "on_save", kill)
        with pytest.raises(KeyboardInterrupt):
            evaluate_udpos(model, tmp_path, ["xx"], killed)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    assert complete(folder, "checkpoint") == [(8, folder / "checkpoint-8")]
    if batches == "by_length":
        # As the former version marked it.
        (folder / "checkpoint-8" / MARKER).unlink()
        (folder / "checkpoint-8" / FORMER_MARKER).touch()

    assert evaluate_udpos(model, tmp_path, ["xx"], dataclasses.replace(killed, checkpoint_every=3)) == unbroken
    runs = [tmp_path / name / "udpos" / "seed-1" / "best-18" for name in ("unbroken", "killed")]
    weights = [(best / "model.safetensors").read_bytes() for best in runs]
    assert weights[0] == weights[1]


def test_a_finished_run_is_not_trained_again(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    runs = tmp_path / "runs"
    options = dataclasses.replace(QUICK, max_steps=3, output=runs)
    first = evaluate_pawsx(model, tmp_path, ["xx"], options)
    monkeypatch.setattr(finetune._Finetuner, "train", None)
    assert evaluate_pawsx(model, tmp_path, ["xx"], options) == first
    # The former version left no marker in the best model.
    for marker in runs.rglob(f"best-*/{MARKER}"):
        marker.unlink()
    assert evaluate_pawsx(model, tmp_path, ["xx"], options) == first
    with pytest.raises(
        ValueError, match=r"run with the same settings, got one with learning_rate 0\.004 instead of 0\.1"
    ):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, learning_rate=0.1))
    tiny_tasks.write_pairs(tmp_path / "pawsx" / "dev-en.tsv", tiny_tasks.paraphrase_rows(24, 9))
    with pytest.raises(ValueError, match="got one with dev"):
        evaluate_pawsx(model, tmp_path, ["xx"], options)


def test_a_run_that_kept_nothing_does_not_own_its_folder(tmp_path: Path, model: str) -> None:
    """The settings of a refused run may be corrected; those of a run with a best model may not."""
    tiny_tasks.write_task(tmp_path, "pawsx")
    options = dataclasses.replace(QUICK, max_steps=1, output=tmp_path / "runs")
    with pytest.raises(ValueError, match="expected max_length at most 64"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, max_length=128))
    evaluate_pawsx(model, tmp_path, ["xx"], options)
    with pytest.raises(ValueError, match="got one with max_length 32 instead of 16"):
        evaluate_pawsx(model, tmp_path, ["xx"], dataclasses.replace(options, max_length=16))


def test_the_best_step_on_dev_is_kept_the_earlier_of_two(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tasks.write_task(tmp_path, "pawsx")
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.2])
    monkeypatch.setattr(PairHead, "score", lambda *_: next(scores))
    options = dataclasses.replace(QUICK, max_steps=9, evaluate_every=2, output=tmp_path / "runs")
    evaluate_pawsx(model, tmp_path, ["xx"], options)
    folder = tmp_path / "runs" / "pawsx" / "seed-1"
    assert finetune.best(folder) == (folder / "best-4", 0.7)
    assert [path.name for path in folder.glob("best*")] == ["best-4"]
    # No checkpoints are left, and the fifth score, that of the last step, was asked for.
    assert list(folder.glob("checkpoint-*")) == []
    assert next(scores, None) is None


@pytest.mark.parametrize("unit", ["pair", "word"])
def test_accumulated_parts_make_the_step_of_the_whole_batch(tmp_path: Path, unit: str) -> None:
    """For pairs exactly; words are averaged over parts, as in XTREME, so sentences of equal length are compared."""
    model = tiny_tasks.save_model(tmp_path / "model", dropout=0.0)
    rows: list[Any]
    head: Any
    if unit == "pair":
        head, rows = PairHead(PAWSX.labels), [LabelledPair(*row) for row in tiny_tasks.paraphrase_rows(16, 1)]
    else:
        head = WordHead(PANX.labels, prefixed=True)
        columns = (tuple(zip(*sentence, strict=True)) for sentence in tiny_tasks.entity_sentences(16, 1))
        rows = [TaggedSentence(words, tags) for words, tags in columns]
    weights = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        options = dataclasses.replace(QUICK, max_steps=3, learning_rate=1e-3, accumulation=parts)
        finetune.finetune(model, head, rows, rows, {}, options, seed=1, folder=folder, settings={})
        found = finetune.best(folder)
        assert found is not None
        trained = finetune.load_model(str(found[0]), head)
        weights.append(torch.cat([value.flatten() for value in trained.state_dict().values()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0"),
        ({"hold_out": 1.0}, "hold_out: expected a number from 0 up to but not including 1"),
        ({"hold_out": 0.1, "dev": ("dev.tsv",)}, "hold_out: expected either dev files or a share held out"),
        ({"seeds": (1, 1)}, "seeds: expected each once"),
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"precision": "fp16"}, "precision: expected one of fp32, bf16"),
        ({"batches": "sorted"}, "batches: expected one of random, by_length"),
    ],
)
def test_refused_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneOptions(**changes)


def test_defaults_are_xtremes() -> None:
    """scripts/train_xnli.sh, train_pawsx.sh, train_udpos.sh and train_panx.sh for mBERT: steps of 8 times 4 items."""
    own = {name: options for name, options in XTREME_OPTIONS.items() if not isinstance(options, QuestionOptions)}
    assert {name: (options.epochs, options.evaluate_every) for name, options in own.items()} == {
        "xnli": (5, 100),
        "pawsx": (5, 200),
        "udpos": (10, 500),
        "panx": (10, 1000),
    }
    for options in own.values():
        assert (options.learning_rate, options.batch_size, options.max_length) == (2e-5, 32, 128)
        assert (options.weight_decay, options.warmup_steps, options.clip, options.seeds) == (0.0, 0, 1.0, (1,))
        assert (options.batches, options.precision) == ("random", "fp32")


def test_every_setting_reaches_the_trainer(tmp_path: Path) -> None:
    options = FinetuneOptions(
        learning_rate=3e-5,
        epochs=2.5,
        batch_size=12,
        accumulation=3,
        weight_decay=0.1,
        warmup_steps=7,
        clip=0.5,
        evaluate_every=11,
        checkpoint_every=13,
        evaluation_batch_size=17,
        precision="bf16",
    )
    arguments = finetune.training_arguments(options, tmp_path, seed=9)
    assert (arguments.learning_rate, arguments.num_train_epochs, arguments.max_steps) == (3e-5, 2.5, -1)
    assert (arguments.train_batch_size, arguments.gradient_accumulation_steps) == (4, 3)
    assert (arguments.weight_decay, arguments.warmup_steps, arguments.max_grad_norm) == (0.1, 7, 0.5)
    assert (arguments.eval_steps, arguments.save_steps, arguments.eval_batch_size) == (11, 13, 17)
    assert (arguments.lr_scheduler_type, arguments.adam_epsilon, arguments.seed) == ("linear", 1e-8, 9)
    assert (arguments.bf16, arguments.fp16) == (True, False)
    steps = finetune.training_arguments(dataclasses.replace(options, max_steps=5), tmp_path, seed=9)
    assert steps.max_steps == 5


def test_bfloat16(tmp_path: Path, model: str) -> None:
    tiny_tasks.write_task(tmp_path, "panx")
    options = dataclasses.replace(QUICK, precision="bf16")
    assert value(evaluate_panx(model, tmp_path, ["xx"], options), "xx", "f1", about="", seed=1) > 0.9
