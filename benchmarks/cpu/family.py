"""What an option or a loss of the family costs next to what it replaces: time, peak memory, the gradient's error.

Each line of the table compares one call of ours with another: plain PyTorch for the same loss, or our own call without
the option. Both are timed in turns in one process with one thread, by the thread's CPU time; memory is measured in a
fresh process each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.cpu import memory
from benchmarks.cpu.comparisons import Inputs, Line, Way, lines
from benchmarks.cpu.report import met
from benchmarks.measure import Timing, interleaved, peak_bytes

COMMAND = "python -m benchmarks family"
SECONDS, FEWEST_ROUNDS = 3.0, 11
WARM = 8
"""Pairs of the call that loads code and libraries before memory is measured."""


def gradients(call: Callable[[Inputs], Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """One forward and backward pass."""
    return torch.autograd.grad(call(inputs), inputs.embeddings)


def gradient_error(way: Way, inputs: Inputs) -> float:
    """``‖g − g_ref‖ / ‖g_ref‖`` over all embeddings, with g_ref computed in float64 on the same inputs."""
    square = reference = 0.0
    for found, wanted in zip(gradients(way.call, inputs), gradients(way.truth, inputs.double()), strict=True):
        square += (found.double() - wanted).square().sum().item()
        reference += wanted.square().sum().item()
    return math.sqrt(square / reference)


def peak(line: Line, role: str) -> int:
    """Bytes that one way takes beyond its inputs; meant for a fresh process."""
    way = line.ways[role]
    gradients(way.call, line.draw(min(line.n, WARM), line.d))
    inputs = line.draw(line.n, line.d)
    return peak_bytes(lambda: gradients(way.call, inputs), "cpu")


def measure(line: Line, *, seconds: float, fewest_rounds: int) -> list[dict[str, object]]:
    """Both ways of a line: a row each, with what went wrong in ``note``."""
    inputs = line.draw(line.n, line.d)
    steps = {role: partial(gradients, way.call, inputs) for role, way in line.ways.items()}
    timed = interleaved(steps, device="cpu", seconds=seconds, fewest_rounds=fewest_rounds)
    rows = []
    for role, way in line.ways.items():
        about: dict[str, object] = {"line": line.name, "n": line.n, "d": line.d, "role": role}
        row = {**about, "way": way.name}
        outcome = timed[role]
        if isinstance(outcome, Timing):
            row |= {"cpu_s": outcome.cpu, "wall_s": outcome.wall, "rounds": outcome.rounds}
            row["gradient_error"] = gradient_error(way, inputs)
        else:
            row["note"] = outcome
        row |= memory.ask("benchmarks.cpu.family", {**about, "threads": 1})
        rows.append({**row, **results.describe("cpu")})
    return rows


def run(
    chosen: Iterable[Line], *, seconds: float = SECONDS, fewest_rounds: int = FEWEST_ROUNDS
) -> list[dict[str, object]]:
    """Measure lines one after the other, on one thread; a line of progress for each on stderr."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for line in chosen:
        rows += measure(line, seconds=seconds, fewest_rounds=fewest_rounds)
        ours, other = (float(str(row.get("cpu_s", "nan"))) for row in rows[-2:])
        print(f"{line.name}, n={line.n}: {ours * 1e3:.3g} ms, {ours / other:.2f} x", file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """The table of the rows that :func:`run` gave, read back from their file: goals next to what was measured."""
    goals = {(line.name, line.n): (line.goal, line.memory_goal) for line in lines()}
    shown = []
    for ours, other in zip(rows[::2], rows[1::2], strict=True):
        goal, memory_goal = goals.get((ours["line"], int(ours["n"])), (None, None))
        shown.append(
            [
                ours["line"],
                f"{int(ours['n']):,}",
                other["way"],
                f"{float(ours['cpu_s']) * 1e3:.3g}" if ours["cpu_s"] else ours["note"],
                *_against_goal(ours, other, "cpu_s", goal),
                *_against_goal(ours, other, "peak_bytes", memory_goal),
                *(f"{float(row['gradient_error']):.0e}" if row["gradient_error"] else "" for row in (ours, other)),
            ]
        )
    columns = ["", "n", "against", "ms", "÷ time", "goal", "÷ memory", "goal", "gradient's error", "the other's"]
    about = (
        f"{rows[0]['device']}, torch {rows[0]['torch']}; one thread, its CPU time. float32, d = {rows[0]['d']}, "
        "forward and backward, medians of both in turns. Errors are relative, of the gradient, against float64."
    )
    return f"{about}\n\n{results.table(columns, shown)}"


def _against_goal(
    ours: Mapping[str, str], other: Mapping[str, str], column: str, goal: float | None
) -> tuple[str, str]:
    if not (ours.get(column) and other.get(column)) or float(other[column]) == 0:
        return "", ""
    ratio = float(ours[column]) / float(other[column])
    return f"{ratio:.2f}", met(ratio, goal)


def _peak_of(problem: dict[str, object]) -> int:
    n, d = int(str(problem["n"])), int(str(problem["d"]))
    (line,) = (line for line in lines((n,), d) if line.name == problem["line"])
    return peak(line, str(problem["role"]))


if __name__ == "__main__":
    memory.answer(_peak_of)
