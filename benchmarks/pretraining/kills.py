"""Kills a run at random moments, goes on with it each time, and compares its end with that of an unbroken run.

    python -m benchmarks.pretraining.kills FOLDER --kills 20 -- --max-steps 200 --layers 1
    python -m benchmarks.pretraining.kills FOLDER --kills 2 --processes 2 -- --prepared FOLDER/prepared --max-steps 200

What follows ``--`` goes to ``python -m ctloss.train``. The unbroken run comes first and says how long a run takes; then
the other is killed (SIGKILL, all its processes) after a time drawn from that length, resumed, and so on, and at last
left to end. Every kill is printed. The command fails unless every weight of the encoder is the same bit for bit.
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

# A run that hangs must not hold the command for ever.
LONGEST = 3600.0


def command(output: Path, processes: int, options: list[str]) -> list[str]:
    """The command of a run with this many processes."""
    train = ["-m", "ctloss.train", "--output", str(output), *options]
    if processes == 1:
        return [sys.executable, *train]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--nproc-per-node", str(processes), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [sys.executable, "-m", "torch.distributed.run", *place, *train]


def run(arguments: list[str], log: Path, seconds: float | None) -> int | None:
    """Runs a command; after ``seconds`` kills it and all that it started, and returns None."""
    with log.open("ab") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file)
    try:
        return process.wait(LONGEST if seconds is None else seconds)
    except subprocess.TimeoutExpired:
        # torchrun's processes lead groups of their own.
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family[:-1], timeout=30)
        process.wait()
        if seconds is None:
            raise
        return None


def differing(first: Path, second: Path) -> list[str]:
    """The names of the weights that two runs' encoders do not share bit for bit."""
    from safetensors.torch import load_file

    found = []
    for name in ("model.safetensors", "cce_head.safetensors"):
        if not (first / name).is_file() and not (second / name).is_file():
            continue
        one, other = load_file(first / name), load_file(second / name)
        found += [key for key in one.keys() | other.keys() if key not in one or key not in other]
        found += [
            key for key in one.keys() & other.keys() if one[key].numpy().tobytes() != other[key].numpy().tobytes()
        ]
    return sorted(found)


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="for both runs and their logs")
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    given, train = options.parse_args(words[:place]), words[place + 1 :]
    given.folder.mkdir(parents=True, exist_ok=True)
    unbroken, broken = given.folder / "unbroken", given.folder / "broken"
    for output in (unbroken, broken):
        shutil.rmtree(output, ignore_errors=True)

    started = time.perf_counter()
    status = run(command(unbroken, given.processes, train), given.folder / "unbroken.log", None)
    length = time.perf_counter() - started
    if status:
        sys.exit(f"the unbroken run ended with status {status}; see {given.folder / 'unbroken.log'}")
    print(f"unbroken: {length:.1f} s")

    moments, killed = random.Random(given.seed), 0
    log = given.folder / "broken.log"
    while killed < given.kills:
        resume = ["--resume"] if (broken / "run.json").exists() else []
        moment = moments.uniform(0.2, length)
        status = run(command(broken, given.processes, [*train, *resume]), log, moment)
        if status:
            sys.exit(f"a resumed run ended with status {status}; see {log}")
        if status == 0:
            # It ended before its kill: the next one is made of the same run from its start.
            if different := differing(unbroken, broken):
                sys.exit(f"after {killed} kills other weights: {', '.join(different[:5])}")
            print(f"ended after {killed} kills, every weight equal; begun anew")
            shutil.rmtree(broken)
            continue
        killed += 1
        print(f"kill {killed}: after {moment:.1f} s, checkpoints {steps(broken) or 'none'}", flush=True)
    status = run(command(broken, given.processes, [*train, *(["--resume"] if broken.exists() else [])]), log, None)
    if status:
        sys.exit(f"the last run ended with status {status}; see {log}")
    if different := differing(unbroken, broken):
        sys.exit(f"after {killed} kills other weights: {', '.join(different[:5])}")
    print(f"{killed} kills: every weight is that of the unbroken run, bit for bit")


def steps(output: Path) -> str:
    """The steps of the checkpoints in a run's folder."""
    found = sorted(int(path.name.partition("-")[2]) for path in (output / "checkpoints").glob("checkpoint-*[0-9]"))
    return " ".join(map(str, found))


if __name__ == "__main__":
    main()
