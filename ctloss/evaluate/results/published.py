"""The paper's own rows, and in which columns they stand beside a model's."""

from __future__ import annotations

from collections.abc import Sequence

from ...shared.languages import XTREME_CODES
from .comparison import COLUMNS, Column
from .scores import Results, is_mean

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
LANGUAGES = {
    "xnli": "ar bg de el es fr hi ru sw th tr ur vi zh",
    "pawsx": "de es fr ja ko zh",
    "pos": "af ar bg de el es et eu fa fi fr he hi hu id it ja kk ko mr nl pt ru ta te th tl tr ur vi yo zh",
    "ner": "af ar bg bn de el es et eu fa fi fr he hi hu id it ja jv ka kk ko ml mr ms my nl pt ru sw ta te th tl tr ur"
    " vi yo zh",
    "bucc": "de fr ru zh",
    "tatoeba": "af ar bg bn de el es et eu fa fi fr he hi hu id it ja jv ka kk ko ml mr nl pt ru sw ta te th tl tr ur"
    " vi zh",
}


def on_xtreme(model: Results, task: str) -> bool:
    """Tells whether a model was evaluated as the paper's were: on a task of its table, on XTREME's data for it.

    The results tell data apart by what they have: the split is test, and all languages are among XTREME's, by the codes
    of its files (``de-gsd``, a single treebank, is none). Another text in one of these languages cannot be told.
    """
    result = model.tasks.get(task)
    if result is None or task not in LANGUAGES or result.settings.get("test_split", "test") != "test":
        return False
    there = {score.language for score in result.scores if not is_mean(score.language)}
    if task in ("bucc", "tatoeba"):
        # German is deu-eng, eng-deu or de-en.
        there = {code for pair in there for code in pair.split("-")}
    known = {"en", *LANGUAGES[task].split()}
    return bool(there) and {XTREME_CODES.get(code, code) for code in there} <= known


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
