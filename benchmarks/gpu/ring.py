"""Time and memory of the loss over a ring of GPUs, predicted: ``python -m benchmarks.gpu.ring`` prints a table.

Who works on which blocks, and when, is read from ``ctloss.ranks.schedule``, which the losses themselves follow; when a
message is sent and awaited follows ``ctloss.ranks.transport`` and ``contrast``. What a GPU does in a second is measured
(benchmarks/results/gpu-h100.json), what the network does is assumed, and no ring of GPUs has run.
``python -m benchmarks.ranks --simulator`` checks the same simulation against processes on this machine.

Every rank holds n / ranks pairs. In the forward, rows travel half way round and each two ranks meet once; the rank that
did not work on a block is sent its sums. In the backward, rows travel all the way round with two numbers an anchor, and
each rank completes the gradient of its own rows, so that no gradient travels. One rank is a ring without hops.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from benchmarks.results import ROOT, insert, page_of, table
from ctloss.ranks import schedule

COMMAND = "python -m benchmarks.gpu.ring"
RESULTS = ROOT / "benchmarks" / "results" / "gpu-h100.json"
MEASURED_D = 768
CALIBRATED_ON = "info-cross"  # one rectangle of logits per call, as between two ranks
CALIBRATED_AT = (16384, 65536)
CHECKED_ON = "cz-both"  # the triangle over both sides' rows, as within a rank

# Of the report: the number of pairs, as a power of two, and of GPUs.
REPORTED = (
    *((log_n, 1) for log_n in (14, 17, 20)),
    *((log_n, ranks) for log_n in (20, 21, 22, 23, 24) for ranks in (8, 64, 256, 1024)),
)
# Of the warp-specialised kernels of logits and weights, which are off: predicted, flop/s (docs/lab/kernels.md).
PREDICTED_LOGITS, PREDICTED_WEIGHTS = 508e12, 509e12

# float64 numbers that travel with a row in the backward, that go back with its sums, and that a rank keeps for its own.
TRAVELLING, RETURNED, KEPT = 2, 1, 3
# Copies of a block on a ring: a rank's own message, and the two blocks that have arrived or are arriving.
MESSAGES = 3
# float32 numbers that a row keeps from forward to backward.
STATISTICS = 8
# Rows of a tile of logits and of a panel of weights.
TILE, LARGEST_PANEL = 128, 11264

Pass = Literal["forward", "backward"]
PASSES: tuple[Pass, Pass] = ("forward", "backward")


@lru_cache(maxsize=8)
def shares(ranks: int, which: Pass, *, at_once: bool = False) -> Tensor:
    """What every rank forms at every step, over the rectangle of two ranks' rows; (steps, ranks), own rows first.

    Own rows against themselves are symmetric: half of their rectangle, in both passes. ``at_once``: all other ranks are
    met in one step.

    Raises:
        ValueError: the schedule leaves out a hop, and the simulation here does not know how.

    Example:
        >>> shares(4, "forward").tolist()
        [[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]
    """
    if at_once:
        return torch.tensor([[0.5] * ranks, [ranks - 1.0] * ranks], dtype=torch.float64)
    of_ranks = (
        [schedule.forward(rank, ranks) for rank in range(ranks)]
        if which == "forward"
        else [schedule.backward(ranks)] * ranks
    )
    found = [[0.5] * ranks]
    for number, steps in enumerate(zip(*of_ranks, strict=True), 1):
        if {step.hop for step in steps} != {number}:
            raise ValueError(f"expected all ranks to use what arrives at hop {number}, got {steps}; simulate that too")
        found.append([_rows(step.own) * _rows(step.other) for step in steps])
    return torch.tensor(found, dtype=torch.float64)


@lru_cache
def _rows(part: schedule.Part) -> float:
    """The share of a rank's rows in a part of them."""
    half = schedule.half(2, part)
    return (half.stop - half.start) / 2


class Rates(Protocol):
    """How long a rank works: seconds of every block, given the shares of its rectangle and that rectangle's flops."""

    def forward_seconds(self, of_blocks: Tensor, rectangle: float, *, at_once: bool) -> Tensor:
        """Of the forward; of the shape of the shares, (steps, ranks), own rows first."""
        ...

    def backward_seconds(self, of_blocks: Tensor, rectangle: float, *, at_once: bool) -> Tensor:
        """Of the backward, likewise."""
        ...


class Links(Protocol):
    """How long messages take."""

    def into(self, ranks: int, offset: int, num_bytes: float) -> Tensor:
        """Seconds that a message takes into every rank from the one that is ``offset`` after it; (ranks,)."""
        ...


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

    def forward_seconds(self, of_blocks: Tensor, rectangle: float, *, at_once: bool) -> Tensor:
        """Logits of every block."""
        return self.forward_fixed + of_blocks * rectangle / self.logits

    def backward_seconds(self, of_blocks: Tensor, rectangle: float, *, at_once: bool) -> Tensor:
        """Weights of every block, and their product with its rows, which is a whole one for own rows too."""
        products = of_blocks.clamp_min(1.0) * rectangle / self.product
        return self.backward_fixed + of_blocks * rectangle / self.weights + products


@dataclass(frozen=True)
class Network:
    """What is assumed of the links, bytes/s one way and seconds per hop: 80 % of nominal bandwidths, none measured."""

    gpus_per_node: int = 8
    nvlink: float = 0.8 * 450e9
    infiniband: float = 0.8 * 50e9
    nvlink_latency: float = 5e-6
    infiniband_latency: float = 10e-6

    def into(self, ranks: int, offset: int, num_bytes: float) -> Tensor:
        """Seconds by NVLink within a node, by InfiniBand between two."""
        node = torch.arange(ranks) // self.gpus_per_node
        seconds = torch.full((ranks,), self.nvlink_latency + num_bytes / self.nvlink, dtype=torch.float64)
        seconds[node != node.roll(-offset)] = self.infiniband_latency + num_bytes / self.infiniband
        return seconds


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
        """Whether weights among own rows are computed once: if sums of all of these fit the workspace."""
        return 2 * self.rows * self.d * 4 <= self.workspace

    def message(self, numbers: int) -> int:
        """Bytes of a block with so many float64 numbers a row."""
        return self.rows * (self.d * self.itemsize + 8 * numbers)

    @property
    def transport(self) -> schedule.Transport:
        """How the losses would move these rows."""
        return schedule.transport(self.ranks, self.message(0), self.workspace)

    def at_once(self, transport: schedule.Transport) -> bool:
        """Whether rows that travel so meet all others in one step."""
        return transport == "gather" and schedule.at_once([self.rows] * self.ranks, self.workspace)


@dataclass(frozen=True)
class Cost:
    """Seconds of both passes, seconds that a rank computes, flops of all ranks, bytes that a rank holds."""

    forward: float
    backward: float
    busy: float
    flops: float
    memory: int

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.forward + self.backward


def ring(compute: Tensor, hops: Tensor, returned: Sequence[Tensor] = ()) -> Tensor:
    """When every rank has finished every step, in seconds; (steps, ranks).

    As ``Ring`` of ``ctloss.ranks.transport`` works: a rank asks for the first block before it begins with its own rows,
    and for the next one, while it passes on what it holds, before it works on what has arrived. A message moves once
    both ends have asked for it. A rank goes on when its messages of this hop have arrived and left.

    Args:
        compute: (steps, ranks) seconds of work, the first step on own rows.
        hops: (ranks,) seconds a block takes into each rank from the one after it.
        returned: as :func:`finished` takes it.
    """
    asked = torch.zeros_like(hops)

    def begin(done: Tensor) -> Tensor:
        nonlocal asked
        arrived = torch.maximum(asked, asked.roll(-1)) + hops
        asked = torch.maximum(done, torch.maximum(arrived, arrived.roll(1)))
        return asked

    return finished(compute, begin, returned)


def gathered(compute: Tensor, hops: Tensor, returned: Sequence[Tensor] = ()) -> Tensor:
    """The same where all blocks are gathered at once, by a ring, while a rank works on its own rows."""
    there = ring(torch.zeros(len(hops), len(hops), dtype=torch.float64), hops)[-1]
    return finished(compute, lambda done: torch.maximum(done, there), returned)


def finished(compute: Tensor, begin: Callable[[Tensor], Tensor], returned: Sequence[Tensor] = ()) -> Tensor:
    """When every rank has finished every step; (steps, ranks).

    Args:
        compute: (steps, ranks) seconds of work.
        begin: of every step but the first in turn, when ranks begin with it, given when they have done the one before.
        returned: of every step but the first, (ranks,) seconds that a block's sums take into each rank from the one
            that formed them, which is as many ranks before as the block has made hops. They are awaited when the next
            step is done, the last ones at the end.
    """
    done = [compute[0]]
    coming = torch.zeros_like(compute[0])
    for step, work in enumerate(compute[1:], 1):
        done.append(torch.maximum(begin(done[-1]) + work, coming))
        if returned:
            coming = torch.maximum(done[-1], done[-1].roll(step)) + returned[step - 1]
    return torch.stack([*done[:-1], torch.maximum(done[-1], coming)])


def memory(step: Step) -> int:
    """Bytes a rank holds at its peak: inputs, gradients, packed rows, workspace; of several, messages too."""
    rows, side = step.rows, step.rows * step.d * step.itemsize
    kept = 2 * side + STATISTICS * 4 * rows
    if step.ranks > 1:
        gathered = step.transport == "gather"
        kept += (step.ranks + 1 if gathered else MESSAGES) * step.message(TRAVELLING) + KEPT * 8 * rows
        # Gradients of own rows are added up before they are rounded.
        kept += rows * step.d * 4
    # Slots of a panel of logits: peak and sum, for its rows and for its columns. Large panels end where a side ends.
    panel = isqrt(step.workspace * TILE // 16)
    panel = rows if panel >= rows else min(panel, rows // 2)
    slots = 16 * panel * panel // TILE
    sums = rows * step.d * 4 if step.shared else LARGEST_PANEL * step.d * 4
    panel = min(rows, LARGEST_PANEL, isqrt((step.workspace - sums) // step.itemsize))
    return kept + max(slots, side + sums + panel * panel * step.itemsize)


def cost(step: Step, rates: Rates, links: Links, transport: schedule.Transport | None = None) -> Cost:
    """Run the step through the schedule; rows travel as the losses choose, or as told."""
    rectangle = 2 * step.rows**2 * step.d
    transport = transport or step.transport
    at_once = step.at_once(transport)
    logits, weights = (shares(step.ranks, which, at_once=at_once).clone() for which in PASSES)
    if not step.shared:
        weights[0] = 1.0
    forward = rates.forward_seconds(logits, rectangle, at_once=at_once)
    backward = rates.backward_seconds(weights, rectangle, at_once=at_once)
    run = ring if transport == "ring" else gathered
    sums = [links.into(step.ranks, -hop, 8 * RETURNED * step.rows) for hop in range(1, 1 if at_once else len(logits))]
    # Rows that have been gathered stay for the backward: only their numbers travel then.
    again = step.message(TRAVELLING) if transport == "ring" else 8 * TRAVELLING * step.rows
    return Cost(
        forward=run(forward, links.into(step.ranks, 1, step.message(0)), sums)[-1].max().item(),
        backward=run(backward, links.into(step.ranks, 1, again))[-1].max().item(),
        busy=(forward.sum(0) + backward.sum(0)).max().item(),
        flops=rectangle * (logits.sum() + weights.sum() + step.ranks**2).item(),
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


def specialised_gpu(results: Path = RESULTS) -> Gpu:
    """Launches in a graph, and logits and weights at the rates that are predicted for the kernels that are off."""
    return replace(measured_gpu(results, graph=True), logits=PREDICTED_LOGITS, weights=PREDICTED_WEIGHTS)


def report(cases: Sequence[tuple[int, int]] = REPORTED) -> str:
    """The table in Markdown, with the numbers it rests on; a line for each case, as those of ``REPORTED``."""
    python, graph, specialised, network = measured_gpu(), measured_gpu(graph=True), specialised_gpu(), Network()
    rows = []
    for log_n, ranks in cases:
        step = Step(2**log_n, ranks)
        by_python, in_graph, by_specialised = (cost(step, gpu, network) for gpu in (python, graph, specialised))
        # Sums in another order leave a zero a few roundings below it.
        waits = (f"{max(0.0, 1 - found.busy / found.total):.0%}" for found in (in_graph, by_specialised))
        passes = f"{in_graph.forward:.3g}", f"{in_graph.backward:.3g}"
        steps = (f"{found.total:.3g}" for found in (by_python, in_graph, by_specialised))
        about = f"2^{log_n}", f"{ranks:,}", f"{step.n // ranks:,}"
        rows.append([*about, *passes, *steps, *waits, f"{in_graph.memory / 2**30:.2f}"])
    columns = ["n", "GPUs", "pairs per GPU", "forward, s", "backward, s", "step from Python, s", "step in a graph, s",
               "specialised, s", "waits for links", "specialised waits", "GiB per GPU"]  # fmt: skip
    return f"""\
Predicted for d = {MEASURED_D}, bfloat16, negatives of both languages, a workspace of 1 GiB on each GPU.
Measured on one H100, with the kernels of version 0.1.0: products {python.product / 1e12:.0f} TFLOP/s, logits \
{python.logits / 1e12:.0f}, weights {python.weights / 1e12:.0f}; fixed cost of a block \
{python.forward_fixed * 1e3:.2f} ms (forward) and {python.backward_fixed * 1e3:.2f} ms (backward) called from Python, \
{graph.forward_fixed * 1e3:.2f} ms in a CUDA graph. Passes are those in a graph.
Predicted, under "specialised": logits {specialised.logits / 1e12:.0f} TFLOP/s and weights \
{specialised.weights / 1e12:.0f}, of the warp-specialised kernels, which are off.
Assumed: {network.gpus_per_node} GPUs a node, NVLink {network.nvlink / 1e9:.0f} GB/s and \
{network.nvlink_latency * 1e6:.0f} µs a hop, InfiniBand {network.infiniband / 1e9:.0f} GB/s and \
{network.infiniband_latency * 1e6:.0f} µs a hop.

{table(columns, rows)}"""


def main() -> None:
    """Print the table, and with ``--write`` put it into its page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="put the table into its page of docs/")
    write = options.parse_args().write
    text = report()
    print(text)
    if write:
        insert(page_of(COMMAND), COMMAND, text)


if __name__ == "__main__":
    main()
