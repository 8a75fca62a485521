"""Random numbers by counter: uniform, independent of each other, and of nothing but what they are drawn for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from ctloss.train.samples.draws import Purpose, uniform
from ctloss.train.text.sentences import mixed

ROWS = np.arange(100_000)
# Of a chi-square of 255 degrees of freedom, five standard deviations to each side.
LEAST, MOST = 255 - 5 * np.sqrt(2 * 255), 255 + 5 * np.sqrt(2 * 255)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("seed", [0, 2021])
def test_draws_are_uniform_over_rows_and_over_positions(seed: int, purpose: Purpose) -> None:
    for rows, positions in ((ROWS, None), (np.full_like(ROWS, 17), ROWS), (ROWS // 100, ROWS % 100)):
        draws = uniform(seed, 3, purpose, rows, positions)
        assert draws.min() >= 0
        assert draws.max() < 1
        assert LEAST < chi_square(np.bincount((draws * 256).astype(int), minlength=256)) < MOST
        # The lowest bits too: what is left after the first 24.
        assert LEAST < chi_square(np.bincount((draws * 2.0**24 % 1 * 256).astype(int), minlength=256)) < MOST


NEIGHBOURS = {
    "row": (0, 0, Purpose.WORD, 1, 0),
    "position": (0, 0, Purpose.WORD, 0, 1),
    "row and position": (0, 0, Purpose.WORD, 1, -1),
    "epoch": (0, 1, Purpose.WORD, 0, 0),
    "seed": (1, 0, Purpose.WORD, 0, 0),
    "seed and epoch": (1, -1, Purpose.WORD, 0, 0),
    "purpose": (0, 0, Purpose.SOURCE_CHOSEN, 0, 0),
    "purposes of one mask": (0, 0, Purpose.SOURCE_KIND, 0, 0),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbouring_draws_are_independent(name: str) -> None:
    seed, epoch, purpose, row, position = NEIGHBOURS[name]
    rows, positions = 1 + ROWS // 40, 1 + ROWS % 40
    one = uniform(5, 3, Purpose.WORD, rows, positions)
    other = uniform(5 + seed, 3 + epoch, purpose, rows + row, positions + position)
    joint = (one * 16).astype(int) * 16 + (other * 16).astype(int)
    assert LEAST < chi_square(np.bincount(joint, minlength=256)) < MOST
    # Of independent uniform numbers: five standard deviations.
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(one))


def test_a_draw_depends_on_its_own_entry_only() -> None:
    rng = np.random.default_rng(0)
    rows, positions = rng.integers(10**9, size=500), rng.integers(100, size=500)
    whole = uniform(1, 2, Purpose.TARGET_KIND, rows, positions)
    order = rng.permutation(500)[:77]
    np.testing.assert_array_equal(uniform(1, 2, Purpose.TARGET_KIND, rows[order], positions[order]), whole[order])
    assert uniform(1, 2, Purpose.TARGET_KIND, rows[3:4], positions[3:4])[0] == whole[3]
    table = uniform(1, 2, Purpose.TARGET_KIND, rows.reshape(50, 10), positions.reshape(50, 10))
    np.testing.assert_array_equal(table.ravel(), whole)


def test_no_two_draws_are_one() -> None:
    rows, positions = np.divmod(np.arange(400_000), 40)
    drawn = [uniform(seed, epoch, Purpose.WORD, rows, positions) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    # 1.2 million of 2^53 numbers: two are equal with a chance of 8e-5.
    assert len(np.unique(np.concatenate(drawn))) == 1_200_000


def test_mixing_is_that_of_splitmix64() -> None:
    # The generator's first outputs from seed 1234567, as published with it.
    state = np.uint64(1234567) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 4, dtype=np.uint64)
    assert mixed(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
