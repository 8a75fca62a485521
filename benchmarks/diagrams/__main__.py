"""``python -m benchmarks.diagrams``: draws the documents' explanatory pictures, a few seconds on a CPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.diagrams.front import draw_front
from benchmarks.diagrams.negatives import draw_negatives
from benchmarks.diagrams.ring import draw_ring
from benchmarks.results import ROOT, read_csv


def main(arguments: list[str] | None = None) -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagrams", description=__doc__)
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder that gets them")
    figures = parser.parse_args(arguments).figures
    for path in (
        *draw_front(read_csv(ROOT / "benchmarks" / "results" / "numerics-cpu.csv"), figures / "front.png"),
        *draw_negatives(figures / "negatives.png"),
        *draw_ring(4, figures / "ring.png"),
    ):
        print(path)


if __name__ == "__main__":
    main()
