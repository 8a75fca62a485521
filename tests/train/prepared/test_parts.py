"""Training, validation and test: of fixed sizes, without a text in common, whatever the order of the corpus."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")

from ctloss.train.prepared.parts import Fate, Keys, among, divide, lacking
from ctloss.train.text.embedded import Split


def random_keys(seed: int, *, pairs: int = 3000, texts: int = 900, languages: int = 3, own: int = 0) -> Keys:
    """Pairs of a few texts, so that sources and targets repeat, within language pairs and across them."""
    draw = np.random.default_rng(seed)
    names = draw.integers(2**64, size=texts, dtype=np.uint64)
    given_for = np.zeros(pairs, dtype=np.int8)
    if own:
        given_for[-2 * own :] = np.repeat([1, 2], own)
    # The last language pair is a small one.
    number = np.where(draw.random(pairs) < 0.05, languages - 1, draw.integers(max(1, languages - 1), size=pairs))
    source, target = names[draw.integers(texts // 2, size=pairs)], names[draw.integers(texts, size=pairs)]
    return Keys(source, target, number.astype(np.int16), given_for)


def texts(keys: Keys, fates: np.ndarray, *kinds: Fate) -> set[int]:
    chosen = np.isin(fates, kinds)
    return {*keys.source[chosen].tolist(), *keys.target[chosen].tolist()}


@given(seed=st.integers(0, 2**32), wanted=st.integers(1, 60), own=st.sampled_from([0, 40]))
def test_parts_share_no_text_and_have_fixed_sizes(seed: int, wanted: int, own: int) -> None:
    keys = random_keys(seed, own=own)
    given: list[Split] = ["validation", "test"] if own else []
    fates = divide(keys, given=given, wanted=wanted, max_pairs=None)
    train, validation, test = (texts(keys, fates, fate) for fate in (Fate.train, Fate.validation, Fate.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    for number in np.unique(keys.languages):
        of_pair = keys.languages == number
        corpus = of_pair & (keys.given_for == 0) & (fates != Fate.duplicate)
        most = min(wanted, len(np.unique(keys.source[corpus])) // 10)
        assert len(np.unique(keys.source[of_pair & (fates == Fate.test) & (keys.given_for == 0)])) == (
            0 if own else most
        )
        # A validation pair whose target is a text of test is left out.
        assert len(np.unique(keys.source[of_pair & (fates == Fate.validation) & (keys.given_for == 0)])) <= most
    given_to_train = keys.given_for == 0
    assert set(np.unique(fates[given_to_train])) <= ({0, 3, 4} if own else {0, 1, 2, 3, 4})


@given(seed=st.integers(0, 2**32))
def test_the_order_of_the_corpus_changes_nothing(seed: int) -> None:
    keys = random_keys(seed)
    order = np.random.default_rng(seed).permutation(len(keys.source))
    mixed = Keys(*(column[order] for column in vars(keys).values()))
    found = []
    for one in (keys, mixed):
        fates = divide(one, given=[], wanted=20, max_pairs=500)
        kept = fates < Fate.duplicate
        columns = (column[kept].tolist() for column in (one.source, one.target, one.languages, fates))
        found.append(sorted(zip(*columns, strict=True)))
    assert found[0] == found[1]


def test_equal_pairs_are_kept_once_per_language_pair_and_part() -> None:
    one = np.array([1, 1, 1, 1, 2], dtype=np.uint64)
    languages, given_for = np.array([0, 0, 1, 0, 0], dtype=np.int16), np.array([0, 0, 0, 1, 0], dtype=np.int8)
    fates = divide(
        Keys(one, one + np.uint64(10), languages, given_for), given=["test", "validation"], wanted=1, max_pairs=None
    )
    assert fates.tolist() == [Fate.held_out, Fate.duplicate, Fate.held_out, Fate.validation, Fate.train]


def test_most_training_pairs_are_those_of_the_smallest_hashes() -> None:
    keys = random_keys(0)
    few, many = (divide(keys, given=[], wanted=20, max_pairs=most) == Fate.train for most in (100, 300))
    assert (few.sum(), many.sum()) == (100, 300)
    assert not (few & ~many).any()


def test_a_large_language_pair_loses_nothing_to_a_small_one() -> None:
    """The parts of 40,000 pairs next to 2,000 were once as large a share of them as of the small language pair."""
    source = np.random.default_rng(0).integers(2**64, size=42_000, dtype=np.uint64)
    languages = np.repeat(np.array([0, 1], dtype=np.int16), [40_000, 2_000])
    fates = divide(
        Keys(source, source + np.uint64(1), languages, np.zeros(42_000, dtype=np.int8)),
        given=[],
        wanted=750,
        max_pairs=None,
    )
    assert [np.bincount(fates[languages == number]).tolist() for number in (0, 1)] == [
        [38_500, 750, 750],
        [1_600, 200, 200],
    ]


@pytest.mark.parametrize(
    ("source", "target", "enough"),
    [([1, 2], [3, 4], True), ([1, 2], [3, 3], False), ([1, 1], [3, 4], False), ([1], [3], False), ([], [], False)],
)
def test_a_part_needs_two_pairs_without_a_text_in_common(source: list[int], target: list[int], enough: bool) -> None:
    sources, targets = (np.array([*column, 9], dtype=np.uint64) for column in (source, target))
    keys = Keys(sources, targets, np.zeros(len(sources), dtype=np.int16), np.zeros(len(sources), dtype=np.int8))
    fates = np.array([Fate.test] * len(source) + [Fate.train], dtype=np.uint8)
    assert lacking(keys, fates, "test") == ([] if enough else [0])


def test_membership() -> None:
    assert among(np.array([1, 5, 9]), np.array([1, 9])).tolist() == [True, False, True]
    assert among(np.array([1]), np.array([])).tolist() == [False]
