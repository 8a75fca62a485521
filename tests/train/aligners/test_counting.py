"""Counts of keys in sorted runs on disk are those of a Counter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ctloss.train.text.counting import KeyCounter

KEYS = st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1))


@given(
    batches=st.lists(st.lists(KEYS, max_size=30), max_size=8),
    capacity=st.integers(1, 12),
    merged=st.integers(1, 40),
)
def test_counts_are_those_of_a_counter(batches: list[list[int]], capacity: int, merged: int) -> None:
    with TemporaryDirectory() as folder:
        with KeyCounter(Path(folder), capacity=capacity, merged=merged) as counter:
            for batch in batches:
                counter.add(np.array(batch, dtype=np.uint64))
            blocks = list(counter.counted())
        assert list(Path(folder).iterdir()) == []
    found = [pair for keys, counts in blocks for pair in zip(keys.tolist(), counts.tolist(), strict=True)]
    assert found == sorted(Counter(key for batch in batches for key in batch).items())


def test_added_keys_are_not_modified(tmp_path: Path) -> None:
    keys = np.array([5, 3, 5], dtype=np.uint64)
    with KeyCounter(tmp_path, capacity=2) as counter:
        counter.add(keys)
        list(counter.counted())
    assert keys.tolist() == [5, 3, 5]
