"""Times and errors over n x d x dtype x loss x provider."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks import batches, providers
from benchmarks.exact import errors
from benchmarks.measure import PASSES, Timing, failure, interleaved
from benchmarks.providers import DTYPES, Case
from benchmarks.results import describe

# From this many pairs on, products are most of the work.
PACED = 2048
PRODUCT, PRODUCT_SIDE = "float32 product", 2048
# Compiling takes longer than everything else, and the cubic form all the memory: neither is run on every case.
HAND_WRITTEN = ("ctloss-torch", "eager", "cross_entropy")
EVERYBODY = tuple(name for name in providers.DEFAULT if name != "metric-learning")


@dataclass(frozen=True)
class Grid:
    """What to sweep over, and how long to spend.

    Attributes:
        n, d: pairs and dimensions.
        dtypes, losses, providers: keys of DTYPES, LOSSES and PROVIDERS.
        seconds: for each case and pass, shared by the providers.
        fewest_rounds: samples that each provider gets however long they take.
        memory_limit: bytes that one provider may be estimated to need.
    """

    n: Sequence[int]
    d: Sequence[int] = (256,)
    dtypes: Sequence[str] = ("float32", "bfloat16")
    losses: Sequence[str] = ("info-both",)
    threads: Sequence[int] = (1,)
    providers: Sequence[str] = HAND_WRITTEN
    device: str = "cpu"
    temperature: float = 0.07
    seconds: float = 1.0
    fewest_rounds: int = 5
    memory_limit: float = float("inf")

    def cases(self) -> Iterator[Case]:
        """Every problem of the grid, small ones first, on the number of threads that it asks for."""
        for threads in self.threads:
            torch.set_num_threads(threads)
            for n, d, dtype, loss in itertools.product(self.n, self.d, self.dtypes, self.losses):
                yield Case(loss, n, d, dtype, self.device, self.temperature)


THREE_LOSSES = ("cz-both", "info-both", "info-cross")
# What is swept by default: every comparison that the documents show.
SWEEP = {
    "cpu": (
        Grid((32, 128, 512, 2048), losses=THREE_LOSSES, providers=EVERYBODY),
        Grid((32, 128), d=(128,), dtypes=("float32",), providers=(*HAND_WRITTEN, "metric-learning")),
        Grid((4, 16, 64), providers=(*HAND_WRITTEN, "lightly")),
        Grid((8192,), providers=("ctloss-torch", "eager"), fewest_rounds=2),
        Grid((16, 32, 64, 128, 512), dtypes=("float16",)),
        Grid((32, 128, 512, 2048), d=(768, 1536)),
        Grid((32, 128, 512, 2048), losses=("cz-cross",)),
        Grid((128, 512, 2048), losses=("info-both", "info-cross"), threads=(2,)),
    ),
    "cuda": (Grid((32, 128, 512, 2048), losses=THREE_LOSSES, providers=providers.DEFAULT),),
}
QUICK = Grid((32, 128), d=(128,), losses=THREE_LOSSES, providers=providers.DEFAULT)


def product() -> tuple[Callable[[], object], float]:
    """A float32 product of two large squares, which shows the machine's pace, and its flops."""
    left, right = torch.randn(2, PRODUCT_SIDE, PRODUCT_SIDE)
    return lambda: torch.mm(left, right), 2.0 * PRODUCT_SIDE**3


def measure(case: Case, grid: Grid) -> list[dict[str, object]]:
    """One case by every provider of the grid that offers it.

    Returns:
        A row for each provider and pass: ``wall_s`` and ``cpu_s`` (medians per call), ``gradient_error``,
        ``value_error``, and ``note`` where there is no time; for large batches on the CPU also ``product_flops``, the
        flops per second of a float32 product timed in the same rounds, by the same clock as the ratios to eager.
    """
    x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
    truth = case.exact(x, y)
    calls, reasons = providers.offered(grid.providers, case, grid.memory_limit)
    shared = {**asdict(case), **describe(case.device)}
    rows: list[dict[str, object]] = []
    found: dict[str, dict[str, float]] = {}
    for name, call in calls.items():
        try:
            found[name] = errors(call, x, y, truth)
        except (RuntimeError, ValueError) as error:
            reasons[name] = failure(error)
    for which, prepare in PASSES.items():
        prepared = {name: prepare(calls[name], x, y) for name in found}
        if case.device == "cpu" and case.n >= PACED:
            prepared[PRODUCT], flops = product()
        timed = interleaved(prepared, device=case.device, seconds=grid.seconds, fewest_rounds=grid.fewest_rounds)
        pace = timed.pop(PRODUCT, None)
        for name, outcome in timed.items():
            row: dict[str, object] = {"provider": name, "pass": which}
            if isinstance(outcome, Timing):
                row |= {"wall_s": outcome.wall, "cpu_s": outcome.cpu, "rounds": outcome.rounds}
                if isinstance(pace, Timing):
                    row["product_flops"] = flops / (pace.cpu if torch.get_num_threads() == 1 else pace.wall)
            else:
                row["note"] = outcome
            rows.append({**row, **found[name], **shared})
        rows += [{"provider": name, "pass": which, "note": reason, **shared} for name, reason in reasons.items()]
    torch.compiler.reset()
    gc.collect()
    return rows


def run(grid: Grid) -> list[dict[str, object]]:
    """Every case of the grid; a line of progress for each on stderr."""
    rows: list[dict[str, object]] = []
    for case in grid.cases():
        taken = measure(case, grid)
        rows += taken
        times = {
            row["provider"]: f"{float(str(row['wall_s'])) * 1e3:.3g}"
            for row in taken
            if row["pass"] == "forward+backward" and "wall_s" in row
        }
        line = "  ".join(f"{name} {time}" for name, time in times.items())
        print(f"{case.loss} n={case.n} d={case.d} {case.dtype}, ms: {line}", file=sys.stderr, flush=True)
    return rows
