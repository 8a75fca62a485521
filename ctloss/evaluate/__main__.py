"""The command line: ``python -m ctloss.evaluate``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command import as_process
from .arguments import FINETUNING, add_finetuning, by_task, finetuning, refuse_unused
from .encoder import Encoder
from .evaluations import EVALUATIONS
from .figures import draw_languages, draw_words
from .kept import write_atomically
from .kept_results import read_results
from .loading import read_config
from .pooling import POOLINGS
from .sources import find_data
from .suite import VectorOptions, open_folder, run
from .tables import report, table_of_means

REPORT, LANGUAGES, WORDS = "results.md", "languages.png", "words.png"
EPILOG = """\
examples:
  python -m ctloss.evaluate bert-base-multilingual-cased --tasks tatoeba bucc --data download
  python -m ctloss.evaluate runs/tiny --tasks xnli pawsx pos ner --data download --languages en de fr --seeds 3
  python -m ctloss.evaluate runs/tiny --tasks tatoeba pos --data data pos=hub:google/xtreme --languages de fr
  python -m ctloss.evaluate runs/tiny --tasks align --data data --before runs/base
  python -m ctloss.evaluate --beside results/base results/tiny --output results/both
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    top = argparse.ArgumentParser(
        prog="python -m ctloss.evaluate",
        description="Evaluate a Hugging Face encoder on the tasks of Chen et al. 2022, zero-shot from English.\n"
        "Writes results.json, results.md, figures and predictions in XTREME's submission layout. A rerun goes on with\n"
        "what is missing.",
        usage="%(prog)s [MODEL --tasks TASK ... --data FOLDER ...] [--beside FOLDER ...] [--output FOLDER] [options]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("model", nargs="?", metavar="MODEL", help="name or folder of a Hugging Face encoder")
    top.add_argument("--tasks", nargs="+", choices=EVALUATIONS, metavar="TASK", help=", ".join(EVALUATIONS))
    top.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders that hold a folder for each task, as XTREME's download does; TASK=PATH for one task's own; "
        "TASK=hub:NAME for a data set of the Hugging Face hub",
    )
    top.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="for all tasks, or TASK=CODE for one, as in its files' names (default: all in the data)",
    )
    top.add_argument("--output", metavar="FOLDER", help="output folder (default: results/MODEL)")
    top.add_argument("--name", help="the model's name in tables (default: the end of MODEL)")
    top.add_argument(
        "--beside", nargs="+", default=[], metavar="FOLDER", help="output folders of other models, shown in the tables"
    )
    top.add_argument(
        "--before", metavar="MODEL", help="a model to draw beside this one in the picture of words (task align)"
    )
    top.add_argument("--seeds", type=int, default=1, metavar="N", help="fine-tunings of each task (default: 1)")
    usual = VectorOptions()
    section = top.add_argument_group("vectors (tatoeba, bucc, pairs, words, align)")
    section.add_argument("--pooling", choices=POOLINGS, default=usual.pooling, help=f"default: {usual.pooling}")
    section.add_argument("--layer", type=int, metavar="N", help="of hidden_states (default: 8, or the last if fewer)")
    section.add_argument("--prefix", default="", metavar="TEXT", help="before every sentence, such as 'query: '")
    section.add_argument("--max-length", type=int, metavar="N", help="most tokens (default: the model's, up to 512)")
    section.add_argument("--batch-size", type=int, default=usual.batch_size, metavar="N", help="default: 64")
    section.add_argument("--device", help="default: a GPU if there is one; fine-tuning takes that in any case")
    add_finetuning(top)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    top = parser()
    given = top.parse_args(arguments)
    try:
        output = evaluate(given)
    except (OSError, ValueError) as error:
        print(f"{top.prog}: error: {error}", file=sys.stderr)
        return 2
    if output is not None:
        print(f"results, report and figures: {output}")
    return 0


def evaluate(given: argparse.Namespace) -> Path | None:
    """Does what the parsed arguments ask for.

    Returns:
        The output folder; None in a process of torchrun that is not the first.

    Raises:
        ValueError: something is missing or does not fit; see :func:`ctloss.evaluate.suite.run`.
    """
    if given.model is None and not (given.beside and given.output):
        raise ValueError("expected a MODEL, or --beside and --output for a report of results that are there, got none")
    if given.model is not None and not given.tasks:
        raise ValueError(f"expected --tasks, some of {', '.join(EVALUATIONS)}, got none")
    if given.model is None and given.tasks:
        raise ValueError("expected a MODEL for --tasks, got none; name one")
    if given.before is not None:
        if "align" not in (given.tasks or ()):
            raise ValueError("expected align among --tasks for --before, which its picture shows, got it without")
        read_config(given.before)
    output = Path(given.output or Path("results") / Path(given.model).resolve().name)
    others = [read_results(folder) for folder in given.beside]
    vectors = VectorOptions(given.pooling, given.layer, given.prefix, given.max_length, given.batch_size, given.device)
    results = list(others)
    data: dict[str, str] = {}
    for option, values in (("--data", given.data), ("--languages", given.languages or ())):
        refuse_unused(option, values, given.tasks or ())
    languages = by_task(given.languages, given.tasks or ())
    if given.model is not None:
        tasks = list(dict.fromkeys(given.tasks))
        settings = {name: getattr(given, f"finetune_{name}") for name in FINETUNING}
        options = finetuning(settings, tasks, given.seeds)
        data = find_data(given.data, {task: options.get(task) for task in tasks})
        results.append(
            run(
                given.model,
                data,
                output,
                name=given.name,
                languages=languages,
                vectors=vectors,
                finetuning=options,
            )
        )
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    open_folder(output)
    write_atomically(output / REPORT, report(results))
    print(table_of_means(results))
    draw_languages(results, output / LANGUAGES)
    if "align" in data:
        models = {"before": given.before} if given.before else {}
        models |= {"after" if given.before else results[-1].name: given.model}
        options_of_encoder = vars(vectors)
        encoders = {title: Encoder(model, **options_of_encoder) for title, model in models.items()}
        draw_words(encoders, Path(data["align"]), output / WORDS, languages=languages.get("align"))
    return output


if __name__ == "__main__":
    as_process(main)
