"""Interleaved measurements in one process: every candidate meets the same weather."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SAMPLE_SECONDS = 2e-3
MOST_ROUNDS = 200


@dataclass(frozen=True)
class Timing:
    """Medians in seconds a call: by the wall clock (on CUDA by events) and of the calling thread's CPU time."""

    wall: float
    cpu: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, device: str, seconds: float, fewest_rounds: int = 5
) -> dict[str, Timing | str]:
    """Time callables in turns, round after round, each round in another order.

    A sample is as many calls in a row as last about 2 ms, so that clocks and launches do not count. The first two calls
    of each are not measured: they compile and allocate. Nor is the first of a sample of several: it would pay for the
    caches and the memory that whoever came before has taken.

    Args:
        calls: what to time, by name.
        device: "cpu" or a CUDA device; there the host waits for the device around every sample.
        seconds: to be spent on all of them together; the fewest rounds may take longer.
        fewest_rounds: samples each gets however long they take.

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
        except (RuntimeError, MemoryError, ValueError, NotImplementedError) as error:
            results[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
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
