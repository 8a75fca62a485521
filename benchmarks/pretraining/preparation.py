"""What preparation costs: CPU seconds, seconds and memory of ``python -m ctloss.train prepare``, and of a start on it.

    python -m benchmarks.pretraining.preparation FOLDER --workers 1 2 -- --corpus data/corpus --languages en fr

What follows ``--`` goes to the command. Every number of workers prepares into a folder of its own. CPU is that of all
processes; memory is the largest resident size of one process and the largest proportional size (shared pages counted
once) of all of them together, sampled. The start is a run of one step on the prepared folder, from its command to the
end of its first step, less that of the same run on the embedded corpus's few pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Cost:
    """What a command took."""

    seconds: float = 0.0
    cpu: float = 0.0
    largest: float = 0.0  # MiB, one process
    together: float = 0.0  # MiB, all


def measured(arguments: list[str], log: Path) -> Cost:
    """Runs a command and returns what it and its children took."""
    cost = Cost()
    before = os.times()
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file)
    while process.poll() is None:
        sample(process.pid, cost)
        time.sleep(0.25)
    cost.seconds = time.perf_counter() - started
    after = os.times()
    cost.cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if process.returncode:
        sys.exit(f"{' '.join(arguments)}\nended with status {process.returncode}; see {log}")
    return cost


def sample(pid: int, cost: Cost) -> None:
    """Notes how much memory a process and its children hold now."""
    try:
        root = psutil.Process(pid)
        sizes = [process.memory_full_info() for process in (root, *root.children(recursive=True))]
    except psutil.Error:
        return
    cost.largest = max(cost.largest, *(size.rss / 2**20 for size in sizes))
    cost.together = max(cost.together, sum(getattr(size, "pss", size.rss) / 2**20 for size in sizes))


def pairs_in(folder: Path) -> int:
    """The sentence pairs that a prepared folder was made from, skipped ones included."""
    counts = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))["counts"]
    return sum(int(part["pairs"]) for part in counts.values())


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="for what is made, and the logs")
    options.add_argument("--workers", type=int, nargs="+", default=[1])
    options.add_argument("--start", action="store_true", help="measure the start of a run too")
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    given, train = options.parse_args(words[:place]), words[place + 1 :]
    given.folder.mkdir(parents=True, exist_ok=True)
    print("| workers | pairs | CPU s per 100,000 pairs | s | largest process, MiB | all together, MiB |")
    print("|---|---|---|---|---|---|")
    for workers in given.workers:
        output = given.folder / f"prepared-{workers}"
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, "-m", "ctloss.train", "prepare", "--output", str(output), "--workers", str(workers)]
        cost = measured([*command, *train], given.folder / f"prepare-{workers}.log")
        pairs = pairs_in(output)
        print(
            f"| {workers} | {pairs:,} | {cost.cpu / pairs * 1e5:.1f} | {cost.seconds:.0f} | {cost.largest:.0f} | "
            f"{cost.together:.0f} |",
            flush=True,
        )
    if given.start:
        small = ["--layers", "1", "--hidden", "32", "--max-steps", "1", "--pictured-words", "0"]
        took = {}
        for name, source in (("embedded", []), ("prepared", ["--prepared", str(output)])):
            run = given.folder / f"run-{name}"
            shutil.rmtree(run, ignore_errors=True)
            arguments = [sys.executable, "-m", "ctloss.train", "--output", str(run), *small, *source]
            took[name] = measured(arguments, given.folder / f"start-{name}.log").seconds
        print(f"\nrun of one step: {took['prepared']:.1f} s; on the embedded corpus {took['embedded']:.1f} s")


if __name__ == "__main__":
    main()
