"""Batches of corpora that repeat texts: as full as those of a plain loop, with rows of both sides alike in length."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("tokenizers")

from tokenizers import BertWordPieceTokenizer

from ctloss.train.samples.sampler import BatchPlan

ROWS, BATCH = 12_000, 32
RNG = np.random.default_rng(0)
DISTINCT = RNG.permutation(2 * ROWS).reshape(ROWS, 2) + 10**6


def repeating(source: int | None, target: int | None, share: float = 1 / 3) -> np.ndarray:
    """Keys of which a share of the rows has one of a few sources, one of a few targets, or both."""
    keys, rows = DISTINCT.copy(), int(share * ROWS)
    for side, texts in enumerate((source, target)):
        if texts is not None:
            keys[:rows, side] = 1000 * side + RNG.integers(texts, size=rows)
    return keys


def zipf() -> np.ndarray:
    return np.stack([RNG.zipf(1.3, size=ROWS), 2**40 + RNG.zipf(1.5, size=ROWS)], axis=1)


CORPORA = {
    "no repeats": DISTINCT,
    "one source": repeating(1, None),
    "five sources": repeating(5, None),
    "forty targets": repeating(None, 40),
    "both sides": repeating(100, 100),
    "every source five times": np.stack([np.arange(ROWS) // 5, DISTINCT[:, 1]], axis=1),
    "sources that are targets": np.stack([np.arange(ROWS), np.arange(ROWS) + 1], axis=1),
    "sides that are equal": np.stack([np.arange(ROWS) // 3] * 2, axis=1),
    "few texts for many rows": zipf(),
}


def of_a_loop(keys: np.ndarray) -> int:
    """How many batches a loop fills that puts each row into the first batch that can take it."""
    texts: list[set[int]] = []
    sizes: list[int] = []
    first = 0
    # The first batch that a text is not in, since its copies go into one after the other.
    following: Counter[int] = Counter()
    for source, target in np.random.default_rng(1).permutation(keys).tolist():
        batch = max(first, following[source], following[target])
        while batch < len(texts) and (sizes[batch] == BATCH or source in texts[batch] or target in texts[batch]):
            batch += 1
        if batch == len(texts):
            texts.append(set())
            sizes.append(0)
        texts[batch].update((source, target))
        sizes[batch] += 1
        following[source] = max(following[source], batch + 1)
        following[target] = max(following[target], batch + 1)
        while first < len(texts) and sizes[first] == BATCH:
            first += 1
    return sizes.count(BATCH)


@pytest.mark.parametrize("name", CORPORA)
def test_repeated_texts_cost_no_more_rows_than_they_must(name: str) -> None:
    keys = CORPORA[name]
    plan = BatchPlan(RNG.integers(5, 60, size=(ROWS, 2)), keys, batch_size=BATCH, seed=0, window=32)
    assert len(plan) >= 0.97 * of_a_loop(keys)
    for epoch in (0, 1):
        batches = plan.epoch(epoch)
        assert batches.shape == (len(plan), BATCH)
        assert len(np.unique(batches)) == batches.size
        for texts in keys[batches]:
            assert len({key for row in texts.tolist() for key in set(row)}) == sum(
                len(set(row)) for row in texts.tolist()
            )


def test_rows_of_a_repeated_text_take_turns() -> None:
    plan = BatchPlan(np.ones((ROWS, 2), dtype=int), CORPORA["five sources"], batch_size=BATCH, seed=0, window=32)
    repeated = ROWS // 3
    seen = np.bincount(np.concatenate([plan.epoch(epoch).ravel() for epoch in range(8)]), minlength=ROWS)[:repeated]
    in_one = len(plan) * 5 / repeated
    # Every batch has one of each of the five, and the rows share these places, whichever they are.
    assert seen.sum() > 0.95 * 8 * len(plan) * 5
    assert (seen == 0).mean() < 1.2 * (1 - in_one) ** 8 + 0.02


def test_both_sides_are_padded_little() -> None:
    """Lengths as in long text: of one side about, but not quite, in proportion to those of the other."""
    rng = np.random.default_rng(3)
    source = np.clip(rng.lognormal(3.4, 0.5, size=20_000), 4, 128)
    target = np.clip(source * rng.lognormal(0.2, 0.25, size=20_000), 4, 128)
    lengths = np.stack([source, target], axis=1).astype(int)
    plan = BatchPlan(lengths, np.arange(40_000).reshape(-1, 2), batch_size=64, seed=0)
    of_batches = lengths[plan.epoch(0)]
    shares = of_batches.sum(axis=(0, 1)) / (64 * of_batches.max(axis=1).sum(axis=0))
    assert shares.min() > 0.85
    assert plan.epoch(0).size > 0.99 * len(lengths)


@pytest.mark.data
@pytest.mark.skipif("CTLOSS_DATA" not in os.environ, reason="CTLOSS_DATA names no folder of real parallel text")
@pytest.mark.parametrize(("corpus", "least"), [("tatoeba", 0.88), ("news", 0.82), ("tico19", 0.82)])
def test_real_text_is_padded_little(corpus: str, least: float) -> None:
    folder = Path(os.environ["CTLOSS_DATA"])
    vocabulary = str(folder / "mbert-vocab" / "vocab.txt")
    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=False, strip_accents=False)

    def lines(file: Path) -> list[str]:
        return file.read_text(encoding="utf-8").split("\n")

    if corpus == "tatoeba":
        files = [folder / "tatoeba-train" / f"en-{code}.tsv" for code in ("ar", "es", "fr", "ru", "zh")]
        pairs = [tuple(line.split("\t")) for file in files for line in lines(file) if line]
    else:
        pairs = [
            pair
            for english in sorted((folder / corpus).glob("*.en"))
            for file in sorted(english.parent.glob(f"{english.stem}.*"))
            if file != english
            for pair in zip(lines(english), lines(file), strict=True)
            if all(pair)
        ]
    pairs = list(dict.fromkeys(pairs))
    lengths = np.array(
        [[len(one.ids) for one in tokenizer.encode_batch(list(side))] for side in zip(*pairs, strict=True)]
    ).T
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    keys = np.array([[numbers[text] for text in pair] for pair in pairs])
    short = lengths.max(axis=1) <= 128
    lengths, keys = lengths[short], keys[short]
    plan = BatchPlan(lengths, keys, batch_size=64, seed=0)
    for epoch in (0, 1):
        of_batches = lengths[plan.epoch(epoch)]
        assert of_batches.sum() / (64 * of_batches.max(axis=1).sum()) > least
        for texts in keys[plan.epoch(epoch)]:
            assert len(np.unique(texts)) == len({key for row in texts.tolist() for key in set(row)})
    assert plan.epoch(0).size > 0.98 * len(lengths)
