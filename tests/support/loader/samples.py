"""Training rows as a prepared corpus holds them, made in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ctloss.train.prepared.folder import SAMPLES

Row = Mapping[str, Any]


def random_samples(count: int, *, vocabulary: int, length: int = 30, words: tuple[int, int] = (1, 5)) -> list[Row]:
    """Rows of distinct texts with [CLS] 2, [SEP] 3 and some word pairs of one wordpiece a word; two origins."""
    rng = np.random.default_rng(count)
    rows: list[Row] = []
    for index in range(count):
        ids = [[2, *rng.integers(5, vocabulary, rng.integers(6, length)).tolist(), 3] for _ in range(2)]
        number = int(rng.integers(words[0], words[1] + 1))
        places = [rng.permutation(np.arange(1, len(side) - 1))[:number].tolist() for side in ids]
        source_words, target_words = ([side[k] for k in at] for side, at in zip(ids, places, strict=True))
        target_words = [10**6 + word for word in target_words]
        rows.append(
            {
                "source": f"source {index}",
                "target": f"target {index}",
                "origin": index % 2,
                "source_ids": ids[0],
                "target_ids": ids[1],
                "word_pairs": [[a, a + 1, b, b + 1] for a, b in zip(*places, strict=True)],
                "word_types": [a * 2**32 + b for a, b in zip(source_words, target_words, strict=True)],
                "source_words": source_words,
                "target_words": target_words,
                "source_key": 2 * index,
                "target_key": 2 * index + 1,
            }
        )
    return rows


def as_table(rows: Sequence[Row], chunk: int | None = None) -> pa.Table:
    """The rows as a table, in record batches of this many rows."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SAMPLES)
    return pa.Table.from_batches(table.to_batches(chunk), schema=SAMPLES) if chunk else table


def write_stream(table: pa.Table, path: Path) -> Path:
    """Writes the table as datasets does, in Arrow's streaming format."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return path
