"""Real processes as ranks of a gloo group, kept for many tests, because starting them costs seconds."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LARGEST = 4
PATIENCE = 120.0


class Ended(RuntimeError):
    """A rank that ended or did not answer in time."""


def _serve(rank: int, world: int, store: str, timeout: float, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, world),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )
    groups = {size: dist.new_group(list(range(size)), timeout=timedelta(seconds=timeout)) for size in range(1, world)}
    groups[world] = dist.group.WORLD
    while True:
        function, size, arguments = pipe.recv()
        try:
            answer = True, function(groups[size], *arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)


class Pool:
    """Processes that are ranks 0 … world − 1; groups of the first 1, 2, … of them exist.

    Args:
        world: how many.
        timeout: seconds after which a collective fails.
    """

    def __init__(self, world: int = LARGEST, timeout: float = 60.0) -> None:
        # Forked from one process that has imported everything, and has no threads yet.
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "ctloss"])
        self.folder = tempfile.TemporaryDirectory()
        store = str(Path(self.folder.name) / "store")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world):
            own, other = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, store, timeout, other), daemon=True)
            process.start()
            other.close()
            self.pipes.append(own)
            self.processes.append(process)

    def run(self, world: int, function: Callable[..., Any], *of_ranks: Any) -> list[Any]:
        """What ``function(group, *arguments)`` returns on each of the first ranks.

        Args:
            world: how many ranks take part; ``group`` is theirs.
            function: of a module that the ranks can import.
            of_ranks: for each argument, a list with one value for each rank.

        Raises:
            Ended: with the traceback of the rank that failed, or its number if it is gone.
        """
        self._start(world, function, of_ranks)
        answers: dict[int, Any] = {}
        while len(answers) < world:
            waiting = {self.pipes[rank]: rank for rank in range(world) if rank not in answers}
            ready = wait(list(waiting), PATIENCE)
            for pipe in ready or waiting:
                rank = waiting[pipe]  # type: ignore[index]
                done, answers[rank] = self._answer(rank, 0.0)
                if not done:
                    # The others may wait for this one, and the group is of no more use.
                    self.close()
                    shared.cache_clear()
                    raise Ended(f"rank {rank}:\n{answers[rank]}")
        return [answers[rank] for rank in range(world)]

    def answers(self, world: int, function: Callable[..., Any], *of_ranks: Any) -> list[tuple[bool, Any]]:
        """The same, and for a rank that failed ``False`` and its traceback."""
        self._start(world, function, of_ranks)
        return [self._answer(rank, PATIENCE) for rank in range(world)]

    def _start(self, world: int, function: Callable[..., Any], of_ranks: tuple[Any, ...]) -> None:
        for rank in range(world):
            self.pipes[rank].send((function, world, [each[rank] for each in of_ranks]))

    def _answer(self, rank: int, patience: float) -> tuple[bool, Any]:
        try:
            if self.pipes[rank].poll(patience):
                done, answer = self.pipes[rank].recv()
                return done, answer
        except EOFError:
            return False, "ended"
        return False, "did not answer in time"

    def close(self) -> None:
        """End all processes, whatever they wait for."""
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


@cache
def shared() -> Pool:
    """The processes of all tests that leave their group intact; they end with the test process, being daemons."""
    return Pool()


@contextmanager
def fresh(world: int, timeout: float = 60.0) -> Iterator[Pool]:
    """Processes of one test's own, for what breaks a group."""
    pool = Pool(world, timeout)
    try:
        yield pool
    finally:
        pool.close()
