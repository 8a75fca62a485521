"""Several ranks on this machine: their processes are started, bounded in time, and asked for what they find."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT

MODULE = "benchmarks.ranks.worker"
# Threads that spin while they wait would take the time of the other ranks; and gloo looks for no other machine.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
LIMIT_SECONDS = 300.0
"""Of one task, unless said otherwise."""
START_SECONDS = 120.0
"""What the start of the processes may take on top."""
LOOK_SECONDS = 0.02

Question = tuple[str, Mapping[str, object]]
"""A key of ``TASKS`` in the worker, and its arguments as JSON takes them."""


class RanksFailed(RuntimeError):
    """A rank ended with an error, or all of them took too long; the text says which."""


def ask(
    what: str, ranks: int, problem: Mapping[str, object], *, device: str = "cpu", limit: float = LIMIT_SECONDS
) -> list[Any]:
    """What each of so many ranks answers to one problem, in the order of the ranks; RanksFailed if one does not."""
    (found,) = ask_all([(what, problem)], ranks, device=device, limit=limit)
    if isinstance(found, RanksFailed):
        raise found
    return found


def ask_all(
    problems: Sequence[Question], ranks: int, *, device: str = "cpu", limit: float = LIMIT_SECONDS
) -> list[list[Any] | RanksFailed]:
    """What each of so many ranks answers to several problems, each in processes forked from ones that only import.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL, a GPU each).
        limit: seconds for each problem.

    Returns:
        For each problem the answers in the order of the ranks, or why there are none.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = {"device": device, "limit": limit, "problems": [[what, dict(problem)] for what, problem in problems]}
        (folder / "tasks.json").write_text(json.dumps(task), encoding="utf-8")
        processes = [_start(folder, rank, ranks) for rank in range(ranks)]
        end = time.monotonic() + START_SECONDS + limit * len(problems)
        try:
            while any(process.poll() is None for process in processes) and time.monotonic() < end:
                time.sleep(LOOK_SECONDS)
        finally:
            for process in processes:
                # The process forked for a problem is of its session.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return [_answers(folder, number, ranks) for number in range(len(problems))]


def _start(folder: Path, rank: int, ranks: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **SETTINGS, "RANK": str(rank), "WORLD_SIZE": str(ranks)}
    with (folder / f"output-{rank}.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", MODULE, str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _answers(folder: Path, number: int, ranks: int) -> list[Any] | RanksFailed:
    found = []
    for rank in range(ranks):
        file = folder / f"answer-{number}-{rank}.json"
        if not file.is_file():
            errors = folder / f"error-{number}-{rank}.txt"
            said = errors if errors.is_file() else folder / f"output-{rank}.txt"
            lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return RanksFailed(f"rank {rank} of {ranks}: {lines[-1] if lines else 'gave no answer in time'}")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    return found
