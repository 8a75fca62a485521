"""What Trainer offers, in a pretraining run: accumulation, workers, best checkpoints, early stopping and more."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.train import CCEEncoder, RecipeError, pretrain, tiny
from ctloss.train.model.encoder import small_backbone
from ctloss.train.model.objective import Objective
from ctloss.train.output import checkpoints
from ctloss.train.reporting.probe import Probe
from ctloss.train.trainer import PretrainingTrainer
from support.tiny_runs import assert_same_weights, metrics, quick_recipe, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    pretrain(quick_recipe(corpus), folder)
    return folder


class Steps:
    """What a run does: the rows of each part of a step, the seed of its dropout, and its gradients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[int, list[int]]] = []
        self.seeds: list[int] = []
        self.losses: list[float] = []
        self.gradients: list[torch.Tensor] = []
        original, seeding = PretrainingTrainer.training_step, torch.manual_seed

        def seed(number: int) -> Any:
            self.seeds.append(number)
            return seeding(number)

        def step(trainer: PretrainingTrainer, model: Any, inputs: Any, *others: Any) -> Any:
            before = [torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()]
            self.rows.append((trainer.state.global_step, inputs["index"].tolist()))
            monkeypatch.setattr(torch, "manual_seed", seed)
            loss = original(trainer, model, inputs, *others)
            monkeypatch.setattr(torch, "manual_seed", seeding)
            self.losses.append(float(loss))
            own = [p.grad - old for p, old in zip(model.parameters(), before, strict=True) if p.grad is not None]
            self.gradients.append(torch.cat([value.flatten() for value in own]))
            return loss

        monkeypatch.setattr(PretrainingTrainer, "training_step", step)


STILL = {"dropout": 0.0, "learning_rate": 1e-12, "max_grad_norm": 0.0, "logging_steps": 1, "eval_steps": 90}


def test_parts_of_a_step_add_up_to_their_mean(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for parts in (1, 3):
        with monkeypatch.context() as patched:
            steps = Steps(patched)
            # Seven batches an epoch: the last step of an epoch has only one part.
            pretrain(
                quick_recipe(corpus, **STILL, max_steps=8, gradient_accumulation_steps=parts), tmp_path / str(parts)
            )
            found.append(steps)
    single, grouped = found
    assert [step for step, _ in grouped.rows] == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, 5, 6, 6, 6, 7, 7, 7]
    assert [rows for _, rows in grouped.rows[:8]] == [rows for _, rows in single.rows]
    epochs = [np.concatenate([rows for _, rows in grouped.rows[start : start + 7]]) for start in (0, 7)]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert not np.array_equal(*epochs)
    # Every part has dropout of its own.
    assert len(set(grouped.seeds)) == len(grouped.seeds) == 20
    shares = [3, 3, 3, 3, 3, 3, 1]
    for gradient, part, share in zip(single.gradients, grouped.gradients, shares, strict=False):
        torch.testing.assert_close(part * share, gradient, rtol=1e-4, atol=1e-6)
    lines = [line for line in metrics(tmp_path / "3") if "loss" in line]
    means = [np.mean(single.losses[:3]), np.mean(single.losses[3:6]), single.losses[6]]
    np.testing.assert_allclose([line["loss"] for line in lines[:3]], means, rtol=1e-5)
    np.testing.assert_allclose([line["contrastive"] for line in lines[:3]], means, rtol=1e-5)
    norms = [torch.stack(single.gradients[start:stop]).mean(dim=0).norm() for start, stop in ((0, 3), (3, 6), (6, 7))]
    np.testing.assert_allclose([line["grad_norm"] for line in lines[:3]], norms, rtol=1e-4)


@pytest.mark.parametrize(
    "choices",
    [
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3},
        {"save_total_limit": None, "report_to": "tensorboard", "dataloader_pin_memory": False},
    ],
    ids=["workers", "bookkeeping"],
)
def test_choices_that_change_no_weight(corpus: Path, plain: Path, tmp_path: Path, choices: dict[str, Any]) -> None:
    pretrain(quick_recipe(corpus, **choices), tmp_path / "run")
    assert_same_weights(tmp_path / "run", plain)
    assert metrics(tmp_path / "run") == metrics(plain)
    kept = [4, 8, 10] if "save_total_limit" in choices else [8, 10]
    assert [step for step, _ in checkpoints(tmp_path / "run")] == kept
    assert len(list((tmp_path / "run").rglob("events.out.tfevents*"))) == 1


def test_activation_checkpointing_reaches_the_encoder() -> None:
    torch.manual_seed(0)
    backbone = small_backbone(vocabulary=40, layers=1, hidden=16, heads=2, dropout=0.0, max_length=8, pad=0, mlm=False)
    objective = Objective(CCEEncoder(backbone, levels="sentence", head=False), loss="cz_nce", temperature=0.1)
    objective.gradient_checkpointing_enable()
    assert backbone.is_gradient_checkpointing


def scripted(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Makes the validation pairs give these measures during the run; before and after it there are others."""
    remaining = [0.0, *values]

    def measured(self: Probe, encoder: Any, *, together: bool = False) -> dict[str, dict[str, float]]:
        value = remaining.pop(0) if remaining else 0.0
        return {"mean": {"sentence_forth": value, "sentence_forth_centred": value}}

    monkeypatch.setattr(Probe, "__call__", measured)


def test_best_checkpoint_is_kept_and_loaded(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.2, 0.7, 0.6, 0.5, 0.4)
    choices = {"load_best_model_at_end": True, "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    pretrain(quick_recipe(corpus, **choices), tmp_path)
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 10]
    assert_same_weights(tmp_path, tmp_path / "checkpoints" / "checkpoint-4")
    # The same from the last checkpoint, without a step more.
    (tmp_path / "results.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    pretrain(quick_recipe(corpus, **choices), tmp_path, resume=True)
    assert_same_weights(tmp_path, tmp_path / "checkpoints" / "checkpoint-4")


def test_stopping_early_is_found_out_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.5, 0.4, 0.3, 0.9)
    choices = {"early_stopping_patience": 2, "eval_steps": 2, "save_steps": 5}
    assert pretrain(quick_recipe(corpus, **choices), tmp_path).facts["steps"] == 6
    assert [step for step, _ in checkpoints(tmp_path)] == [5, 6]
    (tmp_path / "results.json").unlink()
    assert pretrain(quick_recipe(corpus, **choices), tmp_path, resume=True).facts["steps"] == 6
    assert_same_weights(tmp_path, tmp_path / "checkpoints" / "checkpoint-6")


def test_what_an_epoch_ends_with_is_in_its_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate falls when a measure is no better, so a measure that is lost would change the weights."""
    choices = {
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_steps": 7,
        "max_steps": 9,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0},
    }
    calls, last = 0, 99
    forward = Objective.forward

    def counted(self: Objective, *given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > last:
            raise RuntimeError("killed")
        return forward(self, *given, **named)

    def measured(self: Probe, encoder: Any, *, together: bool = False) -> dict[str, dict[str, float]]:
        if calls == last == 7:
            raise RuntimeError("killed")
        # After the first epoch, and after nine steps in all.
        return {"mean": {"sentence_forth": 0.5 if calls == 7 else 0.4, "sentence_forth_centred": 0.0}}

    monkeypatch.setattr(Objective, "forward", counted)
    monkeypatch.setattr(Probe, "__call__", measured)
    pretrain(quick_recipe(corpus, **choices), tmp_path / "unbroken")
    found = [line["eval_sentence_forth"] for line in metrics(tmp_path / "unbroken") if "eval_sentence_forth" in line]
    assert found == [0.5, 0.4]
    # Killed while the first epoch is measured, and in the step after that.
    for last, saved in ((7, []), (8, [7])):
        calls = 0
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(quick_recipe(corpus, **choices), tmp_path / str(last))
        assert [step for step, _ in checkpoints(tmp_path / str(last))] == saved
    calls, last = 7, 99
    pretrain(quick_recipe(corpus, **choices), tmp_path / "8", resume=True)
    assert [step for step, _ in checkpoints(tmp_path / "8")] == [7, 9]
    assert metrics(tmp_path / "8") == metrics(tmp_path / "unbroken")
    assert_same_weights(tmp_path / "8", tmp_path / "unbroken")


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_no_checkpoints_are_none(corpus: Path, tmp_path: Path, strategy: str) -> None:
    pretrain(quick_recipe(corpus, save_strategy="no", eval_strategy=strategy, max_steps=3), tmp_path)
    assert checkpoints(tmp_path) == []
    assert (tmp_path / "model.safetensors").is_file()


def test_measures_that_there_are_not_are_named(corpus: Path, tmp_path: Path) -> None:
    choices = {"load_best_model_at_end": True, "metric_for_best_model": "bleu", "eval_steps": 4}
    with pytest.raises(RecipeError, match=r"metric_for_best_model: expected one of .*sentence_forth.*, got 'bleu'"):
        pretrain(quick_recipe(corpus, **choices), tmp_path)


def test_frozen_word_embeddings_stay(corpus: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pretrain(quick_recipe(corpus, freeze_word_embeddings=True, max_steps=4, save_steps=2), tmp_path)
    saved = [load_file(folder / "model.safetensors") for _, folder in checkpoints(tmp_path)]
    moved = {name for name in saved[0] if not torch.equal(saved[0][name], saved[1][name])}
    assert "embeddings.word_embeddings.weight" not in moved
    assert "embeddings.position_embeddings.weight" in moved


def test_a_run_is_uploaded(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[dict[str, Any]] = []

    class Job:
        def done(self) -> bool:
            return True

        def is_done(self) -> bool:
            return True

        def result(self) -> None:
            return None

    def upload(self: Any, **given: Any) -> Job:
        uploads.append(given)
        return Job()

    def create(self: Any, repo_id: str, **given: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr(
        PretrainingTrainer, "init_hf_repo", lambda self: setattr(self, "hub_model_id", self.args.hub_model_id)
    )
    recipe = quick_recipe(corpus, push_to_hub=True)
    pretrain(recipe, tmp_path / "aligned")
    assert [Path(one["folder_path"]).name for one in uploads] == [
        "checkpoint-4",
        "checkpoint-8",
        "checkpoint-10",
        "aligned",
    ]
    assert {one["repo_id"] for one in uploads} == {"aligned"}
    assert "model*.safetensors" in uploads[-1]["allow_patterns"]
    assert not {"checkpoints/*", "metrics.jsonl"} & set(uploads[-1]["allow_patterns"])
    assert json.loads((tmp_path / "aligned" / "results.json").read_text(encoding="utf-8"))["facts"]["steps"] == 10
    # What was uploaded is uploaded no more, unless to another place.
    pretrain(recipe, tmp_path / "aligned", resume=True)
    assert len(uploads) == 4
    pretrain(recipe.override(hub_model_id="mine/other"), tmp_path / "aligned", resume=True)
    assert [one["repo_id"] for one in uploads[4:]] == ["mine/other"]


def test_an_upload_that_failed_is_tried_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []

    def upload(self: Any, **given: Any) -> str:
        reached.append(given["repo_id"])
        if len(reached) < 3:
            raise ConnectionError("no network")
        return "address"

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **given: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(PretrainingTrainer, "init_hf_repo", lambda self: None)
    recipe = quick_recipe(corpus, push_to_hub=True, hub_strategy="end", max_steps=2)
    for resume in (False, True):
        with pytest.raises(RecipeError, match=r"push_to_hub: expected to upload to 'run' .*, got no network"):
            pretrain(recipe, tmp_path / "run", resume=resume)
    for _ in range(2):
        assert pretrain(recipe, tmp_path / "run", resume=True).facts["steps"] == 2
    assert reached == ["run"] * 3
    # A model that is damaged is neither used nor uploaded.
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"model.safetensors \(0 bytes instead of .*; restore the files, or remove"):
        pretrain(recipe.override(hub_model_id="other"), tmp_path / "run", resume=True)
    (tmp_path / "run" / "results.json").unlink()
    assert pretrain(recipe.override(push_to_hub=False), tmp_path / "run", resume=True).facts["steps"] == 2
    assert_same_weights(tmp_path / "run", checkpoints(tmp_path / "run")[-1][1])


def test_a_plateau_is_one_of_an_accuracy(tmp_path: Path) -> None:
    follows = tiny().override(schedule="reduce_lr_on_plateau").training
    assert follows.arguments(tmp_path).lr_scheduler_kwargs == {"mode": "max"}
    of_a_loss = tiny().override(schedule="reduce_lr_on_plateau", metric_for_best_model="loss", greater_is_better=False)
    assert of_a_loss.training.arguments(tmp_path).lr_scheduler_kwargs == {"mode": "min"}
    given = tiny().override(schedule="reduce_lr_on_plateau", lr_scheduler_kwargs={"mode": "min", "factor": 0.5})
    assert given.training.arguments(tmp_path).lr_scheduler_kwargs == {"mode": "min", "factor": 0.5}


@pytest.mark.parametrize(
    ("choices", "name"),
    [
        ({"lr_scheduler_kwargs": {"foo": 1}}, "lr_scheduler_kwargs"),
        ({"schedule": "cosine_with_min_lr"}, "lr_scheduler_kwargs"),
        ({"optim": "lion_32bit"}, "optim"),
    ],
    ids=["another keyword", "a keyword missing", "a library missing"],
)
def test_what_transformers_refuses_is_refused_in_one_line(
    corpus: Path, tmp_path: Path, choices: dict[str, Any], name: str
) -> None:
    with pytest.raises(RecipeError, match=f"^{name}"):
        pretrain(quick_recipe(corpus, **choices), tmp_path / "run")
