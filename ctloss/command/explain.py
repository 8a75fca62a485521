"""``ctloss explain``: which path a call of given sizes, dtype and options takes, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

import ctloss

DTYPES = ("float32", "float64", "bfloat16", "float16")
EPILOG = """\
examples:
  ctloss explain 512 256
  ctloss explain 4096 768 --dtype bfloat16 --device cuda --negatives cross --candidates 65536
  ctloss explain 128 768 --dims 768 256 64 --loss info_nce
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser; what is not given is left to the loss."""
    top = argparse.ArgumentParser(
        prog="ctloss explain",
        description="Which path computes a loss of such a call, why, and in how much memory. Computes nothing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    top.add_argument("pairs", type=int, help="pairs in the batch")
    top.add_argument("width", type=int, help="columns of an embedding")
    top.add_argument("--dtype", choices=DTYPES, default="float32", help="of the embeddings (default: float32)")
    top.add_argument(
        "--device", default="cpu", help="cpu, or a GPU of this machine: cuda, cuda:1 and so on (default: cpu)"
    )
    top.add_argument("--candidates", type=int, default=0, metavar="ROWS", help="further rows, such as a queue's")
    top.add_argument("--loss", choices=("cz_nce", "info_nce", "contrast"), help="(default: cz_nce)")
    top.add_argument("--negatives", help="both, cross, own or none (default: both)")
    top.add_argument("--directions", help="both or x (default: both)")
    top.add_argument("--dot", dest="normalize", action="store_false", help="dot products instead of cosines")
    top.add_argument("--margin", type=float, help="of negatives that are left out")
    top.add_argument("--dims", type=int, nargs="+", help="widths of nested embeddings")
    top.add_argument("--reduction", help="mean, sum or none (default: mean)")
    top.add_argument("--precision", help="highest, high or medium (default: highest)")
    top.add_argument("--impl", help="auto, or a path's name (default: auto)")
    return top


def main(arguments: Sequence[str]) -> int:
    """Prints the plan of the call; returns the exit status."""
    options: dict[str, Any] = vars(parser().parse_args(arguments))
    pairs, width, rows = options.pop("pairs"), options.pop("width"), options.pop("candidates")
    dtype, device = getattr(torch, options.pop("dtype")), options.pop("device")
    if "dims" in options:
        options["dims"] = tuple(options["dims"])
    try:
        if min(pairs, width) < 1 or rows < 0:
            raise ValueError(f"expected sizes of at least 1, got {pairs} x {width} and {rows} candidates; raise them")
        x, more = (_rows(count, width, dtype, device) for count in (pairs, rows))
        print(ctloss.explain(x, x, candidates=more if rows else None, **options))
    except (TypeError, ValueError, RuntimeError) as error:
        print(f"ctloss explain: error: {error}", file=sys.stderr)
        return 2
    return 0


def _rows(count: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Rows that take no memory, however many they are: all of them are the same one."""
    try:
        row = torch.zeros(1, width, dtype=dtype, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a device of this machine, got {device!r} ({reason}); try --device cpu") from error
    return row.expand(count, width)
