"""The picture of words: one panel per encoder, written whole or not at all."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ctloss.shared import pictures
from ctloss.shared.pictures import THEMES, Point, Theme, draw_words, write_figure

RANDOM = np.random.default_rng(0)
# What linear sRGB becomes for who lacks one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1.0).
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    """Linear sRGB of a hexadecimal colour."""
    share = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lightness_and_hue(colour: np.ndarray) -> np.ndarray:
    """CIELAB of a linear sRGB colour under D65."""
    share = TO_XYZ @ colour.clip(0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def points(count: int) -> list[Point]:
    places = [(meaning, language) for meaning in ("dog", "house", "sleep") for language in ("fr", "en", "de", "ru")]
    return [Point(*places[i % len(places)], RANDOM.normal(size=4).astype(np.float32)) for i in range(count)]


def test_colours_are_meanings_and_markers_languages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    panels = {"before": points(24), "after": points(12)}
    write = Mock(wraps=write_figure)
    monkeypatch.setattr(pictures, "write_figure", write)
    assert draw_words(panels, tmp_path / "new" / "words.png", title="Words", seed=0)
    figure: Figure = write.call_args.args[0]
    for name in ("words.png", "words-dark.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    for axis, panel in zip(figure.axes, panels.values(), strict=True):
        spots = list(zip(axis.collections, panel, strict=True))
        by_meaning = {(p.meaning, tuple(spot.get_facecolor()[0])) for spot, p in spots}
        by_language = {(p.language, np.asarray(spot.get_paths()[0].vertices).tobytes()) for spot, p in spots}
        assert len(by_meaning) == len({colour for _, colour in by_meaning}) == 3
        assert len(by_language) == len({marker for _, marker in by_language}) == 4
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["dog", "house", "sleep", "", "de", "en", "fr", "ru"]


def test_same_seed_gives_the_same_picture(tmp_path: Path) -> None:
    panels = {"only": points(15)}
    for name in ("a.png", "b.png"):
        draw_words(panels, tmp_path / name, title="Words", seed=3)
    for page in ("", "-dark"):
        assert (tmp_path / f"a{page}.png").read_bytes() == (tmp_path / f"b{page}.png").read_bytes()


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_of_a_series_differ_for_everybody(theme: Theme, sight: str) -> None:
    seen = [lightness_and_hue(SIGHTS[sight] @ linear(colour)) for colour in theme.series]
    assert len(seen) == 12
    # What one colour is told from ink by: languages are drawn in ink beside meanings in colours.
    seen.append(lightness_and_hue(SIGHTS[sight] @ linear(theme.ink)))
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 11


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_colours_stand_out_from_the_page(theme: Theme) -> None:
    luminances = [float(TO_XYZ[1] @ linear(colour)) for colour in (theme.halo, theme.ink, *theme.series)]
    page, *others = luminances
    contrasts = [(max(page, one) + 0.05) / (min(page, one) + 0.05) for one in others]
    assert contrasts[0] > 12
    # The orange and the sky of Okabe and Ito on white have 2.2.
    assert min(contrasts) > 2.2
    assert len(set(theme.colours.values())) == 8


def test_a_legend_of_many_words_and_languages_stays_in_the_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = Mock()
    monkeypatch.setattr(pictures, "write_figure", write)
    panel = [Point(f"$word_{n}", f"l{n}", RANDOM.normal(size=4)) for n in range(30)]
    assert draw_words({"only": panel}, tmp_path / "words.png", title="Words", seed=0)
    figure: Figure = write.call_args.args[0]
    figure.draw_without_rendering()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert legend.get_texts()[0].get_text() == "$word_0"
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    assert box.x1 <= figure.bbox.x1


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


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a picture's name that ends in \.png, got 'words\.svg'"):
        draw_words({"": points(12)}, tmp_path / "words.svg", title="", seed=0)
