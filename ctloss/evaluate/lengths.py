"""Training items in an order in which those of a step are of about one length, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch.utils.data import Sampler

# Steps whose items are sorted together: with more, less is padded and less is left to chance.
POOL = 50


class ByLength(Sampler[int]):
    """Draws pools of many steps at random, sorts each by length and cuts it into steps, in an order drawn at random.

    Args:
        lengths: of the items.
        step: items of a step, of all devices and accumulated parts together.
        seed: of the order, which differs by epoch.

    Example:
        >>> list(ByLength([9, 1, 8, 2], step=2, seed=0))
        [0, 2, 3, 1]
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self._lengths = lengths
        self._step = step
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Yields the items' indices, each once."""
        draw = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self), generator=draw).tolist()
        steps: list[list[int]] = []
        for start in range(0, len(order), POOL * self._step):
            pool = sorted(order[start : start + POOL * self._step], key=lambda index: -self._lengths[index])
            steps += [pool[at : at + self._step] for at in range(0, len(pool), self._step)]
        # The last may be short of items: anywhere else it would shift the rest.
        *whole, last = steps
        places = torch.randperm(len(whole), generator=draw).tolist()
        return chain.from_iterable([*(whole[place] for place in places), last])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; Trainer calls it, also for one that it goes on with in the middle."""
        self._epoch = epoch
