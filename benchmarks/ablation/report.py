"""The report: the table, its differences and their noise, and the study of batch sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks.ablation.logs import Facts, Study
from benchmarks.ablation.plan import METHODS, PAPER_ORDER
from benchmarks.ablation.statistics import Column, Difference, difference, values
from benchmarks.results import table
from ctloss.evaluate import Results, table_of_means
from ctloss.shared.pictures import NOTHING, with_values

TRAINED = ("ara", "cmn", "fra", "rus", "spa")
COLUMNS = (
    Column("XNLI", "xnli", "accuracy"),
    Column("PAWS-X", "pawsx", "accuracy"),
    Column("POS", "pos", "f1"),
    Column("NER", "ner", "f1"),
    Column("BUCC", "bucc", "f1"),
    Column("Tatoeba eng→X", "tatoeba", "accuracy", "eng-X"),
    Column("multi30k", "pairs", "accuracy"),
    Column("words", "words", "accuracy"),
    Column("AER", "align", "aer", lower=True),
)
DETAILS = (
    Column("Tatoeba, 5 trained languages", "tatoeba", "accuracy", languages=tuple(f"eng-{code}" for code in TRAINED)),
    Column("centred", "tatoeba", "accuracy_centred", languages=tuple(f"eng-{code}" for code in TRAINED)),
    Column("Tatoeba, all, centred", "tatoeba", "accuracy_centred", "eng-X"),
    Column("random-pair cosine", "tatoeba", "random_pair_cosine", "X-eng"),
    Column("multi30k", "pairs", "accuracy"),
    Column("centred", "pairs", "accuracy_centred"),
    Column("random-pair cosine", "pairs", "random_pair_cosine"),
    Column("words", "words", "accuracy"),
    Column("centred", "words", "accuracy_centred"),
    Column("not spelled alike", "words", "accuracy_respelled"),
)
# For docs/lab/README.md; XNLI, PAWS-X and BUCC are near chance here.
SHORT = (*COLUMNS[2:4], COLUMNS[5], DETAILS[0], *COLUMNS[6:])
SPREADS = "Per cent, cosines as they are, means over languages' test sets; ± is the standard deviation over seeds."
NOISE = (
    "In points, paired by seed; ± is half the width of Student's 95 % interval. Bold: the interval leaves out 0, as "
    "{by_chance:.0f} of these {intervals} would by chance; {bold} do. Where the base has no seeds, its number "
    "is taken as it is."
)
LOGGED = {
    "validation": "validation retrieval",
    "z_mean": "mean z, end",
    "z_min": "least z",
    "saturated": "share φ < 6e-8",
    "pull_first": "pull, start",
    "pull": "pull, end",
    "push_first": "push, start",
    "push": "push, end",
    "clipped": "steps clipped",
}


def report(
    rows: Sequence[Results],
    study: Study,
    starts: Mapping[str, Any] | None = None,
    trained: Mapping[str, Facts] | None = None,
) -> str:
    """The whole report in Markdown.

    Args:
        rows: of the table, in its order: ``base``, ``random``, the methods, and the methods ``from random``.
        study: what the logs of the study say.
        starts: see :meth:`benchmarks.ablation.whole.Ablation.check_base`.
        trained: what the logs of the table's rows say, by name.
    """
    parts = [f"{start_line(starts)}\n"] if starts else []
    parts += ["### The table", "", SPREADS, "", table_of_means(rows), ""]
    parts += ["### Raw and centred retrieval", "", details(rows), ""]
    compared = differences(rows)
    intervals, bold = compared.count("±"), compared.count("**") // 2
    noise = NOISE.format(by_chance=0.05 * intervals, intervals=intervals, bold=bold)
    parts += ["### Which differences are beyond noise", "", noise, "", compared, "", order(rows), ""]
    if trained:
        parts += ["### What the rows' logs say", "", rows_table(trained), ""]
    if study:
        parts += ["### Batch size and precision", "", study_table(study), "", study_differences(study), ""]
    return "\n".join(parts)


def summary(rows: Sequence[Results]) -> str:
    """The table in short, in per cent: means over languages, with their standard deviation over seeds."""
    lines = [[row.name, *(_per_cent(values(row, column).values()) for column in SHORT)] for row in rows]
    return table(*with_values(["", *(_title(column) for column in SHORT)], lines)) + "\n"


def scores(rows: Sequence[Results]) -> dict[str, dict[str, tuple[float, float]]]:
    """The short table as numbers: mean and standard deviation over seeds in per cent, by row and column."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        for column in SHORT:
            if measured := [100 * value for value in values(row, column).values()]:
                spread = stdev(measured) if len(measured) > 1 else 0.0
                found.setdefault(row.name, {})[_title(column)] = (fmean(measured), spread)
    return found


def start_line(starts: Mapping[str, Any]) -> str:
    """Which of base and random weights is the better start."""
    tagging, retrieval = starts["tagging"], starts["retrieval"]
    return (
        f"**The starts.** After {starts['steps']} steps of fine-tuning on parts of speech, F1 on English dev: base "
        f"{tagging['base']:.3f}, random weights {tagging['random']:.3f}. After the same number of CZ-snt without head "
        f"or MLM, retrieval of validation pairs: base {retrieval['base']:.3f}, random weights "
        f"{retrieval['random']:.3f}."
    )


def details(rows: Sequence[Results]) -> str:
    """Retrieval, plain and centred, in per cent; random-pair cosines as they are."""

    def cell(row: Results, column: Column) -> str:
        found = values(row, column).values()
        return _spread(list(found), 2) if "cosine" in column.metric else _per_cent(found)

    lines = [[row.name, *(cell(row, column) for column in DETAILS)] for row in rows]
    return table(*with_values(["", *(column.title for column in DETAILS)], lines))


def differences(rows: Sequence[Results]) -> str:
    """Differences of rows in points; bold if beyond noise.

    Each row less the one before it in the paper's order, the last method less all before it, every row less untrained
    random weights, and each row from the base less the same from random weights.
    """
    by_name = {row.name: row for row in rows}
    *before, last = METHODS
    pairs = [*itertools.pairwise(PAPER_ORDER), ("ML-CTL-CZ", "ML-CTL-CZ without head")]
    pairs += [(name, last) for name in before]
    pairs += [("random", name) for name in ("base", *METHODS)]
    pairs += [("random", f"{name}, from random") for name in METHODS]
    pairs += [(f"{name}, from random", name) for name in METHODS]
    lines = []
    for first, second in pairs:
        if first in by_name and second in by_name:
            lines.append([f"{second} − {first}", *(_difference(by_name[first], by_name[second], c) for c in COLUMNS)])
    return table(*with_values(["", *(_title(column) for column in COLUMNS)], lines))


def order(rows: Sequence[Results]) -> str:
    """Say column by column whether base < info-snt < CZ-snt < ML-CTL-CZ."""
    by_name = {row.name: row for row in rows}
    if not set(PAPER_ORDER) <= by_name.keys():
        return "The paper's order: some of its rows are not there yet."
    held: list[str] = []
    broken: list[str] = []
    for column in COLUMNS:
        found = [values(by_name[name], column) for name in PAPER_ORDER]
        if all(found):
            means = [fmean(several.values()) * (-1 if column.lower else 1) for several in found]
            (held if means == sorted(means) and len(set(means)) == len(means) else broken).append(column.title)
    return (
        f"The paper's order ({' < '.join(PAPER_ORDER)}), judged by means only: it holds for "
        f"{', '.join(held) or 'no column'}; it does not for {', '.join(broken) or 'none'}."
    )


def rows_table(trained: Mapping[str, Facts]) -> str:
    """A line for each row of the table: means over seeds with their standard deviation, the least z of all seeds."""
    lines = [[name, str(len(runs)), *_logged(runs)] for name, runs in trained.items()]
    return table(*with_values(["", "seeds", *LOGGED.values()], lines, names=2))


def study_table(study: Study) -> str:
    """A line for each arm: means over seeds with their standard deviation, the least z of all seeds."""
    lines = [
        [str(arm.batch_size), arm.precision, arm.variant, arm.name, str(len(runs)), *_logged(runs)]
        for arm, runs in study.items()
    ]
    return table(*with_values(["batch", "precision", "", "loss", "seeds", *LOGGED.values()], lines, names=5))


def study_differences(study: Study) -> str:
    """How much more of the validation pairs CZ-snt retrieves than info-snt, paired by seed, in points."""
    lines = []
    for arm, runs in study.items():
        other = study.get(arm._replace(name="info-snt"), {})
        first, second = ({seed: run["validation"] for seed, run in each.items()} for each in (other, runs))
        found = difference(first, second)
        if arm.name == "CZ-snt" and found is not None:
            lines.append([arm.batch_size, arm.precision, arm.variant, found.seeds, _points(found)])
    return table(["batch", "precision", "", "seeds", "CZ-snt − info-snt"], lines)


def _logged(runs: Facts) -> list[str]:
    cells = []
    for fact in LOGGED:
        found = [run[fact] for run in runs.values() if fact in run]
        if fact in ("saturated", "clipped"):
            cells.append(f"{100 * fmean(found):.3g} %" if found else NOTHING)
        elif fact == "z_min":
            cells.append(f"{min(found):.2f}" if found else NOTHING)
        else:
            cells.append(_spread(found, 3 if fact == "validation" else 2))
    return cells


def _difference(first: Results, second: Results, column: Column) -> str:
    return _points(difference(values(first, column), values(second, column)))


def _points(found: Difference | None) -> str:
    if found is None:
        return NOTHING
    text = f"{100 * found.mean:+.1f}" + ("" if found.half_width is None else f" ± {100 * found.half_width:.1f}")
    return f"**{text}**" if found.beyond_noise else text


def _title(column: Column) -> str:
    return column.title + " (lower is better)" * column.lower


def _per_cent(found: Iterable[float]) -> str:
    return _spread([100 * value for value in found], 1)


def _spread(found: Sequence[float], digits: int) -> str:
    if not found:
        return NOTHING
    return f"{fmean(found):.{digits}f}" + (f" ± {stdev(found):.{digits}f}" if len(found) > 1 else "")
