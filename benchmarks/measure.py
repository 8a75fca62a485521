"""What is measured of a call, the same for all that are compared: interleaved times and peak memory."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import PairLoss

SAMPLE_SECONDS = 2e-3
MOST_ROUNDS = 200
STATUS = Path("/proc/self/status")


def forward(call: PairLoss, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The loss only, as in evaluation."""

    def run() -> object:
        with torch.no_grad():
            return call(x, y)

    return run


def forward_backward(call: PairLoss, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The loss and its gradient with respect to both inputs."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    return lambda: torch.autograd.grad(call(x, y), (x, y))


PASSES = {"forward": forward, "forward+backward": forward_backward}


@dataclass(frozen=True)
class Timing:
    """Medians in seconds per call: wall clock (events on CUDA) and CPU time of the calling thread."""

    wall: float
    cpu: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, device: str, seconds: float, fewest_rounds: int = 5
) -> dict[str, Timing | str]:
    """Time callables in turns, each round in a new order, so that a busy machine slows all of them alike.

    A sample is as many calls in a row as take about 2 ms, so that clocks and launches do not count. The first two calls
    of each are not measured: they compile and allocate. Nor is the first call of a sample of several: it would pay for
    the caches and the memory that the previous callable took.

    Args:
        device: "cpu" or a CUDA device; on CUDA the host waits for the device before and after every sample.
        seconds: to spend on all of them together; the fewest rounds may take longer.
        fewest_rounds: samples that each gets however long they take.

    Returns:
        A timing for each, or the text of the error that it raised.
    """
    clock = _cuda_sample if device.startswith("cuda") else _host_sample
    results: dict[str, Timing | str] = {}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        try:
            clock(call, 1)
            once, _ = clock(call, 1)
        except Exception as error:  # what a compiler raises derives from Exception only
            results[name] = failure(error)
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
            continue
        repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-7)))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in repeats}
    order = random.Random(0)
    end = time.perf_counter() + seconds
    rounds = 0
    while repeats and rounds < MOST_ROUNDS and (rounds < fewest_rounds or time.perf_counter() < end):
        for name in order.sample(list(repeats), len(repeats)):
            if repeats[name] > 1:
                calls[name]()
            samples[name].append(clock(calls[name], repeats[name]))
        rounds += 1
    for name, taken in samples.items():
        walls, cpus = zip(*taken, strict=True)
        results[name] = Timing(statistics.median(walls), statistics.median(cpus), rounds)
    return results


def failure(error: Exception) -> str:
    """What a row of results notes of an error: its type and its first line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _host_sample(call: Callable[[], object], repeat: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - wall) / repeat, (time.thread_time() - cpu) / repeat


def _cuda_sample(call: Callable[[], object], repeat: int) -> tuple[float, float]:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    cpu = time.thread_time()
    start.record()
    for _ in range(repeat):
        call()
    stop.record()
    cpu = (time.thread_time() - cpu) / repeat
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3 / repeat, cpu


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Bytes that a call takes beyond what is held before it.

    On CUDA the allocator's peak, on the CPU the peak of resident memory less what was resident before, which only says
    something in a fresh process.

    Raises:
        OSError: on the CPU where there is no ``/proc``.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Resets the peak.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM)."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"expected {field} in {STATUS}, found none; measure peak memory on the CPU under Linux")
