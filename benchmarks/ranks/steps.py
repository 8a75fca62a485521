"""What one rank measures of a step, a forward and a backward pass: times in turns, bytes sent, errors, peak memory."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import batches, exact
from benchmarks.measure import SAMPLE_SECONDS, failure, forward_backward, peak_bytes
from benchmarks.peers import PairLoss
from benchmarks.providers import NotOffered
from benchmarks.ranks.rivals import CONTESTANTS, LOSSES, build
from benchmarks.ranks.traffic import counted

TEMPERATURE = 0.07
MOST_ROUNDS = 100
# Rounds that each gets however long they take, by the seconds that one takes at most.
FEWEST_ROUNDS = ((2.0, 5), (15.0, 3), (math.inf, 1))
LARGEST_CHECKED = 8192
"""The most pairs of all ranks for which the gradient is compared with one process in float64."""
WARM = 8
"""Pairs of the call that loads code and libraries before memory is measured."""

Row = dict[str, object]
Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Medians in seconds per call: wall clock, and CPU time of the rank's process with all its threads."""

    wall: float
    cpu: float
    rounds: int


def own_rows(rows: int, d: int, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    """This rank's pairs of a batch that all ranks draw alike."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    whole = batches.untrained(rows * ranks, d, dtype=getattr(torch, dtype), device="cpu")
    x, y = (side[rank * rows : (rank + 1) * rows].clone().to(device) for side in whole)
    return x, y


def offered(names: Sequence[str], loss: str) -> tuple[dict[str, PairLoss], dict[str, str]]:
    """The contestants' losses, and the reasons of those that have none."""
    calls, notes = {}, {}
    for name in names:
        try:
            calls[name] = build(CONTESTANTS[name], loss, TEMPERATURE)
        except NotOffered as reason:
            notes[name] = str(reason)
    return calls, notes


def times(loss: str, rows: int, d: int, dtype: str, contestants: list[str], seconds: float, device: str) -> list[Row]:
    """A row for each contestant that has the loss: seconds, bytes sent and errors of one cell.

    Args:
        loss: "both" or "cross".
        rows: pairs of each rank.
        contestants: keys of CONTESTANTS.
        seconds: to spend on the times of all of them together; the fewest rounds may take longer.
    """
    x, y = own_rows(rows, d, dtype, device)
    calls, notes = offered(contestants, loss)
    taken = in_turns({name: forward_backward(call, x, y) for name, call in calls.items()}, seconds, device)
    truth = None
    if rows * dist.get_world_size() <= LARGEST_CHECKED and dist.get_rank() == 0:
        truth = _truth(loss, rows, d, dtype)
    found: list[Row] = [{"contestant": name, "note": note} for name, note in notes.items()]
    for name, call in calls.items():
        timing = taken[name]
        if isinstance(timing, str):
            found.append({"contestant": name, "note": timing})
            continue
        row: Row = {"wall_s": timing.wall, "cpu_s": timing.cpu, "rounds": timing.rounds}
        row["sent_bytes"] = sent_bytes(forward_backward(call, x, y))
        if rows * dist.get_world_size() <= LARGEST_CHECKED:
            row |= _errors(call, x, y, truth)
        found.append({"contestant": name, **row})
    return found


def sent_bytes(step: Step) -> float:
    """Bytes that this rank sends in a step."""
    with counted() as sent:
        step()
    return sent.num_bytes


def in_turns(steps: Mapping[str, Step], seconds: float, device: str) -> dict[str, Timing | str]:
    """Time steps that all ranks take together, in turns, each round in a new order that all ranks share.

    The first rank decides how often a step is repeated and when there are rounds enough. Ranks meet before each sample,
    outside its time.

    Returns:
        A timing for each, or the text of the error that it raised; an error must strike all ranks alike.
    """
    results: dict[str, Timing | str] = {}
    once = {}
    for name, step in steps.items():
        try:
            sample(step, 1, device)
            once[name] = agreed(sample(step, 1, device)[0], device)
        except Exception as error:  # what a library raises derives from Exception only
            results[name] = failure(error)
    round_seconds = sum(max(took, SAMPLE_SECONDS) for took in once.values())
    fewest = next(rounds for most, rounds in FEWEST_ROUNDS if round_seconds <= most)
    wanted = max(fewest, min(MOST_ROUNDS, round(seconds / round_seconds))) if once else 0
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in once}
    order = random.Random(0)
    for _ in range(wanted):
        for name in order.sample(list(once), len(once)):
            repeat = max(1, math.ceil(SAMPLE_SECONDS / max(once[name], 1e-7)))
            if repeat > 1:
                steps[name]()
            samples[name].append(sample(steps[name], repeat, device))
    for name, pairs in samples.items():
        walls, cpus = zip(*pairs, strict=True)
        results[name] = Timing(statistics.median(walls), statistics.median(cpus), wanted)
    return results


def agreed(value: float, device: str) -> float:
    """The first rank's value."""
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(tensor, src=0)
    return tensor.item()


def sample(step: Step, repeat: int, device: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a step, begun by all ranks together."""

    def settle() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    dist.barrier()
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        step()
    settle()
    return (time.perf_counter() - wall) / repeat, (time.process_time() - cpu) / repeat


def _truth(loss: str, rows: int, d: int, dtype: str) -> exact.Exact:
    x, y = batches.untrained(rows * dist.get_world_size(), d, dtype=getattr(torch, dtype), device="cpu")
    name, negatives = LOSSES[loss]
    return exact.exact(x, y, loss=name, negatives=negatives, temperature=TEMPERATURE)


def _errors(call: PairLoss, x: Tensor, y: Tensor, truth: exact.Exact | None) -> dict[str, float]:
    """On the first rank, how far all ranks' mean is from the truth; on the others nothing."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = call(x, y)
    # What reaches the encoder is averaged over the ranks.
    own = torch.stack(torch.autograd.grad(value, (x, y))).double() / dist.get_world_size()
    gradients = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gradients, own)
    mean = value.detach().double().reshape(1)
    dist.all_reduce(mean)
    if truth is None:
        return {}
    wanted = torch.stack((truth.gx, truth.gy))
    difference = torch.cat(gradients, 1).cpu() - wanted
    return {
        "gradient_error": (difference.norm() / wanted.norm()).item(),
        "value_error": abs(mean.item() / dist.get_world_size() - truth.loss) / truth.unit,
    }


def peak(loss: str, rows: int, d: int, dtype: str, contestant: str, device: str) -> int:
    """Bytes that a contestant's step takes on this rank beyond its rows; meant for a fresh process."""
    call = build(CONTESTANTS[contestant], loss, TEMPERATURE)
    x, y = own_rows(rows, d, dtype, device)
    warm = min(rows, WARM)
    forward_backward(call, x[:warm].clone(), y[:warm].clone())()
    dist.barrier()
    return peak_bytes(forward_backward(call, x, y), device)
