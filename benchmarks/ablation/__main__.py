"""The command line: ``python -m benchmarks.ablation --data FOLDER --output FOLDER [--quick]``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation.plan import FULL, METHODS, QUICK
from benchmarks.ablation.whole import Ablation
from benchmarks.results import insert, split_document

COMMAND = "python -m benchmarks.ablation"
PARTS = ("base", "table", "study", "words")
EPILOG = """\
The folder of the corpora holds tatoeba-train, news, tico19, bible and lexicon to train on, and tatoeba, bucc, multi30k,
ud, ner, xnli, nli-train-en, pawsx and align to evaluate on; docs/ describes their formats. A rerun continues where the
last one stopped; a run is found again by its configuration, so a changed setting trains only what it concerns.
Evaluations with other settings or data than before are refused: remove the folders named evaluation to repeat them.
The report is rewritten after every row.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=COMMAND,
        description="Train and evaluate the rows of the table of Chen et al. 2022 in miniature, side by side.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--data", required=True, type=Path, help="folder of the corpora")
    options.add_argument("--output", required=True, type=Path, help="folder for everything; report.md is the report")
    options.add_argument(
        "--quick", action="store_true", help="a small version of everything, in 17 minutes on two cores"
    )
    options.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"some of {', '.join(METHODS)}"
    )
    options.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="of the rows (default: 1 2 3)")
    options.add_argument(
        "--only",
        choices=(*PARTS, "report"),
        help="do only this (default: all); report writes the report of what is done",
    )
    options.add_argument("--threads", type=int, help="PyTorch's CPU threads (default: all cores)")
    options.add_argument(
        "--write", type=Path, metavar="DOCUMENT", help="also put the report between the markers of this document"
    )
    options.add_argument(
        "--summary", type=Path, metavar="DOCUMENT", help="put a short table between the markers of this document"
    )
    options.add_argument("--figures", type=Path, metavar="FOLDER", help="for the pictures (default: the output folder)")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    top = parser()
    given = top.parse_args(arguments)
    scale = QUICK if given.quick else FULL
    lists = {name: getattr(given, name) for name in ("methods", "seeds")}
    chosen: dict[str, Any] = {name: tuple(values) for name, values in lists.items() if values}
    scale = dataclasses.replace(scale, **chosen)
    try:
        if given.threads is not None:
            if given.threads < 1:
                raise ValueError(f"expected --threads at least 1, got {given.threads}")
            torch.set_num_threads(given.threads)
        if min(scale.seeds) < 1 or len(set(scale.seeds)) < len(scale.seeds):
            raise ValueError(f"expected --seeds from 1 on, each once, got {' '.join(map(str, scale.seeds))}")
        for document in filter(None, (given.write, given.summary)):
            split_document(document, COMMAND)
        whole = Ablation(given.data, given.output, scale, given.figures or given.output)
        if given.only != "report":
            whole.check_base()
            for part in PARTS if given.only is None else (given.only,):
                getattr(whole, part)()
        text = whole.write()
        if given.write:
            insert(given.write, COMMAND, text)
        if given.summary:
            insert(given.summary, COMMAND, whole.summary())
    except (ValueError, OSError) as error:
        print(f"{top.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"report and pictures: {given.output / 'report.md'}, {whole.figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
