"""Models side by side: which scores are compared, their intervals, and which differences are beyond chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..data.sources import EVALUATIONS
from .scores import ALL, Results, over_seeds
from .significance import Difference, Interval, ResamplingOptions, compare_all, holm, of_row

# A score: evaluation, metric, language.
Key = tuple[str, str, str]
MARK = "†"
ALPHA = 0.05
# With more directions than this, tables show those with English only.
MOST_DIRECTIONS = 250


@dataclass(frozen=True)
class Column:
    """A column of the table of means: one metric of an evaluation, averaged over languages; ``lower`` is better."""

    title: str
    task: str
    metric: str
    language: str = ALL
    lower: bool = False

    @property
    def key(self) -> Key:
        return (self.task, self.metric, self.language)


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
    Column("XQuAD F1", "xquad", "f1"),
    Column("XQuAD EM", "xquad", "exact_match"),
    Column("MLQA F1", "mlqa", "f1"),
    Column("MLQA EM", "mlqa", "exact_match"),
    Column("TyDiQA F1", "tydiqa", "f1"),
    Column("TyDiQA EM", "tydiqa", "exact_match"),
    Column("pairs acc.", "pairs", "accuracy"),
    Column("FLORES-200 acc.", "flores", "accuracy"),
    Column("FLORES-200 xsim", "flores", "xsim", lower=True),
    Column("NTREX-128 acc.", "ntrex", "accuracy"),
    Column("NTREX-128 xsim", "ntrex", "xsim", lower=True),
    Column("words acc.", "words", "accuracy"),
    Column("alignment error rate", "align", "aer", lower=True),
)


@dataclass(frozen=True)
class Comparison:
    """Intervals of each model's scores, and each model's differences from the first, by score."""

    options: ResamplingOptions
    rows: dict[Key, tuple[list[Interval | None], list[Difference | None]]] = field(default_factory=dict)

    def corrected(self, keys: Iterable[Key]) -> dict[tuple[Key, int], float]:
        """Returns the p-values of one table's differences by score and model, by Holm's correction for their number.

        A difference without a p-value, which one run cannot give, has none here either.
        """
        places, values = [], []
        for key in keys:
            for number, difference in enumerate(self.rows[key][1] if key in self.rows else []):
                if difference is not None and difference.p is not None:
                    places.append((key, number))
                    values.append(difference.p)
        return dict(zip(places, holm(values), strict=True))

    def marks(self, keys: Iterable[Key]) -> dict[tuple[Key, int], str]:
        """Returns the marks of a table's cells, by score and model: where a difference is beyond chance."""
        return {place: MARK for place, p in self.corrected(keys).items() if p < ALPHA}


def compare_results(results: Sequence[Results], options: ResamplingOptions | None = None) -> Comparison:
    """Compares the results of models, item by item, with those of the first.

    Items of models of earlier versions were not kept: they have no intervals.
    """
    options = options or ResamplingOptions()
    rows: dict[Key, tuple[list[Interval | None], list[Difference | None]]] = {}
    for task in EVALUATIONS:
        kept = [model.items(task) for model in results] if options.resamples else []
        if any(kept):
            wanted = [(metric, language) for metric, _, language in rows_of(results, task)]
            wanted += [(column.metric, column.language) for column in COLUMNS if column.task == task]
            members = {
                (task, metric, language): [of_row(items, language, metric, ALL) for items in kept]
                for metric, language in dict.fromkeys(wanted)
            }
            rows |= compare_all(members, options)
    return Comparison(options, rows)


def rows_of(results: Sequence[Results], task: str) -> list[tuple[str, str, str]]:
    """Returns the scores in a table by language: metric, what it leaves open, and language.

    Of very many directions only those with English are shown.
    """
    found = {
        (spread.metric, spread.about, spread.language): None
        for model in results
        if task in model.tasks
        for spread in over_seeds(model.tasks[task].scores)
    }
    metrics = list(dict.fromkeys(metric for metric, *_ in found))
    rows = sorted(found, key=lambda row: metrics.index(row[0]))
    layout = EVALUATIONS[task].layout
    if layout is not None and len({language for *_, language in rows}) > MOST_DIRECTIONS:
        rows = [row for row in rows if row[2] == ALL or layout.english in row[2].split("-")]
    return rows
