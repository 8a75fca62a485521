"""A step of the loss on a ring of GPUs, simulated: blocks, hops, steps and memory; nothing here has been run on one.

Every rank holds n / ranks pairs, a block. In the forward, blocks travel half way round and each unordered pair of ranks
is computed once; one all-reduce adds up the denominators. In the backward, blocks travel all the way round and each
rank completes the gradient of its own rows, so that no gradient travels. One rank is a ring without hops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

# float32 numbers that travel with a row: its logits' factor in two parts; in the backward its weight as well.
FORWARD_VECTORS, BACKWARD_VECTORS = 2, 3
# float32 numbers that a row keeps from forward to backward.
STATISTICS = 8
# Rows of a tile of logits and of a panel of weights.
TILE, LARGEST_PANEL = 128, 11264


@dataclass(frozen=True)
class Gpu:
    """What one GPU does: flop/s of matrix products, logits and weights; seconds that a block costs beside its work."""

    product: float
    logits: float
    weights: float
    forward_fixed: float
    backward_fixed: float

    def __post_init__(self) -> None:
        """Measurements that contradict one another give such rates."""
        if not min(self.product, self.logits, self.weights) > 0 or min(self.forward_fixed, self.backward_fixed) < 0:
            raise ValueError(f"expected rates above 0 and fixed costs of at least 0, got {self}; measure them again")


@dataclass(frozen=True)
class Network:
    """What is assumed of the links, in bytes/s one way and seconds a hop: 80 % of nominal bandwidths, none measured."""

    gpus_per_node: int = 8
    nvlink: float = 0.8 * 450e9
    infiniband: float = 0.8 * 50e9
    nvlink_latency: float = 5e-6
    infiniband_latency: float = 10e-6

    def hops(self, ranks: int, num_bytes: float) -> Tensor:
        """Seconds that a message takes into every rank from the one before; (ranks,)."""
        node = torch.arange(ranks) // self.gpus_per_node
        hops = torch.full((ranks,), self.nvlink_latency + num_bytes / self.nvlink, dtype=torch.float64)
        hops[node != node.roll(1)] = self.infiniband_latency + num_bytes / self.infiniband
        return hops


@dataclass(frozen=True)
class Step:
    """One forward and backward over n pairs of d columns, ``itemsize`` bytes an entry, on so many ranks."""

    n: int
    ranks: int = 1
    d: int = 768
    itemsize: int = 2
    workspace: int = 1 << 30

    def __post_init__(self) -> None:
        """Every rank holds as many pairs."""
        if self.ranks < 1 or self.n < 1 or self.n % self.ranks:
            raise ValueError(f"expected n a multiple of ranks, got n={self.n}, ranks={self.ranks}")

    @property
    def rows(self) -> int:
        """Rows a rank holds, of both sides."""
        return 2 * self.n // self.ranks

    @property
    def shared(self) -> bool:
        """Whether weights within a rank are computed once: on a ring, whose sums of own rows stay, or if sums fit."""
        return self.ranks > 1 or 2 * self.rows * self.d * 4 <= self.workspace

    def hop_bytes(self, vectors: int) -> int:
        """Bytes of a block with its vectors."""
        return self.rows * (self.d * self.itemsize + 4 * vectors)


@dataclass(frozen=True)
class Cost:
    """Seconds of the three parts, seconds of them that a rank computes, flops of all ranks, bytes a rank holds."""

    forward: float
    all_reduce: float
    backward: float
    busy: float
    flops: float
    memory: int

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.forward + self.all_reduce + self.backward


def forward_blocks(ranks: int) -> list[tuple[int, float]]:
    """What every rank r computes, step by step: (offset, share of the rectangle of r and r - offset).

    Half of its own block, which is symmetric; and of the rank opposite, which has the same block, when there is one.

    >>> forward_blocks(4)
    [(0, 0.5), (1, 1.0), (2, 0.5)]
    """
    opposite = [(ranks // 2, 0.5)] if ranks % 2 == 0 else []
    return [(0, 0.5), *((offset, 1.0) for offset in range(1, (ranks + 1) // 2)), *opposite]


def backward_blocks(ranks: int, shared: bool = True) -> list[tuple[int, float]]:
    """As :func:`forward_blocks`, for the weights: each rank meets every other for its own rows alone."""
    return [(0, 0.5 if shared else 1.0), *((offset, 1.0) for offset in range(1, ranks))]


def ring(compute: Sequence[float], hops: Tensor) -> Tensor:
    """When every rank finishes every step, in seconds; (steps, ranks).

    A rank passes on the block it works on while it works, into one of the next rank's two buffers. It begins a step
    when it is done with the last one and the block is there.

    Args:
        compute: seconds of work of each step, the first one on the rank's own block.
        hops: (ranks,) seconds a block takes into each rank from the one before.
    """
    arrived = [torch.zeros_like(hops)]
    done = [torch.full_like(hops, compute[0])]
    for step in range(1, len(compute)):
        # The rank before has it, and the link has delivered the one before.
        start = torch.maximum(arrived[-1].roll(1), arrived[-1])
        if step > 2:
            # The buffer held the block of two steps ago: worked on, and passed on.
            start = torch.maximum(start, torch.maximum(done[step - 2], arrived[-1].roll(-1)))
        arrived.append(start + hops)
        done.append(torch.maximum(done[-1], arrived[-1]) + compute[step])
    return torch.stack(done)


def memory(step: Step) -> int:
    """Bytes a rank holds at its peak: inputs, gradients, packed rows, workspace; on a ring two blocks and N sums."""
    rows, side = step.rows, step.rows * step.d * step.itemsize
    kept = 2 * side + STATISTICS * 4 * rows
    if step.ranks > 1:
        kept += 2 * step.hop_bytes(BACKWARD_VECTORS) + 4 * 2 * step.n
    # Slots of a panel of logits: peak and sum, for its rows and for its columns. Large panels end where a side ends.
    panel = isqrt(step.workspace * TILE // 16)
    panel = rows if panel >= rows else min(panel, rows // 2)
    slots = 16 * panel * panel // TILE
    sums = rows * step.d * 4 if step.shared else LARGEST_PANEL * step.d * 4
    room = step.workspace if step.ranks > 1 else step.workspace - sums
    panel = min(rows, LARGEST_PANEL, isqrt(room // step.itemsize))
    return kept + max(slots, side + sums + panel * panel * step.itemsize)


def cost(step: Step, gpu: Gpu, network: Network) -> Cost:
    """Run the step through the ring; one rank is a ring without hops."""
    rectangle = 2 * step.rows**2 * step.d
    logits = [share * rectangle for _, share in forward_blocks(step.ranks)]
    weights = [share * rectangle for _, share in backward_blocks(step.ranks, step.shared)]
    forward = [gpu.forward_fixed + flops / gpu.logits for flops in logits]
    backward = [gpu.backward_fixed + flops / gpu.weights + rectangle / gpu.product for flops in weights]

    def last(compute: list[float], num_bytes: float) -> float:
        return ring(compute, network.hops(step.ranks, num_bytes))[-1].max().item()

    # Reduce-scatter and all-gather are rings as well, of pieces that cost no work.
    piece = 4 * 2 * step.n / step.ranks
    return Cost(
        forward=last(forward, step.hop_bytes(FORWARD_VECTORS)),
        all_reduce=last([0.0] * (2 * step.ranks - 1), piece),
        backward=last(backward, step.hop_bytes(BACKWARD_VECTORS)),
        busy=sum(forward) + sum(backward),
        flops=step.ranks * (sum(logits) + sum(weights) + rectangle * step.ranks),
        memory=memory(step),
    )
