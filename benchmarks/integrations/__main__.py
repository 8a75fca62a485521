"""The command line: ``python -m benchmarks.integrations``, with ``--write`` for the table of the documentation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.integrations.pairs import pairs
from benchmarks.integrations.race import SIZES, race
from benchmarks.results import Row, describe, insert, page_of, read_csv, table, write_csv

COMMAND = "python -m benchmarks.integrations"
RESULTS = Path("benchmarks/results/integrations-cpu.csv")
COLUMNS = ("loss", "n", "theirs, ms", "ours, ms", "ours / theirs", "peak, theirs → ours", "error, theirs → ours")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=COMMAND,
        description="Each class of ctloss.integrations next to the class it replaces: forward and backward pass in "
        "float32 on one thread, CPU time, medians of interleaved samples in one process.",
    )
    add = options.add_argument
    add("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="pairs in a batch")
    add("--libraries", nargs="+", metavar="NAME", help="only these modules of ctloss.integrations")
    add("--seconds", type=float, default=2.0, help="for the times of each row (default: %(default)s)")
    add("--csv", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    add("--show", action="store_true", help="make the table of what was measured before")
    add("--write", action="store_true", help="put the table into its page of docs/")
    return options


def shown(rows: Sequence[Row]) -> str:
    """The table: a dash where theirs would take more memory than is allowed."""

    def number(row: Row, name: str, form: str, factor: float = 1.0) -> str:
        value = row.get(name)
        try:
            return form.format(float(str(value)) * factor)
        except ValueError:
            return "–"

    lines = []
    for row in rows:
        theirs, own = (number(row, f"{who} ms", "{:.3g}") for who in ("theirs", "ours"))
        ratio = f"{float(own) / float(theirs):.2f}" if "–" not in (theirs, own) else "–"
        peaks = [number(row, f"{who} peak", "{:.3g}", 2**-20) for who in ("theirs", "ours")]
        errors = [number(row, f"{who} error", "{:.0e}") for who in ("theirs", "ours")]
        name = f"{str(row['library']).replace('_', '-')} {row['loss']}"
        lines.append([name, row["n"], theirs, own, ratio, f"{' → '.join(peaks)} MiB", " → ".join(errors)])
    return table(COLUMNS, lines)


def main(arguments: list[str] | None = None) -> None:
    """Run what the arguments ask for."""
    options = parser().parse_args(arguments)
    if not options.show:
        chosen = [pair for pair in pairs() if not options.libraries or pair.library in options.libraries]
        write_csv(options.csv, [{**row, **describe("cpu")} for row in race(chosen, options.sizes, options.seconds)])
    text = shown(read_csv(options.csv))
    print(text)
    if options.write:
        insert(page_of(COMMAND), COMMAND, text)


if __name__ == "__main__":
    main()
