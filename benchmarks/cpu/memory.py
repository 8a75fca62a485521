"""Peak memory of one forward and backward pass, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import batches, environment, providers
from benchmarks.providers import DTYPES, Case, NotOffered
from benchmarks.sweep import Grid, forward_backward

STATUS = Path("/proc/self/status")
LIMIT_SECONDS = 300


def _resident(field: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM)."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"expected {field} in {STATUS}, found none; peak memory on the CPU is measured on Linux alone")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak(case: Case, name: str) -> int:
    """Bytes a provider's forward and backward pass take beyond its inputs; meant for a fresh process.

    A pass at n = 8 comes first, so that libraries and code are loaded; a compiled provider is compiled at full size.
    """
    call = providers.build(name, case)
    warm = case.n if name == "compile" else min(case.n, 8)
    x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
    forward_backward(call, x[:warm].clone(), y[:warm].clone())()
    return beyond(forward_backward(call, x, y), case.device)


def beyond(run: Callable[[], object], device: str) -> int:
    """Bytes that a call takes beyond what is there before it.

    On CUDA the allocator's peak, on the CPU the peak of resident memory less what was resident before.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _forget_peak()
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def in_fresh_process(case: Case, name: str, *, threads: int, limit: int = LIMIT_SECONDS) -> dict[str, object]:
    """:func:`peak` in a subprocess: {"peak_bytes": ...}, or {"note": why not}."""
    return answer("benchmarks.memory", {"case": asdict(case), "provider": name, "threads": threads}, limit=limit)


def answer(module: str, problem: Mapping[str, object], *, limit: int = LIMIT_SECONDS) -> dict[str, object]:
    """What a module run in a process of its own prints for a problem, JSON both; {"note": why not} if it fails."""
    command = [sys.executable, "-m", module, json.dumps(problem)]
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"note": f"took longer than {limit} s"}
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        return {"note": last[0]}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(grid: Grid) -> list[dict[str, object]]:
    """A row for each case and provider with ``peak_bytes``, or ``note``."""
    rows = []
    torch.set_num_threads(grid.threads)
    for case in grid.cases():
        for name in grid.providers:
            try:
                providers.build(name, case, grid.memory_limit)
                outcome = in_fresh_process(case, name, threads=grid.threads)
            except NotOffered as reason:
                outcome = {"note": str(reason)}
            rows.append({"provider": name, **outcome, **asdict(case), **environment.describe(case.device)})
            if "peak_bytes" in outcome:
                shown = float(str(outcome["peak_bytes"])) / 2**20
                print(f"{case.loss} n={case.n} {case.dtype} {name}: {shown:.1f} MiB", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """The subprocess: a problem as JSON in, the peak as JSON out."""
    parser = argparse.ArgumentParser(description="Peak memory of one case, as JSON.")
    parser.add_argument("problem", help="JSON with case, provider and threads")
    problem = json.loads(parser.parse_args().problem)
    torch.set_num_threads(problem["threads"])
    try:
        found: dict[str, object] = {"peak_bytes": peak(Case(**problem["case"]), problem["provider"])}
    except NotOffered as reason:
        found = {"note": str(reason)}
    except (MemoryError, torch.OutOfMemoryError) as error:
        found = {"note": f"out of memory: {str(error).splitlines()[0] if str(error) else ''}"}
    found["max_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main()
