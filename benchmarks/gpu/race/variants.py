"""Candidates for the kernels of large batches, each raced against what is shipped in a process of its own.

A candidate is a row of ``VARIANTS``. It is first held to float64, to equal bits over twenty passes, and at every size
to what is shipped; only then is it timed, in turns with what is shipped, so that a hot machine slows both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks import batches
from benchmarks.exact import errors
from benchmarks.gpu.race import together
from benchmarks.gpu.race.case import OURS, Run, build
from benchmarks.gpu.race.changes import IN_PANELS, Changes, changed, configured
from benchmarks.measure import PASSES, Timing, interleaved
from benchmarks.peers import PairLoss
from benchmarks.providers import DTYPES, Case
from ctloss.kernels.triton_path import kept

SHIPPED = "shipped"
# Pairs and columns that fill no tile and no panel.
RAGGED = ((1500, 768), (1100, 200))
# How far the gradient may be from what is shipped, relative to its size: both round weights to bfloat16.
APART = 0.01
# How much less exact than what is shipped it may be.
WORSE = 2.0
REPEATS = 20
# Rows of the time of each kernel.
MOST_KERNELS = 8


@dataclass(frozen=True)
class Variant:
    """A candidate.

    Attributes:
        name: what results call it.
        settings: fields of the kernels' ``BlockConfig`` that differ from what ``config.choose`` returns.
        changes: what else is patched, for a candidate that no field of the configuration chooses.
        sizes: pairs of the batches that it is timed on.
        seconds: the limit of its process; a candidate that hangs costs no more.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: Callable[[], Changes] = tuple
    sizes: tuple[int, ...] = (16384, 65536)
    seconds: float = 35

    def all_changes(self) -> Changes:
        """Everything that is patched while it runs."""
        return (*IN_PANELS, *(configured(**self.settings) if self.settings else ()), *self.changes())


# In order of worth: a run that is cut short has the first ones. Kernels written anew go right below the shipped ones,
# as Variant("name", {"field of BlockConfig": value}); nothing else has to be changed for them to be compiled in
# advance, checked, timed, profiled and reported.
VARIANTS = (
    Variant(SHIPPED),
    Variant("together", changes=together.changes),
    Variant("4 stages", {"num_stages": 4}, sizes=(16384,), seconds=25),
    Variant("2 stages", {"num_stages": 2}, sizes=(16384,), seconds=25),
    Variant("group 4", {"group": 4}, seconds=30),
    Variant("group 16", {"group": 16}, seconds=30),
    Variant("formed again", {"keeps": False}, sizes=(4096, 16384), seconds=25),
    # Kept logits by the kernel that could also form them again.
    Variant("both ways", changes=lambda: ((kept, "share_of", lambda *about: "some"),), sizes=(4096, 16384), seconds=25),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def timed_on(run: Run, variant: Variant) -> list[Case]:
    """The batches that a variant is timed on: the paper's negatives, bfloat16, 768 columns."""
    if run.dry:
        return [Case("cz-cross", 70, run.d, "float32", run.device)]
    return [Case("cz-both", n, run.d, "bfloat16", run.device) for n in variant.sizes]


def checked_on(run: Run) -> list[Case]:
    """The batches that it is held to float64 on."""
    if run.dry:
        return [Case("info-cross", 6, run.d, "float32", run.device)]
    return [Case(loss, n, d, "bfloat16", run.device) for n, d in RAGGED for loss in ("cz-both", "info-cross")]


def race(run: Run, name: str) -> None:
    """One variant: rows of errors first, then of times; a variant that is wrong is not timed."""
    variant = BY_NAME[name]
    changes = variant.all_changes()
    for case in checked_on(run):
        run.emit(variant=name, **_about(case), **_verified(run, case, changes))
    for case in timed_on(run, variant):
        run.emit(variant=name, **_about(case), **_alike(case, changes))
        for row in _times(run, case, name, changes):
            run.emit(variant=name, **_about(case), **row)
        if not run.dry:
            with run.noting(variant=name, **_about(case), which="kernels"):
                run.emit(variant=name, **_about(case), which="kernels", ms=_kernels(case, changes))


def _about(case: Case) -> dict[str, object]:
    return {"loss": case.loss, "n": case.n, "d": case.d, "dtype": case.dtype}


@lru_cache(maxsize=1)
def _inputs(case: Case) -> tuple[Tensor, Tensor]:
    return batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)


def _gradient(call: PairLoss, x: Tensor, y: Tensor) -> Tensor:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    return torch.cat(torch.autograd.grad(call(x, y), (x, y)))


def _verified(run: Run, case: Case, changes: Changes) -> dict[str, object]:
    """Errors against float64, beside those of what is shipped, and how many of some passes gave equal bits.

    Raises:
        ArithmeticError: if the gradient is much less exact, or passes differ.
    """
    x, y = _inputs(case)
    truth, call = case.exact(x, y), build(OURS, case)
    with changed(IN_PANELS):
        shipped = errors(call, x, y, truth)
    with changed(changes):
        found = errors(call, x, y, truth)
        first = _gradient(call, x, y)
        repeats = 2 if run.dry else REPEATS
        equal = sum(torch.equal(first, _gradient(call, x, y)) for _ in range(repeats))
    row: dict[str, object] = {**found, "shipped_error": shipped["gradient_error"], "repeats": repeats, "equal": equal}
    if not found["gradient_error"] <= WORSE * shipped["gradient_error"] + 1e-6 or equal < repeats:
        raise ArithmeticError(f"expected about the error that is shipped and equal bits, got {row}")
    return row


def _alike(case: Case, changes: Changes) -> dict[str, object]:
    """How far the gradient is from what is shipped, relative to its size; ArithmeticError if that is far."""
    x, y = _inputs(case)
    call = build(OURS, case)
    with changed(IN_PANELS):
        shipped = _gradient(call, x, y).float()
    with changed(changes):
        own = _gradient(call, x, y).float()
    apart = ((own - shipped).norm() / shipped.norm()).item()
    if not apart <= APART:
        raise ArithmeticError(f"expected a gradient within {APART} of what is shipped at n={case.n}, got {apart}")
    return {"apart": apart}


def _times(run: Run, case: Case, name: str, changes: Changes) -> list[dict[str, object]]:
    """Milliseconds of both passes and of the forward: what is shipped, the variant, and their ratio."""
    x, y = _inputs(case)
    call = build(OURS, case)
    rows: list[dict[str, object]] = []
    for which, prepare in reversed(PASSES.items()):
        step = prepare(call, x, y)
        steps = {key: _under(each, step) for key, each in {SHIPPED: IN_PANELS, name: changes}.items()}
        timed = interleaved(steps, device=case.device, seconds=0.01 if run.dry else 1.2, fewest_rounds=3)
        ms = {key: outcome.wall * 1e3 for key, outcome in timed.items() if isinstance(outcome, Timing)}
        row: dict[str, object] = {"which": which, "ms": ms}
        if len(ms) == 2:
            row["ratio"] = ms[name] / ms[SHIPPED]
        notes = [f"{key}: {outcome}" for key, outcome in timed.items() if isinstance(outcome, str)]
        rows.append({**row, "note": "; ".join(notes)[:300]} if notes else row)
    return rows


def _under(changes: Changes, step: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with changed(changes):
            return step()

    return run


def _kernels(case: Case, changes: Changes) -> dict[str, float]:
    """Milliseconds of a step by kernel, the longest first."""
    x, y = _inputs(case)
    call = build(OURS, case)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with changed(changes), torch.profiler.profile(activities=activities) as profile:
        _gradient(call, x, y)
        torch.cuda.synchronize()
    spent = {event.key[:60]: event.self_device_time_total / 1e3 for event in profile.key_averages()}
    return dict(sorted(spent.items(), key=lambda item: -item[1])[:MOST_KERNELS])
