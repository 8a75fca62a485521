"""A multiprocessor that does everything in an unlucky order: partitions, shared memory, barriers.

Partitions are threads of which one runs at a time; whenever one waits or acts on shared memory, a seeded generator
chooses who goes on, or which copy or product that was begun earlier happens now. What a thread writes to shared memory
is hidden from copies until a fence, and so are new barriers. If nobody can go on, that is a deadlock.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Test = Callable[[], bool]


class Deadlock(RuntimeError):
    """Every partition waits for something that cannot happen any more."""


class Misuse(RuntimeError):
    """An access that has no meaning: out of bounds, twice, or to a barrier that is not there yet."""


@dataclass
class Partition:
    """A thread of the block, and what it waits for.

    Attributes:
        stores: for each copy out, whether it has read its source.
        unfenced: what to do for copies to see what this thread wrote to shared memory.
    """

    may_go_on: Test = lambda: True
    done: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    stores: list[list[bool]] = field(default_factory=list)
    unfenced: list[Callable[[], None]] = field(default_factory=list)


class Stopped(BaseException):
    """Ends a thread whose block has failed."""


class Block:
    """One block of a launch."""

    def __init__(self, program: int, programs: int, seed: int) -> None:
        self.program, self.programs = program, programs
        self.random = random.Random(f"{seed} {program}")
        # How soon what was begun happens.
        self.haste = (0.5, 0.1, 0.9)[(seed + program) % 3]
        self.current = Partition()
        self.begun: list[Callable[[], None]] = []
        self.back = threading.Semaphore(0)
        self.failure: BaseException | None = None

    def wait(self, may_go_on: Test = lambda: True) -> None:
        """Let others go on until this partition may."""
        partition = self.current
        partition.may_go_on = may_go_on
        self.back.release()
        partition.turn.acquire()
        if self.failure is not None:
            raise Stopped

    def run(self, parts: Sequence[tuple[Callable[..., object], tuple[Any, ...]]]) -> None:
        """Run partitions to their ends, and all that they began."""
        partitions = [Partition() for _ in parts]

        def live(partition: Partition, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
            partition.turn.acquire()
            try:
                if self.failure is None:
                    function(*arguments)
                if not all(has_read for (has_read,) in partition.stores):
                    raise Misuse("a partition ended before its copies had read its shared memory")
            except Stopped:
                pass
            except BaseException as error:
                self.failure = error
            partition.done = True
            self.back.release()

        threads = [
            threading.Thread(target=live, args=(partition, *part), daemon=True)
            for partition, part in zip(partitions, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        while not all(partition.done for partition in partitions):
            ready = [each for each in partitions if not each.done and (self.failure or each.may_go_on())]
            if not ready and not self.begun:
                self.failure = Deadlock("every partition waits")
                continue
            if self.begun and (not ready or self.random.random() < self.haste):
                self.begun.pop(self.random.randrange(len(self.begun)))()
                continue
            self.current = self.random.choice(ready)
            self.current.turn.release()
            self.back.acquire()
        if self.failure is not None:
            raise self.failure
        self.random.shuffle(self.begun)
        for action in self.begun:
            action()


BLOCK: list[Block] = []


def block() -> Block:
    """The block that runs."""
    return BLOCK[-1]


class Memory:
    """Shared memory as copies and tensor cores see it, and as threads do."""

    def __init__(self, seen: np.ndarray, written: np.ndarray) -> None:
        self.seen, self.written = seen, written

    def _view(self, of: Callable[[np.ndarray], np.ndarray]) -> Memory:
        return Memory(of(self.seen), of(self.written))

    def index(self, position: Any) -> Memory:
        return self._view(lambda array: array[int(position)])

    def slice(self, start: Any, length: Any) -> Memory:
        return self._view(lambda array: array[int(start) : int(start) + int(length)])

    def permute(self, order: Sequence[int]) -> Memory:
        return self._view(lambda array: array.transpose(order))

    def store(self, new: Any) -> None:
        if np.shape(new) != self.written.shape:
            raise Misuse(f"expected values of shape {self.written.shape}, got {np.shape(new)}")
        block().wait()
        self.written[...] = new
        block().current.unfenced.append(lambda: np.copyto(self.seen, self.written))


class Barrier:
    """An mbarrier: a phase ends when all have arrived, and all expected bytes."""

    def __init__(self) -> None:
        self.count = self.left = self.bytes = self.phase = 0
        self.visible = False

    def settle(self) -> None:
        if self.left < 0 or not self.visible:
            raise Misuse("a barrier has more arrivals than it counts, or none could see it yet")
        if self.left == 0 and self.bytes == 0:
            self.phase, self.left = self.phase + 1, self.count


class Barriers:
    """As many barriers as a ring has slots."""

    def __init__(self, count: int) -> None:
        self.barriers = [Barrier() for _ in range(count)]

    def index(self, position: Any) -> Barrier:
        return self.barriers[int(position)]


def init_barrier(barrier: Barrier, count: int) -> None:
    barrier.count = barrier.left = count
    block().current.unfenced.append(lambda: setattr(barrier, "visible", True))


def wait_for_barrier(barrier: Barrier, phase: Any) -> None:
    parity = int(phase)
    block().wait(lambda: barrier.phase & 1 != parity)


def expect_bytes(barrier: Barrier, count: int) -> None:
    barrier.bytes += count
    barrier.left -= 1
    barrier.settle()
    block().wait()


def arrive_at(barrier: Barrier, count: int) -> None:
    barrier.left -= count
    barrier.settle()
    block().wait()


def fence_async_shared() -> None:
    for show in block().current.unfenced:
        show()
    block().current.unfenced.clear()


def wait_for_copies_out(pendings: int) -> None:
    stores = block().current.stores
    older = stores[: max(0, len(stores) - pendings)]
    block().wait(lambda: all(has_read for (has_read,) in older))
