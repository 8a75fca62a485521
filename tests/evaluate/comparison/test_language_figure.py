"""The figure of scores by language: one scale, no empty panel, names and languages that can be read."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ctloss.evaluate import Results, Score, TaskResult, draw_languages
from ctloss.evaluate.results import languages
from ctloss.shared import pictures
from support.tiny_results import made

CODES = ["".join(letters) + "_Latn" for letters in product("abcdef", ascii_lowercase[:7], "xyz")]


def scored(name: str, **tasks: dict[str, float]) -> Results:
    results = {}
    for task, scores in tasks.items():
        metric = languages.DRAWN[task]
        results[task] = TaskResult({}, [Score(task, code, metric, value) for code, value in scores.items()], 1.0)
    return Results(name, name, results)


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written, instead of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(pictures, "write_figure", lambda figure, *_: kept.append(figure))
    return kept


def draw(results: list[Results], kept: list[Figure]) -> list[Axes]:
    kept.clear()
    assert draw_languages(results, Path("languages.png"))
    light, dark = kept
    assert len(light.axes) == len(dark.axes)
    light.draw_without_rendering()
    return light.axes


def codes(axis: Axes) -> list[str]:
    return [label.get_text() for label in axis.get_xticklabels()]


def apart(boxes: list[Bbox]) -> bool:
    return not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_one_scale_and_only_what_was_measured(drawn: list[Figure]) -> None:
    base = scored("base", tatoeba={"eng-deu": 0.9, "eng-fra": 0.8, "deu-eng": 0.1}, bucc={"zh-en": 0.2})
    other = scored("other", tatoeba={"eng-spa": 0.7}, align={"en-fr": 0.3})
    axes = draw([base, other, scored("idle")], drawn)
    titles = [axis.get_title(loc="left") for axis in axes]
    assert titles == ["BUCC: F1", "Tatoeba: accuracy, eng-X", "word alignment: error rate, lower is better"]
    assert [codes(axis) for axis in axes] == [["zh-en"], ["deu", "fra", "spa"], ["en-fr"]]
    assert len({axis.get_ylim() for axis in axes}) == 1
    assert axes[0].get_ylim()[0] == 0
    assert 90 < axes[0].get_ylim()[1] < 100
    drawn_at = [[point for line in axis.lines for point in np.asarray(line.get_ydata()).tolist()] for axis in axes]
    assert [sorted(points) for points in drawn_at] == [[20], [70, 80, 90], [30]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["base", "other"]


def test_a_dozen_models_are_told_apart(drawn: list[Figure]) -> None:
    """By colour or marker, in both themes; names stand above the panels, as they are."""
    names = ["_one$", "two$", *(f"model {number}" for number in range(11))]
    axes = draw([made(name, number / 50) for number, name in enumerate(names)], drawn)
    for figure in drawn:
        [legend] = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [*names, "majority class"]
        looks = {(line.get_color(), line.get_marker()) for line in legend.get_lines()[:-1]}
        assert len(looks) == 13
    assert drawn[0].legends[0].get_window_extent().y0 > axes[0].title.get_window_extent().y1
    assert "Whiskers: standard deviation over seeds" in [text.get_text() for text in drawn[0].texts]


@pytest.mark.parametrize("count", [1, 28, len(CODES)])
@pytest.mark.parametrize("models", [1, 3, 13])
def test_languages_can_be_read(drawn: list[Figure], count: int, models: int) -> None:
    """Many go on in further panels; no two codes overlap, and no title runs into the next."""
    scores = {f"eng_Latn-{code}": 0.5 for code in CODES[:count]}
    axes = draw([scored(str(n), flores=scores, pairs={"de-en": 0.5, "en-de": 0.6}) for n in range(models)], drawn)
    shown = [code for axis in axes for code in codes(axis)]
    assert shown == ["de-en", "en-de", *CODES[:count]]
    figure = drawn[0]
    assert figure.get_figwidth() < 12
    for axis in axes:
        assert apart([label.get_window_extent() for label in axis.get_xticklabels()])
    titles = {axis.get_title(loc="left") for axis in axes}
    assert apart([text.get_window_extent() for text in figure.findobj(Text) if text.get_text() in titles])  # type: ignore[attr-defined]
    paper = figure.bbox
    for text in [label for axis in axes for label in axis.get_xticklabels()]:
        box = text.get_window_extent()
        assert paper.x0 <= box.x0 < box.x1 <= paper.x1
        assert paper.y0 <= box.y0 < box.y1 <= paper.y1


def test_directions_without_english_and_too_many(drawn: list[Figure], tmp_path: Path) -> None:
    without = {"deu_Latn-fra_Latn": 0.5, "fra_Latn-deu_Latn": 0.4}
    [axis] = draw([scored("a", flores=without)], drawn)
    assert (axis.get_title(loc="left"), codes(axis)) == ("FLORES-200: accuracy", list(without))
    many = {f"{one}-{other}": 0.5 for one, other in product(CODES[:17], repeat=2) if one != other}
    [axis] = draw([scored("a", pairs=many, bucc={"zh-en": 0.2})], drawn)
    assert codes(axis) == ["zh-en"]
    told = [text.get_text() for text in drawn[0].texts]
    assert told == ["Not drawn: line-aligned pairs: accuracy, 272 directions (see results.json)"]
    assert not draw_languages([scored("a", pairs=many)], tmp_path / "languages.png")


def test_both_files_are_written(tmp_path: Path) -> None:
    assert draw_languages([made("ours")], tmp_path / "languages.png")
    assert {path.name for path in tmp_path.iterdir()} == {"languages.png", "languages-dark.png"}
