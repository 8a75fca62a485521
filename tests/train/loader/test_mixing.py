"""How often an epoch sees a row: as often as its language pair or file is mixed in, each time with draws of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.shared.options import OptionError
from ctloss.train.samples.collator import Collator
from ctloss.train.samples.dataset import WPSDataset
from ctloss.train.samples.mixing import times_of_origins
from ctloss.train.samples.sampler import BatchPlan
from support.loader.samples import as_table, random_samples
from support.tiny_text import wordpiece_tokenizer


class Origin(NamedTuple):
    name: str
    source_language: str
    target_language: str


ORIGINS = [Origin("x/a.tsv", "en", "fr"), Origin("x/b=2.tsv", "en", "fr"), Origin("y/a.tsv", "en", "zh")]


@pytest.mark.parametrize(
    ("mixing", "times"),
    [
        ([], [1, 1, 1]),
        (["en-fr=2"], [2, 2, 1]),
        (["en-fr=2", "en-zh=.5"], [2, 2, 0.5]),
        (["a.tsv=3"], [3, 1, 3]),
        (["b=2.tsv=0", "en-fr=1.25"], [1.25, 0, 1]),
        (["en-fr=1.25", "a.tsv=2"], [2, 1.25, 2]),
        (["a.tsv=2", "y/a.tsv=3", "en-zh=4"], [2, 1, 3]),
    ],
)
def test_times_go_by_language_pair_and_by_file(mixing: list[str], times: list[float]) -> None:
    np.testing.assert_array_equal(times_of_origins(mixing, ORIGINS), times)


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        (["en-fr"], "expected NAME=TIMES, such as en-fr=2, with a finite number from 0 on, got 'en-fr'"),
        (["en-fr=often"], "expected NAME=TIMES, such as en-fr=2, with a finite number from 0 on, got 'en-fr=often'"),
        (["en-fr=-1"], "expected NAME=TIMES"),
        (["en-fr=inf"], "expected NAME=TIMES"),
        (["en-fr=nan"], "expected NAME=TIMES"),
        (["en-de=2"], "expected names among en-zh, en-fr, b=2.tsv, a.tsv, y/a.tsv, x/b=2.tsv, x/a.tsv, got 'en-de'"),
        (["en-fr=2", "en-fr=3"], "expected each name once, got 'en-fr'"),
        (["en-fr=0", "en-zh=0"], "expected something above 0, got 'en-fr=0 en-zh=0'"),
    ],
)
def test_mixings_that_mean_nothing_are_refused(mixing: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=f"mixing: {message}"):
        times_of_origins(mixing, ORIGINS)


def planned(times: list[float], rows: int = 40) -> BatchPlan:
    """Rows of as many origins in turn, in batches of two."""
    keys = np.arange(2 * rows).reshape(rows, 2)
    each = np.resize(times, rows)
    return BatchPlan(np.ones((rows, 2), dtype=int), keys, batch_size=2, seed=1, times=each)


def test_an_epoch_sees_rows_as_often_as_they_are_mixed_in() -> None:
    plan = planned([0, 1, 2.3, 0.6])
    seen = [np.bincount(plan.epoch(epoch).ravel() % 40, minlength=40).reshape(10, 4) for epoch in range(4)]
    assert len(plan) == (0 + 10 + 23 + 6) // 2
    for counts in seen:
        # A batch is never less than full: one of the 39 rows is left over.
        missing = np.array([0, 10, 23, 6]) - counts.sum(axis=0)
        assert missing.min() >= 0
        assert missing.sum() == 1
        assert not counts[:, 0].any()
        assert counts[:, 1].max() == 1
        assert counts[:, 2].max() == 3
        assert set(counts[:, 3]) == {0, 1}
    # Another part of the rows is seen once more in every epoch.
    assert len({tuple(counts[:, 3]) for counts in seen}) == 4
    for epoch in range(4):
        for one, other in plan.epoch(epoch).tolist():
            assert one % 40 != other % 40


def test_mixing_once_is_no_mixing() -> None:
    rows = np.arange(80).reshape(40, 2)
    plain = BatchPlan(np.ones((40, 2), dtype=int), rows, batch_size=2, seed=1)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(planned([1.0]).epoch(epoch), axis=None), np.arange(40))
        np.testing.assert_array_equal(np.sort(plain.epoch(epoch), axis=None), np.arange(40))


def test_copies_have_draws_of_their_own() -> None:
    tokenizer = wordpiece_tokenizer(["the red house", "la maison rouge"])
    dataset = WPSDataset(as_table(random_samples(30, vocabulary=30, words=(4, 5))))
    collate = Collator(tokenizer, seed=0)
    first, second = (collate(dataset.__getitems__((0, np.arange(30) + copy))) for copy in (0, 30))
    assert first["source_ids"].tolist() == second["source_ids"].tolist()
    for name in ("source_span", "source_labels", "target_labels"):
        assert (first[name] != second[name]).any()


def test_only_origins_of_training_rows_are_named() -> None:
    np.testing.assert_array_equal(times_of_origins(["a.tsv=3"], ORIGINS, [0, 1]), [3, 1, 3])
    for name in ("y/a.tsv", "en-zh"):
        with pytest.raises(OptionError, match=r"mixing: expected names among en-fr, b=2\.tsv.*, got '"):
            times_of_origins([f"{name}=2"], ORIGINS, [0, 1])
    with pytest.raises(OptionError, match="mixing: expected something above 0"):
        times_of_origins(["en-fr=0"], ORIGINS, [0, 1])


def test_an_epoch_that_memory_would_not_hold_is_refused() -> None:
    with pytest.raises(OptionError, match="mixing: expected at most 1,000 times, got 'en-fr=1e9'; lower it"):
        times_of_origins(["en-fr=1e9"], ORIGINS)
    with pytest.raises(ValueError, match="expected an epoch of at most 268,435,456 rows, got 4,000,000,000; lower"):
        planned([1e8])


def test_times_that_are_none_are_refused() -> None:
    for times in ([1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="expected 40 numbers of times, at least 0"):
            planned(times)
    with pytest.raises(ValueError, match="expected 2 numbers of times"):
        BatchPlan(np.ones((2, 2)), np.arange(4).reshape(2, 2), batch_size=2, seed=0, times=np.ones(3))
