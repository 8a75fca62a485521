"""ctloss against the best of eager PyTorch and torch.compile on a CPU: times, errors and memory of every cell.

Each number of threads has a process of its own, which is sent one cell after the other and returns the cell's rows. So
cells come in the order of their importance whatever their threads, and a path that brings its process down costs one
cell. All that take part in a cell are timed in turns: one thread by its CPU time, several by the wall clock. Every
eager form is timed on batches of up to 512 pairs; on larger ones only those that were about as fast as the fastest on
smaller ones. Each loss is compiled once a pass, with dynamic shapes, from the eager form that is fastest where it is
first met.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import results
from benchmarks.cpu import memory
from benchmarks.cpu.race_cells import FIELDS, Cell, Form, Inputs, draw, ours, rivals, truth
from benchmarks.measure import Timing, failure, interleaved, peak_bytes

MODULE = "benchmarks.cpu.race"
# Threads that spin while they wait would take the time of those that are measured; so would idle compilers.
SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
MINUTES = 25.0
COMPILE_SHARE = 0.2
"""How much of the time may go into compiling."""
LIMIT_SECONDS = 900
"""A cell that takes longer ends its process."""
SECONDS = 0.2
"""For each cell and pass, shared by all that take part."""
LARGE, LARGEST = 2048, 8192
# How many times slower than the fastest a form may have been to be timed on a larger batch: a large one, or any.
CLOSE, HOPELESS = 1.15, 4.0
WARM = 8
"""Pairs of the call that loads code and libraries before memory is measured."""
OURS, EAGER, COMPILED = "ctloss ", "eager, ", "torch.compile"
NOT_REACHED, NO_TIME = "not reached", "the time for compiling was used up"

Rows = list[dict[str, object]]


def forward(call: Form, inputs: Inputs) -> Callable[[], object]:
    """The loss only, as in evaluation."""
    tensors = (*inputs.leaves, *inputs.fixed)

    def run() -> object:
        with torch.no_grad():
            return call(*tensors)

    return run


def forward_backward(call: Form, inputs: Inputs) -> Callable[[], object]:
    """The loss and its gradient with respect to every leaf."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in inputs.leaves)
    return lambda: torch.autograd.grad(call(*leaves, *inputs.fixed), leaves)


PASSES = {"forward": forward, "forward+backward": forward_backward}


class Field:
    """All that race in one process, and what is known of them from the cells so far."""

    def __init__(self, impls: Sequence[str], seconds: float = SECONDS) -> None:
        self.impls, self.seconds = impls, seconds
        self.compile_seconds = 0.0
        # By loss, negatives, dtype and pass: of each rival, the largest batch it ran, and its time there over that of
        # the fastest eager form.
        self._paces: dict[tuple[str, ...], dict[str, tuple[int, float]]] = {}
        self._compiled: dict[tuple[str, ...], tuple[Form, str]] = {}
        self._with_errors: set[tuple[object, ...]] = set()
        # One function compiled for every dtype and pass counts as recompiled each time; and sizes that happen to be the
        # same where it is compiled may differ later.
        torch._dynamo.config.recompile_limit = 64
        torch.fx.experimental._config.use_duck_shape = False

    def measure(self, cell: Cell, compile_budget: float = 0.0) -> Rows:
        """A row for each pass of a cell and each that takes part, with ``note`` where it has no time.

        ``compile_budget`` is how many seconds may still go into compiling; the last compilation may exceed it.
        """
        torch.set_num_threads(cell.threads)
        torch.compiler.set_stance("default" if compile_budget > 0 else "fail_on_recompile")
        inputs = draw(cell)
        eager = {EAGER + name: form for name, form in rivals(cell).items()}
        own = {OURS + impl: ours(cell, impl) for impl in self.impls}
        rows: Rows = []
        for which, prepare in PASSES.items():
            group = (cell.loss, cell.negatives, cell.dtype, which)
            here = {name: form for name, form in eager.items() if self.may_win(group, name, cell.n)}
            calls, notes = {**own, **here}, {}
            if self.may_win(group, COMPILED, cell.n):
                compiled, notes[COMPILED] = self._compile(group, here, inputs, prepare, compile_budget)
                calls |= {COMPILED: compiled} if compiled else {}
            timed = interleaved(
                {name: prepare(call, inputs) for name, call in calls.items()},
                device="cpu",
                seconds=self.seconds,
                fewest_rounds=2 if cell.n >= LARGEST else 3 if cell.n >= LARGE else 5,
            )
            self.remember(group, cell, timed)
            rows += _rows(cell, which, timed, notes)
        self._add_errors(cell, inputs, {**own, **eager}, rows)
        return rows

    def may_win(self, group: tuple[str, ...], name: str, n: int) -> bool:
        """Whether a rival was fast enough on smaller batches to be timed on one of n pairs."""
        largest, pace = self._paces.get(group, {}).get(name, (0, 1.0))
        return n <= largest or pace <= (CLOSE if n >= LARGE else HOPELESS)

    def remember(self, group: tuple[str, ...], cell: Cell, timed: Mapping[str, Timing | str]) -> None:
        """Keep how fast the rivals were, the eager forms and the compiled one."""
        times = {name: clock(cell, each) for name, each in timed.items() if isinstance(each, Timing)}
        eager = {name: took for name, took in times.items() if name.startswith(EAGER)}
        known = self._paces.setdefault(group, {})
        # Against each other, so that one of them always stays.
        for name, took in (eager | {name: took for name, took in times.items() if name == COMPILED}).items():
            if cell.n >= known.get(name, (0, 1.0))[0]:
                known[name] = cell.n, took / min(eager.values(), default=took)

    def _compile(
        self, group: tuple[str, ...], eager: Mapping[str, Form], inputs: Inputs, prepare: Any, budget: float
    ) -> tuple[Form | None, str]:
        """A group's compiled form and what it was compiled from; or None and why there is none."""
        if group not in self._compiled:
            if budget <= 0:
                return None, NO_TIME
            trial = {name: prepare(form, inputs) for name, form in eager.items()}
            timed = interleaved(trial, device="cpu", seconds=self.seconds / 5, fewest_rounds=2)
            times = {name: each.cpu for name, each in timed.items() if isinstance(each, Timing)}
            fastest = min(times, key=lambda name: times[name])
            compiled = torch.compile(eager[fastest], dynamic=True, fullgraph=True)
            self._compiled[group] = compiled, f"of {fastest}"
        start = time.perf_counter()
        form, note = self._compiled[group]
        try:
            prepare(form, inputs)()
        except Exception as error:  # what a compiler raises derives from Exception only
            return None, NO_TIME if budget <= 0 and "recompile" in str(error) else failure(error)
        finally:
            self.compile_seconds += time.perf_counter() - start
        return form, note

    def _add_errors(self, cell: Cell, inputs: Inputs, calls: Mapping[str, Form], rows: Rows) -> None:
        """Errors of ours and of the eager forms timed, once for each loss, negatives, dtype and n.

        For the largest batches, once for each loss, dtype and n. They stand in the rows of forward + backward.
        """
        which = (cell.loss, cell.dtype, cell.n, cell.negatives if cell.n <= LARGE else None)
        if which in self._with_errors or (exact := truth(cell, inputs)) is None:
            return
        self._with_errors.add(which)
        value, gradients = exact
        size = math.hypot(*(each.norm().item() for each in gradients))
        for row in rows:
            call = calls.get(str(row["contestant"]))
            if call is None or row["pass"] != "forward+backward" or "seconds" not in row:
                continue
            found, of_call = inputs.gradients(call)
            differences = [(one.double() - other).norm().item() for one, other in zip(of_call, gradients, strict=True)]
            row["gradient_error"] = math.hypot(*differences) / size if size else math.nan
            row["value_error"] = abs(found.item() - value) / max(1.0, abs(value))


def clock(cell: Cell, timing: Timing) -> float:
    """The time that counts: the thread's own if there is only one, otherwise that on the wall."""
    return timing.cpu if cell.threads == 1 else timing.wall


def _rows(cell: Cell, which: str, timed: Mapping[str, Timing | str], notes: Mapping[str, str]) -> Rows:
    rows: Rows = []
    for name in dict.fromkeys((*timed, *notes)):
        each = timed.get(name)
        row: dict[str, object] = {**asdict(cell), "pass": which, "contestant": name}
        if isinstance(each, Timing):
            row |= {"seconds": clock(cell, each), "wall_s": each.wall, "cpu_s": each.cpu, "rounds": each.rounds}
        row["note"] = each if isinstance(each, str) else notes.get(name, "")
        rows.append({**results.describe("cpu"), **row})
    return rows


class Worker:
    """A process with so many threads that measures the cells it is sent; started when first asked."""

    def __init__(self, threads: int, impls: Sequence[str], seconds: float) -> None:
        self._options = json.dumps({"impls": list(impls), "seconds": seconds})
        self._environment = {**os.environ, **SETTINGS, "OMP_NUM_THREADS": str(threads)}
        self._process: subprocess.Popen[str] | None = None

    def measure(self, cell: Cell, compile_budget: float) -> tuple[Rows, float]:
        """The cell's rows and the seconds spent compiling; a row that says so if the process ends."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, "--serve", self._options],
                cwd=results.ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        line, reason = "", f"took longer than {LIMIT_SECONDS} s"
        try:
            process.stdin.write(json.dumps({"cell": asdict(cell), "compile_budget": compile_budget}) + "\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], LIMIT_SECONDS)[0]:
                line = process.stdout.readline()
                reason = "its process ended"
        except BrokenPipeError:
            reason = "its process ended"
        if line:
            found: tuple[Rows, float] = json.loads(line)
            return found
        self.close()
        return [_without(cell, reason)], 0.0

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _without(cell: Cell, reason: str) -> dict[str, object]:
    """The row of a cell that was not measured."""
    return {**results.describe("cpu"), **asdict(cell), "note": reason}


def serve(options: dict[str, Any]) -> None:
    """The other side of :class:`Worker`: reads cells from standard input until it is closed."""
    replies, sys.stdout = sys.stdout, sys.stderr
    field = Field(**options)
    for line in sys.stdin:
        asked = json.loads(line)
        before = field.compile_seconds
        rows = field.measure(Cell(**asked["cell"]), asked["compile_budget"])
        replies.write(json.dumps([rows, field.compile_seconds - before]) + "\n")
        replies.flush()


def run(
    chosen: Sequence[Cell], *, impls: Sequence[str] = ("auto",), minutes: float = MINUTES, seconds: float = SECONDS
) -> Rows:
    """Measure cells in their order for so many minutes; a line of progress for each on stderr.

    A cell that is not reached has one row, whose ``note`` says so. Peak memory is measured in processes of their own:
    of ours and of the fastest eager form, once for each large float32 batch of a loss and its negatives.
    """
    start = time.monotonic()
    left = COMPILE_SHARE * 60 * minutes
    workers = {threads: Worker(threads, impls, seconds) for threads in sorted({cell.threads for cell in chosen})}
    rows: Rows = []
    weighed: set[tuple[object, ...]] = set()
    try:
        for place, cell in enumerate(chosen, 1):
            if time.monotonic() - start >= 60 * minutes:
                rows.append(_without(cell, NOT_REACHED))
                continue
            found, compiling = workers[cell.threads].measure(cell, left)
            left -= compiling
            problem = (cell.loss, cell.negatives, cell.n)
            if cell.n >= LARGE and cell.dtype == "float32" and problem not in weighed:
                weighed.add(problem)
                _add_memory(cell, found, impls)
            rows += found
            print(f"{place}/{len(chosen)} {_progress(cell, found)}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return rows


def _progress(cell: Cell, rows: Rows) -> str:
    times: dict[str, float] = {}
    for row in rows:
        if row.get("pass") == "forward+backward" and "seconds" in row:
            times[str(row["contestant"])] = 1e3 * float(str(row["seconds"]))
    shown = ", ".join(f"{name} {took:.3g}" for name, took in times.items()) or str(rows[0]["note"])
    return f"{' '.join(str(getattr(cell, name)) for name in FIELDS)}, ms: {shown}"


def _add_memory(cell: Cell, rows: Rows, impls: Sequence[str]) -> None:
    timed = [row for row in rows if row.get("pass") == "forward+backward" and "seconds" in row]
    eager = [row for row in timed if str(row["contestant"]).startswith(EAGER)]
    fastest = min(eager, key=lambda row: float(str(row["seconds"])), default=None)
    for row in timed:
        if row is fastest or row["contestant"] in [OURS + impl for impl in impls]:
            problem = {"cell": asdict(cell), "contestant": row["contestant"], "threads": cell.threads}
            row |= {key: each for key, each in memory.ask(MODULE, problem).items() if key == "peak_bytes"}


def peak(problem: dict[str, Any]) -> int:
    """Bytes that one contestant takes beyond a cell's inputs, forward and backward; meant for a fresh process."""
    cell, name = Cell(**problem["cell"]), problem["contestant"]
    call = ours(cell, name.removeprefix(OURS)) if name.startswith(OURS) else rivals(cell)[name.removeprefix(EAGER)]
    small = Cell(**{**asdict(cell), "n": min(cell.n, WARM)})
    forward_backward(call, draw(small))()
    return peak_bytes(forward_backward(call, draw(cell)), "cpu")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(json.loads(sys.argv[2]))
    else:
        memory.answer(peak)
