"""The parts of the GPU run, each in a process of its own: ``python -m benchmarks.gpu.parts NAME ROWS [--dry]``.

A part appends a JSON line to the file ROWS for everything it measures, so that its rows survive if it is stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks import batches
from benchmarks.exact import errors
from benchmarks.gpu import checks
from benchmarks.gpu.race import choices, counters, variants
from benchmarks.gpu.race.case import LOSSES, OURS, Run, build
from benchmarks.measure import PASSES, Timing, forward_backward, interleaved, peak_bytes
from benchmarks.providers import DTYPES, Case

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
            truth = case.exact(x, y)
        except RuntimeError as error:
            run.emit(**about, note=f"no float64 answer: {error}")
            continue
        rows: dict[str, dict[str, object]] = {}
        calls = {}
        for name in names:
            with run.noting(provider=name, **about):
                call = build(name, case)
                row: dict[str, object] = {**errors(call, x, y, truth)}
                if not run.dry:
                    row["peak_bytes"] = peak_bytes(forward_backward(call, x, y), case.device)
                rows[name], calls[name] = row, call
        del truth
        for which, prepare in PASSES.items():
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


def cases(
    run: Run, n: Sequence[int], losses: Sequence[str], dtypes: Sequence[str] = ("bfloat16",), d: Sequence[int] = ()
) -> list[Case]:
    """Every combination, small batches first; the paper's width unless told."""
    grid = product(n, d or (run.d,), run.dtypes(*dtypes), losses)
    return [Case(loss, size, width, dtype, run.device) for size, width, dtype, loss in grid]


def bfloat16(run: Run, *n: int) -> None:
    """The main table: bfloat16 by loss and n."""
    times(run, cases(run, run.sizes(*n), (*LOSSES, "siglip")), RIVALS)


def huge(run: Run) -> None:
    """65,536 pairs: what needs no logit matrix, and the eager form's attempt."""
    losses = ("cz-both", "info-cross", "siglip", "info-both")
    names = (OURS, "eager", "memeff", "inf-cl", "cut-cross-entropy", "siglip-kernel")
    times(run, cases(run, run.sizes(65536)[-1:], losses), names)


def widths(run: Run) -> None:
    """Narrow and wide rows at 4,096 pairs."""
    d = (8, 40) if run.dry else (64, 256, 1024, 1536)
    times(run, cases(run, run.sizes(4096)[-1:], ("cz-both", "info-cross"), d=d), (OURS, "eager", "memeff"))


def precisions(run: Run) -> None:
    """float32 and float16 at a few sizes."""
    chosen = cases(run, run.sizes(512, 4096, 16384), ("cz-both", "info-cross"), ("float32", "float16"))
    times(run, chosen, (OURS, "eager", "memeff", "inf-cl"))


def compiled(run: Run) -> None:
    """Ours and torch.compile of the eager form."""
    sizes, losses = ((17,), ("info-both",)) if run.dry else ((4096, 512, 16384), ("info-both", "cz-both", "info-cross"))
    times(run, cases(run, sizes, losses), (OURS, "eager", "compile"))


PARTS: dict[str, Callable[[Run], None]] = {
    "ceilings": checks.ceilings,
    **{variant: partial(variants.race, name=variant) for variant in variants.BY_NAME},
    "counters": counters.counters,
    **{f"counted {variant}": partial(counters.counted, name=variant) for variant in variants.BY_NAME},
    "shapes": checks.shapes,
    "small": lambda run: choices.choices(run, choices.small_races(run)),
    "graphs": checks.graphs,
    "repeats": checks.repeats,
    "checked": checks.checked,
    "large": lambda run: bfloat16(run, 4096, 16384),
    "huge": huge,
    "few": lambda run: bfloat16(run, 128, 512, 1024),
    "choices": lambda run: choices.choices(run, choices.large_races(run)),
    "precisions": precisions,
    "compiled": compiled,
    "widths": widths,
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
