"""The process of a command such as ``python -m ctloss.train``: what it starts with, how it ends, and its signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import torch

HEARD = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


def as_process(main: Callable[[], int]) -> NoReturn:
    """Runs a command as the whole of its process, with threads that sleep while they wait for one another.

    Threads that spin hold one another up as soon as the machine has other work: a training step of .08 s took 6 s.
    OpenMP reads ``OMP_WAIT_POLICY`` when torch is loaded, and ``python -m`` loads torch with the package before the
    command's first line. So if the variable is unset, the process sets it and starts over, once. The command returns
    its exit status.
    """
    if os.name == "posix" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    status = main()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Gloo's threads may still hold Python objects, and abort if they release them while the interpreter exits.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class Stopped(KeyboardInterrupt):
    """A signal ended the command, which can go on.

    Like the interrupt of a keyboard it passes through handlers of errors.

    Attributes:
        status: exit status of the command, 128 + the signal's number.
        told: whether this process is the one to say so.
    """

    def __init__(self, number: int, said: str, *, told: bool = True) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {said}")
        self.status = 128 + number
        self.told = told


class Signals:
    """Hears SIGTERM, SIGINT and SIGUSR1 while its block runs in the main thread; in others it changes nothing.

    A signal raises :class:`Stopped` at once, or with ``deferred`` is only kept in ``received``, so that a step can be
    finished and saved; a second SIGINT ends even that at once. A signal that was ignored before stays so. Handlers are
    restored at the end.

    Args:
        todo: what the line about a signal says that one can do.
        when: what it says of the moment.
    """

    def __init__(self, todo: str = "give the command again to go on", *, when: str = "before the end") -> None:
        self.received = 0
        self._todo = todo
        self._when = when
        self._deferred = False
        self._process = os.getpid()
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in HEARD:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            # None: a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the block runs, signals are kept in ``received``."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # Worker processes inherit the handler, and their parent hears the signal too.
            os._exit(128 + number)
        again = self.received == signal.SIGINT == number
        # Kept in any case: Python drops what is raised while it removes an object, and the next step must know.
        self.received = number
        if self._deferred and not again:
            return
        done = "(twice), so nothing more was saved" if again else self._when
        raise Stopped(number, f"{done}; {self._todo}")
