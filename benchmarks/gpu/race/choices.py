"""Choices of the kernels that were made by counting, each raced against its alternatives on the GPU.

What is shipped and what could be are patched in around the calls and timed in turns; every time comes with the error
against float64. Small batches are timed in CUDA graphs, where the cost of launches does not hide that of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

import ctloss
from benchmarks import batches
from benchmarks.exact import Exact, errors
from benchmarks.gpu.race.case import OURS, Run, build, captured
from benchmarks.gpu.race.changes import IN_PANELS, Changes, changed, configured, small_configured
from benchmarks.measure import Timing, forward, forward_backward, interleaved, peak_bytes
from benchmarks.peers import PairLoss
from benchmarks.providers import DTYPES, Case
from ctloss.kernels.triton_path import gradient
from ctloss.kernels.triton_path.plan import config

# Up to this many pairs Python hardly launches a step faster than a GPU runs it.
LAUNCH_BOUND = 4096
# The largest batch that is also called from Python.
SMALL = 512
# A time at most this many times the best one counts as equal.
TIE = 1.02
# No rounding makes a gradient this wrong: a fast mistake wins no race.
WRONG = 0.05


@dataclass(frozen=True)
class Race:
    """Alternatives on one case; the first whose configuration is that of ``base`` is the shipped one.

    The ``forward`` is also timed on its own where they differ in it.
    """

    choice: str
    case: Case
    options: Mapping[str, Changes]
    base: Changes = IN_PANELS
    forward: bool = False

    @property
    def ways(self) -> Sequence[str]:
        """How the calls are launched: graphs need a CUDA device; small batches are also called from Python."""
        if not self.case.device.startswith("cuda") or self.case.n > LAUNCH_BOUND:
            return ("python",)
        return ("graph", "python") if self.case.n <= SMALL else ("graph",)


def gradients_in_triton(**tile: Any) -> Changes:
    """Weights of one term, multiplied by the kernel for float32 ones."""
    add_gradient = gradient.add_gradient

    def add(block: Tensor, packed: Tensor, sums: Tensor, first: bool, chosen: config.BlockConfig) -> None:
        add_gradient(block, packed, sums, first, replace(chosen, weight_dtype=torch.float32, **tile))

    return ((gradient, "add_gradient", add),)


BOTH = ("bfloat16", "float16")


def _cases(run: Run, sizes: Sequence[int], dtypes: Sequence[str], d: int | None = None) -> Iterator[Case]:
    for n, dtype in product(run.sizes(*sizes)[-1:] if run.dry else sizes, run.dtypes(*dtypes)):
        # The interpreter is slow: both languages' negatives would be two and a half times the tiles.
        yield Case("cz-cross" if run.dry else "cz-both", n, d or run.d, dtype, run.device)


def large_races(run: Run) -> Iterator[Race]:
    """Batches in panels; first what decides the time of most users' batches."""
    kept = {"kept": configured(keeps=True), "formed again": configured(keeps=False)}
    for case in _cases(run, (1024, 4096, 16384), (*BOTH, "float32")):
        yield Race("logits of the forward", case, kept)
    # The interpreted batches have fewer rows than the larger tile.
    rows = 64 if run.dry else 128
    products: dict[str, Changes] = {
        "cuBLAS": (),
        "Triton": gradients_in_triton(),
        f"Triton {rows}x64x64": gradients_in_triton(gemm_rows=rows, gemm_depth=64, gemm_stages=4),
    }
    for case in _cases(run, (1024, 4096, 16384), ("bfloat16",)):
        yield Race("products of bfloat16 weights", case, products)
    flash: dict[str, Changes] = {
        "flash": ((config, "flash_wins", lambda *about: True),),
        "panels": ((config, "flash_wins", lambda *about: False),),
    }
    for d in (40,) if run.dry else (64, 128):
        for case in _cases(run, (1024, 4096, 16384, 65536), BOTH, d):
            yield Race("gradient of narrow rows", case, flash)


def small_races(run: Run) -> Iterator[Race]:
    """Batches of which all products are kept."""
    small: dict[str, Changes] = {
        "three kernels": ((config, "SMALL_PAIRS", SMALL),),
        "products kept": small_configured(exponentials=False),
        "launched apart": small_configured(overlap=False),
        "panels": ((config, "SMALL_PAIRS", 0),),
    }
    for case in _cases(run, (64, 256, 512), ("bfloat16",)):
        yield Race("small batches", case, small, base=(), forward=True)
    few: dict[str, Changes] = {
        "float64": ((config, "FEW_PAIRS", 64),),
        "as in larger batches": ((config, "FEW_PAIRS", 0),),
    }
    for case in _cases(run, (16, 64), (*BOTH, "float32")):
        yield Race("products of few pairs", case, few, base=(), forward=True)


def shipped(race: Race) -> str:
    """Which of the options is the one that a user gets, by the configuration that would run."""
    case = race.case
    rows = torch.empty(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)

    def configuration(changes: Changes) -> dict[str, object]:
        loss, negatives = case.parts
        options: dict[str, Any] = {"loss": loss, "negatives": negatives, "impl": "triton"}
        with changed(race.base + changes):
            return ctloss.explain(rows, rows, **options).configuration

    plain = configuration(())
    return next(name for name, changes in race.options.items() if configuration(changes) == plain)


@lru_cache(maxsize=16)
def _batch(case: Case) -> tuple[Tensor, Tensor, Exact]:
    """Inputs and the float64 answer, which several races share."""
    x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
    return x, y, case.exact(x, y)


def _with(changes: Changes, call: PairLoss, prepare: Callable[..., Callable[[], object]], case: Case) -> Any:
    """A pass under these changes; autograd's backward runs before it returns."""
    x, y, _ = _batch(case)
    step = prepare(call, x, y)

    def run() -> object:
        with changed(changes):
            return step()

    return run


def raced(race: Race, way: str, run: Run) -> dict[str, object]:
    """Errors, peak memory and times of all options of a race, launched by "graph" or "python".

    Returns:
        By option milliseconds of a step (``ms``) and, where it is raced, of the forward (``forward_ms``), errors and
        peaks. The ``winner`` is the fastest step, ``shipped`` is what a user gets, and it ``won`` if no option is more
        than 2 % faster. Failures are in ``note``.
    """
    case = race.case
    found: dict[str, dict[str, float]] = {name: {} for name in ("ms", "forward_ms", "gradient_error", "value_error")}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    passes: dict[str, dict[str, Callable[[], object]]] = {"ms": {}, "forward_ms": {}}
    call = build(OURS, case)
    x, y, truth = _batch(case)
    for name, changes in race.options.items():
        changes = race.base + changes
        try:
            with changed(changes):
                missed = errors(call, x, y, truth)
                if not missed["gradient_error"] <= WRONG:
                    raise ArithmeticError(f"expected a gradient error of at most {WRONG}, got {missed}")
                for kind, error in missed.items():
                    found[kind][name] = error
                if not run.dry:
                    peaks[name] = peak_bytes(forward_backward(call, x, y), case.device)
            timed_passes = (("ms", forward_backward), ("forward_ms", forward))
            for which, prepare in timed_passes if race.forward else timed_passes[:1]:
                step = _with(changes, call, prepare, case)
                passes[which][name] = captured(step)[0].replay if way == "graph" else step
        except Exception as error:  # an alternative that cannot run has lost, whatever it raises
            failed[name] = f"{type(error).__name__}: {error}"[:200]
            passes["ms"].pop(name, None)
    for which, calls in passes.items():
        timed = interleaved(
            calls, device=case.device, seconds=0.01 if run.dry else 0.4, fewest_rounds=1 if run.dry else 3
        )
        for name, outcome in timed.items():
            if isinstance(outcome, Timing):
                found[which][name] = outcome.wall * 1e3
            else:
                failed[name] = outcome[:200]
    times, ours = found["ms"], shipped(race)
    winner = min(times, key=times.__getitem__) if times else ""
    won = ours in times and times[ours] <= TIE * times[winner]
    row: dict[str, object] = {**found, "peak_bytes": peaks, "winner": winner, "shipped": ours, "won": won}
    return {**row, "note": "; ".join(f"{name}: {why}" for name, why in failed.items())} if failed else row


def every_race(run: Run) -> list[Race]:
    """Small batches first."""
    return [*small_races(run), *large_races(run)]


def choices(run: Run, races: Iterable[Race]) -> None:
    """A row for each of some races."""
    for race in races:
        case = race.case
        for way in race.ways:
            shape = {"loss": case.loss, "n": case.n, "d": case.d, "dtype": case.dtype}
            about: dict[str, object] = {"choice": race.choice, **shape, "how": way}
            with run.noting(**about):
                run.emit(**about, **raced(race, way, run))
