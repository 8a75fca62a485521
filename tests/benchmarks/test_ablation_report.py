"""benchmarks.ablation: its statistics against scipy and by hand, what the report and the logs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from benchmarks.ablation import logs, plan, report
from benchmarks.ablation.statistics import Column, difference, joined, values
from ctloss.evaluate import Results, Score, TaskResult


def scored(name: str, values: list[float], task: str = "pairs", metric: str = "accuracy") -> Results:
    runs = {
        seed: Results(name, name, {task: TaskResult({"seeds": []}, [Score(task, "mean", metric, value)], 1.0)})
        for seed, value in enumerate(values, 1)
    }
    return joined(name, runs)


def test_difference_is_the_paired_t_interval() -> None:
    first, second = [0.50, 0.61, 0.55], [0.58, 0.65, 0.66]
    column = Column("", "pairs", "accuracy")
    found = difference(values(scored("a", first), column), values(scored("b", second), column))
    wanted = ttest_rel(second, first).confidence_interval(0.95)
    assert found is not None
    assert found.half_width is not None
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((wanted.low, wanted.high))
    assert found.beyond_noise == (wanted.low > 0)
    single = difference({1: 0.5}, {1: 0.9})
    assert single is not None
    assert not single.beyond_noise


def test_what_has_no_seed_is_paired_with_every_seed() -> None:
    assert difference({0: 0.5}, {1: 0.6, 2: 0.7}) == difference({1: 0.5, 2: 0.5}, {1: 0.6, 2: 0.7})
    single = difference({0: 0.5}, {1: 0.6})
    assert single is not None
    assert single.mean == pytest.approx(0.1)
    assert single.half_width is None
    # One seed of a row that is not done yet stands for no other seed.
    assert difference({1: 0.5}, {1: 0.6, 2: 0.7}) == difference({1: 0.5}, {1: 0.6})


def test_majority_and_other_languages_are_left_out() -> None:
    scores = [
        Score("xnli", "mean", "accuracy", 0.4, 1, "mean of 2"),
        Score("xnli", "mean", "accuracy", 0.3, 1, "majority class; mean of 2"),
        Score("xnli", "de", "accuracy", 0.9, 1),
    ]
    results = Results("a", "a", {"xnli": TaskResult({}, scores, 1.0)})
    assert values(results, Column("", "xnli", "accuracy")) == {1: 0.4}
    assert values(results, Column("", "xnli", "accuracy", languages=("de",))) == {1: 0.9}
    assert values(results, Column("", "ner", "f1")) == {}


def test_the_majority_class_has_no_seeds() -> None:
    def once(seed: int) -> Results:
        majority = Score("xnli", "mean", "accuracy", 0.3, None, "majority class")
        scores = [Score("xnli", "mean", "accuracy", 0.4, seed), majority]
        return Results("a", "a", {"xnli": TaskResult({}, scores, 1.0)})

    scores = joined("a", {1: once(1), 2: once(2)}).tasks["xnli"].scores
    assert sorted((score.value, score.seed or 0) for score in scores) == [(0.3, 0), (0.4, 1), (0.4, 2)]


def test_report_says_where_the_papers_order_holds() -> None:
    def row(name: str, pairs: float, error: float) -> Results:
        retrieval, alignment = scored(name, [pairs, pairs + 0.001]), scored(name, [error, error], "align", "aer")
        return Results(name, name, retrieval.tasks | alignment.tasks)

    ordered = [row(name, 0.1 * n, 0.9 - 0.1 * n) for n, name in enumerate(plan.PAPER_ORDER)]
    text = report.report(ordered, {})
    assert "it holds for multi30k, AER; it does not for none." in text
    swapped = [row(name, 0.1 * n, 0.9 + 0.1 * n) for n, name in enumerate(plan.PAPER_ORDER)]
    assert "it holds for multi30k; it does not for AER." in report.report(swapped, {})
    # Columns that no row has a value for are left out of every table.
    assert "|  | multi30k | AER (lower is better) |" in text
    assert "| info-snt − base | **+10.0 ± 0.0** | **-10.0 ± 0.0** |" in text
    assert "some of its rows are not there yet" in report.report(ordered[1:], {})
    assert "| info-snt | 10.1 ± 0.1 | 80.0 ± 0.0 |\n" in report.summary(ordered)


def test_the_studys_differences_are_paired_by_seed() -> None:
    """A run that is not done yet leaves the others; the least z is that of all seeds, not their mean."""

    def run(validation: float, least: float) -> dict[str, float]:
        return {"validation": validation, "z_min": least}

    arm = plan.Arm(8, "fp32", 1.0, False, "info-snt")
    info = {1: run(0.1, -9.0), 2: run(0.2, -4.0), 3: run(0.3, -5.0)}
    study = {arm: info, arm._replace(name="CZ-snt"): {3: run(0.5, -3.0), 1: run(0.2, -2.0)}}
    assert "| 8 | fp32 |  | 2 | +15.0 ± 63.5 |" in report.study_differences(study)
    assert "| 8 | fp32 |  | info-snt | 3 | 0.200 ± 0.100 | -9.00 |" in report.study_table(study)
    assert "CZ-snt" not in report.study_differences({arm: info}).splitlines()[-1]
    assert "–" not in report.study_table({arm: {1: {"validation": 0.5}}})


def test_facts_of_a_log(tmp_path: Path) -> None:
    common = {"contrastive": 1.0, "push": 0.5}
    lines: list[dict[str, Any]] = [
        {"step": 10, **common, "z_min": -9.0, "z_mean": 1.0, "saturated": 0.0, "pull": 3.0, "grad_norm": 2.0},
        {"step": 20, "eval_sentence_forth": 0.2, "eval_sentence_back": 0.4},
        {"step": 20, **common, "z_min": -5.0, "z_mean": -2.0, "saturated": 0.5, "pull": 1.0, "grad_norm": 0.5},
        {"step": 20, "eval_sentence_forth": 0.5, "eval_sentence_back": 0.7},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    margins = {"validation": 0.6, "z_min": -9.0, "z_mean": -2.0, "saturated": 0.25}
    forces = {"pull_first": 3.0, "pull": 1.0, "push_first": 0.5, "push": 0.5, "clipped": 0.5}
    assert logs.facts(tmp_path, clip=1.0) == pytest.approx(margins | forces)
    assert "clipped" not in logs.facts(tmp_path, clip=0.0)
