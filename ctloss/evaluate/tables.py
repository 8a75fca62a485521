"""Tables of results in Markdown: one like the paper's Table 1, and every score by language."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from .classification import MAJORITY
from .evaluations import EVALUATIONS
from .kept_results import Results, TaskResult
from .options import XTREME_OPTIONS
from .published import COLUMNS as PAPERS
from .published import ROWS
from .spread import ALL, Spread, over_seeds

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column: the mean over languages of one of an evaluation's metrics."""

    title: str
    task: str
    metric: str
    language: str = ALL


# The first six are the paper's, in its order.
COLUMNS = (
    Column("XNLI acc.", "xnli", "accuracy"),
    Column("PAWS-X acc.", "pawsx", "accuracy"),
    Column("POS F1", "pos", "f1"),
    Column("NER F1", "ner", "f1"),
    Column("BUCC F1, XTREME's same-set threshold", "bucc", "f1_same_set"),
    Column("Tatoeba acc., XTREME's eng→X", "tatoeba", "accuracy", "eng-X"),
    Column("BUCC F1, other half's threshold", "bucc", "f1"),
    Column("Tatoeba acc., X→eng", "tatoeba", "accuracy", "X-eng"),
    Column("pairs acc.", "pairs", "accuracy"),
    Column("words acc.", "words", "accuracy"),
    Column("alignment error rate", "align", "aer"),
)


def report(results: Sequence[Results]) -> str:
    """Returns the whole report: the table of means, what they are of, and a table by language for each evaluation."""
    parts = ["# Evaluation, zero-shot from English", "", table_of_means(results), "", notes(results), ""]
    for task, evaluation in EVALUATIONS.items():
        if any(task in model.tasks for model in results):
            parts += [f"## {evaluation.title} by language", "", table_by_language(results, task), ""]
    return "\n".join(parts)


def table_of_means(results: Sequence[Results]) -> str:
    """Returns a table with one row a model, in per cent, the paper's rows first; ± is the spread over seeds."""
    shown = [
        column
        for place, column in enumerate(COLUMNS)
        if place < len(PAPERS) or any(column.task in model.tasks for model in results)
    ]
    lines = ["| model | " + " | ".join(column.title for column in shown) + " |", "|---" * (len(shown) + 1) + "|"]

    def add(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | " + " | ".join([*cells, *[NOTHING] * (len(shown) - len(cells))]) + " |")

    for name, values in ROWS.items():
        add(f"{name} (paper's)", [f"{value:.1f}" for value in values])
    seen = [[NOTHING] * len(shown)]
    for model in results:
        cells = [_cell(headline(model, column, majority=True)) for column in shown]
        if cells not in seen:
            seen.append(cells)
            add(f"{MAJORITY} of {model.name}'s test data", cells)
    for model in results:
        add(f"**{model.name}**", [_cell(headline(model, column)) for column in shown])
    return "\n".join(lines)


def headline(model: Results, column: Column, *, majority: bool = False) -> Spread | None:
    """Returns a column's score of a model, or that of the majority class, if there is one."""
    found = model.tasks.get(column.task)
    for spread in over_seeds(found.scores if found else []):
        if (spread.metric, spread.language) == (column.metric, column.language) and (
            (MAJORITY in spread.about) == majority
        ):
            return spread
    return None


def table_by_language(results: Sequence[Results], task: str) -> str:
    """Returns a table of all scores of an evaluation: one row a metric and language, one column a model."""
    rows: dict[tuple[str, str, str], dict[int, Spread]] = {}
    for number, model in enumerate(results):
        for spread in over_seeds(model.tasks[task].scores if task in model.tasks else []):
            rows.setdefault((spread.metric, spread.about, spread.language), {})[number] = spread
    metrics = list(dict.fromkeys(metric for metric, *_ in rows))
    lines = [
        "| metric | language | " + " | ".join(model.name for model in results) + " |",
        "|---" * (len(results) + 2) + "|",
    ]
    for metric, about, language in sorted(rows, key=lambda row: metrics.index(row[0])):
        cells = [_plain(rows[metric, about, language].get(number)) for number in range(len(results))]
        lines.append(f"| {metric}{f' ({about})' if about else ''} | {language} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(results: Sequence[Results]) -> str:
    """Returns what the means are of, and where a model was evaluated otherwise than XTREME does."""
    lines = [
        "Per cent. Rows marked as the paper's are Table 1 of Chen et al. 2022: means over all of XTREME's languages, "
        "zero-shot from English. The others are means over the languages below, with the standard deviation over seeds "
        "after ±; all but the alignment error rate are the better the higher.",
        "",
    ]
    for model in results:
        for task, result in model.tasks.items():
            lines.append(f"- {model.name}, {EVALUATIONS[task].title}: {'; '.join(_facts(task, result))}")
    return "\n".join(lines)


def _facts(task: str, result: TaskResult) -> list[str]:
    means = (ALL, "eng-X", "X-eng")
    languages = list(dict.fromkeys(score.language for score in result.scores if score.language not in means))
    facts = [", ".join(languages) or "no labels, so no scores"]
    finetuned = EVALUATIONS[task].task
    if finetuned is None:
        wanted = ("pooling", "layer", "prefix", "max_length")
        facts += [f"{name} {result.settings[name]!r}" for name in wanted if result.settings.get(name) not in (None, "")]
        return facts
    usual = dataclasses.asdict(XTREME_OPTIONS[finetuned.name])
    usual |= {"train": [], "dev": [], "seeds": result.settings["seeds"]}
    changed = {name: value for name, value in result.settings.items() if name in usual and value != usual[name]}
    runs = len(result.settings["seeds"])
    facts.append(f"{runs} seed{'s' if runs > 1 else ''}")
    facts += [f"{name} {', '.join(value) if isinstance(value, list) else value}" for name, value in changed.items()]
    return [*facts, "otherwise XTREME's settings" if changed else "XTREME's settings"]


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return NOTHING
    return f"{100 * spread.mean:.1f}" + ("" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}")


def _plain(spread: Spread | None) -> str:
    if spread is None:
        return NOTHING
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")
