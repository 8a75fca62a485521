"""Peak memory of one forward and backward pass, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import batches, providers
from benchmarks.cpu.sweep import Grid
from benchmarks.measure import forward_backward, peak_bytes
from benchmarks.providers import DTYPES, Case, NotOffered
from benchmarks.results import ROOT, describe

LIMIT_SECONDS = 300
# Bytes in a unit of ru_maxrss.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
MEMORY = Grid(
    (512, 2048, 8192),
    dtypes=("float32",),
    providers=("ctloss-torch", "ctloss-triton", "eager", "lightly", "open_clip", "sentence-transformers"),
)
QUICK = Grid((256, 512), d=(128,), dtypes=("float32",), providers=MEMORY.providers)


def peak(case: Case, name: str) -> int:
    """Bytes that a provider's forward and backward pass take beyond its inputs; meant for a fresh process.

    A pass at n = 8 comes first, so that libraries and code are loaded; a compiled provider is compiled at full size.
    """
    call = providers.build(name, case)
    warm = case.n if name == "compile" else min(case.n, 8)
    x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
    forward_backward(call, x[:warm].clone(), y[:warm].clone())()
    return peak_bytes(forward_backward(call, x, y), case.device)


def in_fresh_process(case: Case, name: str, *, threads: int) -> dict[str, object]:
    """:func:`peak` in a process of its own: {"peak_bytes": ...}, or {"note": why not}."""
    return ask("benchmarks.cpu.memory", {"case": asdict(case), "provider": name, "threads": threads})


def ask(module: str, problem: Mapping[str, object], *, limit: int = LIMIT_SECONDS) -> dict[str, object]:
    """What a module that calls :func:`answer` finds in a fresh process; {"note": why not} if it fails."""
    command = [sys.executable, "-m", module, json.dumps(problem)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"note": f"took longer than {limit} s"}
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        return {"note": last[0]}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(find: Callable[[dict[str, Any]], int]) -> None:
    """The other side of :func:`ask`: reads a problem as JSON from the command line, prints its peak as JSON."""
    parser = argparse.ArgumentParser(description="Peak memory of one problem, as JSON.")
    parser.add_argument("problem", help="JSON; what it holds is up to the module")
    problem = json.loads(parser.parse_args().problem)
    torch.set_num_threads(problem["threads"])
    try:
        found: dict[str, object] = {"peak_bytes": find(problem)}
    except NotOffered as reason:
        found = {"note": str(reason)}
    except (MemoryError, torch.OutOfMemoryError) as error:
        found = {"note": f"out of memory: {str(error).splitlines()[0] if str(error) else ''}"}
    found["max_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    print(json.dumps(found))


def run(grid: Grid) -> list[dict[str, object]]:
    """A row for each case and provider with ``peak_bytes``, or ``note``."""
    rows = []
    for case in grid.cases():
        calls, reasons = providers.offered(grid.providers, case, grid.memory_limit)
        for name in grid.providers:
            outcome: dict[str, object] = {"note": reasons.get(name, "")}
            if name in calls:
                outcome = in_fresh_process(case, name, threads=torch.get_num_threads())
            rows.append({"provider": name, **outcome, **asdict(case), **describe(case.device)})
            if "peak_bytes" in outcome:
                shown = float(str(outcome["peak_bytes"])) / 2**20
                print(f"{case.loss} n={case.n} {case.dtype} {name}: {shown:.1f} MiB", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    answer(lambda problem: peak(Case(**problem["case"]), problem["provider"]))
