"""Intervals and differences by paired bootstrap: against SciPy's, against what they promise, and in the report."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import ctloss.evaluate
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
from ctloss.evaluate.results.scores import add_result
from ctloss.evaluate.results.significance import of_row

pytestmark = pytest.mark.numeric

# Where a test says that there is one, none is None.
compare: Any = ctloss.evaluate.compare
FEW = ResamplingOptions(resamples=2000)
DRAW = np.random.default_rng(0)
BASE = DRAW.random(400) < 0.6


def hits(values: np.ndarray, language: str = "eng-deu", **also: Any) -> Items:
    return Items(language, "accuracy", "test", values, **also)


def test_intervals_are_scipys() -> None:
    """An accuracy, and a ratio of sums such as F1, by its percentile bootstrap."""
    above, below = DRAW.integers(0, 3, 300), DRAW.integers(2, 6, 300)
    [plain, ratio], _ = compare([[hits(BASE)], [Items("de", "f1", "other", above, below)]])

    def f1(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        return one.sum(axis=axis) / other.sum(axis=axis)

    options: Any = {"method": "percentile", "vectorized": True, "rng": np.random.default_rng(1)}
    expected = stats.bootstrap((BASE,), np.mean, **options).confidence_interval
    assert (plain.value, plain.low, plain.high) == pytest.approx((BASE.mean(), *expected), abs=0.004)
    expected = stats.bootstrap((above, below), f1, paired=True, **options).confidence_interval
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((f1(above, below, 0), *expected), abs=0.006)


def test_equal_models_seldom_differ() -> None:
    """Of two models equally good by chance, about one comparison in twenty has p < .05."""
    draw, options, small = np.random.default_rng(3), ResamplingOptions(resamples=400), 0
    for _ in range(200):
        _, [_, difference] = compare([[hits(draw.random(150) < 0.5)], [hits(draw.random(150) < 0.5)]], options)
        small += difference.p < 0.05
    assert stats.binomtest(small, 200, 0.05).pvalue > 0.001


def test_pairs_tell_what_separate_intervals_do_not() -> None:
    """Twelve more of 400 right, none lost: the intervals overlap by most, the difference is not chance."""
    better = BASE.copy()
    better[np.flatnonzero(~BASE)[:12]] = True
    [one, other], [nothing, difference] = compare([[hits(BASE)], [hits(better)]], FEW)
    assert other.low < one.value < one.high
    assert nothing is None
    assert difference.value == pytest.approx(0.03)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p < 0.01
    _, [_, same] = compare([[hits(BASE)], [hits(BASE)]], FEW)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    # The signs change with the order, p does not.
    _, [_, back] = compare([[hits(better)], [hits(BASE)]], FEW)
    assert (back.value, back.low, back.high, back.p) == pytest.approx(
        (-difference.value, -difference.high, -difference.low, difference.p)
    )


def test_languages_with_the_same_items_are_drawn_together() -> None:
    """Their mean is as uncertain as one of them; of independent ones, less so by the square root of their number."""
    together = [hits(BASE, language, aligned="xnli") for language in ("de", "fr", "ru", "zh")]
    apart = [Items(language, "accuracy", language, BASE) for language in ("de", "fr", "ru", "zh")]
    widths = [found.high - found.low for found in compare([together, apart, together[:1]], FEW)[0]]
    assert widths[0] == pytest.approx(widths[2])
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)


def test_seeds_are_drawn_too() -> None:
    """Three runs with .2, .5 and .8 right: their mean is far less certain than one run of .5."""
    runs = [hits(np.arange(1000) < 1000 * share, seed=seed) for seed, share in enumerate((0.2, 0.5, 0.8))]
    [three, one], [_, difference] = compare([runs, runs[1:2]], FEW)
    assert three.value == one.value == 0.5
    # Of three draws among three, all are the lowest, or the highest, in one of 27.
    assert three.low < 0.24
    assert three.high > 0.76
    assert 0.45 < one.low < one.high < 0.55
    assert (difference.value, difference.p) == (0, None)
    _, [_, alike] = compare([runs, [dataclasses.replace(run, seed=number) for number, run in enumerate(runs, 5)]], FEW)
    assert alike.low < -0.2
    assert alike.p == 1


def test_one_run_of_a_fine_tuned_model_is_no_evidence(tmp_path: Path) -> None:
    """A hundred more of 400 right tell two runs apart, not two models: no p and no mark, unless both have more runs."""
    better = BASE | (np.arange(400) < 200)
    runs = {share: [hits(values, seed=seed) for seed in (1, 2, 3)] for share, values in (("a", BASE), ("b", better))}
    for base, other, tested in ((1, 1, False), (3, 1, False), (1, 3, False), (3, 3, True)):
        _, [_, difference] = compare([runs["a"][:base], runs["b"][:other]], FEW)
        assert (difference.p is not None) == tested
        assert 0 < difference.low < difference.value < difference.high
    shown = {}
    for seeds in (1, 3):
        results = []
        for name, values in (("base", BASE), ("good", better)):
            items = [hits(values, language="de", seed=seed) for seed in range(seeds)]
            scores = [Score("xnli", language, "accuracy", float(values.mean()), item.seed, about)
                      for item in items for language, about in (("de", ""), ("mean", "mean of 1"))]  # fmt: skip
            results.append(Results(name, name, folder=tmp_path / f"{name}{seeds}"))
            settings = {"seeds": list(range(seeds))}
            add_result(results[-1].folder, results[-1], "xnli", TaskResult(settings, scores, 1.0), items)
        results = [read_results(one.folder) for one in results]
        shown[seeds] = report(results, compare_results(results, FEW))
    value = f"{100 * (better.mean() - BASE.mean()):+.1f}"
    [one, three] = [next(line for line in text.splitlines() if line.startswith("| good | XNLI")).split(" | ")
                    for text in shown.values()]  # fmt: skip
    assert (one[4], len(one)) == (value, 6)
    assert (three[4], three[6:]) == (f"{value} †", ["0.0005", "0.0005 |"])
    assert "†" not in shown[1]
    assert "| p |" not in shown[1]
    assert "Holm" not in shown[1]
    assert ["fine-tuned with one seed only" in text for text in shown.values()] == [True, False]


def test_only_the_same_items_are_compared() -> None:
    other = dataclasses.replace(hits(BASE), asked="another text")
    assert compare([[hits(BASE)], [other]], FEW)[1] == [None, None]
    assert compare([[hits(BASE)], []], FEW) == (compare([[hits(BASE)]], FEW)[0] + [None], [None, None])


def test_rows_of_means_are_made_of_their_languages() -> None:
    items = [hits(BASE, language) for language in ("eng-deu", "deu-eng", "eng-fra")]
    chosen = {row: [item.language for item in of_row(items, row, "accuracy", "mean")] for row in ("mean", "eng-X")}
    assert chosen == {"mean": ["eng-deu", "deu-eng", "eng-fra"], "eng-X": ["eng-deu", "eng-fra"]}
    assert [item.language for item in of_row(items, "X-eng", "accuracy", "mean")] == ["deu-eng"]
    assert of_row(items, "eng-deu", "f1", "mean") == []


def kept(folder: Path, values: np.ndarray) -> Results:
    """Tatoeba's results in German, as the command keeps them."""
    names = (("eng-deu", ""), ("eng-X", "mean of 1"))
    scores = [Score("tatoeba", name, "accuracy", float(values.mean()), about=about) for name, about in names]
    results = Results(folder.name, f"runs/{folder.name}")
    add_result(folder, results, "tatoeba", TaskResult({"pooling": "mean"}, scores, 1.0), [hits(values)])
    return read_results(folder)


def test_a_report_beside_other_results(tmp_path: Path) -> None:
    better, worse = BASE | (np.arange(400) < 60), BASE & (np.arange(400) > 200)
    same = BASE.copy()
    results = [kept(tmp_path / name, part) for name, part in (("base", BASE), ("good", better), ("bad", worse))]
    results.append(kept(tmp_path / "same", same))
    compared = compare_results(results, FEW)
    shown = report(results, compared)
    percent = [f"{100 * part.mean():.1f}" for part in (BASE, better, worse, same)]
    table = table_of_means(results, compared)
    marked = [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| **")]
    assert marked == [percent[0], f"{percent[1]} †", f"{percent[2]} †", percent[3]]
    assert f"| accuracy | eng-deu | {BASE.mean():.3f} | {better.mean():.3f} † |" in shown
    [line] = [line for line in shown.splitlines() if line.startswith("| good | Tatoeba")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[2] == percent[1]
    assert cells[4] == f"{100 * (better.mean() - BASE.mean()):+.1f} †"
    # 2,000 resamples tell no p below 1 / 2,001; three differences are corrected for.
    assert cells[6:] == ["0.0005", "0.0015"]
    assert "2000 resamples, seed 0, percentiles" in shown
    assert "Holm's correction for the number of differences in each table, in this one 3." in shown
    assert report(results, compare_results(results, ResamplingOptions(resamples=0))) == report(results)


def test_items_are_kept_as_they_were(tmp_path: Path) -> None:
    items = [
        hits(BASE, seed=1),
        Items("de", "f1", "other", np.array([0, 2, 700]), np.array([1, 2, 900]), aligned="all"),
        Items("de", "em", "third", np.array([0.25, 1.0])),
    ]
    scores = [Score("t", item.language, item.metric, item.value, item.seed) for item in items]
    add_result(tmp_path, Results("m", "m"), "pos", TaskResult({}, scores, 1.0), items)
    found = read_results(tmp_path).items("pos")
    assert [vars(item).keys() for item in found] == [vars(item).keys() for item in items]
    for one, other in zip(found, items, strict=True):
        for name, expected in vars(other).items():
            np.testing.assert_array_equal(getattr(one, name), expected)


def test_items_of_other_scores_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    results = kept(tmp_path / "base", BASE)
    path = tmp_path / "base" / "items" / "tatoeba.npz"
    kept(tmp_path / "other", ~BASE)
    foreign = (tmp_path / "other" / "items" / "tatoeba.npz").read_bytes()
    path.write_bytes(foreign)
    with pytest.warns(UserWarning, match="it belongs to other scores than results.json"):
        assert results.items("tatoeba") == []
    path.write_bytes(foreign[:100])
    with pytest.warns(UserWarning, match=r"tatoeba.npz: left out of comparisons: damaged"):
        assert results.items("tatoeba") == []
    path.unlink()
    assert results.items("tatoeba") == []


def test_a_flipped_byte_anywhere_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """Items with a byte of their file changed are none, with a warning, or, where nothing depends on it, the same."""
    results = kept(tmp_path, BASE)
    path = tmp_path / "items" / "tatoeba.npz"
    whole, places, damaged = path.read_bytes(), 0, 0
    for place in range(0, len(whole), 7):
        places += 1
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (0xFF, 0x01, 0x40)[place % 3]]) + whole[place + 1 :])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = results.items("tatoeba")
        if found:
            [item] = found
            np.testing.assert_array_equal(item.numerators, BASE)
            assert (item.language, item.metric, item.asked, item.denominators) == ("eng-deu", "accuracy", "test", None)
        else:
            assert any("tatoeba.npz: left out of comparisons: damaged" in str(one.message) for one in told), place
            damaged += 1
    assert damaged > places / 2
