"""Measures a class of ours beside theirs: interleaved times, the peak of memory, the gradient's error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import batches
from benchmarks.integrations.pairs import Call, D, Pair
from benchmarks.measure import Timing, interleaved
from benchmarks.peers import PeerMissing
from benchmarks.results import Row

SIZES = (128, 512, 2048)
MOST_BYTES = 4 << 30


def rows(pair: Pair, n: int, dtype: torch.dtype) -> list[Tensor]:
    """Anchors, positives and hard negatives, leaves that require a gradient."""
    sides = list(batches.untrained(n, D, dtype=torch.float32, device="cpu"))
    for number in range(pair.hard):
        near, _ = batches.untrained(n, D, dtype=torch.float32, device="cpu", seed=1 + number)
        sides.append(near)
    if pair.unit:
        sides = [torch.nn.functional.normalize(side, dim=1) for side in sides]
    return [side.to(dtype).requires_grad_() for side in sides]


def gradients(call: Call, sides: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of the rows."""
    return torch.autograd.grad(call(*sides), sides)


def error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """‖g − g_ref‖ / ‖g_ref‖ over all rows."""
    difference = sum((one.double() - other).square().sum() for one, other in zip(found, wanted, strict=True))
    length = sum(other.square().sum() for other in wanted)
    assert isinstance(difference, Tensor)
    assert isinstance(length, Tensor)
    return float((difference / length).sqrt())


def peak(run: Callable[[], object]) -> int:
    """The most bytes that the allocator had handed out at any one time of a call, beyond what there was."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    del kept
    return max(itertools.accumulate(change for _, change in changes), default=0)


def measure(pair: Pair, n: int, seconds: float) -> Row:
    """One row of results; what could not run has no number."""
    row: dict[str, object] = {"library": pair.library, "loss": pair.name, "n": n, "d": D}
    sides = rows(pair, n, torch.float32)
    calls = {"ours": pair.ours(n, torch.float32)}
    truth: Call | None = None
    if pair.their_bytes(n) <= MOST_BYTES:
        calls["theirs"] = pair.theirs(n, torch.float32)
        truth = pair.theirs(n, torch.float64)
    runs = {name: lambda call=call: gradients(call, sides) for name, call in calls.items()}
    exact = None
    if truth is not None and 2 * pair.their_bytes(n) <= MOST_BYTES:
        exact = gradients(truth, [side.detach().double().requires_grad_() for side in sides])
    for name, run in runs.items():
        if exact is not None:
            row[f"{name} error"] = error(run(), exact)
        row[f"{name} peak"] = peak(run)
    for name, timing in interleaved(runs, device="cpu", seconds=seconds, fewest_rounds=3).items():
        row[f"{name} ms"] = 1e3 * timing.cpu if isinstance(timing, Timing) else timing
    return row


def race(pairs: Sequence[Pair], sizes: Sequence[int], seconds: float) -> Iterator[Row]:
    """All of them, on one thread; a library that is missing is told by the row."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for pair in pairs:
            for n in sizes:
                try:
                    yield measure(pair, n, seconds)
                except PeerMissing as missing:
                    yield {"library": pair.library, "loss": pair.name, "n": n, "d": D, "theirs ms": str(missing)}
    finally:
        torch.set_num_threads(before)
