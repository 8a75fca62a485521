"""Models side by side, and beside the paper's: which scores are compared, and which differences are beyond chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...shared.languages import XTREME_CODES
from ..data.sources import EVALUATIONS
from .scores import ALL, MOST_DIRECTIONS, Results, is_mean, over_seeds
from .significance import Difference, Interval, ResamplingOptions, compare_all, holm, of_row

# A score: evaluation, metric, language.
Key = tuple[str, str, str]
MARK = "†"
ALPHA = 0.05


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
# Table 1 of Chen et al. 2022 (arXiv 2202.13083), in per cent, for the first columns of ``COLUMNS``: means over all of
# XTREME's languages. mBERT, XLM and MMTE come from Hu et al. 2020 (arXiv 2003.11080).
PUBLISHED: dict[str, tuple[float, ...]] = {
    "mBERT": (65.4, 81.9, 70.3, 62.2, 56.7, 38.7),
    "XLM": (69.1, 80.9, 70.1, 61.2, 56.8, 32.6),
    "MMTE": (67.4, 81.3, 72.3, 58.3, 59.8, 37.9),
    "info-snt": (66.255, 84.092, 71.544, 62.157, 76.426, 41.148),
    "CZ-snt": (66.862, 84.485, 71.733, 62.337, 77.403, 41.751),
    "ML-CTL-CZ": (67.750, 85.321, 72.289, 62.865, 78.440, 43.389),
}
# XTREME's test languages of these columns, besides English.
XTREME_LANGUAGES = {
    "xnli": "ar bg de el es fr hi ru sw th tr ur vi zh",
    "pawsx": "de es fr ja ko zh",
    "pos": "af ar bg de el es et eu fa fi fr he hi hu id it ja kk ko mr nl pt ru ta te th tl tr ur vi yo zh",
    "ner": "af ar bg bn de el es et eu fa fi fr he hi hu id it ja jv ka kk ko ml mr ms my nl pt ru sw ta te th tl tr ur"
    " vi yo zh",
    "bucc": "de fr ru zh",
    "tatoeba": "af ar bg bn de el es et eu fa fi fr he hi hu id it ja jv ka kk ko ml mr nl pt ru sw ta te th tl tr ur"
    " vi zh",
}


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


def on_xtreme(model: Results, task: str) -> bool:
    """Tells whether a model was evaluated as the paper's were: on a task of its table, on XTREME's data for it.

    The results tell data apart by what they have: the split is test, and all languages are among XTREME's, by the codes
    of its files (``de-gsd``, a single treebank, is none). Another text in one of these languages cannot be told.
    """
    result = model.tasks.get(task)
    if result is None or task not in XTREME_LANGUAGES or result.settings.get("test_split", "test") != "test":
        return False
    there = {score.language for score in result.scores if not is_mean(score.language)}
    if task in ("bucc", "tatoeba"):
        # German is deu-eng, eng-deu or de-en.
        there = {code for pair in there for code in pair.split("-")}
    others = {XTREME_CODES.get(code, code) for code in there} - {"en"}
    return bool(others) and others <= set(XTREME_LANGUAGES[task].split())


def published_values(results: Sequence[Results], columns: Sequence[Column]) -> dict[str, list[float | None]]:
    """Returns the paper's rows with their values in the given columns.

    A column has them if a model was evaluated in it as the paper's were (:func:`on_xtreme`). Without such a column
    there are no rows.
    """
    first = dict(zip(COLUMNS, zip(*PUBLISHED.values(), strict=True), strict=False))
    shown = [
        first[column] if column in first and any(on_xtreme(model, column.task) for model in results) else None
        for column in columns
    ]
    if not any(shown):
        return {}
    return {
        name: [None if values is None else values[place] for values in shown] for place, name in enumerate(PUBLISHED)
    }
