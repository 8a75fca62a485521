"""Batches without a text twice: every row once, the advertised number, the same again for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_sentence_model import dataset

from ctloss.integrations.sentence_transformers import DistinctTextsBatchSampler


def made(rows: list[tuple[str, ...]]) -> Dataset:
    return Dataset.from_dict({f"column_{place}": list(column) for place, column in enumerate(zip(*rows, strict=True))})


@given(
    st.lists(st.tuples(*[st.sampled_from("abcdefghijklmnop")] * 3), min_size=1, max_size=60),
    st.integers(2, 6),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_no_text_twice_and_every_row_once(
    rows: list[tuple[str, ...]], batch_size: int, window: int, epoch: int
) -> None:
    sampler = DistinctTextsBatchSampler(made(rows), batch_size, False, window=window)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    sampler.set_epoch(epoch)
    later = list(sampler)
    assert len(later) == len(batches) == len(sampler)
    for batch in batches + later:
        texts = Counter(text for row in batch for text in set(rows[row]))
        assert 1 <= len(batch) <= batch_size
        assert max(texts.values()) == 1
    assert later == list(sampler)


def test_full_batches_only() -> None:
    rows = [("same", f"other {number}") for number in range(4)] + [(f"a {n}", f"b {n}") for n in range(20)]
    sampler = DistinctTextsBatchSampler(made(rows), 4, True, seed=3)
    assert all(len(batch) == 4 for batch in sampler)
    assert len(list(sampler)) == len(sampler) >= 5


@pytest.mark.parametrize("window", [1, 2])
def test_an_epoch_that_fills_no_batch_takes_those_of_the_first(window: int) -> None:
    """The last row meets the first and the second, so that only the first three fill a batch, if taken in time."""
    rows = made([("a1", "a2"), ("b1", "b2"), ("c1", "c2"), ("a1", "b1")])
    fell_back = 0
    for seed in (0, 1, 2, 4, 6, 9, 10, 11):
        sampler = DistinctTextsBatchSampler(rows, 3, True, seed=seed, window=window)
        first = list(sampler)
        for epoch in range(1, 5):
            sampler.set_epoch(epoch)
            (batch,) = list(sampler)
            assert sorted(batch) == [0, 1, 2]
            fell_back += not sampler._fill(epoch)
            assert sampler._fill(epoch) or [batch] == first
        assert len(sampler) == 1
    assert fell_back


def test_another_epoch_and_another_seed_draw_otherwise() -> None:
    rows = dataset(40)
    first, second = (DistinctTextsBatchSampler(rows, 8, True, seed=seed) for seed in (0, 1))
    drawn = list(first)
    assert drawn != list(second)
    first.set_epoch(1)
    assert drawn != list(first)
    assert drawn == list(DistinctTextsBatchSampler(rows, 8, True, seed=0))


def test_a_window_puts_like_lengths_together() -> None:
    rows = Dataset.from_dict({"text": [f"{number:03}" * (number % 50 + 1) for number in range(400)]})

    def padding(window: int) -> int:
        batches = list(DistinctTextsBatchSampler(rows, 8, True, window=window))
        lengths = [[len(text) for text in rows[batch]["text"]] for batch in batches]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    assert padding(50) < padding(1) / 4


def test_labels_may_repeat() -> None:
    rows = dataset(8, 2, label=[0] * 8, dataset_name=["one"] * 8)
    (batch,) = DistinctTextsBatchSampler(rows, 8, True, valid_label_columns=["label", "score"])
    assert sorted(batch) == list(range(8))


@pytest.mark.parametrize(
    ("rows", "batch_size", "error", "message"),
    [
        (iter([]), 4, TypeError, "dataset: expected a datasets.Dataset, .* got list_iterator; load it without"),
        (made([("a", "b")] * 9), 4, ValueError, "expected enough rows with distinct texts for a batch of 4, got 9"),
        (made([("a", "b")] * 9), 1, ValueError, "expected at least 2 rows .* got 1 and 1"),
        (Dataset.from_dict({"text": ["a"], "n": [1]}), 2, TypeError, "expected texts in column 'n', got int"),
        (Dataset.from_dict({"label": [0, 1]}), 2, ValueError, "expected columns of texts, got labels only"),
    ],
)
def test_refusals(rows: Any, batch_size: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DistinctTextsBatchSampler(rows, batch_size, True, valid_label_columns=["label"])
