"""Batches: no text twice in one, the same after a restart; draws and masks belong to the row, not to the batch."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.train.samples.collator import Collator
from ctloss.train.samples.dataset import Rows, WPSDataset
from ctloss.train.samples.sampler import BatchPlan, PlanSampler
from support.loader.samples import as_table, random_samples, write_stream
from support.tiny_text import ENGLISH_FRENCH, wordpiece_tokenizer

TOKENIZER = wordpiece_tokenizer([text for pair in ENGLISH_FRENCH for text in pair])
SPECIAL = set(TOKENIZER.all_special_ids)


def random_rows(rng: np.random.Generator, rows: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(3, 40, size=(rows, 2)), rng.integers(texts, size=(rows, 2)).astype(np.uint64)


def dataset(count: int, length: int = 30) -> WPSDataset:
    rows = random_samples(count, vocabulary=len(TOKENIZER), length=length, words=(5, 5))
    return WPSDataset(as_table(rows, chunk=64))


def items(count: int, epoch: int = 0, length: int = 30) -> Rows:
    return dataset(count, length).__getitems__((epoch, np.arange(count)))


@given(st.integers(2, 400), st.floats(0.3, 4), st.integers(2, 16), st.integers(1, 8), st.integers(0, 2**31))
def test_no_batch_holds_a_text_twice(rows: int, repeats: float, batch_size: int, window: int, seed: int) -> None:
    lengths, keys = random_rows(np.random.default_rng(seed), rows, max(2, int(rows * repeats)))
    try:
        plan = BatchPlan(lengths, keys, batch_size=batch_size, seed=seed, window=window)
    except ValueError:
        assume(False)  # too few distinct texts for a batch
    for epoch in range(2):
        batches = plan.epoch(epoch)
        assert batches.shape == (len(plan), batch_size)
        for batch in batches:
            texts = [key for row in batch for key in set(keys[row].tolist())]
            assert len(texts) == len(set(texts))


@given(st.integers(2, 300), st.integers(2, 16), st.integers(0, 2**31), st.integers(0, 9))
def test_without_repeated_texts_batches_leave_out_less_than_a_batch(
    rows: int, batch_size: int, seed: int, epoch: int
) -> None:
    assume(rows >= batch_size)
    lengths = np.random.default_rng(seed).integers(3, 40, size=(rows, 2))
    plan = BatchPlan(lengths, np.arange(2 * rows).reshape(rows, 2), batch_size=batch_size, seed=seed)
    placed = plan.epoch(epoch).ravel()
    assert len(plan) == rows // batch_size
    assert len(set(placed.tolist())) == len(placed) == len(plan) * batch_size


def test_rows_that_must_wait_are_placed_later() -> None:
    keys = np.stack([np.repeat(np.arange(32), 4), np.arange(1000, 1128)], axis=1)
    plan = BatchPlan(np.ones((128, 2)), keys, batch_size=16, seed=3)
    for epoch in range(5):
        assert len(set(plan.epoch(epoch).ravel().tolist())) > 96


def test_text_that_dominates_the_corpus_costs_no_quadratic_time() -> None:
    rows = 60_000
    keys = np.stack([np.arange(rows), np.arange(rows, 2 * rows)], axis=1)
    keys[rows // 3 :, 0] = 7
    plan = BatchPlan(np.ones((rows, 2)), keys, batch_size=64, seed=0)
    # Each batch takes 63 of the 20,000 other rows and one of the 40,000.
    assert 250 < len(plan) <= rows // 3 // 63 + 1


def test_batches_of_an_epoch_do_not_depend_on_the_epochs_before() -> None:
    lengths, keys = random_rows(np.random.default_rng(0), 300, 500)
    one, other = (BatchPlan(lengths, keys, batch_size=8, seed=5) for _ in range(2))
    walked = [one.epoch(epoch).copy() for epoch in range(4)]
    for epoch in (3, 1, 2, 0):
        np.testing.assert_array_equal(other.epoch(epoch), walked[epoch])
    assert not np.array_equal(walked[0], walked[1])
    assert not np.array_equal(BatchPlan(lengths, keys, batch_size=8, seed=6).epoch(0), walked[0])


def test_buckets_save_padding() -> None:
    lengths, keys = random_rows(np.random.default_rng(1), 20_000, 10**9)

    def share_of_text(window: int) -> float:
        batches = lengths[BatchPlan(lengths, keys, batch_size=32, seed=0, window=window).epoch(0)]
        return batches.sum() / (batches.max(axis=1).sum() * 32)

    assert share_of_text(window=1) < 0.65
    assert share_of_text(window=128) > 0.85


def as_lists(keys: PlanSampler) -> list[tuple[int, list[int]]]:
    return [(key[0], key[1].tolist()) for key in keys]


def test_sampler_asks_for_the_epoch_and_ranks_share_its_batches_out() -> None:
    plan = BatchPlan(*random_rows(np.random.default_rng(2), 200, 1000), batch_size=8, seed=1)
    sampler = PlanSampler(plan, epoch=iter([2, 0]).__next__)
    assert as_lists(sampler) == [(2, batch) for batch in plan.epoch(2).tolist()]
    whole = as_lists(sampler)
    assert {epoch for epoch, _ in whole} == {0}
    assert len(whole) == len(sampler) == len(plan)
    ranks = [as_lists(PlanSampler(plan, rank=rank, world_size=3)) for rank in range(3)]
    even = len(plan) // 3
    assert [len(rank) for rank in ranks] == [even] * 3
    assert [ranks[step % 3][step // 3] for step in range(3 * even)] == whole[: 3 * even]


def test_plan_and_sampler_refuse_what_cannot_work() -> None:
    ones, keys = np.ones((10, 2)), np.arange(20).reshape(10, 2)
    for lengths, texts, batch_size, message in (
        (ones, keys, 11, "expected enough rows with distinct texts for a batch of 11, got 10 rows"),
        (ones, keys % 2, 4, "got 10 rows with 2 distinct texts"),
        (ones, keys, 1, "expected a batch_size of at least 2"),
        (ones[:, 0], keys, 2, r"expected lengths and keys of shape \(rows, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchPlan(lengths, texts, batch_size=batch_size, seed=0)
    plan = BatchPlan(ones, keys, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="expected at least a batch for each of 3 processes, got 2"):
        PlanSampler(plan, world_size=3)
    with pytest.raises(ValueError, match="expected a rank from 0 to below world_size, got 1 of 1"):
        PlanSampler(plan, rank=1)


def test_collated_tensors_hold_the_rows() -> None:
    rows = random_samples(5, vocabulary=len(TOKENIZER), words=(5, 5))
    batch = Collator(TOKENIZER, seed=0)(WPSDataset(as_table(rows)).__getitems__((0, np.arange(5))))
    for side in ("source", "target"):
        ids, mask = batch[f"{side}_ids"], batch[f"{side}_mask"]
        assert ids.dtype == mask.dtype == torch.int64
        assert ids.shape == mask.shape == batch[f"{side}_masked_ids"].shape == batch[f"{side}_labels"].shape
        assert ids.shape[1] == max(len(row[f"{side}_ids"]) for row in rows)
        for k, row in enumerate(rows):
            length = len(row[f"{side}_ids"])
            assert ids[k, :length].tolist() == row[f"{side}_ids"]
            assert (ids[k, length:] == TOKENIZER.pad_token_id).all()
            assert (batch[f"{side}_masked_ids"][k, length:] == TOKENIZER.pad_token_id).all()
            assert mask[k].tolist() == [1] * length + [0] * (ids.shape[1] - length)
            assert (batch[f"{side}_labels"][k, length:] == -100).all()
        assert batch[f"{side}_span"].shape == (5, 2)
    assert batch["source_ids"].shape != batch["target_ids"].shape
    spans = torch.cat([batch["source_span"], batch["target_span"]], dim=1)
    for k, row in enumerate(rows):
        assert spans[k].tolist() in row["word_pairs"]
    assert batch["index"].tolist() == list(range(5))
    assert all(tensor.is_contiguous() for tensor in batch.values())


SIX = dataset(6)


@given(st.permutations(range(6)), st.integers(1, 6), st.integers(0, 2**31), st.integers(0, 5))
def test_what_is_drawn_for_a_row_depends_only_on_seed_epoch_and_index(
    order: list[int], size: int, seed: int, epoch: int
) -> None:
    collate = Collator(TOKENIZER, seed=seed)
    whole = collate(SIX.__getitems__((epoch, np.arange(6))))
    some = collate(SIX.__getitems__((epoch, np.array(order[:size]))))
    for name in ("source_ids", "source_masked_ids", "source_labels", "target_masked_ids", "target_labels"):
        for place, k in enumerate(order[:size]):
            length = int(whole[f"{name.partition('_')[0]}_mask"][k].sum())
            assert torch.equal(some[name][place, :length], whole[name][k, :length])
    assert torch.equal(some["source_span"], whole["source_span"][order[:size]])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_change_the_draws(change: dict[str, int]) -> None:
    before = Collator(TOKENIZER, seed=0)(items(40))
    after = Collator(TOKENIZER, seed=change.get("seed", 0))(items(40, change.get("epoch", 0)))
    for name in ("source_span", "source_labels", "target_labels"):
        assert not torch.equal(before[name], after[name])


def test_masks_follow_devlin_et_al() -> None:
    batch = Collator(TOKENIZER, seed=4, words=False)(items(4000, length=70))
    ids, masked, labels = batch["source_ids"], batch["source_masked_ids"], batch["source_labels"]
    predicted = labels != -100
    assert torch.equal(masked[~predicted], ids[~predicted])
    assert torch.equal(labels[predicted], ids[predicted])
    assert not SPECIAL & set(labels[predicted].tolist())
    ordinary = torch.tensor([token not in SPECIAL for token in range(len(TOKENIZER))])[ids]
    count = int(ordinary.sum())
    assert count > 100_000
    # Five standard deviations of each share, for this many draws.
    assert abs(int(predicted.sum()) / count - 0.15) < 5 * np.sqrt(0.15 * 0.85 / count)
    chosen = int(predicted.sum())
    as_mask = (masked[predicted] == TOKENIZER.mask_token_id).sum().item() / chosen
    kept = (masked[predicted] == ids[predicted]).sum().item() / chosen
    assert abs(as_mask - 0.8) < 5 * np.sqrt(0.8 * 0.2 / chosen)
    # A random wordpiece is the right one once in a vocabulary.
    assert abs(kept - 0.1 - 0.1 / (len(TOKENIZER) - len(SPECIAL))) < 5 * np.sqrt(0.1 * 0.9 / chosen)
    replaced = set(masked[predicted & (masked != ids)].tolist()) - {TOKENIZER.mask_token_id}
    assert not replaced & SPECIAL
    assert len(replaced) > 0.9 * (len(TOKENIZER) - len(SPECIAL))


def test_word_pairs_are_drawn_uniformly() -> None:
    rows = items(4000)
    assert rows.word_pairs is not None
    spans = Collator(TOKENIZER, seed=9, mlm_probability=0)(rows)["source_span"]
    places = rows.word_pairs.values[:, 0].reshape(4000, 5) == spans[:, :1].numpy()
    assert (places.sum(axis=1) == 1).all()
    shares = torch.from_numpy(places).double().mean(dim=0)
    # Five standard deviations of a share of a fifth.
    assert ((shares - 0.2).abs() < 5 * np.sqrt(0.2 * 0.8 / 4000)).all()


def test_only_what_is_asked_for_is_made() -> None:
    rows = items(3)
    bare = Collator(TOKENIZER, seed=0, words=False, mlm_probability=0)(rows)
    assert set(bare) == {"index", "source_ids", "source_mask", "target_ids", "target_mask"}
    both = Collator(TOKENIZER, seed=0)(rows)
    only_masks = Collator(TOKENIZER, seed=0, words=False)(rows)
    assert torch.equal(both["source_labels"], only_masks["source_labels"])


def test_collator_refuses_what_cannot_work() -> None:
    table = as_table(random_samples(3, vocabulary=len(TOKENIZER), words=(0, 0)))
    rows = WPSDataset(table).__getitems__((0, np.array([2, 1])))
    with pytest.raises(ValueError, match="expected a word pair in every row, got none in row 2"):
        Collator(TOKENIZER, seed=0)(rows)
    assert "source_span" not in Collator(TOKENIZER, seed=0, words=False)(rows)
    with pytest.raises(ValueError, match="expected rows with word pairs, got rows read without"):
        Collator(TOKENIZER, seed=0)(WPSDataset(table, words=False).__getitems__((0, np.array([0]))))
    with pytest.raises(ValueError, match=r"expected mlm_probability in \[0, 1\), got 1"):
        Collator(TOKENIZER, seed=0, mlm_probability=1)
    bare = wordpiece_tokenizer(["a b"])
    bare.mask_token = None
    with pytest.raises(ValueError, match="expected a tokenizer with a mask token"):
        Collator(bare, seed=0)
    bare.pad_token = None
    with pytest.raises(ValueError, match="expected a tokenizer with a padding token"):
        Collator(bare, seed=0, mlm_probability=0)


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    table = as_table(random_samples(60, vocabulary=len(TOKENIZER)), chunk=9)
    rows = WPSDataset([write_stream(table, tmp_path / "rows.arrow")], require_words=True, held_out_share=0.1)
    plan = BatchPlan(rows.lengths, rows.keys, batch_size=8, seed=2)
    sampler = PlanSampler(plan, epoch=lambda: 1, rank=1, world_size=2, split=True)
    loaded = []
    # Worker processes that are forked share the table; those that are not get the dataset as it is pickled.
    for workers, given_rows in ((0, rows), (2, rows), (1, pickle.loads(pickle.dumps(rows)))):
        collate = Collator(TOKENIZER, seed=2)
        loaded.append(list(DataLoader(given_rows, batch_sampler=sampler, collate_fn=collate, num_workers=workers)))
    assert len(loaded[0]) == len(plan)
    for others in loaded[1:]:
        for one, other in zip(loaded[0], others, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
