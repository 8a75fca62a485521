"""Times and errors over n x d x dtype x loss x provider."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks import batches, environment, providers
from benchmarks.exact import errors, exact
from benchmarks.peers import PairLoss
from benchmarks.providers import DTYPES, Case, NotOffered
from benchmarks.timing import Timing, interleaved

PASSES = ("forward", "forward+backward")
# From so many pairs on products are most of the work.
PACED = 2048
PRODUCT, PRODUCT_SIDE = "float32 product", 2048


@dataclass(frozen=True)
class Grid:
    """What to sweep over, and how long to spend."""

    n: Sequence[int]
    d: Sequence[int]
    dtypes: Sequence[str]
    losses: Sequence[str]
    providers: Sequence[str]
    device: str
    temperature: float = 0.07
    threads: int = 1
    seconds: float = 2.0
    fewest_rounds: int = 5
    memory_limit: float = float("inf")

    def cases(self) -> Iterator[Case]:
        """Every problem of the grid, small ones first."""
        for n, d, dtype, loss in itertools.product(self.n, self.d, self.dtypes, self.losses):
            yield Case(loss, n, d, dtype, self.device, self.temperature)


def offered(names: Sequence[str], case: Case, memory_limit: float) -> tuple[dict[str, PairLoss], dict[str, str]]:
    """The providers' losses for a case, and the reasons of those that have none."""
    calls, reasons = {}, {}
    for name in names:
        try:
            calls[name] = providers.build(name, case, memory_limit)
        except NotOffered as reason:
            reasons[name] = str(reason)
    return calls, reasons


def forward(call: PairLoss, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The loss alone, as in evaluation."""

    def run() -> object:
        with torch.no_grad():
            return call(x, y)

    return run


def forward_backward(call: PairLoss, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The loss and its gradient with respect to both inputs."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()

    def run() -> object:
        return torch.autograd.grad(call(x, y), (x, y))

    return run


def product() -> tuple[Callable[[], object], float]:
    """A float32 product of two large squares, the machine's pace, and its flops."""
    left, right = torch.randn(2, PRODUCT_SIDE, PRODUCT_SIDE)
    return lambda: torch.mm(left, right), 2.0 * PRODUCT_SIDE**3


def measure(
    case: Case, names: Sequence[str], *, seconds: float, memory_limit: float, fewest_rounds: int = 5
) -> list[dict[str, object]]:
    """One case by every provider that offers it.

    Args:
        case: the problem.
        names: keys of PROVIDERS.
        seconds: for each of the two passes, shared by the providers.
        memory_limit: bytes one provider may be estimated to need.
        fewest_rounds: taken however long they last.

    Returns:
        A row for each provider and pass: ``wall_s`` and ``cpu_s`` (medians a call), ``gradient_error``,
        ``value_error``, and ``note`` where there is no time; of large batches on the CPU also ``product_flops``, the
        flops a second of a float32 product timed in the same rounds, by the same clock as the ratios to eager.
    """
    x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
    loss, negatives = case.parts
    truth = exact(x, y, loss=loss, negatives=negatives, temperature=case.temperature)
    calls, reasons = offered(names, case, memory_limit)
    shared = {**asdict(case), **environment.describe(case.device)}
    rows: list[dict[str, object]] = []
    found: dict[str, dict[str, float]] = {}
    for name, call in calls.items():
        try:
            found[name] = errors(call, x, y, truth)
        except (RuntimeError, ValueError) as error:
            reasons[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    working = {name: call for name, call in calls.items() if name in found}
    for which, prepare in zip(PASSES, (forward, forward_backward), strict=True):
        prepared = {name: prepare(call, x, y) for name, call in working.items()}
        paced = case.device == "cpu" and case.n >= PACED
        if paced:
            prepared[PRODUCT], flops = product()
        timed = interleaved(prepared, device=case.device, seconds=seconds, fewest_rounds=fewest_rounds)
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
    torch.set_num_threads(grid.threads)
    for case in grid.cases():
        taken = measure(
            case,
            grid.providers,
            seconds=grid.seconds,
            memory_limit=grid.memory_limit,
            fewest_rounds=grid.fewest_rounds,
        )
        rows += taken
        times = {
            row["provider"]: f"{float(str(row['wall_s'])) * 1e3:.3g}"
            for row in taken
            if row["pass"] == PASSES[1] and "wall_s" in row
        }
        line = "  ".join(f"{name} {time}" for name, time in times.items())
        print(f"{case.loss} n={case.n} d={case.d} {case.dtype}, ms: {line}", file=sys.stderr, flush=True)
    return rows
