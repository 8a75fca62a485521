"""Nearest neighbours, centring and random pairs against plain definitions, for NumPy and PyTorch alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctloss.shared import vectors
from ctloss.shared.vectors import centred, nearest, random_pair_cosine, retrieval_accuracy, unit

pytestmark = pytest.mark.numeric

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(83, 12)).astype(np.float32) + 0.4
Y = X + 2 * RANDOM.normal(size=(83, 12)).astype(np.float32)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([[np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) for b in y] for a in x.astype(np.float64)])


def test_unit_rows_whatever_their_size() -> None:
    rows = unit(np.array([[3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("at_a_time", [1, 7 * 83, 1 << 26])
@pytest.mark.parametrize("k", [1, 5, 83, 100])
def test_nearest_are_those_of_the_largest_cosines(monkeypatch: pytest.MonkeyPatch, at_a_time: int, k: int) -> None:
    monkeypatch.setattr(vectors, "AT_A_TIME", at_a_time)
    expected = cosines(X, Y)
    found, rows = nearest(X, Y, k)
    assert rows.shape == found.shape == (83, min(k, 83))
    assert rows.dtype == np.int64
    assert found.dtype == np.float32
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1)[:, :k])
    np.testing.assert_allclose(found, np.take_along_axis(expected, rows, 1), atol=1e-6)


def test_the_first_of_equals_is_nearest() -> None:
    candidates = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    assert nearest(candidates[1:2], candidates, 4)[1].tolist() == [[1, 2, 3, 0]]


def test_right_and_removed_candidates_by_hand() -> None:
    x = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    y = np.array([[3.0, 0.1], [5.0, 0.0], [0.2, 0.2]])
    assert nearest(x, y)[1][:, 0].tolist() == [1, 2, 2]
    assert nearest(x, y, removed=[{1}, set(), {0}])[1][:, 0].tolist() == [0, 2, 2]
    assert nearest(x, y, 2, removed=[set(), [2], {2}])[1].tolist() == [[1, 0], [0, 1], [0, 1]]

    assert retrieval_accuracy(x, y) == pytest.approx(1 / 3)
    assert retrieval_accuracy(x, y, [{1}, {0, 2}, {0}]) == pytest.approx(2 / 3)
    assert retrieval_accuracy(x, y, [{0}, {0}, {0}], [{1}, set(), set()]) == pytest.approx(1 / 3)


def test_random_pairs_are_all_but_the_translations() -> None:
    off_diagonal = cosines(X, Y)[~np.eye(83, dtype=bool)]
    assert random_pair_cosine(X, Y) == pytest.approx(off_diagonal.mean(), abs=1e-6)


def test_centring_takes_a_common_direction_out() -> None:
    x, y = X + 50, X.copy()
    y[:, 0] += 200
    assert retrieval_accuracy(x, y) < 0.2
    assert retrieval_accuracy(centred(x), centred(y)) == 1.0
    np.testing.assert_allclose(centred(x), x - x.astype(np.float64).mean(axis=0), atol=1e-5)


def test_tensors_are_taken_as_arrays_are() -> None:
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    np.testing.assert_array_equal(nearest(x, y, 3)[1], nearest(X, Y, 3)[1])
    np.testing.assert_array_equal(centred(x), centred(X))
    assert random_pair_cosine(x, y) == random_pair_cosine(X, Y)
    assert retrieval_accuracy(x, y) == retrieval_accuracy(X, Y)
