"""The documents' pictures: twice, on light and dark pages, and true of the code that they explain."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from benchmarks.diagrams import __main__ as command
from benchmarks.diagrams.negatives import NEGATIVE, NOTHING, OPTIONS, PAIRS, POSITIVE, QUEUE, compared
from benchmarks.diagrams.ring import blocks
from benchmarks.figures import Theme, draw, spread


def test_pictures_are_drawn_for_light_and_dark_pages(tmp_path: Path) -> None:
    command.main(["--figures", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name}{page}.png" for name in ("front", "negatives", "ring") for page in ("", "-dark")}
    for name in names:
        assert imread(tmp_path / name)[0, 0].tolist()[3] == (0 if "dark" in name else 1)


def test_themes_only_hold_while_drawing(tmp_path: Path) -> None:
    inks = []

    def make(theme: Theme) -> Figure:
        figure = Figure()
        inks.append((theme.ink, figure.subplots().xaxis.label.get_color()))
        return figure

    draw(tmp_path / "empty.png", make)
    assert all(wanted == got for wanted, got in inks)
    assert len({got for _, got in inks}) == 2
    assert Figure().subplots().xaxis.label.get_color() == "black"


@pytest.mark.parametrize(
    ("options", "candidates", "anchors", "negatives"),
    [
        ({"negatives": "both"}, False, 2 * PAIRS, 2 * PAIRS - 2),
        ({"negatives": "cross"}, False, 2 * PAIRS, PAIRS - 1),
        ({"negatives": "own"}, False, 2 * PAIRS, PAIRS - 1),
        ({"negatives": "cross", "directions": "x"}, True, PAIRS, PAIRS - 1 + QUEUE),
        ({"negatives": "none", "directions": "x"}, True, PAIRS, QUEUE),
    ],
)
def test_table_of_negatives_counts_them(
    options: dict[str, str], candidates: bool, anchors: int, negatives: int
) -> None:
    cells = compared(options, candidates)
    assert len(cells) == anchors
    assert ((cells == POSITIVE).sum(1) == 1).all()
    assert ((cells == NEGATIVE).sum(1) == negatives).all()
    assert (cells.diagonal() == NOTHING).all()


def test_pairs_of_one_id_are_not_compared() -> None:
    (options,) = (options for options in OPTIONS.values() if "ids" in options)
    cells, ids = compared(options, False), [*options["ids"].tolist()] * 2
    for anchor, row in product(range(2 * PAIRS), repeat=2):
        positive = (anchor + PAIRS) % (2 * PAIRS) == row
        assert int(cells[anchor, row]) == (POSITIVE if positive else NOTHING if ids[anchor] == ids[row] else NEGATIVE)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 6])
def test_blocks_cover_every_two_ranks_once(world: int) -> None:
    """On a grid of half ranks each cell is formed once, by itself or mirrored."""
    formed = np.zeros((2 * world, 2 * world), dtype=int)
    for _, own, other in blocks(world):
        rows, columns = (slice(round(2 * begin), round(2 * end)) for begin, end in (own, other))
        formed[rows, columns] += 1
        if own != other:
            formed[columns, rows] += 1
    assert (formed == 1).all()


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(0.1, 20))
def test_names_are_spread_without_overlap(places: list[float], gap: float) -> None:
    found = spread(sorted(places), gap)
    assert all(later - earlier >= gap - 1e-9 for earlier, later in pairwise(found))
    assert sum(found) == pytest.approx(sum(places), abs=1e-6)
