"""The Hopper kernels' sources on a simulated multiprocessor: right whatever the order, and what finds their mistakes.

No GPU is needed. Every panel is held to float64; other orders and other numbers of blocks must not change a bit.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ctloss.kernels.triton_path import tiles
from ctloss.kernels.triton_path.plan import layout
from support.hopper.language import Changes, simulated
from support.hopper.machine import Deadlock, Misuse
from support.hopper.panels import Panel, check_lse, check_weights

# Panels of 128 x 128 tiles; an odd number of row tiles leaves one consumer idle at the end.
SQUARE = Panel()
CROSS = Panel((0, 2), (2, 4))
QUEUE = Panel((0, 3), (4, 5), m=100)
# With an odd number of pairs of tiles and of tiles, the fold of the triangle has gaps.
FIVE = Panel((0, 5), (0, 5), n=300, padded=384, d=64)
FORWARD = [
    replace(SQUARE, kept=torch.int16),
    replace(CROSS, kept=torch.int16, dtype=torch.float16, num_kept=3),
    replace(SQUARE, kept=torch.float32, normalize=False),
    replace(QUEUE, ids=40),
    replace(CROSS, rate=300.0),
    FIVE,
]
BACKWARD = [
    (SQUARE, 1),
    (FIVE, 1),
    (replace(CROSS, ids=40), 1),
    (replace(SQUARE, dtype=torch.float16), 1),
    (replace(SQUARE, normalize=False), 3),
    (replace(QUEUE, normalize=False, dtype=torch.float16), 1),
    (replace(CROSS, rate=300.0), 1),
]


@pytest.fixture(scope="module")
def machine() -> SimpleNamespace:
    return simulated()


def test_what_is_said_twice_is_the_same(machine: SimpleNamespace) -> None:
    """The package stands below the path, and so has these numbers of its own."""
    own = machine.tiles
    for name in ("COMMON_PEAK_RATE", "STEPS", "SHIFT"):
        assert getattr(own, name) == getattr(tiles, name).value
    assert own.LOWEST == layout.LOWEST
    assert layout.RESIDUE == layout.FACTOR + 1


@pytest.mark.parametrize("group", [1, 3, 8])
def test_every_tile_is_visited_once(machine: SimpleNamespace, group: int) -> None:
    for tiles_a in range(1, 20):
        for tiles_b, triangle in ((tiles_a, True), (5, False)):
            seen = []
            for program in range(machine.pipeline.num_programs(tiles_a, tiles_b, triangle)):
                pair, b = map(int, machine.pipeline.tile_at(program, tiles_a, tiles_b, triangle, group))
                seen += [
                    (a, b) for a in (2 * pair, 2 * pair + 1) if a < tiles_a and b < tiles_b and (a <= b or not triangle)
                ]
            wanted = [(a, b) for a in range(tiles_a) for b in range(a if triangle else 0, tiles_b)]
            assert sorted(seen) == wanted, (tiles_a, tiles_b, triangle)


@pytest.mark.parametrize("panel", FORWARD, ids=str)
def test_sums(machine: SimpleNamespace, panel: Panel) -> None:
    check_lse(machine, panel)


@pytest.mark.parametrize(("panel", "terms"), BACKWARD, ids=str)
def test_weights(machine: SimpleNamespace, panel: Panel, terms: int) -> None:
    check_weights(machine, panel, terms=terms)


def alike(found: list[torch.Tensor], again: list[torch.Tensor]) -> bool:
    """Whether two answers agree bit for bit."""
    return all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in zip(found, again, strict=True)
    )


def test_the_order_changes_nothing(machine: SimpleNamespace) -> None:
    for check, panel in ((check_lse, FORWARD[0]), (check_weights, SQUARE)):
        found = check(machine, panel)
        for seed, blocks in ((1, 1), (2, 4)):
            assert alike(found, check(machine, replace(panel, blocks=blocks), seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_many_orders(machine: SimpleNamespace, seed: int) -> None:
    for panel in FORWARD:
        for moment in (True, False):
            wider = replace(panel, d=192, blocks=1 + seed % 3)
            assert alike(check_lse(machine, wider, moment=moment), check_lse(machine, wider, seed, moment=moment))
    for panel, terms in BACKWARD:
        wider = replace(panel, d=192, blocks=1 + seed % 3)
        assert alike(check_weights(machine, wider, terms=terms), check_weights(machine, wider, seed, terms=terms))


WAIT_FOR_ROOM = "            mbarrier.wait(empty.index(index), phase)\n"
WAIT_FOR_ROWS = "        mbarrier.wait(full.index(index), phase)\n"
LAST_WAIT = "        part = warpgroup_mma_wait(0, deps=[part])\n        mbarrier.arrive(empty.index(index), count=1)\n"
OTHER_ORDER = (
    "        mbarrier.arrive(empty.index(index), count=1)\n        part = warpgroup_mma_wait(0, deps=[part])\n"
)
KEPT_FENCE = "        buffer.store(logit)\n    fence_async_shared()\n"
TURNED_FENCE = "turned.permute([1, 0]).store(rounded)\n            fence_async_shared()\n"
ENDED = "\n    wait_for_copies_out(pendings=0)\n"
BUGS: dict[str, Changes] = {
    "no wait for the operands": {"pipeline": [(WAIT_FOR_ROWS, "")]},
    "no wait for a free slot": {"pipeline": [(WAIT_FOR_ROOM, "")]},
    "the producer's first parity": {"pipeline": [("    phase = 1\n", "    phase = 0\n")]},
    "a parity that never changes": {"pipeline": [("gl.where(wrapped, phase ^ 1, phase)", "phase")]},
    "a slot released before its last product": {"pipeline": [(LAST_WAIT, OTHER_ORDER)]},
    "one consumer releases for both": {"pipeline": [("empty.index(stage), count=2", "empty.index(stage), count=1")]},
    "barriers without a fence": {"pipeline": [("barriers made.\n    fence_async_shared()\n", "barriers made.\n")]},
    "the columns of another slot": {"pipeline": [("columns.index(index).permute", "columns.index(index ^ 1).permute")]},
    "the other consumer's rows": {"pipeline": [("slice(SIDE * BLOCK + HALF", "slice((1 - SIDE) * BLOCK + HALF")]},
    "fewer bytes than are copied": {"pipeline": [("3 * BLOCK * DEPTH * 2", "2 * BLOCK * DEPTH * 2")]},
    "a kept part without a fence": {"lse": [(KEPT_FENCE, "        buffer.store(logit)\n")]},
    "a buffer that is still read": {"lse": [("wait_for_copies_out(pendings=1)", "wait_for_copies_out(pendings=2)")]},
    "one buffer for all kept parts": {"lse": [("    return turn ^ 1\n", "    return turn\n")]},
    "an end before the copies'": {"weights": [(ENDED, "\n")]},
    "a mirror without a fence": {"weights": [(TURNED_FENCE, TURNED_FENCE.splitlines(keepends=True)[0])]},
    "mirrors that do not take turns": {
        "weights": [("row], turned)\n            turn = turn ^ 1\n", "row], turned)\n")]
    },
    "a gap in the fold taken for a tile": {"lse": [(" & (b < tiles_b)", "")]},
    "tiles of the diagonal mirrored": {"weights": [("num_rows, a != b)", "num_rows, a == b)")]},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """By a wrong answer, by an access that has no meaning or by a deadlock, in one of a few orders."""
    broken = simulated(BUGS[bug])
    # Twice around the ring.
    panel = replace(FIVE, blocks=1) if "fold" in bug else Panel((0, 2), (0, 2), d=256, blocks=1)

    def survive() -> None:
        for seed in range(8):
            if "weights" in BUGS[bug]:
                check_weights(broken, panel, seed)
            else:
                check_lse(broken, replace(panel, kept=torch.int16, num_kept=3), seed)

    with pytest.raises((AssertionError, Deadlock, Misuse)):
        survive()
