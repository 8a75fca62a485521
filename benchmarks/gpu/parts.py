"""The parts of the GPU run, each in a process of its own: ``python -m benchmarks.gpu_parts NAME ROWS [--dry]``.

A part appends a JSON line to the file ROWS for everything it measures, so that what it has done survives its end.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import batches, gpu_checks, gpu_choices, gpu_peers
from benchmarks.exact import errors
from benchmarks.gpu_case import LOSSES, OURS, Run, build, peak_bytes, truth_of
from benchmarks.providers import DTYPES, Case, NotOffered
from benchmarks.sweep import PASSES, forward, forward_backward
from benchmarks.timing import Timing, interleaved

RIVALS = (
    OURS, "eager", "lightly", "open_clip", "memeff", "inf-cl", "cut-cross-entropy", "cut-cross-entropy-exact",
    "siglip-kernel",
)  # fmt: skip


def times(run: Run, cases: Sequence[Case], names: Sequence[str]) -> None:
    """Error, peak memory and times of every provider on every case."""
    for case in cases:
        x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
        about = {"loss": case.loss, "n": case.n, "d": case.d, "dtype": case.dtype}
        try:
            truth = truth_of(case, x, y)
        except RuntimeError as error:
            run.emit(**about, note=f"no float64 answer: {error}")
            continue
        rows: dict[str, dict[str, object]] = {}
        calls = {}
        for name in names:
            try:
                call = build(name, case)
                row: dict[str, object] = {**errors(call, x, y, truth)}
                row["peak_bytes"] = peak_bytes(forward_backward(call, x, y), case.device)
                rows[name], calls[name] = row, call
            except NotOffered as reason:
                if "alone" not in str(reason) and "sigmoid" not in str(reason):
                    run.emit(provider=name, **about, note=str(reason)[:300])
            except Exception as error:  # a rival's failure is a row of the table, whatever it is
                run.emit(provider=name, **about, note=f"{type(error).__name__}: {error}"[:300])
        del truth
        for which, prepare in zip(PASSES, (forward, forward_backward), strict=True):
            timed = interleaved(
                {name: prepare(call, x, y) for name, call in calls.items()},
                device=case.device,
                seconds=0.05 if run.dry else 0.8,
                fewest_rounds=3,
            )
            for name, outcome in timed.items():
                found = (
                    {"wall_ms": outcome.wall * 1e3, "rounds": outcome.rounds}
                    if isinstance(outcome, Timing)
                    else {"note": outcome[:300]}
                )
                run.emit(provider=name, **about, which=which, **found, **rows[name])


def bfloat16(run: Run, *n: int) -> None:
    """The main table: bfloat16 by loss and n."""
    cases = [
        Case(loss, size, run.d, dtype, run.device)
        for size in run.sizes(*n)
        for dtype in run.dtypes("bfloat16")
        for loss in (*LOSSES, gpu_peers.SIGLIP)
    ]
    times(run, cases, RIVALS)


def huge(run: Run) -> None:
    """65,536 pairs: what needs no logit matrix, and the eager form's attempt."""
    cases = [
        Case(loss, n, run.d, dtype, run.device)
        for n in run.sizes(65536)[-1:]
        for dtype in run.dtypes("bfloat16")
        for loss in ("cz-both", "info-cross", gpu_peers.SIGLIP, "info-both")
    ]
    times(run, cases, (OURS, "eager", "memeff", "inf-cl", "cut-cross-entropy", "siglip-kernel"))


def widths(run: Run) -> None:
    """Narrow and wide rows at 4,096 pairs."""
    cases = [
        Case(loss, n, d, dtype, run.device)
        for n in run.sizes(4096)[-1:]
        for d in ((8, 40) if run.dry else (64, 256, 1024, 1536))
        for dtype in run.dtypes("bfloat16")
        for loss in ("cz-both", "info-cross")
    ]
    times(run, cases, (OURS, "eager", "memeff"))


def precisions(run: Run) -> None:
    """float32 and float16 at a few sizes."""
    cases = [
        Case(loss, n, run.d, dtype, run.device)
        for n in run.sizes(512, 4096, 16384)
        for dtype in run.dtypes("float32", "float16")
        for loss in ("cz-both", "info-cross")
    ]
    times(run, cases, (OURS, "eager", "memeff", "inf-cl", "siglip-kernel"))


def compiled(run: Run) -> None:
    """Beside torch.compile of the eager form."""
    cases = [
        Case(loss, n, run.d, dtype, run.device)
        for n in run.sizes(4096, 512, 16384)[-3 if not run.dry else -1 :]
        for dtype in run.dtypes("bfloat16")
        for loss in (("info-both",) if run.dry else ("info-both", "cz-both", "info-cross"))
    ]
    times(run, cases, (OURS, "eager", "compile"))


PARTS: dict[str, Callable[[Run], None]] = {
    "ceilings": gpu_checks.ceilings,
    "shapes": gpu_checks.shapes,
    "repeats": gpu_checks.repeats,
    "graphs": gpu_checks.graphs,
    "small": lambda run: bfloat16(run, 128, 512, 1024),
    "large": lambda run: bfloat16(run, 4096, 16384),
    "huge": huge,
    "widths": widths,
    "checked": gpu_checks.checked,
    "choices": gpu_choices.choices,
    "precisions": precisions,
    "compiled": compiled,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(PARTS))
    parser.add_argument("rows", type=Path, help="file of JSON lines, appended to")
    parser.add_argument("--dry", action="store_true", help="on the CPU, under Triton's interpreter, at tiny sizes")
    options = parser.parse_args()
    started = time.perf_counter()
    PARTS[options.name](Run("cpu" if options.dry else "cuda", options.dry, options.rows))
    print(f"{options.name}: {math.ceil(time.perf_counter() - started)} s")


if __name__ == "__main__":
    main()
