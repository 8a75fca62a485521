"""The command line: ``python -m benchmarks [all | sweep | memory | numerics | family | plot | table]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import family, family_lines, memory, numerics, plan, plots, providers, sweep, tables
from benchmarks.results import Row, read_csv, write_csv

EPILOG = """
Files: RESULTS/sweep-DEVICE.csv, memory-DEVICE.csv, numerics-DEVICE.csv, family-cpu.csv; FIGURES/speed.png,
memory.png, numerics.png (CPU), speed-cuda.png and so on (GPU). Times are medians of interleaved samples in one
process; cpu_s is the calling thread's CPU time. Errors are against float64 on the same rounded inputs; of a gradient,
|g - g_ref| / |g_ref|. Peak memory is taken in a fresh process each. family, on the CPU: candidates, ids, other options
and losses, each beside what it replaces, with the goals.

Providers:
"""
EPILOG += "\n".join(f"  {provider.name:22} {provider.about}" for provider in providers.PROVIDERS.values())


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time, memory and error of ctloss beside the implementations in use elsewhere.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("what", nargs="?", default="all", choices=("all", "sweep", "memory", "numerics", "family", "plot", "table"),
        help="default: all, under an hour on two cores; table and plot show what was measured before")  # fmt: skip
    add(
        "--n",
        type=int,
        nargs="+",
        metavar="N",
        help="pairs in a batch (default: the sizes of benchmarks/plan.py, as of all else that is swept)",
    )
    add("--d", type=int, nargs="+", metavar="D", help="dimensions")
    add("--dtype", nargs="+", choices=tuple(providers.DTYPES))
    add("--loss", nargs="+", choices=tuple(providers.LOSSES))
    add("--providers", nargs="+", choices=tuple(providers.PROVIDERS), metavar="NAME", help="those listed below")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:INDEX (default: %(default)s)",
    )
    add("--threads", type=int, nargs="+", help="CPU threads")
    add("--temperature", type=float, default=0.07, help="default: 0.07")
    add("--seconds", type=float, help="for each case and pass, shared by the providers (default: 1, quick: 0.2)")
    add("--quick", action="store_true", help="smaller sizes and fewer samples: under a minute or so")
    add("--output", type=Path, default=Path("benchmarks/results"), metavar="RESULTS", help="default: %(default)s")
    add("--write", action="store_true", help="put the tables into README.md and docs/performance.md")
    add("--figures", type=Path, default=Path("docs/figures"), help="default: %(default)s")
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be run, with what was expected."""
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"expected --device cpu, got {options.device}: torch {torch.__version__} sees no CUDA device")
    if not options.device.startswith("cuda") and options.device != "cpu":
        sys.exit(f"expected --device cpu, cuda or cuda:INDEX, got {options.device}")
    for name, smallest in (("n", 2), ("d", 1), ("threads", 1)):
        for value in getattr(options, name) or ():
            if value < smallest:
                sys.exit(f"expected --{name} of at least {smallest}, got {value}")
    if not options.temperature > 0:
        sys.exit(f"expected --temperature above 0, got {options.temperature}")


def memory_limit(device: str) -> float:
    """Bytes that one provider may use: two thirds of what is free."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] * 2 / 3
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 / 3


def grids(options: argparse.Namespace, parts: Sequence[plan.Part]) -> Iterator[sweep.Grid]:
    """The sweeps of a plan, with what the options ask for in its place; of several parts the first is taken then."""
    if options.n or options.d or options.dtype or options.loss or options.providers or options.threads:
        parts = parts[:1]
    for part in parts:
        for threads in options.threads or part.threads:
            yield sweep.Grid(
                n=options.n or part.n,
                d=options.d or part.d,
                dtypes=options.dtype or part.dtypes,
                losses=options.loss or part.losses,
                providers=options.providers or part.providers,
                device=options.device,
                temperature=options.temperature,
                threads=threads,
                seconds=options.seconds or (0.2 if options.quick else 1.0),
                fewest_rounds=part.fewest_rounds,
                memory_limit=memory_limit(options.device),
            )


def main(arguments: list[str] | None = None) -> None:
    """Run what the arguments ask for."""
    options = parser().parse_args(arguments)
    check(options)
    kind = options.device.partition(":")[0]

    def keep(table: str, rows: list[Row]) -> None:
        path = options.output / f"{table}-{kind}.csv"
        write_csv(path, [{**row, "device_kind": kind} for row in rows])
        print(f"{len(rows)} rows: {path}")

    if options.what in ("all", "numerics"):
        torch.set_num_threads(1)
        phis = numerics.PHIS[::3] if options.quick else numerics.PHIS
        keep("numerics", [*numerics.run(
            options.loss or ["info-both", "info-cross", "cz-both"],
            options.providers or numerics.PROVIDERS,
            device=options.device,
            phis=phis,
        )])  # fmt: skip
    if options.what in ("all", "sweep"):
        parts = (plan.QUICK,) if options.quick else plan.SWEEP[kind]
        keep("sweep", [row for grid in grids(options, parts) for row in sweep.run(grid)])
    if options.what in ("all", "memory"):
        parts = (plan.QUICK_MEMORY if options.quick else plan.MEMORY,)
        keep("memory", [row for grid in grids(options, parts) for row in memory.run(grid)])
    if kind == "cpu" and options.what in ("all", "family"):
        measured = family.run(
            family_lines.lines(options.n, options.d[0] if options.d else 256),
            seconds=options.seconds or (0.2 if options.quick else family.SECONDS),
            fewest_rounds=3 if options.quick else family.FEWEST_ROUNDS,
        )
        keep("family", [*measured])
    if options.what not in ("table", "family"):
        for path in plots.draw_all(options.output, options.figures, kind):
            print(path)
    if kind == "cpu" and options.what in ("all", "table"):
        shown = tables.of_results(options.output)
        print(shown.readme, shown.performance, sep="\n\n")
        if options.write:
            shown.insert(Path())
    of_family = options.output / "family-cpu.csv"
    if kind == "cpu" and options.what in ("all", "family", "table") and of_family.is_file():
        rows = read_csv(of_family)
        print(family.table(rows))
        if options.write:
            family.insert(rows, Path())


if __name__ == "__main__":
    main()
