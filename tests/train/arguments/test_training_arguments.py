"""Trainer's arguments in a recipe: our defaults, former names, ready arguments, and what each field does to a run."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from ctloss.train import Recipe, RecipeError, paper, tiny
from ctloss.train.arguments import FORMER, PretrainingArguments, Training, defaults, ours
from ctloss.train.effects import BATCHES, BOOKKEEPING, IDLE, LENGTH, MEMORY, NUMBERS, REFUSED, may_change, notes
from support.tiny_runs import CHECKPOINTING

TABLES = {"numbers": NUMBERS, "batches": BATCHES, "length": LENGTH, "memory": MEMORY, "bookkeeping": BOOKKEEPING}
TABLES |= {"refused": frozenset(REFUSED), "idle": frozenset(IDLE)}
# Fields that some supported version of transformers lacks.
ADDED = {
    *("activation_checkpointing", "activation_checkpointing_kwargs", "dataloader_in_order"),
    *("dataloader_multiprocessing_context", "ddp_static_graph", "train_sampling_strategy"),
    *("trackio_bucket_id", "trackio_static_space_id"),
}
REMOVED = {"logging_dir", "warmup_ratio"}


@pytest.mark.parametrize("name", sorted({item.name for item in dataclasses.fields(PretrainingArguments)}))
def test_every_field_of_trainer_is_in_one_table(name: str) -> None:
    assert len([table for table, names in TABLES.items() if name in names]) == 1


def test_no_table_names_a_field_that_is_gone() -> None:
    known = {item.name for item in dataclasses.fields(PretrainingArguments)}
    assert {name for names in TABLES.values() for name in names} - known <= ADDED | REMOVED
    assert set(FORMER.values()) - known <= ADDED


def test_refused_and_idle_defaults_are_those_that_a_run_has() -> None:
    assert {name: only for name, (only, _) in REFUSED.items()} == {
        name: defaults().get(name, only) for name, (only, _) in REFUSED.items()
    }
    assert notes(Training().chosen) == []


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & defaults().keys()))
def test_what_breaks_a_run_is_refused_with_what_to_do(name: str) -> None:
    only, hint = REFUSED[name]
    other = not only if isinstance(only, bool) else "x"
    with pytest.raises(RecipeError) as refusal:
        tiny().override(**{name: other})
    assert str(refusal.value) == f"{name}: expected {only!r}, got {other!r}; {hint}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gradient_accumulation_steps": 4}, "negatives are those of one part, not of all 4; .* set gradient_cache"),
        ({"torch_compile": True}, "bit for bit only with the same compiled code"),
        ({"torch_compile_mode": "default"}, "bit for bit only with the same compiled code"),
        ({"per_device_eval_batch_size": 3}, "per_device_eval_batch_size has no effect: the held-out pairs"),
        ({"save_strategy": "no"}, "no checkpoints, unless a signal .* The model is written at the end all the same"),
        ({"do_train": True}, "do_train has no effect: a run always trains"),
    ],
)
def test_what_must_be_known_is_said(given: dict[str, Any], said: str) -> None:
    (line,) = notes(Training(**given).chosen)
    assert re.search(said, line)


def test_measuring_is_bookkeeping_unless_training_follows_it() -> None:
    assert may_change("eval_steps", "linear", stops_early=False)
    assert not may_change("eval_steps", "linear", stops_early=True)
    assert not may_change("eval_steps", "reduce_lr_on_plateau", stops_early=False)
    assert may_change("logging_steps", "greedy", stops_early=True)
    assert not may_change("learning_rate", "linear", stops_early=False)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ({"batch_size": 8}, {"per_device_train_batch_size": 8}),
        ({"epochs": 3}, {"num_train_epochs": 3}),
        ({"clip": 0.5}, {"max_grad_norm": 0.5}),
        ({"warmup": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"schedule": "thirds"}, {"lr_scheduler_type": "thirds"}),
        ({"schedule": "constant"}, {"lr_scheduler_type": "constant_with_warmup"}),
        ({"schedule": "cosine"}, {"lr_scheduler_type": "cosine"}),
        ({"optimizer": "adam"}, {"weight_decay": 0.0}),
        ({"optimizer": "adamw"}, {}),
        ({"optimizer": "sgd"}, {"optim": "sgd"}),
        ({"log_every": 1}, {"logging_steps": 1}),
        ({"evaluate_every": 2}, {"eval_steps": 2}),
        ({"checkpoint_every": 3}, {"save_steps": 3}),
        ({"keep_checkpoints": 4}, {"save_total_limit": 4}),
        ({"max_steps": None}, {}),
        ({"bf16": True}, {"precision": "bf16"}),
        ({"fp16": True}, {"precision": "fp16"}),
        ({"bf16": False}, {"precision": "fp32"}),
        ({"gradient_checkpointing": True}, {CHECKPOINTING: True}),
        ({CHECKPOINTING: False}, {}),
        ({"lr_scheduler_kwargs": '{"num_cycles": 2}'}, {"lr_scheduler_kwargs": {"num_cycles": 2}}),
        ({"save_steps": 250.0}, {}),
        ({"report_to": ["wandb"]}, {"report_to": "wandb"}),
    ],
)
def test_former_names_and_other_spellings_mean_the_same(former: dict[str, Any], present: dict[str, Any]) -> None:
    assert Training(**former).chosen == present
    assert tiny().override(**former) == tiny().override(**present)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 1}, r"per_device_train_batch_size: expected at least 2, got 1; a row's negatives"),
        ({"batch_size": "64"}, r"per_device_train_batch_size: expected a whole number, got '64'"),
        ({"epochs": True}, r"num_train_epochs: expected a number, got True"),
        ({"epochs": 0}, r"num_train_epochs: expected a number above 0, got 0"),
        ({"max_steps": 0}, r"max_steps: expected at least 1, or -1 for none, got 0"),
        ({"max_steps": -2}, r"max_steps: expected at least 1, or -1 for none, got -2"),
        ({"seed": 2**32}, r"seed: expected at most 4294967295, got 4294967296; lower it"),
        ({"seed": -1}, r"seed: expected at least 0, got -1"),
        ({"warmup": -0.5}, r"warmup_steps: expected at least 0, got -0\.5"),
        ({"warmup": 1.5}, r"warmup_steps: expected a whole number of steps, or a share of the run's below 1, got 1\.5"),
        (
            {"warmup_ratio": 1.0},
            r"warmup_ratio: expected a share of the run's steps below 1, got 1\.0; give w",
        ),
        ({"save_steps": 2.5}, r"save_steps: expected a whole number of steps, or a share .*, got 2\.5; round it"),
        ({"learning_rate": float("nan")}, r"learning_rate: expected a finite number, got nan"),
        ({"learning_rate": 0.0}, r"learning_rate: expected a number above 0, got 0\.0"),
        ({"precision": "fp8"}, r"precision: expected one of auto, fp32, bf16, fp16, got 'fp8'"),
        (
            {"schedule": "cosin"},
            r"lr_scheduler_type: expected one of thirds, .*, got 'cosin'; did you mean cos",
        ),
        ({"optim": "adamm"}, r"optim: expected one of .*adamw_torch_fused.*, got 'adamm'"),
        ({"save_strategy": "often"}, r"save_strategy: expected one of no, steps, epoch, best, got 'often'"),
        ({"ddp_backend": "nccll"}, r"ddp_backend: expected one of .*gloo.*, got 'nccll'; did you mean nccl\?"),
        ({"ddp_backend": "foo"}, r"ddp_backend: expected one of .*, got 'foo'; choose one of them"),
        ({"report_to": "wnadb"}, r"report_to: expected one of .*, got 'wnadb'; did you mean wandb\?"),
        ({"report_to": ["wandb", "tensorbord"]}, r"got 'tensorbord'; did you mean tensorboard\?"),
        ({"report_to": ["wandb", "none"]}, r"report_to: expected 'none', 'all' or names .*; drop the others"),
        ({"log_level": "wraning"}, r"log_level: expected one of .*, got 'wraning'; did you mean warning\?"),
        ({"alpha": 1e38}, r"alpha: expected a number from 0 to 1e\+06, got 1e\+38"),
        ({"temperature": 1e-30}, r"temperature: expected a number from 0\.001 to 10, got 1e-30"),
        ({"loss": "cznce"}, r"loss: expected one of cz_nce, info_nce, got 'cznce'; did you mean cz_nce\?"),
        ({"gradient_cache": 65}, r"gradient_cache: expected at most the per_device_train_batch_size 64, got 65"),
        ({"gradient_accumulation_steps": 0}, r"gradient_accumulation_steps: expected at least 1, got 0"),
        ({"keep_checkpoints": 0}, r"save_total_limit: expected at least 1, got 0"),
        ({"pictured_words": -1}, r"pictured_words: expected at least 0, got -1"),
        ({"evaluate_every": 0}, r"eval_steps: expected a number above 0, got 0"),
        (
            {"schedule": "constant", "lr_scheduler_type": "constant"},
            r"'constant_with_warmup', as schedule asks",
        ),
        (
            {"batch_size": 2, "per_device_train_batch_size": 4},
            r"expected 2, as batch_size asks for, got 4; drop",
        ),
        ({"optimizer": "adam", "weight_decay": 0.1}, r"weight_decay: expected 0\.0, as optimizer asks for, got 0\.1"),
        ({"bf16": True, "fp16": True}, r"precision: expected 'bf16', as bf16 asks for, got 'fp16'; drop fp16"),
        ({"bf16": True, "precision": "fp32"}, r"precision: expected 'bf16', as bf16 asks for, got 'fp32'"),
        (
            {"lr_scheduler_type": "constant", "warmup": 9},
            r"warmup_steps: expected 0 with the lr_scheduler_type",
        ),
        ({"early_stopping_patience": 1, "eval_strategy": "no"}, r"eval_strategy: expected steps or epoch"),
        ({"deepspeed": '{"zero'}, r"deepspeed: expected JSON, got '\{\"zero' \(.*\); correct it"),
        (
            {"accelerator_config": {"split_batches": True}},
            r"split_batches: expected False, got True",
        ),
        ({"batchsize": 2}, r"recipe: expected a field, got batchsize; did you mean batch_size\?"),
        ({"temperatur": 2}, r"recipe: expected a field, got temperatur; did you mean temperature\?"),
        ({"zzzz": 2}, r"recipe: expected a field, got zzzz; --help-all lists them"),
    ],
)
def test_bad_values_are_refused_with_a_reason(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny().override(**given)


def test_choices_are_values() -> None:
    chosen = Training(batch_size=8, lr_scheduler_kwargs={"num_cycles": 2}, hub_token="secret")
    assert chosen == Training(per_device_train_batch_size=8, lr_scheduler_kwargs={"num_cycles": 2}, hub_token="secret")
    kwargs = {"num_cycles": 2}
    held = Training(lr_scheduler_kwargs=kwargs)
    kwargs["num_cycles"] = 3
    assert held.lr_scheduler_kwargs == {"num_cycles": 2}
    assert pickle.loads(pickle.dumps(chosen)) == copy.deepcopy(chosen) == chosen
    assert hash(chosen) == hash(copy.deepcopy(chosen))
    assert (chosen.per_device_train_batch_size, chosen.learning_rate, chosen.hub_token) == (8, 2e-3, "secret")
    assert "secret" not in repr(chosen) + str(chosen.as_dict())
    assert json.loads(json.dumps(chosen.as_dict())) == chosen.as_dict()
    assert chosen.replace(batch_size=64, lr_scheduler_kwargs=None, hub_token=None) == Training()
    with pytest.raises(AttributeError, match="have no 'batch_sise'"):
        chosen.batch_sise  # noqa: B018


def test_stored_choices_make_the_same_choices() -> None:
    for recipe in (tiny(), paper(), tiny().override(report_to=["wandb", "tensorboard"], gradient_accumulation_steps=2)):
        stored = json.loads(json.dumps(recipe.as_dict()))["training"]
        assert set(ours()) <= set(stored)
        assert Training(**stored) == recipe.training


def test_a_recipe_becomes_trainers_arguments(tmp_path: Path) -> None:
    recipe = paper().override(batch_size=6, max_steps=9, precision="fp32", save_strategy="best", report_to="none")
    arguments = recipe.training.arguments(tmp_path)
    assert isinstance(arguments, TrainingArguments)
    expected = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 6, "max_steps": 9, "learning_rate": 2e-6,
        "weight_decay": 0.0, "max_grad_norm": 0.0, "warmup_steps": 0, "lr_scheduler_type": "thirds", "seed": 2021,
        "bf16": False, "fp16": False, "report_to": [], "eval_steps": 5000, "save_steps": 5000, "logging_steps": 100,
        "metric_for_best_model": "sentence_forth", "greater_is_better": True, "remove_unused_columns": False,
        "gradient_cache": None, "pictured_words": 12, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip
    assert {name: getattr(arguments, name) for name in expected} == expected
    assert Training.of(arguments).replace(output_dir=None) == recipe.training
    assert recipe.override(precision="bf16", use_cpu=True).training.arguments(tmp_path).bf16


def test_ready_arguments_make_a_recipe(tmp_path: Path) -> None:
    arguments = PretrainingArguments(str(tmp_path), per_device_train_batch_size=8, precision="fp32")
    arguments.learning_rate = 0.5
    recipe = Recipe("mine", training=arguments)  # type: ignore[arg-type]
    assert recipe.training == Training(output_dir=str(tmp_path), batch_size=8, precision="fp32", learning_rate=0.5)
    copied = dataclasses.replace(arguments, seed=3)
    assert Training.of(copied).replace(do_eval=False, use_cpu=False, dataloader_pin_memory=True) == (
        recipe.training.replace(seed=3)
    )


def test_ready_arguments_of_transformers_count_with_their_defaults(tmp_path: Path) -> None:
    reported: dict[str, Any] = {"report_to": ["tensorboard"], "debug": "underflow_overflow"}
    plain = TrainingArguments(str(tmp_path), eval_strategy="steps", **reported)
    training = tiny().override(training=plain, gradient_cache=4).training
    expected = {
        "per_device_train_batch_size": 8, "learning_rate": 5e-5, "num_train_epochs": 3, "warmup_steps": 0, "seed": 42,
        "weight_decay": 0.0, "save_steps": 500, "eval_steps": 500, "save_total_limit": None, "precision": "fp32",
        "report_to": "tensorboard", "eval_strategy": "steps", "debug": "underflow_overflow", "gradient_cache": 4,
        "remove_unused_columns": False, "lr_scheduler_type": "linear", "max_steps": -1,
    }  # fmt: skip
    assert {name: getattr(training, name) for name in expected} == expected
    given = TrainingArguments(str(tmp_path), accelerator_config={"non_blocking": True}, gradient_accumulation_steps=2)
    chosen = Training.of(given).chosen
    assert (chosen["accelerator_config"], chosen["gradient_accumulation_steps"]) == ({"non_blocking": True}, 2)
    with pytest.raises(RecipeError, match="dataloader_drop_last: expected False, got True"):
        tiny().override(training=TrainingArguments(str(tmp_path), dataloader_drop_last=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataloader_prefetch_factor": 2}, "training arguments: --dataloader_prefetch_factor can only be set when"),
        ({"load_best_model_at_end": True, "save_steps": 3}, "requires the saving steps to be a round multiple"),
        ({"deepspeed": {"zero_optimization": {}}}, "training arguments: .*deepspeed"),
    ],
)
def test_what_trainer_refuses_is_refused_in_one_line(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    if "deepspeed" in given:
        try:
            import deepspeed  # type: ignore[import-not-found] # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("deepspeed is installed")
    with pytest.raises(RecipeError, match=message):
        tiny().override(**given).training.arguments(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="precision: expected bf16 or fp32 without a GPU, got 'fp16'"):
        tiny().override(fp16=True).training.arguments(tmp_path)
