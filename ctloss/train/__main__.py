"""The command line: ``python -m ctloss.train``."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..command import as_process
from .recipe import RECIPES, Recipe, RecipeError
from .text.corpus import CorpusError

EPILOG = """\
examples:
  python -m ctloss.train
  python -m ctloss.train --recipe tiny --output runs/info --loss info_nce --levels sentence
  python -m ctloss.train --corpus data/corpus --languages en fr --lexicon data/en-fr.tsv --output runs/en-fr
  python -m ctloss.train --output runs/tiny --resume
  torchrun --nproc-per-node 2 -m ctloss.train --output runs/two
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser: an option for each field of the recipe's parts, unset unless given."""
    top = argparse.ArgumentParser(
        prog="python -m ctloss.train",
        description="Pretrain a multilingual encoder on parallel text with CZ-NCE or infoNCE,\n"
        "at sentence and word level (Chen et al. 2022, arXiv 2202.13083).\n"
        "Without options: the recipe 'tiny', minutes on two CPU cores.",
        usage="%(prog)s [--recipe {tiny,paper}] [--output FOLDER] [--resume] [options]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--recipe", choices=sorted(RECIPES), default="tiny", help="where the defaults below come from (default: tiny)"
    )
    top.add_argument("--output", metavar="FOLDER", help="output folder (default: runs/RECIPE)")
    top.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    for part, group in Recipe.groups().items():
        section = top.add_argument_group(part, (group.__doc__ or "").strip())
        hints = get_type_hints(group)
        for item in fields(group):  # type: ignore[arg-type]
            flag = "--" + item.name.replace("_", "-")
            shown = {name: getattr(getattr(make(), part), item.name) for name, make in RECIPES.items()}
            help = f"{item.metadata['help']} ({_defaults(shown)})".replace("%", "%%")
            section.add_argument(
                flag, dest=item.name, default=None, help=help, **_reading(hints[item.name], item.metadata["choices"])
            )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    top = parser()
    given = vars(top.parse_args(arguments))
    recipe, output, resume = given.pop("recipe"), given.pop("output"), given.pop("resume")
    chosen = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }
    try:
        complete = RECIPES[recipe]().override(**chosen)
        from .run import pretrain

        pretrain(complete, output, resume=resume)
    except (RecipeError, CorpusError) as error:
        print(f"{top.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _reading(hint: Any, choices: tuple[str, ...]) -> dict[str, Any]:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        return {"nargs": "+", "metavar": "X"}
    if choices:
        return {"choices": choices}
    return {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "TEXT")}


def _defaults(shown: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(value) or "none"
        if value is None or isinstance(value, bool):
            return "none" if value is None else "on" if value else "off"
        return str(value)

    if len(set(shown.values())) == 1:
        return f"default: {text(shown['tiny'])}"
    return ", ".join(f"{name}: {text(value)}" for name, value in shown.items())


if __name__ == "__main__":
    as_process(main)
