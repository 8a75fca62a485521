"""The simulator held against processes on this machine: small probes, predictions from them, and measured steps.

The probes time what a rank does by itself at two small sizes: its own rows' forward and backward, and a block with
another rank's rows, as the losses call them. All ranks run them at the same time, so that shared cores and memory count
as they do in a step. A line through both sizes gives a fixed cost and a rate. Another probe times messages round the
ring. From these the simulation of ``benchmarks.gpu.ring`` predicts steps of larger batches.
"""

from __future__ import annotations

import statistics
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu import ring
from benchmarks.gpu.ring import Step
from benchmarks.ranks import steps
from benchmarks.ranks.processes import Problem, RanksFailed, ask, ask_all
from benchmarks.ranks.rivals import LOSSES, TRANSPORTS
from benchmarks.results import describe
from ctloss.core.plan import cached_plan
from ctloss.kernels.blocks import Anchors
from ctloss.kernels.problem import Batch, Problem
from ctloss.ranks import contrast

PROBED_ROWS = (256, 512)
PREDICTED_ROWS = (1024, 2048)
RANKS = (2, 4)
MESSAGE_BYTES = (1 << 16, 1 << 22)
ROUNDS = 9
TOLERANCE = 0.25
"""How far a predicted step may be from a measured one."""
KINDS = ("own forward", "own backward", "meet", "pull")

Row = dict[str, object]


def products(loss: str, rows: list[int], d: int, device: str) -> dict[str, list[float]]:
    """Seconds of each kind of a rank's work, a number for each size; all ranks work at the same time.

    Args:
        loss: "both" or "cross".
        rows: pairs of a rank.
    """
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for own in rows:
        work = _work(loss, own, d, device)
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(ROUNDS + 1):
            for kind, call in work.items():
                seconds = steps.sample(call, 1, device)[0]
                if number:
                    taken[kind].append(seconds)
        for kind, every in taken.items():
            found[kind].append(statistics.median(every))
    return found


def _work(loss: str, rows: int, d: int, device: str) -> dict[str, Callable[[], object]]:
    """What a rank does with its own rows and with those of another."""
    x, y = steps.own_rows(2 * rows, d, "float32", device)
    own, other = (Batch(x[half], y[half], temperature=steps.TEMPERATURE) for half in (slice(rows), slice(rows, None)))
    problem = Problem(loss="cz_nce", negatives=LOSSES[loss][1])
    engine, needs = cached_plan(own.shape, problem).engine, (True, True)
    state = engine.forward(own, problem, moment=False, gradient=True).state
    a = torch.full((2 * rows,), 1e-3, dtype=torch.float64, device=device)
    # Of the size that lse has: weights are neither 0 nor huge.
    anchors = Anchors(a, torch.full_like(a, 10.0))
    return {
        "own forward": lambda: engine.forward(own, problem, moment=False, gradient=True),
        "own backward": lambda: engine.backward(state, a, a, needs),
        "meet": lambda: contrast.meet(own, other, problem, moment=False),
        "pull": lambda: contrast.pull(own, other, problem, anchors, anchors, needs),
    }


def hops(sizes: list[int], device: str) -> list[float]:
    """Seconds that messages of so many bytes take one hop round the ring, all ranks sending at the same time."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = []
    for size in sizes:
        sent, received = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))

        def hop(sent: Tensor = sent, received: Tensor = received) -> None:
            ends = [
                dist.P2POp(dist.isend, sent, (rank - 1) % ranks),
                dist.P2POp(dist.irecv, received, (rank + 1) % ranks),
            ]
            for work in dist.batch_isend_irecv(ends):
                work.wait()

        found.append(statistics.median(steps.sample(hop, 1, device)[0] for _ in range(ROUNDS)))
    return found


@dataclass(frozen=True)
class Line:
    """Seconds as a fixed cost and so many for each unit of work."""

    fixed: float
    slope: float

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> Line:
        """The line through two measurements, (work, seconds); through the origin and the larger one if need be.

        Example:
            >>> Line.through((1.0, 3.0), (2.0, 5.0)), Line.through((1.0, 1.0), (2.0, 4.0))
            (Line(fixed=1.0, slope=2.0), Line(fixed=0.0, slope=2.0))
        """
        slope = (large[1] - small[1]) / (large[0] - small[0])
        fixed = large[1] - slope * large[0]
        if slope <= 0 or fixed < 0:
            return cls(0.0, large[1] / large[0])
        return cls(fixed, slope)

    def seconds(self, work: Tensor) -> Tensor:
        """Of so much work."""
        return self.fixed + self.slope * work


@dataclass(frozen=True)
class Processor:
    """What a rank does on this machine: a line for each kind of work, in flops of the rectangle of two ranks' rows."""

    lines: Mapping[str, Line]

    def forward_seconds(self, of_blocks: Tensor, rectangle: float) -> Tensor:
        """Of own rows and of every block met."""
        return self._seconds("own forward", "meet", of_blocks, rectangle)

    def backward_seconds(self, of_blocks: Tensor, rectangle: float) -> Tensor:
        """Of own rows and of every block pulled."""
        return self._seconds("own backward", "pull", of_blocks, rectangle)

    def _seconds(self, own: str, others: str, of_blocks: Tensor, rectangle: float) -> Tensor:
        found = self.lines[others].seconds(of_blocks * rectangle)
        # Measured as it is, whatever share of its rectangle is formed.
        found[0] = self.lines[own].seconds(torch.full_like(found[0], rectangle))
        return found


@dataclass(frozen=True)
class Loopback:
    """Messages between processes of one machine: all links are alike."""

    line: Line

    def into(self, ranks: int, offset: int, num_bytes: float) -> Tensor:
        """Seconds of a message, whatever its way."""
        return self.line.seconds(torch.full((ranks,), float(num_bytes), dtype=torch.float64))


def calibrated(loss: str, ranks: int, d: int, device: str, rows: Sequence[int] = PROBED_ROWS) -> tuple[Processor, Loopback]:
    """Rates and links of this machine with so many ranks at work, each the slowest rank's."""
    work = [2.0 * (2 * own) ** 2 * d for own in rows]
    problems: list[Problem] = [
        ("products", {"loss": loss, "rows": list(rows), "d": d}),
        ("hops", {"sizes": MESSAGE_BYTES}),
    ]
    answers, of_hops = (_found(each) for each in ask_all(problems, ranks, device=device))
    slowest = {kind: [max(each) for each in zip(*(one[kind] for one in answers), strict=True)] for kind in KINDS}
    lines = {kind: Line.through(*zip(work, seconds, strict=True)) for kind, seconds in slowest.items()}
    small, large = zip(map(float, MESSAGE_BYTES), map(max, zip(*of_hops, strict=True)), strict=True)
    return Processor(lines), Loopback(Line.through(small, large))


def _found(answers: list[Any] | RanksFailed) -> list[Any]:
    if isinstance(answers, RanksFailed):
        raise answers
    return answers


def check(
    losses: Iterable[str] = tuple(LOSSES),
    worlds: Iterable[int] = RANKS,
    rows: Sequence[int] = PREDICTED_ROWS,
    *,
    probed: Sequence[int] = PROBED_ROWS,
    d: int = 256,
    seconds: float = 5.0,
    device: str = "cpu",
) -> list[Row]:
    """Predicted and measured seconds of steps, a row for each loss, number of ranks and of rows, and transport."""
    found: list[Row] = []
    for loss in losses:
        for world in worlds:
            processor, loopback = calibrated(loss, world, d, device, probed)
            for own in rows:
                problem = {"loss": loss, "rows": own, "d": d, "dtype": "float32", "contestants": list(TRANSPORTS)}
                answers = ask("times", world, {**problem, "seconds": seconds}, device=device)
                step = Step(own * world, world, d, itemsize=4)
                for number, (name, transport) in enumerate(TRANSPORTS.items()):
                    predicted = ring.cost(step, processor, loopback, transport).total
                    measured = max(float(of_rank[number]["wall_s"]) for of_rank in answers)
                    row = {"loss": loss, "ranks": world, "rows": own, "d": d, "contestant": name}
                    found.append({**row, "predicted_s": predicted, "measured_s": measured, **describe(device)})
                print(f"{loss} {world} x {own}", file=sys.stderr, flush=True)
    return found


def agrees(predicted: float, measured: float) -> bool:
    """Whether a predicted step is as close to the measured one as it should be.

    Example:
        >>> agrees(1.2, 1.0), agrees(0.8, 1.0), agrees(1.3, 1.0)
        (True, True, False)
    """
    return abs(predicted / measured - 1) <= TOLERANCE
