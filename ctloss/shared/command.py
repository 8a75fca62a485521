"""The process of a command such as ``python -m ctloss.train``: what it starts with and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch


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
