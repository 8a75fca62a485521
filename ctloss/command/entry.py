"""The command line's first word, and who takes the others. Each part is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import ctloss

from ..shared.command import as_process
from ..shared.options import Parser

DESCRIPTION = """\
Contrastive losses for PyTorch, and pretraining and evaluation with them.

  ctloss doctor      what this installation has, which path runs and why, what to do about what is missing
  ctloss explain     which path a call of given sizes, dtype and options takes, and why
  ctloss bench       the losses next to their usual forms in PyTorch, on this machine
  ctloss train       pretrains an encoder on parallel text: python -m ctloss.train
  ctloss evaluate    evaluates an encoder: python -m ctloss.evaluate

'ctloss WORD --help' tells the options of each. 'python -m ctloss' is the same command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Example:
        >>> main(["explain", "4", "8", "--impl", "reference"])
        reference: named explicitly
          computed in: float64
          memory: several matrices of 8 x 8
        0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    top = Parser(
        prog="ctloss", description=DESCRIPTION, usage="%(prog)s WORD ...", formatter_class=argparse.RawTextHelpFormatter
    )
    top.add_argument("--version", action="version", version=ctloss.__version__)
    top.add_argument("word", choices=list(PARTS), metavar="WORD", help=argparse.SUPPRESS)
    if not words:
        top.print_help()
        return 2
    chosen = top.parse_args(words[:1]).word
    try:
        return PARTS[chosen](words[1:])
    except ModuleNotFoundError as error:
        # Of an extra that is not installed; the message says how to install it.
        if not str(error).startswith("ctloss."):
            raise
        print(f"ctloss {chosen}: error: {error}", file=sys.stderr)
        return 2


def run() -> NoReturn:
    """Runs the command as the whole of its process."""
    if sys.argv[1:2] and sys.argv[1] in WORKING:
        as_process(main)
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough, as head has; what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _train(words: Sequence[str]) -> int:
    from ..train.__main__ import main as train

    return train(words)


def _evaluate(words: Sequence[str]) -> int:
    from ..evaluate.__main__ import main as evaluate

    return evaluate(words)


def _bench(words: Sequence[str]) -> int:
    from .bench import main as bench

    return bench(words)


def _explain(words: Sequence[str]) -> int:
    from .explain import main as explain

    return explain(words)


def _doctor(words: Sequence[str]) -> int:
    from .doctor import main as doctor

    return doctor(words)


PARTS: dict[str, Callable[[Sequence[str]], int]] = {
    "doctor": _doctor,
    "explain": _explain,
    "bench": _bench,
    "train": _train,
    "evaluate": _evaluate,
}
# Those that compute for long, with threads that should sleep while they wait.
WORKING = ("bench", "train", "evaluate")
