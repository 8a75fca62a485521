"""Compile what the GPU run launches before it launches anything, in as many processes as there are cores.

Compiling a kernel takes more than a second of one core, and the GPU run needs some two hundred of them. Triton keeps
them in a folder that all its processes share (``TRITON_CACHE_DIR``). On a machine without a GPU

    TRITON_CACHE_DIR=FOLDER python -m benchmarks.gpu.compiling --arch 90

fills that folder with what compute capability 9.0 would compile; it serves there under the same release of triton.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.exact import SIGMOID_BIAS
from benchmarks.gpu.checks import KINDS, SHAPES, SOFTMAX_LOSSES
from benchmarks.gpu.race.case import LOSSES, Run
from benchmarks.gpu.race.changes import Changes, changed
from benchmarks.gpu.race.choices import every_race
from benchmarks.gpu.race.variants import RAGGED, VARIANTS, Variant
from benchmarks.providers import DTYPES, Case
from benchmarks.results import ROOT
from ctloss.kernels.problem import Batch, Problem
from ctloss.kernels.triton_path import engine, gradient, sig_lip

WORKSPACE = 1 << 30
MOST_PROCESSES = 16


@dataclass(frozen=True)
class Task:
    """The kernels of a call, forward and backward, with some of their choices changed."""

    case: Case
    changes: tuple[Changes, ...] = ((),)


@contextmanager
def launching_nothing() -> Iterator[None]:
    """Compile what would be launched, from the very arguments of the launch, and do no more."""
    run = triton.runtime.JITFunction.run

    def compile_only(kernel: triton.runtime.JITFunction, *given: object, warmup: bool, **options: object) -> object:
        return run(kernel, *given, warmup=True, **options)

    with patch.object(triton.runtime.JITFunction, "run", compile_only):
        yield


class StandIn:
    """A driver of Triton for a device that is not there; only good for compiling."""

    launcher_cls = None

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """The default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are."""
        return torch.device("cpu")


@contextmanager
def standing_in(arch: int) -> Iterator[None]:
    """Pretend that there is a device of compute capability ``arch`` / 10."""
    triton.runtime.driver.set_active(StandIn(arch))
    with ExitStack() as stack:
        stack.enter_context(patch.object(engine, "_arch", lambda: arch))
        # What cuBLAS multiplies is not compiled.
        stack.enter_context(patch.object(gradient, "library_product", lambda *operands: None))
        yield


def tasks(device: str) -> list[Task]:
    """Everything that the run compiles, the variants first."""
    run = Run(device, False, Path())
    case = partial(Case, device=device)
    found: list[Task] = []
    for variant in VARIANTS:
        cases = [case(loss, n, d, "bfloat16") for n, d in RAGGED for loss in ("cz-both", "info-cross")]
        cases += [case("cz-both", n, run.d, "bfloat16") for n in variant.sizes]
        found += [Task(each, _of(variant)) for each in cases]
    for race in every_race(run):
        found.append(Task(race.case, tuple(race.base + changes for changes in race.options.values())))
    for n, loss in product((64, 128, 256, 512, 1024, 4096, 16384, 65536), (*LOSSES, "siglip")):
        found.append(Task(case(loss, n, run.d, "bfloat16")))
    for (n, d), dtype, loss in product(
        dict.fromkeys((*KINDS, *SHAPES)), ("bfloat16", "float16", "float32"), SOFTMAX_LOSSES
    ):
        found.append(Task(case(loss, n, d, dtype)))
    for n, dtype, loss in product((512, 4096, 16384), ("float32", "float16"), ("cz-both", "info-cross")):
        found.append(Task(case(loss, n, run.d, dtype)))
    for d, loss in product((64, 256, 1024, 1536), ("cz-both", "info-cross")):
        found.append(Task(case(loss, 4096, d, "bfloat16")))
    return list(dict.fromkeys(found))


def _of(variant: Variant) -> tuple[Changes, ...]:
    return (variant.all_changes(),)


def share(every: Sequence[Task], part: int, parts: int) -> list[Task]:
    """One process's tasks: batches alike stay together, because most of their kernels are the same.

    >>> case = Case("cz-both", 8, 4, "float32", "cpu")
    >>> [len(share([Task(case)] * 3, part, 2)) for part in range(2)]
    [3, 0]
    """
    groups = [list(group) for _, group in groupby(every, lambda task: (task.case.n, task.case.d, task.case.dtype))]
    return [task for group in groups[part::parts] for task in group]


def compile_task(task: Task) -> None:
    """Compile the forward with and without what the backward needs, and the backward."""
    case = task.case
    loss, negatives = case.parts
    x, y = (torch.ones(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device) for _ in range(2))
    problem = Problem(
        loss=loss,  # type: ignore[arg-type]
        negatives=negatives,  # type: ignore[arg-type]
        workspace=WORKSPACE,
    )
    batch = Batch(x, y, temperature=case.temperature)
    for changes in task.changes:
        with changed(changes):
            if loss == "sig_lip":
                for need in (True, False):
                    sig_lip.solve(batch, SIGMOID_BIAS, problem, needs=(need, need, False, False))
                continue
            engine.forward(batch, problem, moment=False, gradient=False)
            forward = engine.forward(batch, problem, moment=False, gradient=True)
            engine.backward(forward.state, forward.z, forward.z, (True, True))


def compile_share(part: int, parts: int, device: str) -> int:
    """Compile one process's tasks; the number that failed, which the run will show in their own parts."""
    failed = 0
    for task in share(tasks(device), part, parts):
        try:
            compile_task(task)
        except Exception as error:  # a candidate may fail to compile in any way
            failed += 1
            print(f"{task.case}: {type(error).__name__}: {error}"[:500], flush=True)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return failed


def main() -> int:
    """Compile everything in processes of its own; the exit status is 1 if something does not compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, help="of a device that is not there: 90 for compute capability 9.0")
    processes = max(1, min(MOST_PROCESSES, os.cpu_count() or 1))
    parser.add_argument("--processes", type=int, default=processes, help="default: one for each core, at most 16")
    parser.add_argument("--share", nargs=2, type=int, metavar=("PART", "PARTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        part, parts = options.share
        with ExitStack() as stack:
            if options.arch is not None:
                stack.enter_context(standing_in(options.arch))
            stack.enter_context(launching_nothing())
            return min(1, compile_share(part, parts, "cpu" if options.arch is not None else "cuda"))
    command = [sys.executable, "-m", "benchmarks.gpu.compiling"]
    if options.arch is not None:
        command += ["--arch", str(options.arch)]
    # They compete for the cores themselves.
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, "--share", str(part), str(options.processes)], cwd=ROOT, env=variables)
        for part in range(options.processes)
    ]
    return max(process.wait() for process in started)


if __name__ == "__main__":
    raise SystemExit(main())
