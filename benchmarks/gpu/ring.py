"""Time and memory of the loss on a ring of GPUs, predicted: ``python -m benchmarks.gpu.ring`` prints a table.

Negatives from other ranks are not implemented in ctloss, and nothing here has run on a ring: this is a prediction to
design them by. What a GPU does in a second is measured (benchmarks/results/gpu-h100.json), what the network does is
assumed.

Every rank holds n / ranks pairs, a block. In the forward, blocks travel half way round and each unordered pair of ranks
is computed once; one all-reduce adds up the denominators. In the backward, blocks travel all the way round and each
rank completes the gradient of its own rows, so that no gradient travels. One rank is a ring without hops.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.results import ROOT, table

RESULTS = ROOT / "benchmarks" / "results" / "gpu-h100.json"
MEASURED_D = 768
CALIBRATED_ON = "info-cross"  # one rectangle of logits per call, as between two ranks
CALIBRATED_AT = (16384, 65536)
CHECKED_ON = "cz-both"  # the triangle over both sides' rows, as within a rank

# Of the report: the number of pairs, as a power of two, and of GPUs.
REPORTED = ((14, 1), (17, 1), (20, 1), (17, 8), (20, 8), (20, 64), (20, 256), (20, 1024), (22, 1024), (24, 1024))

# float32 numbers that travel with a row: its logits' factor in two parts; in the backward its weight as well.
FORWARD_VECTORS, BACKWARD_VECTORS = 2, 3
# float32 numbers that a row keeps from forward to backward.
STATISTICS = 8
# Rows of a tile of logits and of a panel of weights.
TILE, LARGEST_PANEL = 128, 11264


@dataclass(frozen=True)
class Gpu:
    """What one GPU does: flop/s of matrix products, logits and weights; seconds a block costs on top of its work."""

    product: float
    logits: float
    weights: float
    forward_fixed: float
    backward_fixed: float

    def __post_init__(self) -> None:
        """Refuse rates such as contradictory measurements give."""
        if not min(self.product, self.logits, self.weights) > 0 or min(self.forward_fixed, self.backward_fixed) < 0:
            raise ValueError(f"expected rates above 0 and fixed costs of at least 0, got {self}; measure them again")


@dataclass(frozen=True)
class Network:
    """What is assumed of the links, bytes/s one way and seconds per hop: 80 % of nominal bandwidths, none measured."""

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
    """One forward and backward over n pairs of d columns, ``itemsize`` bytes an entry, on a number of ranks."""

    n: int
    ranks: int = 1
    d: int = MEASURED_D
    itemsize: int = 2
    workspace: int = 1 << 30

    def __post_init__(self) -> None:
        """Refuse batches that the ranks cannot share evenly."""
        if self.ranks < 1 or self.n < 1 or self.n % self.ranks:
            raise ValueError(f"expected n a multiple of ranks, got n={self.n}, ranks={self.ranks}")

    @property
    def rows(self) -> int:
        """Rows a rank holds, of both sides."""
        return 2 * self.n // self.ranks

    @property
    def shared(self) -> bool:
        """Whether weights within a rank are computed once: on a ring, where sums of own rows stay, or if sums fit."""
        return self.ranks > 1 or 2 * self.rows * self.d * 4 <= self.workspace

    def hop_bytes(self, vectors: int) -> int:
        """Bytes of a block with its vectors."""
        return self.rows * (self.d * self.itemsize + 4 * vectors)


@dataclass(frozen=True)
class Cost:
    """Seconds of the three parts, seconds that a rank computes, flops of all ranks, bytes that a rank holds."""

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

    Half of its own block, which is symmetric, and half of the opposite rank's, which has the same rectangle.

    >>> forward_blocks(4)
    [(0, 0.5), (1, 1.0), (2, 0.5)]
    """
    opposite = [(ranks // 2, 0.5)] if ranks % 2 == 0 else []
    return [(0, 0.5), *((offset, 1.0) for offset in range(1, (ranks + 1) // 2)), *opposite]


def backward_blocks(ranks: int, shared: bool = True) -> list[tuple[int, float]]:
    """As :func:`forward_blocks`, for the weights: each rank meets every other for its own rows only."""
    return [(0, 0.5 if shared else 1.0), *((offset, 1.0) for offset in range(1, ranks))]


def ring(compute: Sequence[float], hops: Tensor) -> Tensor:
    """When every rank finishes every step, in seconds; (steps, ranks).

    While a rank works on a block it passes it on, into one of the next rank's two buffers. It begins a step when it has
    finished the last one and the block is there.

    Args:
        compute: seconds of work of each step, the first one on the rank's own block.
        hops: (ranks,) seconds a block takes into each rank from the one before.
    """
    arrived = [torch.zeros_like(hops)]
    done = [torch.full_like(hops, compute[0])]
    for step in range(1, len(compute)):
        # The previous rank has it, and the link has delivered the previous block.
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


def measured_seconds(results: Path, loss: str, n: int) -> tuple[float, float]:
    """Seconds of forward and backward in the GPU results, bfloat16 at the measured d.

    Raises:
        ValueError: if the results lack them.
    """
    found = {}
    for part in json.loads(results.read_text(encoding="utf-8"))["parts"].values():
        for row in part["rows"]:
            key = tuple(row.get(name) for name in ("provider", "loss", "n", "d", "dtype"))
            if key == ("ctloss-triton", loss, n, MEASURED_D, "bfloat16") and "which" in row:
                found[row["which"]] = row["wall_ms"] / 1000
    if set(found) != {"forward", "forward+backward"}:
        raise ValueError(
            f"expected times of {loss} at n={n}, d={MEASURED_D}, bfloat16 in {results}; run benchmarks/gpu.sh"
        )
    return found["forward"], found["forward+backward"] - found["forward"]


def measured_gpu(results: Path = RESULTS, *, graph: bool = False) -> Gpu:
    """Rates and fixed costs from two measured sizes of rectangles.

    A line through both gives the fixed cost of a call from Python and the rates; the weights' rate is what remains of
    the backward once its products are charged at the measured ceiling.

    Args:
        results: what benchmarks/gpu.sh wrote.
        graph: take as each pass's fixed cost half of a CUDA graph's time at the smallest n, which is launches only.
    """
    parts = json.loads(results.read_text(encoding="utf-8"))["parts"]
    product = 1e12 * next(row["tera_per_s"] for row in parts["ceilings"]["rows"] if row["what"] == "product")
    small, large = (2 * n * n * MEASURED_D for n in CALIBRATED_AT)
    at_small, at_large = (measured_seconds(results, CALIBRATED_ON, n) for n in CALIBRATED_AT)
    forward, backward = ((b - a) / (large - small) for a, b in zip(at_small, at_large, strict=True))
    fixed = max(0.0, at_small[0] - small * forward), max(0.0, at_small[1] - small * backward)
    if graph:
        ours = (
            row for row in parts["graphs"]["rows"] if (row["provider"], row["loss"]) == ("ctloss-triton", CHECKED_ON)
        )
        fixed = (min((row["n"], row["wall_us"]) for row in ours)[1] / 2e6,) * 2
    return Gpu(product, 1 / forward, 1 / (backward - 2 / product), *fixed)


def report() -> str:
    """The table in Markdown, with the numbers it rests on: one GPU to 2^20 pairs, a ring of GPUs to 2^24."""
    python, graph, network = measured_gpu(), measured_gpu(graph=True), Network()
    rows = []
    for log_n, ranks in REPORTED:
        for launched, gpu in {"from Python": python, "in a graph": graph}.items():
            step = Step(2**log_n, ranks)
            found = cost(step, gpu, network)
            # Sums in another order leave a zero a few roundings below it.
            waits = max(0.0, 1 - (found.busy + found.all_reduce) / found.total)
            seconds = (f"{value:.3g}" for value in (found.forward, found.all_reduce, found.backward, found.total))
            about = f"2^{log_n}", f"{ranks:,}", f"{step.n // ranks:,}", launched
            rows.append([*about, *seconds, f"{waits:.0%}", f"{found.memory / 2**30:.2f}"])
    columns = ["n", "GPUs", "pairs per GPU", "launched", "forward, s", "all-reduce, s", "backward, s", "step, s",
               "waits for links", "GiB per GPU"]  # fmt: skip
    return f"""\
Predicted for d = {MEASURED_D}, bfloat16, negatives of both languages, a workspace of 1 GiB on each GPU.
Measured on one H100: products {python.product / 1e12:.0f} TFLOP/s, logits {python.logits / 1e12:.0f}, weights \
{python.weights / 1e12:.0f}; fixed cost of a block {python.forward_fixed * 1e3:.2f} ms (forward) and \
{python.backward_fixed * 1e3:.2f} ms (backward) called from Python, {graph.forward_fixed * 1e3:.2f} ms in a CUDA graph.
Assumed: {network.gpus_per_node} GPUs a node, NVLink {network.nvlink / 1e9:.0f} GB/s and \
{network.nvlink_latency * 1e6:.0f} µs a hop, InfiniBand {network.infiniband / 1e9:.0f} GB/s and \
{network.infiniband_latency * 1e6:.0f} µs a hop.

{table(columns, rows)}"""


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(report())
