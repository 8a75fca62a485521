"""The picture of words: one panel per encoder, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ctloss.shared import pictures
from ctloss.shared.pictures import Point, draw_words, write_figure

RANDOM = np.random.default_rng(0)


def points(count: int) -> list[Point]:
    places = [(meaning, language) for meaning in ("dog", "house", "sleep") for language in ("fr", "en", "de", "ru")]
    return [Point(*places[i % len(places)], RANDOM.normal(size=4).astype(np.float32)) for i in range(count)]


def test_colours_are_meanings_and_markers_languages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    panels = {"before": points(24), "after": points(12)}
    write = Mock(wraps=write_figure)
    monkeypatch.setattr(pictures, "write_figure", write)
    assert draw_words(panels, tmp_path / "new" / "words.png", title="Words", seed=0)
    figure: Figure = write.call_args.args[0]
    assert (tmp_path / "new" / "words.png").read_bytes().startswith(b"\x89PNG")
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    for axis, panel in zip(figure.axes, panels.values(), strict=True):
        spots = list(zip(axis.collections, panel, strict=True))
        by_meaning = {(p.meaning, tuple(spot.get_facecolor()[0])) for spot, p in spots}
        by_language = {(p.language, np.asarray(spot.get_paths()[0].vertices).tobytes()) for spot, p in spots}
        assert len(by_meaning) == len({colour for _, colour in by_meaning}) == 3
        assert len(by_language) == len({marker for _, marker in by_language}) == 4
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["dog", "house", "sleep", "de", "en", "fr", "ru"]


def test_same_seed_gives_the_same_picture(tmp_path: Path) -> None:
    panels = {"only": points(15)}
    for name in ("a.png", "b.png"):
        draw_words(panels, tmp_path / name, title="Words", seed=3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_tensors_are_points_too(tmp_path: Path) -> None:
    panel = [point._replace(vector=torch.from_numpy(point.vector)) for point in points(12)]
    assert draw_words({"only": panel}, tmp_path / "words.png", title="Words", seed=0)


@pytest.mark.parametrize("counts", [(), (0,), (9,), (12, 9)])
def test_too_few_points_draw_nothing(tmp_path: Path, counts: tuple[int, ...]) -> None:
    panels = {str(i): points(count) for i, count in enumerate(counts)}
    assert not draw_words(panels, tmp_path / "words.png", title="Words", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_figure_that_cannot_be_drawn_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "words.png"
    path.write_text("before")
    figure = Figure()
    figure.suptitle("$not mathematics \\frac$")
    with pytest.raises(ValueError, match="frac"):
        write_figure(figure, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
