"""What each rank's process runs: for each problem a fork of it meets the others, solves it, and leaves its answer."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.ranks import contract, probes, steps

TASKS: dict[str, Callable[..., object]] = {
    "times": steps.times,
    "peak": steps.peak,
    "contract": contract.measure,
    "products": probes.products,
    "hops": probes.hops,
}


def main(folder: Path) -> None:
    """Answer the problems in a folder, as the rank that the environment names."""
    tasks: dict[str, Any] = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    rank = int(os.environ["RANK"])
    for number, (what, problem) in enumerate(tasks["problems"]):
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                found = solve(what, problem, folder / f"meeting-{number}", tasks["device"], tasks["limit"])
                (folder / f"answer-{number}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
                failed = 0
            except BaseException:
                (folder / f"error-{number}-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
            finally:
                # What is registered to run at the end is the parent's.
                os._exit(failed)
        os.waitpid(child, 0)


def solve(what: str, problem: dict[str, Any], meeting: Path, device: str, limit: float) -> object:
    """One answer, in a group of all ranks that meets by a file."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=limit),
    )
    found = TASKS[what](device=device, **problem)
    dist.barrier()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
