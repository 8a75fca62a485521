"""Processes that train together: half the batch each is the one process's run, and what each negatives option does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.train import RecipeError, pretrain
from ctloss.train.output import claim_folder
from ctloss.train.samples.sampler import BatchPlan, PlanSampler
from support.ranks.training import Case, launch, measured
from support.tiny_runs import arguments, assert_same_weights, small_options, small_recipe, write_corpus

STEPS = 10
CASES: list[Case] = [("cz_nce", "multi", True), ("info_nce", "apart", True), ("cz_nce", "sentence", False)]
# Without the head: where a unit of its ReLU is within rounding of 0, the gradients of two equal runs part.
SEVERAL_STEPS = {
    "dropout": 0.0,
    "levels": "apart",
    "head": False,
    "max_steps": STEPS,
    "logging_steps": 1,
    "eval_steps": 100,
    "save_steps": 100,
    "evaluation_pairs": 4,
    "pictured_words": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process (``one``), of two (``two``), and of two with their own negatives (``own``); what was said."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = write_corpus(folder)
    pretrain(small_recipe(corpus, **SEVERAL_STEPS), folder / "one")
    chosen = {**small_options(corpus), **SEVERAL_STEPS, "per_device_train_batch_size": 4}
    own = arguments({**chosen, "negatives_across": "own", "max_steps": 2, "output": folder / "own"})
    two = arguments({**chosen, "gradient_cache": 3, "output": folder / "two"})
    stopped = arguments({**chosen, "gradient_cache": 3, "output": folder / "stopped", "save_steps": 8})
    # The run that is stopped goes on.
    said = launch(folder, [stopped, own, [*stopped, "--resume"], two], CASES)
    (folder / "said").write_text(said, encoding="utf-8")
    return folder


def curve(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if "loss" in line]


def test_two_processes_with_half_the_batch_each_are_one_process(folder: Path) -> None:
    for name in ("loss", "contrastive", "mlm", "z_mean", "z_min", "saturated", "grad_norm", "pull", "push"):
        one, two = (curve(folder / run, name) for run in ("one", "two"))
        assert len(two) == STEPS
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-4, err_msg=name)
    facts = json.loads((folder / "two" / "results.json").read_text(encoding="utf-8"))["facts"]
    assert facts["processes"] == 2


def test_a_signal_to_one_process_stops_all_at_one_step(folder: Path) -> None:
    assert [(folder / f"status-{rank}").read_text(encoding="utf-8") for rank in range(2)] == ["143", "143"]
    said = [line for line in (folder / "said").read_text(encoding="utf-8").splitlines() if "stopped by" in line]
    saved = folder / "stopped" / "checkpoints" / "checkpoint-4"
    # Each process tells the others with the step after that in which the signal came.
    assert [line.split("error: ")[-1] for line in said] == [
        f"python -m ctloss.train: stopped by SIGTERM at step 4; saved {saved}; go on with --resume"
    ]
    assert_same_weights(folder / "stopped", folder / "two")
    assert curve(folder / "stopped", "loss") == curve(folder / "two", "loss")
    before = [
        json.loads((folder / run / "before.json").read_text(encoding="utf-8")) for run in ("stopped", "two", "one")
    ]
    assert before[0]["stages"] == before[1]["stages"]
    # Measured by both processes, each half of it.
    assert before[0]["stages"] == before[2]["stages"]


def test_negatives_are_those_that_the_run_says(folder: Path) -> None:
    said = (folder / "said").read_text(encoding="utf-8").splitlines()
    assert said.count("negatives are those of all 2 processes") == 3
    assert said.count("each of the 2 processes has its own negatives: they are not shared") == 1
    for run, value in (("one", "ranks"), ("two", "ranks"), ("own", "own")):
        assert f"negatives_across `{value}`" in (folder / run / "README.md").read_text(encoding="utf-8")
    # The first step of two processes with their own negatives: the first two batches of one that learns nothing.
    recipe = small_recipe(folder / "en-fr.tsv", **{**SEVERAL_STEPS, "per_device_train_batch_size": 4, "max_steps": 2})
    pretrain(recipe.override(learning_rate=1e-12), folder / "still")
    for name in ("loss", "contrastive", "mlm", "z_mean"):
        alone = np.mean(curve(folder / "still", name))
        assert curve(folder / "own", name)[0] == pytest.approx(alone, abs=1e-5)
    assert curve(folder / "own", "contrastive")[0] < curve(folder / "two", "contrastive")[0] - 0.2


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{loss}-{levels}" for loss, levels, _ in CASES])
def test_parts_of_the_objective_add_up(folder: Path, number: int) -> None:
    """Wordpieces to predict are on one process's source side only, or on neither's."""
    whole = measured(CASES[number])
    parts = [np.load(folder / f"{number}-{rank}.npz") for rank in range(2)]
    assert parts[0]["mlm"] != parts[1]["mlm"]
    assert set(parts[0]) == set(parts[1]) == set(whole)
    for name, value in whole.items():
        if name in ("pull", "push"):
            found = [parts[0][name], parts[1][name]]
            np.testing.assert_allclose(found, [value, value], rtol=1e-4, err_msg=name)
        else:
            join = np.min if name == "z_min" else np.mean
            found = join([part[name] for part in parts], axis=0)
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_processes_split_every_batch_or_take_batches_of_their_own() -> None:
    keys = np.arange(80).reshape(40, 2)
    plan = BatchPlan(np.ones((40, 2)), keys, batch_size=6, seed=0)
    parts = [list(PlanSampler(plan, epoch=lambda: 3, rank=rank, world_size=3, split=True)) for rank in range(3)]
    for number, step in enumerate(zip(*parts, strict=True)):
        assert {epoch for epoch, _, _ in step} == {3}
        assert np.array_equal(np.concatenate([rows for _, rows, _ in step]), plan.epoch(3)[number])
        assert all(np.array_equal(everyone, plan.epoch(3)[number]) for _, _, everyone in step)
    assert len(parts[0]) == len(plan)
    sampler = PlanSampler(plan, rank=1, world_size=3, split=True)
    assert (len(sampler), sampler.batch_size) == (len(plan), 2)
    with pytest.raises(ValueError, match="expected batches that split evenly among 4 processes, got batches of 6"):
        PlanSampler(plan, world_size=4, split=True)


def test_a_run_with_other_negatives_is_another_run(tmp_path: Path) -> None:
    recipe = small_recipe(write_corpus(tmp_path))
    folder = tmp_path / "run"
    folder.mkdir()
    claim_folder(folder, recipe, resume=False)
    (folder / "results.json").write_text("{}", encoding="utf-8")
    claim_folder(folder, recipe, resume=True)
    with pytest.raises(RecipeError, match="negatives_across 'ranks' there, 'own' here"):
        claim_folder(folder, recipe.override(negatives_across="own"), resume=True)
