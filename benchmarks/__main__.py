"""The command line: ``python -m benchmarks [all | sweep | memory | numerics | family | race | plot | table]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import providers
from benchmarks.cpu import comparisons, family, memory, numerics, plots, race, race_cells, race_report, report, sweep
from benchmarks.cpu.sweep import Grid
from benchmarks.results import Row, insert, page_of, read_csv, split_document, write_csv

EPILOG = """
Files: RESULTS/sweep-DEVICE.csv, memory-DEVICE.csv, numerics-DEVICE.csv, family-cpu.csv; FIGURES/speed.png,
memory.png, numerics.png (CPU), speed-cuda.png and so on (GPU). Times are medians of interleaved samples in one
process; cpu_s is the calling thread's CPU time. Errors are relative to float64 on the same rounded inputs; those of a
gradient are |g - g_ref| / |g_ref|. Each peak of memory is measured in a fresh process. family, on the CPU: candidates,
ids, other options and losses, each compared with what it replaces, with the goals. race, on the CPU and not part of
all: every loss, kind of negatives, dtype, size and number of threads against the best of eager PyTorch and
torch.compile.

Providers:
"""
EPILOG += "\n".join(f"  {provider.name:22} {provider.about}" for provider in providers.PROVIDERS.values())
# Fields of a Grid that options replace.
REPLACED = ("n", "d", "dtypes", "losses", "providers", "threads", "seconds")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time, memory and error of ctloss next to the implementations in use elsewhere.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("what", nargs="?", default="all",
        choices=("all", "sweep", "memory", "numerics", "family", "race", "plot", "table"),
        help="default: all, under an hour on two cores; plot and table show earlier measurements")  # fmt: skip
    add(
        "--n",
        type=int,
        nargs="+",
        metavar="N",
        help="pairs in a batch (default, as for everything that is swept: SWEEP in benchmarks/cpu/sweep.py)",
    )
    add("--d", type=int, nargs="+", metavar="D", help="dimensions")
    add("--dtype", dest="dtypes", nargs="+", choices=tuple(providers.DTYPES))
    add("--loss", dest="losses", nargs="+", choices=tuple(providers.LOSSES))
    add("--providers", nargs="+", choices=tuple(providers.PROVIDERS), metavar="NAME", help="those listed below")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:INDEX (default: %(default)s)",
    )
    add("--threads", type=int, nargs="+", help="CPU threads")
    add("--temperature", type=float, default=0.07, help="default: 0.07")
    add("--seconds", type=float, help="for each case and pass, shared by the providers (default: 1, quick: 0.2)")
    add("--quick", action="store_true", help="smaller sizes and fewer samples: about a minute")
    add("--output", type=Path, default=Path("benchmarks/results"), metavar="RESULTS", help="default: %(default)s")
    add("--write", action="store_true", help="put the tables into their page of docs/")
    add("--figures", type=Path, default=Path("docs/figures"), help="default: %(default)s")
    only = options.add_argument_group("race, which has its own sizes")
    add = only.add_argument
    add("--minutes", type=float, default=race.MINUTES, help="the less important cells are left out (default: 25)")
    add("--only", nargs="+", default=[], metavar="NAME=VALUES", help=f"such as n=2,8; of {', '.join(race_cells.AXES)}")
    add("--full", action="store_true", help="every cell instead of the usual ones: hours")
    add("--impl", default="auto", metavar="NAMES", help="paths side by side, such as torch,reference; the first counts")
    add("--csv", type=Path, metavar="FILE", help="default: RESULTS/race-cpu.csv")
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
    if options.what == "race":
        if options.device != "cpu":
            sys.exit(f"expected --device cpu for the race, got {options.device}")
        if ignored := [name for name in REPLACED if name != "seconds" and getattr(options, name)]:
            sys.exit(f"expected --only to choose the race's cells, got {', '.join(ignored)} by options of their own")
    if not options.temperature > 0:
        sys.exit(f"expected --temperature above 0, got {options.temperature}")


def memory_limit(device: str) -> float:
    """Bytes that one provider may use: two thirds of what is free."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] * 2 / 3
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 / 3


def grids(options: argparse.Namespace, usual: Sequence[Grid]) -> list[Grid]:
    """What is swept: as usual, or the first of the usual grids with what the options ask for."""
    given = {name: value for name in REPLACED if (value := getattr(options, name))}
    if set(given) - {"seconds"}:
        usual = usual[:1]
    if options.quick:
        given.setdefault("seconds", 0.2)
    limit = memory_limit(options.device)
    about = {"device": options.device, "temperature": options.temperature, "memory_limit": limit}
    return [replace(grid, **given, **about) for grid in usual]


def main(arguments: list[str] | None = None) -> None:
    """Run what the arguments ask for."""
    options = parser().parse_args(arguments)
    check(options)
    kind = options.device.partition(":")[0]

    def keep(table: str, rows: list[Row]) -> None:
        path = options.output / f"{table}-{kind}.csv"
        write_csv(path, [{**row, "device_kind": kind} for row in rows])
        print(f"{len(rows)} rows: {path}")

    def show(command: str, text: str) -> None:
        print(text)
        if options.write:
            insert(page_of(command), command, text)

    if options.what in ("all", "numerics"):
        torch.set_num_threads(1)
        keep("numerics", [*numerics.run(
            options.losses or numerics.LOSSES,
            options.providers or numerics.PROVIDERS,
            device=options.device,
            phis=numerics.PHIS[::3] if options.quick else numerics.PHIS,
        )])  # fmt: skip
    if options.what in ("all", "sweep"):
        usual = (sweep.QUICK,) if options.quick else sweep.SWEEP[kind]
        keep("sweep", [row for grid in grids(options, usual) for row in sweep.run(grid)])
    if options.what in ("all", "memory"):
        usual = (memory.QUICK if options.quick else memory.MEMORY,)
        keep("memory", [row for grid in grids(options, usual) for row in memory.run(grid)])
    if kind == "cpu" and options.what in ("all", "family"):
        keep("family", [*family.run(
            comparisons.lines(options.n, options.d[0] if options.d else 256),
            seconds=options.seconds or (0.2 if options.quick else family.SECONDS),
            fewest_rounds=3 if options.quick else family.FEWEST_ROUNDS,
        )])  # fmt: skip
    of_race = options.csv or options.output / "race-cpu.csv"
    if options.what == "race":
        try:
            cells = race_cells.only(race_cells.cells(full=options.full), options.only)
        except ValueError as error:
            sys.exit(str(error))
        impls, seconds = options.impl.split(","), options.seconds or race.SECONDS
        write_csv(of_race, race.run(cells, impls=impls, minutes=options.minutes, seconds=seconds))
        print(of_race)
    if options.what not in ("table", "family", "race"):
        for path in plots.draw_all(options.output, options.figures, kind):
            print(path)
    if kind == "cpu" and options.what in ("all", "table"):
        show(report.COMMAND, report.tables(options.output))
    of_family = options.output / "family-cpu.csv"
    if kind == "cpu" and options.what in ("all", "family", "table") and of_family.is_file():
        show(family.COMMAND, family.table(read_csv(of_family)))
    if kind == "cpu" and options.what in ("race", "table") and of_race.is_file():
        former = split_document(page_of(race_report.COMMAND), race_report.COMMAND)[1]
        show(race_report.COMMAND, race_report.tables(read_csv(of_race), former))


if __name__ == "__main__":
    main()
