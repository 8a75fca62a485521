"""The process of a command such as ``python -m ctloss.train``: what it starts with, how it ends, and its signals."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import torch

HEARD = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
# Whether the process is nothing but a command; :func:`as_process` tells.
_whole_process = False


class _Stream(io.FileIO):
    """Standard output or error, which after a signal may be written to in vain.

    Ctrl+C ends ``tee`` and the like too, and a run must still save its step.
    """

    signalled = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            if not self.signalled:
                raise
            return memoryview(data).nbytes


def _outlasting(stream: Any) -> Any:
    """Returns a stream of the same kind to the same place; None, as it is where the command was started without."""
    if stream is None:
        return None
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def as_process(main: Callable[[], int]) -> NoReturn:
    """Runs a command as the whole of its process, with threads that sleep while they wait for one another.

    Threads that spin hold one another up as soon as the machine has other work: a training step of .08 s took 6 s.
    OpenMP reads ``OMP_WAIT_POLICY`` when torch is loaded, and ``python -m`` loads torch with the package before the
    command's first line. So if the variable is unset, the process sets it and starts over, once. The command returns
    its exit status. A signal ends the process as :class:`Signals` says.
    """
    global _whole_process
    if os.name == "posix" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    _whole_process = True
    sys.stdout, sys.stderr = _outlasting(sys.stdout), _outlasting(sys.stderr)
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

    A process that is nothing but a command says the same and ends without unwinding: what is raised in the middle of
    another library's work may be dropped there, or come out as another error, and what is finished is kept even by a
    process that is killed.

    Args:
        command: what the line about a signal begins with in such a process.
        todo: what it says that one can do.
        when: what it says of the moment.
    """

    def __init__(self, command: str, todo: str, *, when: str = "before the end") -> None:
        self.received = 0
        self._command = command
        self._todo = todo
        self._when = when
        self._deferred = self._ending = False
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
        """While the block runs, signals are kept in ``received``; what it has not ended for, it ends for afterwards."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.received:
            self._hear(self.received, None)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # Worker processes inherit the handler, and their parent hears the signal too.
            os._exit(128 + number)
        again = self._deferred and self.received == signal.SIGINT == number
        # Kept in any case: Python drops what is raised while it removes an object, and the next step must know.
        self.received = number
        _Stream.signalled = True
        if self._deferred and not again:
            return
        done = "(twice), so nothing more was saved" if again else self._when
        stopped = Stopped(number, f"{done}; {self._todo}")
        if _whole_process:
            if self._ending:
                return
            self._ending = True
            with suppress(RuntimeError):  # The signal came while it was written to.
                sys.stdout.flush()
            if os.environ.get("RANK", "0") == "0":
                with suppress(OSError):  # Nobody reads it.
                    # Below a bar, if there is one.
                    os.write(2, f"\n{self._command}: {stopped}\n".encode())
            os._exit(stopped.status)
        raise stopped


@contextmanager
def holding_signals() -> Iterator[None]:
    """Holds signals back until the block ends, in which worker processes are started; only in the main thread.

    What a handler raises while a process is forked, Python may drop, or raise in the new process too.
    """
    held: list[int] = []
    former: dict[int, Any] = {}
    process = os.getpid()

    def hold(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            os._exit(128 + number)
        held.append(number)

    if threading.current_thread() is threading.main_thread():
        former = {number: handler for number in HEARD if callable(handler := signal.getsignal(number))}
    try:
        for number in former:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def ignore_signals(worker: int = 0) -> None:
    """Makes a worker process outlive signals that all processes get: its parent hears them, and decides.

    SIGTERM stays as it is: it is how parents end workers that do not end by themselves.
    """
    for number in HEARD:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
