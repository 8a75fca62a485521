"""Ids of rows whose words stand elsewhere in the batch: a plain loop's, for one process and for several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.train.samples.collator import Collator, connected
from ctloss.train.samples.dataset import Rows, WPSDataset
from ctloss.train.samples.sampler import BatchPlan, PlanSampler
from support.loader.samples import as_table, random_samples
from support.tiny_text import ENGLISH_FRENCH, wordpiece_tokenizer

TOKENIZER = wordpiece_tokenizer([text for pair in ENGLISH_FRENCH for text in pair])
# So few wordpieces that most rows have their words in common with others; and so many that few have.
FEW, MANY = (WPSDataset(as_table(random_samples(64, vocabulary=size, words=(1, 3)))) for size in (60, 400))


def by_a_loop(source: list[int], target: list[int]) -> list[int]:
    first = list(range(len(source)))
    for i in range(len(source)):
        for j in range(i):
            if {source[i], target[i]} & {source[j], target[j]}:
                one, other = sorted((first[i], first[j]))
                first = [one if label == other else label for label in first]
    return first


@given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 2**31))
def test_connected_rows_are_those_of_a_loop(rows: int, words: int, seed: int) -> None:
    # The sides share some words, as those of corpora from and into a language do.
    source, target = np.random.default_rng(seed).integers(words, size=(2, rows)).astype(np.uint64)
    target += np.uint64(words // 2)
    found = connected(source, target)
    assert found.tolist() == by_a_loop(source.tolist(), target.tolist())
    assert found.dtype == np.int64


def test_long_chains_are_connected() -> None:
    order = np.random.default_rng(0).permutation(5000)
    # Row k has word k on one side and word k + 1 on the other.
    source, target = order.astype(np.uint64), (order + 1).astype(np.uint64)
    assert not connected(source, target).any()
    apart = connected(source, target + np.uint64(10**6))
    np.testing.assert_array_equal(apart, np.arange(5000))


def drawn_words(dataset: WPSDataset, batch: dict[str, torch.Tensor]) -> tuple[list[int], list[int]]:
    """The words at the drawn places, of a table of words of one wordpiece each."""
    ids = [
        batch[f"{side}_ids"].gather(1, batch[f"{side}_span"][:, :1]).squeeze(1).tolist()
        for side in ("source", "target")
    ]
    return ids[0], [10**6 + word for word in ids[1]]


@pytest.mark.parametrize("dataset", [FEW, MANY], ids=["few words", "many words"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_ids_are_those_of_the_drawn_words(dataset: WPSDataset, epoch: int) -> None:
    index = np.random.default_rng(epoch).permutation(64)[:30]
    batch = Collator(TOKENIZER, seed=5, mlm_probability=0)(dataset.__getitems__((epoch, index)))
    expected = by_a_loop(*drawn_words(dataset, batch))
    assert batch["word_ids"].dtype == torch.int64
    assert batch["word_ids"].tolist() == expected
    assert len(set(expected)) < 30
    assert len(set(expected)) > 1


def test_processes_agree_on_the_ids_of_a_batch() -> None:
    plan = BatchPlan(MANY.lengths, MANY.keys, batch_size=24, seed=0)
    collate = Collator(TOKENIZER, seed=5, mlm_probability=0)
    whole = [collate(MANY.__getitems__(key)) for key in PlanSampler(plan)]
    parts = [
        [collate(MANY.__getitems__(key)) for key in PlanSampler(plan, rank=rank, world_size=3, split=True)]
        for rank in range(3)
    ]
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        assert 1 < len(batch["word_ids"].unique()) < 24
        for name in ("word_ids", "index", "source_span", "target_span"):
            assert torch.equal(torch.cat([part[step][name] for part in parts]), batch[name]), name


def test_ids_are_given_only_where_they_are_wanted() -> None:
    rows: Rows = FEW.__getitems__((0, np.arange(8)))
    assert "word_ids" in Collator(TOKENIZER, seed=0)(rows)
    assert "word_ids" not in Collator(TOKENIZER, seed=0, same_words="keep")(rows)
    assert "word_ids" not in Collator(TOKENIZER, seed=0, words=False)(rows)


def test_rows_of_others_need_words_too() -> None:
    table = [*random_samples(4, vocabulary=90), *random_samples(1, vocabulary=90, words=(0, 0))]
    rows = WPSDataset(as_table(table)).__getitems__((0, np.array([0, 1]), np.array([0, 1, 2, 4])))
    with pytest.raises(ValueError, match="expected a word pair in every row, got none in row 4"):
        Collator(TOKENIZER, seed=0)(rows)
