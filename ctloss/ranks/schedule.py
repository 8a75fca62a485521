"""Who works on which two ranks' rows, and when: pure functions of the number of ranks.

Rows travel round the ring of ranks, from each to the one before it: after k hops, rank r holds those of rank r + k. The
losses follow these lists, and so does the simulation of them in ``benchmarks``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Part = Literal["all", "first", "second"]
Transport = Literal["ring", "gather"]

# Rows of all ranks are gathered if they take at most this share of the workspace.
GATHERED_SHARE = 4


class Step(NamedTuple):
    """One block of work: a rank's own rows against those that have arrived.

    Attributes:
        hop: how far the rows have travelled; they are those of rank (rank + hop) mod world.
        own: which half of the rank's own rows takes part, or all.
        other: which half of the other rank's rows takes part, or all.
    """

    hop: int
    own: Part
    other: Part


def forward(rank: int, world: int) -> list[Step]:
    """The blocks that a rank forms in the forward: over all ranks, each two of them meet once.

    Rows travel half way round. With an even number of ranks, those half way round meet from both ends: one of the two
    ranks takes its own first half against the other's rows, and the other rank takes what is left.

    Example:
        >>> forward(3, 4)
        [Step(hop=1, own='all', other='all'), Step(hop=2, own='all', other='second')]
    """
    steps = [Step(hop, "all", "all") for hop in range(1, (world + 1) // 2)]
    if world % 2 == 0:
        lower = rank < world // 2
        steps.append(Step(world // 2, "first" if lower else "all", "all" if lower else "second"))
    return steps


def backward(world: int) -> list[Step]:
    """The blocks that a rank forms in the backward: its own rows against those of every other rank.

    Example:
        >>> backward(2)
        [Step(hop=1, own='all', other='all')]
    """
    return [Step(hop, "all", "all") for hop in range(1, world)]


def half(count: int, part: Part) -> slice:
    """The rows of a part.

    Example:
        >>> half(5, "first"), half(5, "second"), half(5, "all")
        (slice(0, 2, None), slice(2, 5, None), slice(0, 5, None))
    """
    if part == "first":
        return slice(0, count // 2)
    return slice(count // 2 if part == "second" else 0, count)


def logits(rank: int, sizes: list[int]) -> tuple[int, int]:
    """How many products of two rows a rank forms with other ranks' rows, in the forward and in the backward.

    Args:
        rank: which rank.
        sizes: the rows of each rank.

    Example:
        >>> logits(0, [4, 4]), logits(1, [4, 4, 4])
        ((8, 16), (16, 32))
    """
    world = len(sizes)

    def entries(step: Step) -> int:
        own, other = half(sizes[rank], step.own), half(sizes[(rank + step.hop) % world], step.other)
        return (own.stop - own.start) * (other.stop - other.start)

    return sum(map(entries, forward(rank, world))), sum(map(entries, backward(world)))


def at_once(sizes: list[int], workspace: int) -> bool:
    """Whether ranks that have gathered all rows meet all others at once, and keep the logits for the backward.

    That forms every logit between two ranks on both of them, but only once: less than half of them, and all again.

    Args:
        sizes: the rows of each rank, of both sides and its candidates.
        workspace: bytes of temporary memory that a loss call may use.

    Example:
        >>> at_once([2048, 2048], 256 << 20), at_once([65536, 65536], 256 << 20)
        (True, False)
    """
    return 2 * 4 * max(sizes) * sum(sizes) <= workspace


def transport(world: int, num_bytes: int, workspace: int) -> Transport:
    """Whether all ranks' rows are gathered at once, or travel round a ring.

    Args:
        world: ranks.
        num_bytes: what the largest of them sends.
        workspace: bytes of temporary memory that a loss call may use.

    Example:
        >>> transport(2, 1 << 20, 256 << 20), transport(1024, 1 << 20, 256 << 20)
        ('gather', 'ring')
    """
    return "gather" if GATHERED_SHARE * world * num_bytes <= workspace else "ring"
