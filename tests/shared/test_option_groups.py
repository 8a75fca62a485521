"""Groups of options: what their fields refuse, and the command line that is made from them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from ctloss.shared.options import Group, OptionError, add_options, command_line, given_options, option, read_values


@dataclass(frozen=True)
class Training(Group):
    """How it is trained."""

    optimizer: Literal["adam", "adamw"] = option("adamw", "optimizer")
    rate: float = option(1e-3, "learning rate, 100% of it")
    batch_size: int = option(32, "items of a step", flag="--training-batch-size")
    max_steps: int | None = option(None, "steps instead of epochs")
    precision: Literal["fp32", "bf16"] | None = option(None, "autocast", shown="what the device is fast at")
    lower_case: bool = option(True, "lower-case the text")
    name: str = option("tiny", "of the run")
    languages: tuple[str, ...] = option((), "languages", shown="all")
    seeds: tuple[int, ...] = option((1,), "one run each")
    files: tuple[str | Path, ...] = option((), "files to read")
    note: str = option("", "for the card")
    output: str | Path | None = None

    def check(self) -> None:
        self.at_least(1, "batch_size", "max_steps")
        self.positive("rate")


def parser(groups: dict[str, Training] | None = None, **options: Any) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser()
    add_options(top, "training", groups or {"": Training()}, **options)
    return top


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer: expected one of adam, adamw, got 'sgd'; choose one of them"),
        ({"optimizer": 1}, "optimizer: expected one of adam, adamw, got 1"),
        ({"precision": "fp16"}, "precision: expected one of fp32, bf16, got 'fp16'"),
        ({"rate": "high"}, "rate: expected a number, got 'high'; give a value of that kind"),
        ({"rate": float("nan")}, "rate: expected a finite number, got nan"),
        ({"rate": 0}, "rate: expected a number above 0, got 0"),
        ({"rate": 10**400}, "rate: expected a number of at most 64 bits, got 1000"),
        ({"batch_size": 1 << 63}, "batch_size: expected a number of at most 64 bits, got 92"),
        ({"name": "caf\udce9"}, r"name: expected a name in UTF-8, got 'caf\\udce9'; rename it"),
        ({"languages": ("en", "\udce9")}, r"languages: expected a name in UTF-8, got '\\udce9'"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number, got 1.5"),
        ({"batch_size": True}, "batch_size: expected a whole number, got True"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0; raise it"),
        ({"max_steps": "3"}, "max_steps: expected a whole number or None, got '3'"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"lower_case": 1}, "lower_case: expected True or False, got 1"),
        ({"name": None}, "name: expected text, got None"),
        ({"languages": "en"}, "languages: expected a tuple of texts, got 'en'"),
        ({"languages": (1,)}, r"languages: expected a tuple of texts, got \(1,\)"),
        ({"seeds": ("1",)}, r"seeds: expected a tuple of whole numbers, got \('1',\)"),
        ({"files": (1,)}, r"files: expected a tuple of texts or paths, got \(1,\)"),
        ({"output": 1}, "output: expected text or a path or None, got 1"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Training(**changes)


def test_values_that_fit_are_kept() -> None:
    given = Training(rate=1, precision="bf16", seeds=[1, 2], files=[Path("a"), "b"], output=Path("out"))
    assert (given.rate, given.seeds, given.files) == (1, (1, 2), (Path("a"), "b"))
    assert replace(given, precision=None).precision is None


def test_only_options_are_on_the_command_line() -> None:
    flags = command_line(Training)
    assert flags["batch_size"] == "--training-batch-size"
    assert flags["max_steps"] == "--max-steps"
    assert "output" not in flags


def test_what_is_given_makes_the_group() -> None:
    top = parser()
    assert given_options(top.parse_args([]), Training) == {}
    words = "--optimizer adam --rate 0.5 --training-batch-size 4 --max-steps 7 --no-lower-case"
    given = given_options(top.parse_args([*words.split(), "--languages", "en", "fr", "--seeds", "1", "2"]), Training)
    expected = {"optimizer": "adam", "rate": 0.5, "batch_size": 4, "max_steps": 7, "lower_case": False}
    assert given == {**expected, "languages": ["en", "fr"], "seeds": [1, 2]}
    assert Training(**given) == Training(**expected, languages=("en", "fr"), seeds=(1, 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimizer sgd", "choose from adam, adamw"),
        ("--max-steps 1.5", "invalid int value"),
        ("--seeds one", "invalid int value"),
        ("--languages", "expected at least one argument"),
        ("--output x", "unrecognized arguments"),
    ],
)
def test_other_words_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(words.split())
    assert message in capsys.readouterr().err.replace("'", "")


def test_help_shows_the_defaults() -> None:
    shown = " ".join(parser().format_help().split())
    for text in (
        "training: How it is trained.",
        "--optimizer {adam,adamw} optimizer (default: adamw)",
        "--rate X learning rate, 100% of it (default: 0.001)",
        "--training-batch-size N items of a step (default: 32)",
        "autocast (default: what the device is fast at)",
        "--lower-case, --no-lower-case lower-case the text (default: on)",
        "steps instead of epochs (default: none)",
        "languages (default: all)",
        "one run each (default: 1)",
        "for the card (default: none)",
    ):
        assert text in shown


def test_help_tells_defaults_apart() -> None:
    groups = {"xnli": Training(), "pos": Training(batch_size=8, max_steps=5, lower_case=False)}
    shown = " ".join(parser(groups, description="Other words.").format_help().split())
    assert "Other words." in shown
    assert "How it is trained." not in shown
    for text in ("(xnli: 32, pos: 8)", "(xnli: none, pos: 5)", "(xnli: on, pos: off)", "(default: 0.001)"):
        assert text in shown


def test_lists_are_texts_to_choose_from() -> None:
    given = parser(lists=True).parse_args(["--training-batch-size", "4", "pos=8", "--lower-case", "off"])
    assert given_options(given, Training) == {"batch_size": ["4", "pos=8"], "lower_case": ["off"]}


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("optimizer", ["adam"], "adam"),
        ("rate", ["1e-4"], 1e-4),
        ("max_steps", ["7"], 7),
        ("lower_case", ["off"], False),
        ("languages", ["en", "fr"], ("en", "fr")),
        ("seeds", ["3"], (3,)),
        ("files", ["a", "b"], ("a", "b")),
    ],
)
def test_texts_are_read_as_the_field_says(name: str, texts: list[str], value: object) -> None:
    assert read_values(Training, name, texts) == value


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("batch_size", ["many"], "--training-batch-size of pos: expected a whole number, got 'many'"),
        ("batch_size", ["1.5"], "--training-batch-size of pos: expected a whole number, got '1.5'"),
        ("rate", ["high"], "--rate of pos: expected a number, got 'high'"),
        ("rate", ["1", "2"], "--rate of pos: expected one value, got '1 2'"),
        ("optimizer", ["sgd"], "--optimizer of pos: expected one of adam, adamw, got 'sgd'"),
        ("lower_case", ["no"], "--lower-case of pos: expected on or off, got 'no'"),
        ("seeds", ["1", "x"], "--seeds of pos: expected a whole number, got 'x'"),
    ],
)
def test_texts_that_spell_nothing_are_refused(name: str, texts: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_values(Training, name, texts, of="pos")
