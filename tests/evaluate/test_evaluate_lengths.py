"""The order of training items by length."""

from __future__ import annotations

import random
from itertools import pairwise

from ctloss.evaluate.lengths import POOL, ByLength

STEP = 8


def padded(order: list[int], lengths: list[int]) -> int:
    """Wordpieces of all steps, each padded to its longest item."""
    steps = [[lengths[index] for index in order[at : at + STEP]] for at in range(0, len(order), STEP)]
    return sum(max(step) * len(step) for step in steps)


def test_every_item_once_an_epoch_with_little_padding() -> None:
    draw = random.Random(0)
    # Two pools and a half, and a last step of three items.
    lengths = [draw.randrange(3, 129) for _ in range(POOL * STEP * 5 // 2 + 3)]
    sampler = ByLength(lengths, STEP, seed=1)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(len(sampler)))
        assert padded(epochs[-1], lengths) < 1.05 * sum(lengths)
    assert padded(draw.sample(range(len(lengths)), len(lengths)), lengths) > 1.5 * sum(lengths)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_steps_are_in_random_order_and_the_seed_chooses_it() -> None:
    lengths = list(range(POOL * STEP))
    first, again, other = (list(ByLength(lengths, STEP, seed)) for seed in (1, 1, 2))
    assert first == again != other
    longest = [max(first[at : at + STEP]) for at in range(0, len(first), STEP)]
    falls = sum(one > following for one, following in pairwise(longest))
    assert POOL // 4 < falls < POOL * 3 // 4
