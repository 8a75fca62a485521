"""The command line: ``python -m ctloss.train``, and ``python -m ctloss.train prepare``."""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from ..shared.command import Signals, as_process
from ..shared.options import Parser, add_options, default_text, given_options
from ..shared.text import DataError
from .arguments import FORMER, LISTED, PretrainingArguments, defaults, hints, ours
from .effects import IDLE, REFUSED
from .recipe import RECIPES, Data, EncoderChoice, Recipe, RecipeError
from .stops import ENDS

EPILOG = """\
examples:
  python -m ctloss.train
  python -m ctloss.train --recipe tiny --output runs/info --loss info_nce --levels sentence
  python -m ctloss.train --corpus data/corpus --languages en fr --lexicon data/en-fr.tsv --output runs/en-fr
  python -m ctloss.train prepare --corpus data/corpus --languages en fr --output prepared/en-fr
  python -m ctloss.train --prepared prepared/en-fr --output runs/en-fr --lr_scheduler_type cosine --report_to wandb
  python -m ctloss.train --output runs/tiny --resume
  torchrun --nproc-per-node 2 -m ctloss.train --output runs/two
"""
PREPARE_EPILOG = """\
examples:
  python -m ctloss.train prepare --corpus data/corpus --languages en fr --output prepared/en-fr
  python -m ctloss.train prepare --corpus hub:NAME --languages en fr --encoder xlm-roberta-base --output prepared/xlmr
"""
# Fields of data and encoder with which a run reads what is prepared; the others are prepared with.
READING = {"prepared", "mixing", "held_out_words", "only_with_words", "layers", "hidden", "heads", "dropout"}
HELP_ALL = "--help-all"


class _OneSpelling(argparse.RawDescriptionHelpFormatter):
    """Shows an option that is spelled with - and with _ once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        spellings = action.option_strings
        shown.option_strings = [
            each for each in spellings if "_" not in each or each.replace("_", "-") not in spellings
        ]
        return super()._format_action_invocation(shown)


class _Parser(Parser, HfArgumentParser):
    """transformers' parser of dataclasses, in which nothing is set unless given."""

    def __init__(self, **others: Any) -> None:
        super().__init__(
            formatter_class=_OneSpelling,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            **others,
        )

    def add_field(self, group: Any, item: Any, name: str, hint: Any, help: str) -> None:
        """Adds the options of a dataclass's field under a name, which need not be the field's."""
        item, before = copy.copy(item), len(group._group_actions)
        # A value of another type than text is for Python only.
        item.name, item.type = name, str | None if "ParallelismConfig" in str(hint) else hint
        item.metadata = {"help": help}
        self._parse_dataclass_field(group, item)
        for action in group._group_actions[before:]:
            action.default = argparse.SUPPRESS
            if hint == bool | None:
                action.nargs, action.const = "?", True
            if name == "report_to":
                action.nargs = "+"
            if not action.choices and action.nargs != 0:
                action.metavar = "X"


def parser(*, whole_help: bool = True) -> argparse.ArgumentParser:
    """Returns the parser of a run, with an option for each field of the recipe's parts and of Trainer's arguments.

    ``whole_help`` lists those of Trainer's in the help of which we change nothing.
    """
    top = _Parser(
        prog="python -m ctloss.train",
        description="Pretrain a multilingual encoder on parallel text with CZ-NCE or infoNCE,\n"
        "at sentence and word level (Chen et al. 2022, arXiv 2202.13083).\n"
        "Without options: the recipe 'tiny', minutes on two CPU cores.\n"
        "'python -m ctloss.train prepare --help' tells how to prepare a corpus once for many runs.",
        usage="%(prog)s [prepare] [--recipe {tiny,paper}] [--output FOLDER] [--resume] [options]",
        epilog=EPILOG,
        listed=LISTED,
    )
    top.add_argument(
        "--recipe", choices=sorted(RECIPES), default="tiny", help="source of the defaults below (default: tiny)"
    )
    top.add_argument(
        "--output",
        "--output_dir",
        "--output-dir",
        default=None,
        metavar="FOLDER",
        help="output folder (default: runs/RECIPE)",
    )
    top.add_argument("--resume", action="store_true", default=False, help="continue the run in the output folder")
    top.add_argument(HELP_ALL, action="help", help="this help with all of Trainer's options")
    for part in Recipe.groups():
        add_options(top, part, {name: getattr(make(), part) for name, make in RECIPES.items()})
    _add_training(top, whole_help=whole_help)
    return top


def prepare_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``prepare``."""
    top = _Parser(
        prog="python -m ctloss.train prepare",
        description="Read, split and tokenize a corpus and find its word pairs once, for any number of runs,\n"
        "which then train with --prepared FOLDER.",
        usage="%(prog)s --output FOLDER [--workers N] [options]",
        epilog=PREPARE_EPILOG,
    )
    top.add_argument(
        "--output", metavar="FOLDER", default=None, help="folder to prepare (default: one in datasets' cache)"
    )
    top.add_argument("--workers", metavar="N", type=int, default=None, help="processes (default: one per core)")
    for title, group in (("data", Data()), ("encoder", EncoderChoice())):
        add_options(top, title, {"": group}, leave_out=READING)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    preparing = words[:1] == ["prepare"]
    top = prepare_parser() if preparing else parser(whole_help=HELP_ALL in words)
    parsed = top.parse_args(words[preparing:])
    try:
        # A run hears for itself as soon as it has a folder to go on in.
        with Signals(top.prog, "what is finished is kept: give the command again to go on"):
            (_prepare if preparing else _pretrain)(parsed)
    except (RecipeError, DataError) as error:
        # Of several processes, all of which refuse, the first says so.
        if os.environ.get("RANK", "0") == "0":
            print(f"{top.prog}: error: {error}", file=sys.stderr)
        return 2
    except ENDS as end:
        if end.told:
            print(f"{top.prog}: {end}", file=sys.stderr)
        return end.status
    return 0


def recipe_of(parsed: argparse.Namespace) -> Recipe:
    """Returns the recipe that the command line asks for."""
    chosen = {name: value for group in Recipe.groups().values() for name, value in given_options(parsed, group).items()}
    training = {name: value for name, value in vars(parsed).items() if name in defaults() or name in FORMER}
    training.pop("output_dir", None)
    recipe = RECIPES[parsed.recipe]().override(**chosen, **training)
    if recipe.data.prepared is None:
        return recipe
    from .prepared.folder import open_prepared

    return recipe.prepared_with(open_prepared(recipe.data.prepared).settings, given=chosen)


def _pretrain(parsed: argparse.Namespace) -> None:
    recipe = recipe_of(parsed)
    from .run import pretrain

    pretrain(recipe, parsed.output, resume=parsed.resume)


def _prepare(parsed: argparse.Namespace) -> None:
    data, encoder = Data(**given_options(parsed, Data)), EncoderChoice(**given_options(parsed, EncoderChoice))
    from .prepared.build import prepare
    from .prepared.folder import describe

    print(describe(prepare(data, encoder, parsed.output, workers=parsed.workers)))


def _add_training(top: _Parser, *, whole_help: bool) -> None:
    """Adds an option for each of Trainer's arguments, ours first, and for the names that they had before."""
    mine = top.add_argument_group("training", "Trainer's arguments with defaults of ours, and a few of our own.")
    others = "Trainer's other arguments work as well, such as --report-to and --lr-scheduler-kwargs"
    theirs = top.add_argument_group("Trainer", others + ("." if whole_help else f"; {HELP_ALL} lists them."))
    usual = {item.name: item.metadata.get("help") for item in fields(TrainingArguments)}
    known = {item.name: item for item in fields(PretrainingArguments)}
    former = {name: [old for old, new in FORMER.items() if new == name and old not in known] for name in known}
    training = {name: make().training for name, make in RECIPES.items()}
    for name in [*ours(), *(name for name in known if name not in (*ours(), "output_dir"))]:
        help, hint = known[name].metadata.get("help") or usual[name], hints()[name]
        values = {recipe: getattr(chosen, name) for recipe, chosen in training.items()}
        if name in REFUSED:
            text = f"refused: {REFUSED[name][1]}"
        elif name in IDLE:
            text = f"no effect: {IDLE[name]}"
        else:
            also = ", ".join(f"--{old.replace('_', '-')}" for old in former[name])
            text = f"{help} ({default_text(values)}{'; also ' if also else ''}{also})"
        group, hidden = (mine, False) if name in ours() else (theirs, not whole_help)
        top.add_field(group, known[name], name, hint, argparse.SUPPRESS if hidden else text)
        for old in former[name]:
            top.add_field(group, known[name], old, hint, argparse.SUPPRESS)


if __name__ == "__main__":
    as_process(main)
