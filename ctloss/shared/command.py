"""The process of a command such as ``python -m ctloss.train``: what it starts with and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch


def as_process(main: Callable[[], int]) -> NoReturn:
    """Runs a command as the whole of its process, with threads that sleep while they wait for one another.

    Spinning threads hold one another up as soon as a machine has other work to do; a training step of .08 s took 6 s.
    OpenMP reads ``OMP_WAIT_POLICY`` when torch is loaded, and ``python -m`` loads it with the package before the
    command's first line. So without the variable the process starts over with it, once.

    Args:
        main: the command; returns its exit status.
    """
    if os.name == "posix" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    status = main()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Gloo's threads may still hold Python objects; one that lets go of them while the interpreter ends aborts.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
