"""What the hardware counts in the kernels of logits and weights, where NVIDIA's ncu is installed."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator

import torch

from benchmarks import batches
from benchmarks.gpu.race.case import OURS, Run, build
from benchmarks.gpu.race.changes import changed
from benchmarks.gpu.race.variants import BY_NAME, VARIANTS, timed_on
from benchmarks.measure import forward_backward
from benchmarks.providers import DTYPES

SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")
# Of the some two hundred metrics of those sections: tensor pipe, L2, memory, what bounds the kernel, its launch.
WANTED = re.compile(
    r"^gpu__time_duration\.sum$|pipe_tensor.*(pct|active)|^lts__t_(bytes|sectors).*(pct|per_second)|^lts__throughput"
    r"|^(sm|gpu__compute_memory|dram|l1tex)__?\w*throughput.*pct|^launch__(registers_per_thread|grid_size|occupancy_limit)"
    r"|^sm__warps_active.*pct|^smsp__issue_active.*pct"
)
# Forward, then a diagonal panel and others.
LAUNCHES = 3
# Variants that are counted, and the limit of each.
COUNTED, SECONDS = 2, 40


def counted(run: Run, name: str) -> None:
    """A step of a variant, to be counted."""
    case = timed_on(run, BY_NAME[name])[0]
    x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
    with changed(BY_NAME[name].all_changes()):
        forward_backward(build(OURS, case), x, y)()
    if run.device.startswith("cuda"):
        torch.cuda.synchronize()


def counters(run: Run) -> None:
    """The metrics of the first launches of the kernels of logits and weights: shipped ones and the first variants'."""
    tool = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if run.dry or tool is None:
        run.emit(note="a dry run has no GPU" if run.dry else "ncu is not on this machine")
        return
    for variant in VARIANTS[:COUNTED]:
        command = [
            tool,
            "--csv",
            "--page",
            "raw",
            "--kernel-name",
            "regex:lse|weights",
            "--launch-count",
            str(LAUNCHES),
        ]
        command += [argument for section in SECTIONS for argument in ("--section", section)]
        command += [sys.executable, "-m", "benchmarks.gpu.parts", f"counted {variant.name}", str(run.path)]
        with run.noting(variant=variant.name):
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            found = list(metrics(done.stdout.splitlines()))
            for row in found:
                run.emit(variant=variant.name, **row)
            if not found:
                run.emit(variant=variant.name, note=(done.stdout + done.stderr)[-300:])


def metrics(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The wanted columns of ncu's raw page: a row for each launch, metrics with their units.

    >>> page = ['"ID","Kernel Name","lts__throughput.avg.pct_of_peak_sustained_elapsed"', '"","","%"', '"0","lse","51"']
    >>> list(metrics(["==PROF== Connected", *page]))
    [{'kernel': 'lse', 'lts__throughput.avg.pct_of_peak_sustained_elapsed': '51 %'}]
    """
    table = csv.reader(line for line in lines if line.startswith('"'))
    names = next(table, [])
    units = next(table, [])
    for values in table:
        found = dict(zip(names, zip(values, units, strict=False), strict=False))
        row = {"kernel": found.get("Kernel Name", ("", ""))[0]}
        yield row | {name: f"{value} {unit}".strip() for name, (value, unit) in found.items() if WANTED.search(name)}
