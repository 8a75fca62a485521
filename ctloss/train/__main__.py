"""The command line: ``python -m ctloss.train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..shared.command import as_process
from ..shared.options import add_options, given_options
from ..shared.text import DataError
from .recipe import RECIPES, Recipe, RecipeError

EPILOG = """\
examples:
  python -m ctloss.train
  python -m ctloss.train --recipe tiny --output runs/info --loss info_nce --levels sentence
  python -m ctloss.train --corpus data/corpus --languages en fr --lexicon data/en-fr.tsv --output runs/en-fr
  python -m ctloss.train --output runs/tiny --resume
  torchrun --nproc-per-node 2 -m ctloss.train --output runs/two
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser, with an option for each field of the recipe's parts."""
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
        "--recipe", choices=sorted(RECIPES), default="tiny", help="source of the defaults below (default: tiny)"
    )
    top.add_argument("--output", metavar="FOLDER", help="output folder (default: runs/RECIPE)")
    top.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    for part in Recipe.groups():
        add_options(top, part, {name: getattr(make(), part) for name, make in RECIPES.items()})
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    top = parser()
    parsed = top.parse_args(arguments)
    chosen = {name: value for group in Recipe.groups().values() for name, value in given_options(parsed, group).items()}
    try:
        recipe = RECIPES[parsed.recipe]().override(**chosen)
        from .run import pretrain

        pretrain(recipe, parsed.output, resume=parsed.resume)
    except (RecipeError, DataError) as error:
        print(f"{top.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    as_process(main)
