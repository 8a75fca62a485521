"""The command line: ``python -m ctloss.evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..shared.command import Signals, Stopped, as_process
from ..shared.files import open_folder, write_atomically
from ..shared.models import read_config
from ..shared.options import Parser, add_options, command_line, given_options, read_values
from ..shared.text import home_path
from .data.sources import EVALUATIONS, find_data
from .models.encoder import Encoder, VectorOptions
from .models.options import XTREME_OPTIONS, FinetuneOptions, QuestionOptions
from .results.comparison import compare_results
from .results.languages import draw_languages
from .results.report import draw_words, report, table_of_means
from .results.scores import read_results
from .results.significance import ResamplingOptions
from .suite import OPTIONS, run

REPORT, LANGUAGES, WORDS = "results.md", "languages.png", "words.png"
# XTREME's settings of the evaluations that fine-tune.
FINETUNED = {name: XTREME_OPTIONS[value.task.name] for name, value in EVALUATIONS.items() if value.task is not None}
QUESTIONS = {name: value for name, value in FINETUNED.items() if isinstance(value, QuestionOptions)}
EPILOG = """\
examples:
  python -m ctloss.evaluate bert-base-multilingual-cased --tasks tatoeba bucc --data download
  python -m ctloss.evaluate runs/tiny --tasks xnli pawsx pos ner --data download --languages en de fr --seeds 3
  python -m ctloss.evaluate runs/tiny --tasks tatoeba pos --data data pos=hub:google/xtreme --languages de fr
  python -m ctloss.evaluate runs/tiny --tasks align --data data --before runs/base
  python -m ctloss.evaluate --beside results/base results/tiny --output results/both
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser: its own options, and one for each field of the groups of options."""
    top = Parser(
        prog="python -m ctloss.evaluate",
        description="Evaluate a Hugging Face encoder on the tasks of Chen et al. 2022, zero-shot from English.\n"
        "Writes results.json, results.md, figures and predictions in XTREME's submission layout. Run again, it only\n"
        "computes what is missing.",
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
        help="folders with one folder per task, as XTREME's download has them; TASK=PATH for one task only; "
        "TASK=hub:NAME for a data set on the Hugging Face hub",
    )
    top.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="languages of all tasks, or TASK=CODE of one, as in its files' names (default: all in the data)",
    )
    top.add_argument("--output", metavar="FOLDER", help="output folder (default: results/MODEL)")
    top.add_argument("--name", help="the model's name in tables (default: the end of MODEL)")
    top.add_argument(
        "--beside", nargs="+", default=[], metavar="FOLDER", help="output folders of other models to show in the tables"
    )
    top.add_argument(
        "--before", metavar="MODEL", help="a model to draw next to this one in the picture of words (task align)"
    )
    top.add_argument("--seeds", type=int, default=1, metavar="N", help="fine-tuning runs of each task (default: 1)")
    top.add_argument(
        "--as-mteb",
        metavar="FOLDER",
        help="also run mteb's tasks of tatoeba, bucc, flores and ntrex on these data, and write its JSON there",
    )
    add_options(
        top,
        f"vectors ({', '.join(name for name in EVALUATIONS if name not in FINETUNED)})",
        {"": VectorOptions()},
        description="how vectors are made",
    )
    for group in dict.fromkeys(OPTIONS.values()):
        add_options(top, ", ".join(task for task in OPTIONS if OPTIONS[task] is group), {"": group()})
    add_options(top, "intervals and comparisons", {"": ResamplingOptions()})
    add_options(
        top,
        f"fine-tuning ({', '.join(FINETUNED)})",
        FINETUNED,
        description="XTREME's settings for mBERT by default; TASK=VALUE sets one task only",
        lists=True,
    )
    add_options(
        top,
        f"questions ({', '.join(QUESTIONS)})",
        QUESTIONS,
        description="how long texts are read, and answers found",
        lists=True,
        leave_out=command_line(FinetuneOptions),
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    top = parser()
    given = top.parse_args(arguments)
    try:
        with Signals(top.prog, "what is scored is kept: give the command again to go on"):
            output = evaluate(given)
    except Stopped as end:
        # Of several processes, all of which hear it, the first says so.
        if os.environ.get("RANK", "0") == "0":
            print(f"{top.prog}: {end}", file=sys.stderr)
        return end.status
    except (OSError, ValueError) as error:
        print(f"{top.prog}: error: {error}", file=sys.stderr)
        return 2
    if output is not None:
        print(f"results, report and figures: {output}")
    return 0


def evaluate(given: argparse.Namespace) -> Path | None:
    """Does what the parsed arguments ask for.

    Returns:
        The output folder; None in every process of torchrun but the first.

    Raises:
        ValueError: an argument is missing or does not fit; see also :func:`ctloss.evaluate.run`.
    """
    tasks = list(dict.fromkeys(given.tasks or ()))
    for name in ("model", "before"):
        # A shell expands it too, but not after an equals sign or in quotes.
        if getattr(given, name) is not None:
            setattr(given, name, str(home_path(getattr(given, name))))
    if given.model is None and not (given.beside and given.output):
        raise ValueError("expected a MODEL, or --beside and --output for a report of existing results, got neither")
    if given.model is not None and not tasks:
        raise ValueError(f"expected --tasks, some of {', '.join(EVALUATIONS)}, got none")
    if given.model is None and tasks:
        raise ValueError("expected a MODEL for --tasks, got none; name one")
    if given.before is not None:
        if "align" not in tasks:
            raise ValueError("expected align among --tasks for --before, which its picture shows, got it without")
        read_config(given.before)
    output = home_path(given.output) if given.output else Path("results") / Path(given.model).resolve().name
    results = [read_results(home_path(folder)) for folder in given.beside]
    vectors = VectorOptions(**given_options(given, VectorOptions))
    resampling = ResamplingOptions(**given_options(given, ResamplingOptions))
    as_mteb = given.as_mteb and mteb_integration(tasks)
    mteb_name = given.name and name_in_mteb(given.name) if as_mteb else None
    own = {task: OPTIONS[task](**given_options(given, OPTIONS[task])) for task in OPTIONS}
    for task, group in own.items():
        users = [name for name in OPTIONS if OPTIONS[name] is OPTIONS[task]]
        if group != OPTIONS[task]() and not set(users) & set(tasks):
            changed = next(iter(given_options(given, OPTIONS[task])))
            raise ValueError(
                f"expected {command_line(OPTIONS[task])[changed]} for a task that uses it ({', '.join(users)}), got "
                f"{', '.join(tasks) or 'none'}; name one in --tasks or leave it out"
            )
    for flag, values in (("--data", given.data), ("--languages", given.languages or ())):
        refuse_unused(flag, values, tasks)
    languages = by_task(given.languages or (), tasks)
    data: dict[str, str] = {}
    if given.model is not None:
        options = finetuning(given_options(given, QuestionOptions), tasks, given.seeds)
        data = find_data(given.data, {task: options.get(task) for task in tasks})
        if as_mteb:
            open_folder(home_path(given.as_mteb))
        results.append(
            run(
                given.model,
                data,
                output,
                name=given.name,
                languages=languages,
                vectors=vectors,
                finetuning=options,
                options=own,
            )
        )
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    open_folder(output)
    compared = compare_results(results, resampling)
    drawn = draw_languages(results, output / LANGUAGES)
    write_atomically(output / REPORT, report(results, compared, picture=LANGUAGES if drawn else None))
    print(table_of_means(results, compared))
    if as_mteb:
        encoder = as_mteb.MtebEncoder(given.model, name=mteb_name, **vars(vectors))
        for path in as_mteb.write_results(encoder, data, home_path(given.as_mteb), languages):
            print(f"mteb's result: {path}")
    if "align" in data:
        models = {"before": given.before} if given.before else {}
        models |= {"after" if given.before else results[-1].name: given.model}
        encoders = {title: Encoder(model, **vars(vectors)) for title, model in models.items()}
        draw_words(
            encoders,
            Path(data["align"]),
            output / WORDS,
            languages=languages.get("align"),
            one_based=getattr(own["align"], "one_based"),  # noqa: B009 (the groups differ)
        )
    return output


def mteb_integration(tasks: Sequence[str]) -> Any:
    """Returns the module that runs mteb, so that what it lacks is known before the first hour is spent.

    Raises:
        ValueError: mteb is not installed, or has none of the tasks.
    """
    try:
        from ..integrations import mteb
    except ModuleNotFoundError as error:
        raise ValueError(f"expected mteb for --as-mteb, got an environment without it ({error})") from error
    if not set(tasks) & mteb.TASKS.keys():
        raise ValueError(
            f"expected a task that mteb has too ({', '.join(mteb.TASKS)}) for --as-mteb, got "
            f"{', '.join(tasks) or 'none'}; add one, or leave --as-mteb out"
        )
    return mteb


def name_in_mteb(name: str) -> str:
    """Returns the name for mteb, ORGANISATION/MODEL: as it is, or with ``local`` as the organisation.

    Raises:
        ValueError: the name has more than one slash, or nothing before or after it.

    Example:
        >>> name_in_mteb("tiny"), name_in_mteb("us/tiny")
        ('local/tiny', 'us/tiny')
    """
    if name.count("/") > 1 or not all(name.split("/")):
        raise ValueError(f"expected --name as MODEL or ORGANISATION/MODEL for --as-mteb, got {name!r}; shorten it")
    return name if "/" in name else f"local/{name}"


def by_task(values: Sequence[str], tasks: Sequence[str]) -> dict[str, list[str]]:
    """Returns an option's values by task: its own, ``TASK=VALUE``, or else those that name no task.

    Example:
        >>> by_task(["de", "fr", "bucc=zh"], ["xnli", "bucc"])
        {'xnli': ['de', 'fr'], 'bucc': ['zh']}
    """
    for_all: list[str] = []
    own: dict[str, list[str]] = {}
    for value in values:
        task, equals, rest = value.partition("=")
        if equals and task in EVALUATIONS:
            own.setdefault(task, []).append(rest)
        else:
            for_all.append(value)
    found = {task: own.get(task, for_all) for task in tasks}
    return {task: chosen for task, chosen in found.items() if chosen}


def refuse_unused(flag: str, values: Sequence[str], tasks: Sequence[str]) -> None:
    """Raises ValueError unless every value of an option is for one of the tasks that use it."""
    for value in values:
        task, equals, _ = value.partition("=")
        if not tasks or (equals and task in EVALUATIONS and task not in tasks):
            raise ValueError(
                f"expected {flag} for a task that uses it, got {value!r} for {', '.join(tasks) or 'none'}; name the "
                f"task in --tasks or leave {flag} out"
            )


def finetuning(given: Mapping[str, Sequence[str]], tasks: Sequence[str], seeds: int) -> dict[str, FinetuneOptions]:
    """Returns the options of every fine-tuned task among ``tasks``, given texts by the field of QuestionOptions.

    Raises:
        ValueError: a value is not of its field's kind or out of range, there are several where one is expected, or no
            task uses it.
    """
    if seeds < 1:
        raise ValueError(f"expected --seeds at least 1, got {seeds}; raise it")
    tuned = [task for task in FINETUNED if task in tasks]
    flags, for_all = command_line(QuestionOptions), command_line(FinetuneOptions)
    changes: dict[str, dict[str, Any]] = {task: {"seeds": tuple(range(1, seeds + 1))} for task in tuned}
    for name, values in given.items():
        users = [task for task in tuned if name in for_all or task in QUESTIONS]
        refuse_unused(flags[name], values, users)
        for task, texts in by_task(values, users).items():
            if name in ("train", "dev"):
                texts = [str(home_path(text)) for text in texts]
            changes[task][name] = read_values(type(FINETUNED[task]), name, texts, of=task)
    return {task: dataclasses.replace(FINETUNED[task], **chosen) for task, chosen in changes.items()}


if __name__ == "__main__":
    as_process(main)
