"""What a run that goes on may change, what is another run, and what a damaged or former folder is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ctloss.shared.files import writing_folder
from ctloss.train import Recipe, RecipeError, paper, tiny
from ctloss.train.arguments import defaults
from ctloss.train.finished import check_model, read_results, write_results
from ctloss.train.output import checkpoints, claim_folder, claim_samples
from ctloss.train.resumption import RunState, precision_of, read_run_state, write_run_state
from support.tiny_runs import CHECKPOINTING

STATE = RunState(4, 2, 8, "fp32", 2)
BEGUN = tiny().override(batch_size=8, max_steps=18, precision="fp32")


def begin(folder: Path, recipe: Recipe = BEGUN, state: RunState | None = STATE, *, finished: bool = False) -> Path:
    """Leaves what a run of a recipe leaves, with a checkpoint unless ``state`` is None."""
    folder.mkdir()
    assert claim_folder(folder, recipe, resume=False) == []
    if state is not None:
        with writing_folder(folder / "checkpoints" / f"checkpoint-{state.step}") as partial:
            write_run_state(state, partial)
            (partial / "model.safetensors").write_bytes(b"weights")
    if finished:
        (folder / "results.json").write_text('{"stages": {}, "facts": {}}', encoding="utf-8")
    return folder


def stored(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return document


def test_the_same_run_goes_on_without_a_word(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    assert claim_folder(folder, BEGUN, resume=True, processes=2) == []
    assert stored(folder) == BEGUN.as_dict()
    with pytest.raises(RecipeError, match="which already holds this run; add --resume to continue it"):
        claim_folder(folder, BEGUN, resume=False, processes=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log_every": 7}, "logging_steps 25 there, 7 here"),
        ({"evaluate_every": 7}, "eval_steps 250 there, 7 here"),
        ({"checkpoint_every": 7}, "save_steps 250 there, 7 here"),
        ({"keep_checkpoints": None}, "save_total_limit 2 there, None here"),
        ({"pictured_words": 0}, "pictured_words 12 there, 0 here"),
        ({"report_to": "wandb"}, "report_to 'none' there, 'wandb' here"),
        ({"run_name": "x", "push_to_hub": True}, "run_name None there, 'x' here, push_to_hub False there, True here"),
        ({"dataloader_num_workers": 2}, "dataloader_num_workers 0 there, 2 here"),
        ({"do_train": True}, "do_train False there, True here"),
        ({"prepared": "elsewhere"}, "prepared None there, 'elsewhere' here"),
    ],
)
def test_bookkeeping_may_change_and_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder, recipe = begin(tmp_path / "run"), BEGUN.override(**changes)
    (line,) = claim_folder(folder, recipe, resume=True, processes=2)
    assert sorted(line.removeprefix("changed since the run began: ").split(", ")) == sorted(said.split(", "))
    assert claim_folder(folder, recipe, resume=True, processes=2) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_cache": 4}, "gradient_cache None there, 4 here"),
        ({"gradient_checkpointing": True}, f"{CHECKPOINTING} {defaults()[CHECKPOINTING]} there, True here"),
    ],
)
@pytest.mark.parametrize(("processes", "size"), [(2, 8), (1, 16)])
def test_the_memory_of_a_step_may_change(
    tmp_path: Path, changes: dict[str, Any], said: str, processes: int, size: int
) -> None:
    folder = begin(tmp_path / "run")
    other = BEGUN.override(batch_size=size, **changes)
    first, second, *rest = claim_folder(folder, other, resume=True, processes=processes)
    assert first == f"changed since the run began: {said}"
    assert second == "the gradient of a step stays the same, the draws of dropout and rounding may not"
    assert len(rest) == (processes == 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 0.1}, "learning_rate 0.002 there, 0.1 here"),
        ({"seed": 3}, "seed 2021 there, 3 here"),
        ({"schedule": "cosine"}, "lr_scheduler_type 'linear' there, 'cosine' here"),
        ({"optim": "sgd"}, "optim 'adamw_torch_fused' there, 'sgd' here"),
        ({"adam_beta2": 0.98}, "adam_beta2 0.999 there, 0.98 here"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1 there, 2 here"),
        ({"warmup": 5}, "warmup_steps 0.06 there, 5 here"),
        ({"early_stopping_patience": 5}, "early_stopping_patience None there, 5 here"),
        ({"torch_compile": True}, "torch_compile False there, True here"),
        ({"temperature": 0.1}, "temperature 0.07 there, 0.1 here"),
        ({"levels": "apart"}, "levels 'multi' there, 'apart' here"),
        ({"corpus": ("a.tsv",)}, r"corpus \['embedded'\] there, \['a.tsv'\] here"),
        ({"layers": 3}, "layers 2 there, 3 here"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_numbers_are_another_run(tmp_path: Path, changes: dict[str, Any], said: str, finished: bool) -> None:
    folder = begin(tmp_path / "run", finished=finished)
    with pytest.raises(RecipeError, match=rf"which holds another \({said}\); choose another with --output"):
        claim_folder(folder, BEGUN.override(**changes), resume=True, processes=2)
    assert stored(folder) == BEGUN.as_dict()


def test_another_recipe_is_another_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="name 'tiny' there, 'paper' here"):
        claim_folder(begin(tmp_path / "run"), paper(), resume=True)


def test_measuring_is_fixed_where_training_follows_it(tmp_path: Path) -> None:
    recipe = BEGUN.override(schedule="reduce_lr_on_plateau")
    with pytest.raises(RecipeError, match="eval_steps 250 there, 7 here"):
        claim_folder(begin(tmp_path / "run", recipe), recipe.override(evaluate_every=7), resume=True, processes=2)


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "inverse_sqrt"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_may_become_longer_where_its_schedule_has_no_end(tmp_path: Path, schedule: str, finished: bool) -> None:
    recipe = BEGUN.override(schedule=schedule)
    folder = begin(tmp_path / "run", recipe, finished=finished)
    longer = recipe.override(max_steps=40)
    assert claim_folder(folder, longer, resume=True, processes=2) == ["length of the run: max_steps 18 there, 40 here"]
    assert not (folder / "results.json").exists()
    assert stored(folder)["training"]["max_steps"] == 40
    with pytest.raises(RecipeError, match="max_steps: expected at least the 4 steps done, got 3; raise it"):
        claim_folder(folder, recipe.override(max_steps=3), resume=True, processes=2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "thirds", "polynomial", "warmup_stable_decay"])
@pytest.mark.parametrize(("name", "there", "here"), [("max_steps", 18, 40), ("num_train_epochs", 1, 2)])
def test_the_end_of_a_schedule_stays(tmp_path: Path, schedule: str, name: str, there: int, here: int) -> None:
    recipe = BEGUN.override(schedule=schedule)
    folder = begin(tmp_path / "run", recipe)
    said = (
        f"{name}: expected {there}, as the learning rate .* follows lr_scheduler_type {schedule}, .* got {here}; give"
    )
    with pytest.raises(RecipeError, match=said):
        claim_folder(folder, recipe.override(**{name: here}), resume=True, processes=2)


def test_a_finished_run_without_checkpoints_cannot_become_longer(tmp_path: Path) -> None:
    recipe = BEGUN.override(schedule="constant")
    folder = begin(tmp_path / "run", recipe, None, finished=True)
    assert claim_folder(folder, recipe, resume=True) == []
    with pytest.raises(RecipeError, match="max_steps: expected 18, as no checkpoint of the run is left to go on from"):
        claim_folder(folder, recipe.override(max_steps=40), resume=True)
    assert (folder / "results.json").exists()


@pytest.mark.parametrize(
    ("processes", "size", "said"),
    [
        (1, 16, "the run had 2 × 8 pairs a batch (processes × pairs on each) and goes on with 1 × 16"),
        (4, 4, "the run had 2 × 8 pairs a batch (processes × pairs on each) and goes on with 4 × 4"),
    ],
)
def test_other_processes_with_the_same_batches_are_told(tmp_path: Path, processes: int, size: int, said: str) -> None:
    folder = begin(tmp_path / "run")
    (line,) = claim_folder(folder, BEGUN.override(batch_size=size), resume=True, processes=processes)
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("processes", "size", "advice"),
    [
        (1, 8, r"expected batches of 16 pairs \(2 × 8: processes × .*\), .* got 8 \(1 × 8\); give --batch-size 16"),
        (4, 8, r"got 32 \(4 × 8\); give --batch-size 4"),
        (3, 8, r"got 24 \(3 × 8\); start a number of processes that divides 16"),
        (16, 2, r"got 32 \(16 × 2\); start a number of processes that divides 16"),
        (2, 4, r"got 8 \(2 × 4\); give --batch-size 8"),
    ],
)
def test_other_batches_are_refused_with_the_size_to_give(
    tmp_path: Path, processes: int, size: int, advice: str
) -> None:
    with pytest.raises(RecipeError, match=advice):
        claim_folder(begin(tmp_path / "run"), BEGUN.override(batch_size=size), resume=True, processes=processes)


def test_processes_with_negatives_of_their_own_stay_as_many(tmp_path: Path) -> None:
    recipe = BEGUN.override(negatives_across="own")
    folder = begin(tmp_path / "run", recipe)
    assert claim_folder(folder, recipe, resume=True, processes=2) == []
    with pytest.raises(RecipeError, match="processes: expected 2, each with its own negatives, got 1; start 2"):
        claim_folder(folder, recipe.override(batch_size=16), resume=True, processes=1)


def test_a_finished_run_is_read_with_any_number_of_processes(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", finished=True)
    assert claim_folder(folder, BEGUN, resume=True, processes=5) == []
    with pytest.raises(RecipeError, match="batch_size: expected batches of 16 pairs"):
        claim_folder(folder, BEGUN.override(batch_size=4), resume=True, processes=2)
    with pytest.raises(RecipeError, match="precision: expected 'fp32', which the run has had, got 'bf16'"):
        claim_folder(folder, BEGUN.override(precision="bf16"), resume=True, processes=2)


def test_precision_is_what_it_meant_when_the_run_began(tmp_path: Path) -> None:
    auto = BEGUN.override(precision="auto")
    here = precision_of("auto")
    other = {"fp32": "bf16", "bf16": "fp32"}[here]
    folder = begin(tmp_path / "run", auto, replace(STATE, precision=other))
    said = f"precision: expected '{other}', .* got 'auto', which is {here} on this device; give --precision {other}"
    with pytest.raises(RecipeError, match=said):
        claim_folder(folder, auto, resume=True, processes=2)
    assert claim_folder(folder, auto.override(precision=other), resume=True, processes=2) == []


def test_state_is_read_as_written(tmp_path: Path) -> None:
    write_run_state(STATE, tmp_path)
    assert read_run_state(tmp_path) == STATE
    for name, value in (("step", True), ("precision", 4), ("warmup_steps", None), ("processes", "2"), ("step", 1.0)):
        (tmp_path / "run_state.json").write_text(json.dumps(asdict(STATE) | {name: value}), encoding="utf-8")
        with pytest.raises(RecipeError, match=f"output: expected {name} to be .* got {value!r}; restore the file"):
            read_run_state(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "5", '"x"', '{"name": ', "\xff", "[" * 100_000])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", lambda folder: claim_folder(folder, BEGUN, resume=True, processes=2)),
        ("samples.json", lambda folder: claim_samples(folder, {"corpus": "a"})),
        ("results.json", read_results),
        ("checkpoints/checkpoint-4/run_state.json", lambda folder: read_run_state(folder / "checkpoints/checkpoint-4")),
    ],
)
def test_a_damaged_file_is_said_in_one_line(
    tmp_path: Path, name: str, read: Callable[[Path], object], text: str
) -> None:
    folder = begin(tmp_path / "run", finished=name == "results.json")
    claim_samples(folder, {"corpus": "a"})
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError) as refusal:
        read(folder)
    said = str(refusal.value)
    assert said.startswith(f"output: expected a JSON object in {folder / name}, got ")
    assert "\n" not in said
    assert len(said) < 400


def test_other_documents_are_no_run_of_ours(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", finished=True)
    (folder / "run.json").write_text('{"name": "tiny", "data": 3, "training": []}', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"which holds another .*corpus "):
        claim_folder(folder, BEGUN, resume=True)
    (folder / "results.json").write_text('{"stages": []}', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"expected stages in .*results.json, got \[\]; restore the file"):
        read_results(folder)


def test_only_damaged_checkpoints_do_not_begin_again(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    damaged = folder / "checkpoints" / "checkpoint-4"
    for harm in ("model.safetensors", "complete.json"):
        before = (damaged / harm).read_bytes()
        (damaged / harm).write_bytes(b"[]")
        with pytest.raises(RecipeError, match=r"got only damaged ones \(checkpoint-4\); restore one, or remove"):
            claim_folder(folder, BEGUN, resume=True, processes=2)
        # Nor does another run begin over it.
        with pytest.raises(RecipeError, match=r"holds another \(learning_rate 0.002 there, 0.1 here\)"):
            claim_folder(folder, BEGUN.override(learning_rate=0.1), resume=False, processes=2)
        assert damaged.is_dir()
        (damaged / harm).write_bytes(before)
    assert claim_folder(folder, BEGUN, resume=True, processes=2) == []


def test_a_damaged_checkpoint_goes_where_a_sound_one_is(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    newer = folder / "checkpoints" / "checkpoint-8"
    with writing_folder(newer) as partial:
        write_run_state(replace(STATE, step=8), partial)
    (newer / "run_state.json").write_text("{}", encoding="utf-8")
    said = [f"removed, as it was incomplete or damaged: {newer}"]
    assert claim_folder(folder, BEGUN, resume=True, processes=2) == said
    assert [step for step, _ in checkpoints(folder)] == [4]


def test_a_run_killed_in_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", state=None)
    partial = folder / "checkpoints" / "checkpoint-4.partial"
    partial.mkdir(parents=True)
    other = BEGUN.override(learning_rate=0.1)
    assert claim_folder(folder, other, resume=False) == [f"removed, as it was incomplete or damaged: {partial}"]
    assert stored(folder) == other.as_dict()


def test_links_in_the_place_of_checkpoints_are_removed_and_not_followed(tmp_path: Path) -> None:
    folder, precious = begin(tmp_path / "run"), tmp_path / "precious"
    precious.mkdir()
    (precious / "complete.json").write_text('{"files": {}}', encoding="utf-8")
    links = [folder / "checkpoints" / name for name in ("checkpoint-9", "checkpoint-8.partial", "checkpoint-7")]
    for link, target in zip(links, (precious, precious, tmp_path / "nowhere"), strict=True):
        link.symlink_to(target)
    removed = claim_folder(folder, BEGUN, resume=True, processes=2)
    assert removed == [f"removed, as it was incomplete or damaged: {link}" for link in sorted(links)]
    assert [link for link in links if link.is_symlink()] == []
    assert (precious / "complete.json").is_file()
    # One that appears while the run writes.
    links[0].symlink_to(precious)
    with writing_folder(links[0]) as partial:
        (partial / "weights").write_text("x", encoding="utf-8")
    assert links[0].is_dir()
    assert not links[0].is_symlink()
    assert (precious / "complete.json").is_file()


def former(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as earlier versions stored it."""
    training = recipe.training
    return {
        "name": recipe.name,
        "data": {"corpus": ["embedded"], "languages": [], "validation": None, "lexicon": None, "held_out_words": 0.1},
        "encoder": recipe.as_dict()["encoder"],
        "objective": {"loss": "cz_nce", "alpha": 0.0},
        "optimisation": {
            "optimizer": "adamw", "learning_rate": training.learning_rate, "weight_decay": 0.01, "schedule": "linear",
            "warmup": 0.06, "clip": 1.0, "batch_size": training.per_device_train_batch_size, "epochs": 1,
            "max_steps": 18,
        },
        "bookkeeping": {"seed": 2021, "precision": "fp32", "log_every": 25, "checkpoint_every": 100},
    }  # fmt: skip


def test_a_run_of_an_earlier_version_is_read_if_finished(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", finished=True)
    (folder / "run.json").write_text(json.dumps(former(BEGUN)), encoding="utf-8")
    assert claim_folder(folder, BEGUN, resume=True) == []
    assert stored(folder) == former(BEGUN)
    for changes, said in (
        ({"batch_size": 4}, "per_device_train_batch_size 8 there, 4 here"),
        ({"max_steps": 40}, "max_steps 18 there, 40 here"),
        ({"loss": "info_nce"}, "loss 'cz_nce' there, 'info_nce' here"),
        ({"lexicon": ("a.tsv",)}, r"lexicon \[\] there, \['a.tsv'\] here"),
    ):
        with pytest.raises(RecipeError, match=said):
            claim_folder(folder, BEGUN.override(**changes), resume=True)  # type: ignore[arg-type]
    (folder / "results.json").unlink()
    with pytest.raises(RecipeError, match="begun by an earlier one, whose batches differ; finish it with that version"):
        claim_folder(folder, BEGUN, resume=True, processes=2)


def test_other_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    claim_samples(folder, {"corpus": "a"})
    written = (folder / "samples.json").read_text(encoding="utf-8")
    with pytest.raises(RecipeError, match="was started with, got other content in: corpus; restore the files"):
        claim_samples(folder, {"corpus": "b"})
    assert (folder / "samples.json").read_text(encoding="utf-8") == written
    claim_samples(folder, {"corpus": "a"})


def test_a_finished_model_is_compared_with_what_was_written(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    for name in ("model.safetensors", "config.json", "README.md", "1_Pooling/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("written", encoding="utf-8")
    write_results(folder, BEGUN, {}, {})
    assert list(read_results(folder)["files"]) == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    (folder / "README.md").write_text("a card of one's own", encoding="utf-8")
    check_model(folder, read_results(folder))
    (folder / "model.safetensors").write_text("wrotten", encoding="utf-8")
    (folder / "config.json").write_text("w", encoding="utf-8")
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(RecipeError) as refusal:
        check_model(folder, read_results(folder))
    assert str(refusal.value) == (
        f"output: expected the model in {folder} as the run wrote it, got 1_Pooling/config.json (missing), config.json "
        "(1 bytes instead of 7), model.safetensors (other content of the same size); restore the files, or remove "
        f"{folder / 'results.json'} to write everything again from the last checkpoint"
    )
    # Former versions listed no files.
    check_model(folder, {"stages": {}, "facts": {}})
    with pytest.raises(RecipeError, match=r"expected files of the model in .*results.json that can be compared, got"):
        check_model(folder, {"files": {"config.json": {}}})


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_in_the_place_of_all_checkpoints_is_refused(tmp_path: Path, target: str) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    (elsewhere / "checkpoint-3.partial").mkdir(parents=True)
    (folder / "checkpoints").symlink_to(tmp_path / target)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"output: expected .*checkpoints to be a folder of the run, got a link to"):
        claim_folder(folder, BEGUN, resume=True)
    assert (elsewhere / "checkpoint-3.partial").is_dir()
    (folder / "checkpoints").unlink()
    (folder / "checkpoints").write_text("x", encoding="utf-8")
    with pytest.raises(RecipeError, match="got something else, in which nothing will be removed"):
        claim_folder(folder, BEGUN, resume=True)
