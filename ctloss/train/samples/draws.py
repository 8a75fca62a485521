"""Random numbers of rows, as pure functions of what they are drawn for: no state, whole arrays at once."""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np

from ..text.sentences import mixed

# The odd number next to 2^64 divided by the golden ratio: splitmix64's step (Steele, Lea and Flood 2014).
STEP = np.uint64(0x9E3779B97F4A7C15)


class Purpose(IntEnum):
    """What a number is drawn for; numbers for two purposes are independent."""

    WORD = 1
    SOURCE_CHOSEN = 2
    SOURCE_KIND = 3
    SOURCE_OTHER = 4
    TARGET_CHOSEN = 5
    TARGET_KIND = 6
    TARGET_OTHER = 7


def uniform(
    seed: int, epoch: int, purpose: Purpose, rows: np.ndarray, positions: np.ndarray | None = None
) -> np.ndarray:
    """Draws a number of [0, 1) for each row, or for a position in it.

    A number depends on nothing but the arguments of its own entry: neither on the other rows nor on their order. The
    generator is counter-based (Salmon et al. 2011): each part in turn is counted off and mixed into the state.

    Args:
        seed, epoch: at least 0.
        purpose: what the numbers are for.
        rows: numbers of rows, at least 0, any shape.
        positions: of the same shape, at least 0; 0 if left out.

    Returns:
        float64, the shape of ``rows``: multiples of 2^-53.

    Example:
        >>> both, one = (uniform(7, 0, Purpose.WORD, np.array(rows)) for rows in ([3, 4], [4]))
        >>> bool(both[1] == one[0])
        True
    """
    state = mixed(_start(seed, epoch, purpose) + STEP * np.asarray(rows).astype(np.uint64))
    place = np.uint64(1) if positions is None else np.asarray(positions).astype(np.uint64) + np.uint64(1)
    return (mixed(state + STEP * place) >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=64)
def _start(seed: int, epoch: int, purpose: Purpose) -> np.ndarray:
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, purpose):
        state = mixed(state + STEP * np.array([part + 1], dtype=np.uint64))
    return state
