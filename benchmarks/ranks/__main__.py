"""The command line: ``python -m benchmarks.ranks``, with ``--contract`` or ``--simulator`` for the other tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.ranks import probes, race, report
from benchmarks.ranks.processes import ask
from benchmarks.ranks.rivals import CONTESTANTS, LOSSES
from benchmarks.results import Row, describe, insert, page_of, read_csv, write_csv

COMMAND = "python -m benchmarks.ranks"
RESULTS = Path("benchmarks/results")
EPILOG = """
It starts its own processes, on this machine only: gloo, or NCCL with a GPU each. Times are medians of interleaved
samples within one group of processes, errors relative to one process in float64, peaks of memory from fresh processes.
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=COMMAND,
        description="Losses over several ranks: ours next to other libraries' and to what people write by hand.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--contract", action="store_true", help="each library's gradient next to one process', instead of times")
    add("--simulator", action="store_true", help="the simulated ring next to measured steps, instead of times")
    add("--ranks", type=int, nargs="+", metavar="W", help="default: 1 2 4 (contract and simulator: 2 4)")
    add("--rows", type=int, nargs="+", metavar="N", help="pairs a rank (default: 256 1024 4096; simulator: 1024 2048)")
    add("--losses", nargs="+", choices=tuple(LOSSES), default=tuple(LOSSES), help="negatives of infoNCE")
    add("--d", type=int, default=race.D, help="columns (default: %(default)s)")
    add("--contestants", nargs="+", choices=tuple(CONTESTANTS), default=tuple(CONTESTANTS), metavar="NAME",
        help=f"of: {'; '.join(CONTESTANTS)}")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--minutes", type=float, default=race.MINUTES, help="what is not begun by then is left out (default: 40)")
    add("--seconds", type=float, default=race.SECONDS, help="for the times of each cell (default: 10)")
    add("--csv", type=Path, metavar="FILE", help=f"default: {RESULTS}/ranks-DEVICE.csv, ranks-contract.csv, "
        "ranks-simulator.csv")  # fmt: skip
    add("--show", action="store_true", help="make the table of what was measured before")
    add("--write", action="store_true", help="put the table into its page of docs/")
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be run, with what was expected."""
    if options.contract and options.simulator:
        sys.exit("expected one of --contract and --simulator, got both; run one after the other")
    fewest = 2 if options.contract or options.simulator else 1
    for name, given, least in (("ranks", options.ranks, fewest), ("rows", options.rows, 2), ("d", [options.d], 1)):
        for value in given or ():
            if value < least:
                sys.exit(f"expected --{name} of at least {least}, got {value}")
    if options.device == "cuda" and (most := max(options.ranks or (1,))) > torch.cuda.device_count():
        sys.exit(f"expected at most {torch.cuda.device_count()} --ranks, a GPU each, got {most}; or --device cpu")


def main(arguments: list[str] | None = None) -> None:
    """Run what the arguments ask for."""
    options = parser().parse_args(arguments)
    check(options)
    name = "contract" if options.contract else "simulator" if options.simulator else ""
    path = options.csv or RESULTS / f"ranks-{name or options.device}.csv"
    if not options.show:
        write_csv(path, measured(options))
        print(path)
    shown = {"contract": report.contract, "simulator": report.simulator, "": report.race}
    text = shown[name](read_csv(path))
    print(text)
    if options.write:
        command = f"{COMMAND} --{name}" if name else COMMAND
        insert(page_of(command), command, text)


def measured(options: argparse.Namespace) -> list[Row]:
    """The rows of one table."""
    if options.contract:
        answers = [ask("contract", ranks, {}, device=options.device)[0] for ranks in options.ranks or (2, 4)]
        return [{**row, **describe(options.device)} for answer in answers for row in answer]
    if options.simulator:
        return [*probes.check(
            options.losses,
            options.ranks or probes.RANKS,
            options.rows or probes.PREDICTED_ROWS,
            d=options.d,
            seconds=options.seconds,
            device=options.device,
        )]  # fmt: skip
    worlds = options.ranks or race.RANKS
    if options.device == "cuda" and not options.ranks:
        worlds = [ranks for ranks in worlds if ranks <= torch.cuda.device_count()]
    chosen = race.cells(options.losses, worlds, options.rows or race.ROWS, options.d)
    return [*race.run(
        chosen, options.contestants, minutes=options.minutes, seconds=options.seconds, device=options.device
    )]  # fmt: skip


if __name__ == "__main__":
    main()
