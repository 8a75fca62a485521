"""The training command's options: those of the recipe's parts, Trainer's in both spellings, and prepare's."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ctloss.train import Recipe, tiny
from ctloss.train.__main__ import READING, main, parser, prepare_parser, recipe_of
from ctloss.train.arguments import FORMER, defaults, ours
from ctloss.train.recipe import Data, EncoderChoice
from support.tiny_runs import CHECKPOINTING


def recipe(*words: str) -> Recipe:
    return recipe_of(parser().parse_args(words))


def test_every_field_is_an_option_with_help() -> None:
    text = parser().format_help()
    names = [item.name for group in Recipe.groups().values() for item in fields(group)]
    for name in [*names, *(name for name in defaults() if name != "output_dir")]:
        assert re.search(rf"^  --{name.replace('_', '-')}[ ,\n]", text, re.MULTILINE), name
    for former in FORMER:
        assert "--" + former.replace("_", "-") in text.replace("-\n", "-").replace(" ", "") + text
    assert max(map(len, text.splitlines())) <= 120


def test_the_short_help_lists_what_is_ours() -> None:
    text = parser(whole_help=False).format_help()
    assert all("--" + name.replace("_", "-") in text for name in ours())
    assert "--adam-beta1" not in text
    assert "--help-all lists them" in text


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("", {}),
        ("--batch-size 32 --epochs 3", {"per_device_train_batch_size": 32, "num_train_epochs": 3}),
        ("--per_device_train_batch_size 32 --num-train-epochs 0.5", {"batch_size": 32, "epochs": 0.5}),
        ("--learning_rate 1e-3 --warmup 100", {"learning_rate": 1e-3, "warmup_steps": 100}),
        ("--warmup-ratio 0.1", {"warmup_steps": 0.1}),
        ("--schedule constant --optimizer adam", {"lr_scheduler_type": "constant_with_warmup", "weight_decay": 0.0}),
        ("--lr-scheduler-type cosine --lr_scheduler_kwargs {\"num_cycles\":2}",
         {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}}),
        ("--gradient-checkpointing --bf16", {CHECKPOINTING: True, "precision": "bf16"}),
        ("--gradient_checkpointing false --torch_compile", {"torch_compile": True}),
        ("--report_to wandb tensorboard", {"report_to": ["wandb", "tensorboard"]}),
        ("--no-dataloader-pin-memory --dataloader-num-workers 2",
         {"dataloader_pin_memory": False, "dataloader_num_workers": 2}),
        ("--ddp_find_unused_parameters true", {"ddp_find_unused_parameters": True}),
        ("--fsdp full_shard --deepspeed ds.json", {"fsdp": "full_shard", "deepspeed": "ds.json"}),
        ("--no-head --balance --levels multi", {"head": False, "balance": True, "levels": "multi"}),
        ("--corpus a b --languages en fr --max-length 9",
         {"corpus": ("a", "b"), "languages": ("en", "fr"), "max_length": 9}),
        ("--max-steps -1 --output-dir x", {}),
        ("--early_stopping_patience 2 --load_best_model_at_end",
         {"early_stopping_patience": 2, "load_best_model_at_end": True}),
    ],
)  # fmt: skip
def test_options_are_fields(words: str, same: dict[str, Any]) -> None:
    assert recipe(*words.split()) == tiny().override(**same)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batchsize 3", "unrecognized arguments: --batchsize 3; did you mean --batch_size?"),
        ("--learning-rat=3", "unrecognized arguments: --learning-rat=3; did you mean --learning-rate?"),
        ("--learn 3", "unrecognized arguments: --learn 3;"),
        ("prepar", "unrecognized arguments: prepar; see --help"),
        ("--max-steps x", "invalid int value: 'x'"),
        ("--eval-strategy epohc", "expected one of no, steps, epoch, got 'epohc'; did you mean epoch?"),
        ("--recipe large", "argument --recipe: expected one of paper, tiny, got 'large'; choose one of them"),
        ("prepare --layers 3", "unrecognized arguments: --layers 3"),
        ("prepare --batch-size 3", "unrecognized arguments: --batch-size 3; --help lists them"),
    ],
)
def test_what_cannot_be_parsed_is_said_in_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    said = capsys.readouterr().err
    assert (ended.value.code, len(said.splitlines())) == (2, 1)
    assert message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size 1", "per_device_train_batch_size: expected at least 2, got 1"),
        ("--auto_find_batch_size", "auto_find_batch_size: expected False, got True; a smaller batch"),
        ("--parallelism_config x", "parallelism_config: expected None, got 'x'"),
        ("--resume_from_checkpoint x", "resume_from_checkpoint: expected None, got 'x'; the run in the output folder"),
        (
            "--batch-size 4 --per_device_train_batch_size 8",
            "expected 4, as batch_size asks for, got 8; drop per_device",
        ),
        ("prepare --workers 0", "workers: expected at least 1, got 0"),
        ("prepare --max-length 2", "max_length: expected at least 4, got 2"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "output", "resume"),
    [("--batch-size 8", None, False), ("--batch-size 8 --output_dir out --resume", "out", True)],
)
def test_a_run_is_handed_the_recipe(
    words: str, output: str | None, resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr("ctloss.train.run.pretrain", lambda *given, **named: called.append((*given, named)))
    assert main(words.split()) == 0
    assert called == [(tiny().override(batch_size=8), output, {"resume": resume})]


def test_prepare_takes_what_preparation_reads() -> None:
    text = prepare_parser().format_help()
    names = {item.name for group in (Data, EncoderChoice) for item in fields(group)}
    flags = set(re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)) - {"output", "workers"}
    assert {flag.replace("-", "_") for flag in flags} == names - READING


def test_prepare_hands_over_what_was_given_and_prints_what_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[Any] = []

    def prepare(*given: Any, **named: Any) -> str:
        called.append((*given, named))
        return "made"

    build, folder = ModuleType("build"), ModuleType("folder")
    build.prepare, folder.describe = prepare, lambda prepared: f"described {prepared}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctloss.train.prepared.build", build)
    monkeypatch.setitem(sys.modules, "ctloss.train.prepared.folder", folder)
    monkeypatch.setitem(sys.modules, "ctloss.train.prepared", ModuleType("prepared"))
    assert (
        main(
            [
                "prepare",
                "--corpus",
                "a.tsv",
                "--languages",
                "en",
                "fr",
                "--no-lower-case",
                "--output",
                "out",
                "--workers",
                "2",
            ]
        )
        == 0
    )
    data, encoder = Data(corpus=("a.tsv",), languages=("en", "fr")), EncoderChoice(lower_case=False)
    assert called == [(data, encoder, "out", {"workers": 2})]
    assert capsys.readouterr().out == "described made\n"


def test_prepared_decides_what_was_prepared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"corpus": ["a.tsv"], "max_length": 30, "vocabulary": 300}
    folder = ModuleType("folder")
    folder.open_prepared = lambda path: SimpleNamespace(settings=settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctloss.train.prepared.folder", folder)
    monkeypatch.setitem(sys.modules, "ctloss.train.prepared", ModuleType("prepared"))
    found = recipe("--prepared", "p")
    assert (found.data.corpus, found.data.max_length, found.encoder.vocabulary) == (("a.tsv",), 30, 300)
    assert main(["--prepared", "p", "--max-length", "128"]) == 2
    assert "max_length: expected 30, as the folder p was prepared with, got 128" in capsys.readouterr().err
