"""The simulator held against processes on this machine: small probes, predictions from them, and measured steps.

The probes time what a rank does by itself at two small sizes: its own rows' forward and backward, and a block with
another rank's rows, as the losses call them. All ranks run them at the same time, so that shared cores and memory count
as they do in a step. A line through both sizes gives a fixed cost and a rate. Another probe times messages round the
ring. A step of very few rows tells what a call and its messages cost besides. From these the simulation of
``benchmarks.gpu.ring`` predicts steps of larger batches.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu import ring
from benchmarks.gpu.ring import Step
from benchmarks.ranks import steps
from benchmarks.ranks.processes import Question, RanksFailed, ask, ask_all
from benchmarks.ranks.rivals import LOSSES, TRANSPORTS
from benchmarks.results import describe
from ctloss import get_workspace_limit
from ctloss.core.plan import cached_plan
from ctloss.kernels.blocks import Anchors
from ctloss.kernels.problem import Batch, Problem
from ctloss.ranks import contrast

PROBED_ROWS = (256, 512)
FEW_ROWS = 8
PREDICTED_ROWS = (1024, 2048)
RANKS = (2, 4)
MESSAGE_BYTES = (1 << 16, 1 << 22)
ROUNDS = 9
TOLERANCE = 0.25
"""How far a predicted step may be from a measured one."""
KINDS = ("own forward", "own backward", "meet", "pull", "meet at once", "pull from kept")

Row = dict[str, object]


def products(loss: str, rows: list[int], d: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and CPU seconds of each kind of a rank's work, a pair for each size; all ranks work at the same time.

    Args:
        loss: "both" or "cross".
        rows: pairs of a rank.
    """
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for own in rows:
        work = _work(loss, own, d, device)
        taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        # The first round allocates.
        for counts in [False] + [True] * ROUNDS:
            for kind, call in work.items():
                seconds = steps.sample(call, 1, device)
                if counts:
                    taken[kind].append(seconds)
        for kind, samples in taken.items():
            walls, cpus = zip(*samples, strict=True)
            found[kind].append((statistics.median(walls), statistics.median(cpus)))
    return found


def _work(loss: str, rows: int, d: int, device: str) -> dict[str, Callable[[], object]]:
    """What a rank does with its own rows and with those of another."""
    x, y = steps.own_rows(2 * rows, d, "float32", device)
    own, other = (Batch(x[half], y[half], temperature=steps.TEMPERATURE) for half in (slice(rows), slice(rows, None)))
    problem = Problem(loss="cz_nce", negatives="both" if loss == "both" else "cross")
    engine, needs = cached_plan(own.shape, problem).engine, (True, True)
    state = engine.forward(own, problem, moment=False, gradient=True).state
    a = torch.full((2 * rows,), 1e-3, dtype=torch.float64, device=device)
    # Of the size that lse has: weights are neither 0 nor huge.
    anchors = Anchors(a, torch.full_like(a, 10.0))
    kept = contrast.meet_at_once(own, other, problem, moment=False, gradient=True)[1]
    return {
        "own forward": lambda: engine.forward(own, problem, moment=False, gradient=True),
        "own backward": lambda: engine.backward(state, a, a, needs),
        "meet": lambda: contrast.meet(own, other, problem, moment=False),
        "pull": lambda: contrast.pull(own, other, problem, anchors, anchors, needs),
        "meet at once": lambda: contrast.meet_at_once(own, other, problem, moment=False, gradient=True),
        "pull from kept": lambda: contrast.pull(own, other, problem, anchors, anchors, needs, kept),
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

    def forward_seconds(self, of_blocks: Tensor, rectangle: float, *, at_once: bool) -> Tensor:
        """Of own rows and of every block met."""
        return self._seconds("own forward", "meet at once" if at_once else "meet", of_blocks, rectangle)

    def backward_seconds(self, of_blocks: Tensor, rectangle: float, *, at_once: bool) -> Tensor:
        """Of own rows and of every block pulled."""
        return self._seconds("own backward", "pull from kept" if at_once else "pull", of_blocks, rectangle)

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


class Seconds(NamedTuple):
    """By the wall clock, and of CPU time of a rank's process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Calibration:
    """What the probes found: a rank's work by the wall clock and by its CPU time, its messages, and a call's cost.

    Attributes:
        few: by contestant, the seconds of a step of few rows.
    """

    ranks: int
    d: int
    device: str
    wall: Processor
    cpu: Processor
    links: Loopback
    few: Mapping[str, Seconds]

    def predicted(self, contestant: str, rows: int) -> Seconds:
        """A step of so many rows a rank: what is simulated, and what a step of few rows takes beyond it."""
        simulated, of_few = self._simulated(contestant, rows), self._simulated(contestant, FEW_ROWS)
        wall, cpu = (
            all_rows + max(0.0, taken - few)
            for all_rows, taken, few in zip(simulated, self.few[contestant], of_few, strict=True)
        )
        return Seconds(wall, cpu)

    def _simulated(self, contestant: str, rows: int) -> Seconds:
        workspace = get_workspace_limit(self.device)
        step = Step(rows * self.ranks, self.ranks, self.d, itemsize=4, workspace=workspace)
        transport = TRANSPORTS[contestant]
        wall, cpu = (ring.cost(step, clock, self.links, transport) for clock in (self.wall, self.cpu))
        return Seconds(wall.total, cpu.busy)


def calibrated(loss: str, ranks: int, d: int, device: str, rows: Sequence[int] = PROBED_ROWS) -> Calibration:
    """Rates and links of this machine with so many ranks at work, the slowest rank's."""
    problems: list[Question] = [
        ("products", {"loss": loss, "rows": list(rows), "d": d}),
        ("hops", {"sizes": MESSAGE_BYTES}),
        _of_steps(loss, FEW_ROWS, d, seconds=0.5),
    ]
    answers, of_hops, steps_of_few = (_found(each) for each in ask_all(problems, ranks, device=device))
    work = [2.0 * (2 * own) ** 2 * d for own in rows]

    def processor(clock: int) -> Processor:
        slowest = {kind: [max(one[kind][number][clock] for one in answers) for number in (0, 1)] for kind in KINDS}
        return Processor({kind: Line.through(*zip(work, times, strict=True)) for kind, times in slowest.items()})

    small, large = zip(map(float, MESSAGE_BYTES), map(max, zip(*of_hops, strict=True)), strict=True)
    links = Loopback(Line.through(small, large))
    return Calibration(ranks, d, device, processor(0), processor(1), links, _slowest(steps_of_few))


def _of_steps(loss: str, rows: int, d: int, seconds: float) -> Question:
    about = {"loss": loss, "rows": rows, "d": d, "dtype": "float32"}
    return "times", {**about, "contestants": list(TRANSPORTS), "seconds": seconds}


def _slowest(answers: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Seconds]:
    """By contestant, the longest of all ranks' steps."""
    return {
        of_ranks[0]["contestant"]: Seconds(*(max(one[clock] for one in of_ranks) for clock in ("wall_s", "cpu_s")))
        for of_ranks in zip(*answers, strict=True)
    }


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
            calibration = calibrated(loss, world, d, device, probed)
            for own in rows:
                question = _of_steps(loss, own, d, seconds)
                measured = _slowest(ask(question[0], world, question[1], device=device))
                for name, taken in measured.items():
                    predicted = calibration.predicted(name, own)
                    row: Row = {"loss": loss, "ranks": world, "rows": own, "d": d, "contestant": name}
                    row |= {"predicted_s": predicted.wall, "measured_s": taken.wall}
                    row |= {"predicted_cpu_s": predicted.cpu, "measured_cpu_s": taken.cpu}
                    found.append({**row, **describe(device), "threads": "1"})
                print(f"{loss} {world} x {own}", file=sys.stderr, flush=True)
    return found


def agrees(predicted: float, measured: float) -> bool:
    """Whether a predicted step is as close to the measured one as it should be.

    Example:
        >>> agrees(1.2, 1.0), agrees(0.8, 1.0), agrees(1.3, 1.0)
        (True, True, False)
    """
    return abs(predicted / measured - 1) <= TOLERANCE
