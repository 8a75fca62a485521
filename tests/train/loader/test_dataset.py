"""Rows read a batch at a time: what the table holds, wherever its parts begin, without held-out words."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ctloss.train.samples.dataset import Lists, WPSDataset, held_out
from support.loader.samples import Row, as_table, random_samples, write_stream

ROWS = random_samples(50, vocabulary=90, words=(0, 4))
TABLE = as_table(ROWS)
LISTS = ("source_ids", "target_ids", "word_pairs", "source_words", "target_words")


def cells(lists: Lists | None) -> list[Any]:
    assert lists is not None
    assert len(lists.values) == lists.lengths.sum()
    return [cell.tolist() for cell in np.split(lists.values, np.cumsum(lists.lengths)[:-1])]


def write_file(table: Any, path: Path) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


def sources(folder: Path) -> dict[str, Any]:
    """The same rows in every form that they may come in."""
    empty = TABLE.slice(0, 0)
    padded = pa.concat_tables([TABLE.slice(5, 3), TABLE, TABLE.slice(1, 1)])
    return {
        "one part": TABLE,
        "parts": as_table(ROWS, chunk=7),
        "empty parts": pa.concat_tables([empty, TABLE.slice(0, 20), empty, TABLE.slice(20), empty]),
        "slice": padded.slice(3, 50),
        "streams": [write_stream(TABLE.slice(start, 25), folder / f"{start}.arrow") for start in (0, 25)],
        "file": [write_file(as_table(ROWS, chunk=7), folder / "file.arrow")],
        "large lists": TABLE.cast(
            pa.schema(
                [
                    pa.field(one.name, pa.large_list(one.type.value_type) if pa.types.is_list(one.type) else one.type)
                    for one in TABLE.schema
                ]
            )
        ),
    }


@pytest.mark.parametrize("form", ["one part", "parts", "empty parts", "slice", "streams", "file", "large lists"])
def test_rows_are_those_of_the_table(form: str, tmp_path: Path) -> None:
    dataset = WPSDataset(sources(tmp_path)[form])
    assert len(dataset) == 50
    index = np.array([49, 0, 7, 13, 6, 7, 24, 25])
    found = dataset.__getitems__((3, index))
    for name in LISTS:
        assert cells(getattr(found, name)) == [ROWS[k][name] for k in index]
    assert found.epoch == 3
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(dataset.lengths, [[len(row[name]) for name in LISTS[:2]] for row in ROWS])
    np.testing.assert_array_equal(dataset.keys, [[row["source_key"], row["target_key"]] for row in ROWS])
    np.testing.assert_array_equal(dataset.origins, [row["origin"] for row in ROWS])
    assert dataset.text(13) == {"source": "source 13", "target": "target 13"}


def trained(row: Row, name: str, share: float, seed: int) -> list[Any]:
    flags = held_out(np.array(row["word_types"], dtype=np.uint64), share, seed)
    return [value for value, is_held_out in zip(row[name], flags, strict=True) if not is_held_out]


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_words_are_left_out_and_rows_without_others_too(seed: int) -> None:
    dataset = WPSDataset(as_table(ROWS, chunk=11), require_words=True, held_out_share=0.4, held_out_seed=seed)
    kept = [row for row in ROWS if trained(row, "word_pairs", 0.4, seed)]
    assert 20 < len(kept) < sum(bool(row["word_pairs"]) for row in ROWS)
    assert len(dataset) == len(kept)
    found = dataset.__getitems__((0, np.arange(len(kept))))
    for name in ("word_pairs", "source_words", "target_words"):
        assert cells(getattr(found, name)) == [trained(row, name, 0.4, seed) for row in kept]
    np.testing.assert_array_equal(dataset.lengths[:, 0], [len(row["source_ids"]) for row in kept])
    np.testing.assert_array_equal(dataset.keys[:, 1], [row["target_key"] for row in kept])
    np.testing.assert_array_equal(dataset.origins, [row["origin"] for row in kept])
    assert dataset.text(2)["source"] == kept[2]["source"]


@given(st.integers(0, 2**32), st.floats(0, 0.99))
def test_held_out_is_a_fixed_share_that_grows_with_the_share(seed: int, share: float) -> None:
    types = np.random.default_rng(seed).integers(2**64, size=4000, dtype=np.uint64)
    chosen = held_out(types, share, seed)
    # Five standard deviations of a binomial share of 4,000 draws.
    assert abs(chosen.mean() - share) <= 5 * np.sqrt(0.25 / 4000)
    assert not (held_out(types, share / 2, seed) & ~chosen).any()
    assert (held_out(types[::-1], share, seed) == chosen[::-1]).all()


def test_rows_of_everyone_bring_their_words() -> None:
    found = WPSDataset(TABLE).__getitems__((0, np.array([4, 5]), np.array([9, 4, 5, 20])))
    assert cells(found.source_words) == [ROWS[k]["source_words"] for k in (9, 4, 5, 20)]
    assert cells(found.word_pairs) == [ROWS[k]["word_pairs"] for k in (4, 5)]
    assert cells(found.source_ids) == [ROWS[k]["source_ids"] for k in (4, 5)]


def test_copies_of_a_row_are_the_row() -> None:
    found = WPSDataset(TABLE).__getitems__((0, np.array([3, 53, 103])))
    assert cells(found.target_ids) == [ROWS[3]["target_ids"]] * 3
    assert found.index.tolist() == [3, 53, 103]


def test_words_are_read_on_request_only() -> None:
    found = WPSDataset(TABLE, words=False).__getitems__((0, np.arange(4)))
    assert (found.word_pairs, found.source_words, found.target_words) == (None, None, None)


def test_pickled_datasets_map_their_files_again(tmp_path: Path) -> None:
    dataset = WPSDataset([write_stream(TABLE, tmp_path / "rows.arrow")], require_words=True, held_out_share=0.2)
    expected = dataset.__getitems__((1, np.arange(9)))
    # Row numbers, and not the table.
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000 + 8 * len(dataset) < TABLE.nbytes
    again = pickle.loads(pickled).__getitems__((1, np.arange(9)))
    assert [cells(getattr(again, name)) for name in LISTS] == [cells(getattr(expected, name)) for name in LISTS]


def test_tables_without_rows_or_words_are_refused() -> None:
    with pytest.raises(ValueError, match="expected rows to train on, got none; prepare a corpus"):
        WPSDataset(TABLE.slice(0, 0))
    wordless = as_table(random_samples(3, vocabulary=90, words=(0, 0)))
    assert len(WPSDataset(wordless)) == 3
    with pytest.raises(ValueError, match="expected rows with word pairs, got none among 3"):
        WPSDataset(wordless, require_words=True)
    with pytest.raises(ValueError, match=r"expected a held-out share in \[0, 1\), got 1"):
        WPSDataset(TABLE, require_words=True, held_out_share=1)
