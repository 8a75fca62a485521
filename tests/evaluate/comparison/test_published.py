"""Which columns the tables have, and where the paper's rows stand beside a model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctloss.evaluate import (
    Items,
    ResamplingOptions,
    Results,
    Score,
    TaskResult,
    compare_results,
    read_results,
    report,
    table_of_means,
)
from ctloss.evaluate.results.comparison import PUBLISHED, XTREME_LANGUAGES, on_xtreme
from ctloss.evaluate.results.scores import add_result
from ctloss.shared.languages import XTREME_CODES
from support.tiny_results import made


def scored(task: str, *languages: str, metric: str = "accuracy", **settings: Any) -> Results:
    means = [("mean", "mean of 2")] if task != "tatoeba" else [("eng-X", ""), ("X-eng", "")]
    scores = [Score(task, language, metric, 0.5) for language in languages]
    scores += [Score(task, language, metric, 0.5, about=about) for language, about in means]
    return Results("ours", "ours", {task: TaskResult({"seeds": [1], **settings}, scores, 1.0)})


def test_pairs_of_ones_own_are_not_beside_the_papers() -> None:
    ours = scored("pairs", "de-en", "en-de")
    assert table_of_means([ours]).splitlines() == ["| model | pairs acc. |", "|---|---|", "| **ours** | 50.0 |"]
    shown = report([ours])
    assert shown.startswith("# Evaluation\n\n| model | pairs acc. |")
    assert "paper" not in shown
    assert "Means over the languages below, in per cent. Higher is better.\n" in shown


def test_two_models_share_the_columns_of_either() -> None:
    lines = table_of_means([scored("pairs", "de-en"), scored("align", "en-fr", metric="aer")]).splitlines()
    assert lines[0] == "| model | pairs acc. | alignment error rate |"
    assert lines[2:] == ["| **ours** | 50.0 | – |", "| **ours** | – | 50.0 |"]
    shown = report([scored("align", "en-fr", metric="aer")])
    assert "Higher is better, except for alignment error rate." in shown


@pytest.mark.parametrize(
    ("results", "beside"),
    [
        (scored("xnli", "de", "zh", test_split="test"), True),
        (scored("xnli", "de", "zh", test_split="dev"), False),
        (scored("xnli", "de", "it"), False),
        (scored("xnli"), False),
        (scored("xnli", "en"), False),
        (scored("xnli", "en", "de"), True),
        (scored("tatoeba", "deu-eng", "eng-cmn", "swh-eng"), True),
        (scored("tatoeba", "deu-eng", "eng-gle"), False),
        (scored("bucc", "zh-en", metric="f1_same_set"), True),
        # A single treebank, or a language that XTREME has in other tasks.
        (scored("pos", "de-gsd", "en", metric="f1"), False),
        (scored("pawsx", "hi"), False),
        (scored("pairs", "de-en"), False),
    ],
)
def test_the_papers_rows_stand_beside_xtremes_data_only(results: Results, beside: bool) -> None:
    [task] = results.tasks
    assert on_xtreme(results, task) == beside
    table = table_of_means([results])
    assert [line for line in table.splitlines() if "| – |" in line and "paper" in line] == (
        [line for line in table.splitlines() if "paper" in line] if task == "tatoeba" else []
    )
    assert table.count("(paper's)") == len(PUBLISHED) * beside
    assert ("Table 1 of Chen et al. 2022" in report([results])) == beside


def test_languages_are_xtremes() -> None:
    """As many as Hu et al. 2020, table 1, count, English apart; Tatoeba's codes lead to them."""
    counts = {"xnli": 14, "pawsx": 6, "pos": 32, "ner": 39, "bucc": 4, "tatoeba": 36}
    assert {task: len(set(codes.split())) for task, codes in XTREME_LANGUAGES.items()} == counts
    assert set(XTREME_LANGUAGES["tatoeba"].split()) <= set(XTREME_CODES.values())


def test_one_model_is_compared_with_nothing(tmp_path: Path) -> None:
    hits = Items("de-en", "accuracy", "test", np.arange(50) < 25)
    results = scored("pairs", "de-en")
    add_result(tmp_path, results, "pairs", results.tasks["pairs"], [hits])
    kept = read_results(tmp_path)
    shown = report([kept], compare_results([kept], ResamplingOptions(resamples=200)))
    assert (
        "## Intervals\n\n| model | score | per cent | 95 % interval |\n|---|---|---|---|\n| ours | pairs acc. |"
        in shown
    )
    for word in ("less", "Holm", "two-sided", "Differences"):
        assert word not in shown
    both = report([kept, kept], compare_results([kept, kept], ResamplingOptions(resamples=200)))
    assert "## Intervals and differences" in both
    assert "| 95 % interval | less ours | 95 % interval | p | p (Holm) |" in both
    assert "Differences are from ours" in both


def test_a_task_without_labels_has_no_table() -> None:
    unlabelled = Results("ours", "ours", {"xnli": TaskResult({"seeds": [1]}, [], 1.0)})
    shown = report([unlabelled])
    assert shown.startswith("# Evaluation, zero-shot from English\n\nNo scores.\n")
    assert "- ours, XNLI: no labels, so no scores; " in shown
    assert "by language" not in shown
    # Beside a model that has scores, it is a row without any.
    assert "| **ours** | – | – | – |" in table_of_means([made("other"), unlabelled])


def test_the_report_shows_its_figure_on_both_kinds_of_page() -> None:
    shown = report([made("ours")], picture="languages.png")
    assert 'srcset="languages-dark.png">\n  <img alt="Scores by language" src="languages.png">' in shown
    assert "<picture>" not in report([made("ours")])
