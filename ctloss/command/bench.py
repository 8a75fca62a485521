"""``ctloss bench``: the losses next to the forms in which people write them, on the machine at hand."""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

import ctloss

Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE, BIAS = 0.07, -10.0
# The definition forms several matrices of all rows in float64.
MOST_CHECKED = 2048


class Contest(NamedTuple):
    """One loss: ours, and its usual form."""

    name: str
    ours: Loss
    usual: Loss


class Row(NamedTuple):
    """What a line shows: seconds of a forward and backward pass, and relative errors of the gradient."""

    name: str
    dtype: str
    pairs: int
    ours: float
    usual: float
    our_error: float | None
    usual_error: float | None


def clip(x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """infoNCE as CLIP's users write it: ``cross_entropy`` in both directions.

    Example:
        >>> x = torch.eye(4, dtype=torch.float64)
        >>> torch.allclose(clip(x, x), ctloss.info_nce(x, x, negatives="cross"))
        True
    """
    logits = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def nt_xent(x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """infoNCE as SimCLR's users write it: all rows of both sides, the diagonal masked.

    Example:
        >>> x = torch.eye(4, dtype=torch.float64)
        >>> torch.allclose(nt_xent(x, x), ctloss.info_nce(x, x))
        True
    """
    rows = F.normalize(torch.cat((x, y)), dim=1)
    diagonal = torch.eye(len(rows), dtype=torch.bool, device=x.device)
    logits = (rows @ rows.T / temperature).masked_fill_(diagonal, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(rows), device=x.device).roll(len(x)))


def sigmoid(x: Tensor, y: Tensor, temperature: float = TEMPERATURE, bias: float = BIAS) -> Tensor:
    """SigLIP's loss as it is written: ``logsigmoid`` of every pair.

    Example:
        >>> x = torch.eye(4, dtype=torch.float64)
        >>> torch.allclose(sigmoid(x, x), ctloss.sig_lip(x, x, temperature=TEMPERATURE, bias=-10.0))
        True
    """
    logits = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature + bias
    sign = 2 * torch.eye(len(x), dtype=logits.dtype, device=x.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(x)


CONTESTS = (
    Contest("CLIP", partial(ctloss.info_nce, negatives="cross", temperature=TEMPERATURE), clip),
    Contest("NT-Xent", partial(ctloss.info_nce, temperature=TEMPERATURE), nt_xent),
    Contest("SigLIP", partial(ctloss.sig_lip, temperature=TEMPERATURE, bias=BIAS), sigmoid),
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the options."""
    top = argparse.ArgumentParser(
        prog="ctloss bench",
        description="Times forward and backward passes of the losses next to their usual forms in PyTorch, and "
        "compares both gradients with float64's. The repository's benchmarks, which are not installed, measure more.",
    )
    top.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512, 2048], help="pairs (default: %(default)s)")
    top.add_argument("--width", type=int, default=256, help="columns of an embedding (default: %(default)s)")
    top.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=("float32", "float64", "bfloat16", "float16"),
        help="(default: %(default)s)",
    )
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    top.add_argument("--seconds", type=float, default=0.2, help="spent on each figure (default: %(default)s)")
    return top


def main(arguments: Sequence[str]) -> int:
    """Prints a line for every loss, dtype and size; returns the exit status."""
    options = parser().parse_args(arguments)
    if reason := fault_of(options.sizes, options.width, options.seconds, options.device):
        print(f"ctloss bench: error: {reason}", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"ctloss {ctloss.__version__}, torch {torch.__version__}, {device} ({name}), threads: {torch.get_num_threads()}"
    )
    print(f"Forward and backward, width {options.width}, medians; error of the gradient against float64.\n")
    print(f"{'loss':8} {'dtype':9} {'pairs':>6} {'ctloss':>10} {'usual':>10} {'times':>6}  usual's error → ours")
    for row in measured(options.sizes, options.width, options.dtypes, device, options.seconds):
        errors = "" if row.our_error is None else f"{row.usual_error:.0e} → {row.our_error:.0e}"
        print(
            f"{row.name:8} {row.dtype:9} {row.pairs:6} {_shown(row.ours):>10} {_shown(row.usual):>10} "
            f"{row.usual / row.ours:6.2f}  {errors}",
            flush=True,
        )
    return 0


def fault_of(sizes: Sequence[int], width: int, seconds: float, device: str) -> str:
    """Returns what cannot be measured, and what to do about it; an empty text if all can.

    Example:
        >>> fault_of([32, 1], 256, 0.2, "cpu")
        'expected --sizes of at least 2 pairs, as one alone has no negatives, got 1; raise it'
        >>> fault_of([32], 256, 0.2, "cpu")
        ''
    """
    if min(sizes) < 2:
        return f"expected --sizes of at least 2 pairs, as one alone has no negatives, got {min(sizes)}; raise it"
    if width < 1:
        return f"expected --width of at least 1, got {width}; raise it"
    if not 0 < seconds < math.inf:
        return f"expected --seconds above 0 and finite, got {seconds:g}; give such as 0.2"
    try:
        # A device may be there and hold no numbers (meta), or not those of the definition.
        torch.ones(1, dtype=torch.float64, device=device).sum().item()
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        return (
            f"expected a device of this machine that computes in float64, got {device!r} ({reason}); try --device cpu"
        )
    return ""


def measured(
    sizes: Sequence[int], width: int, dtypes: Sequence[str], device: torch.device, seconds: float
) -> Iterator[Row]:
    """Measures every loss at every size in every dtype, one after the other."""
    for contest, dtype, n in product(CONTESTS, dtypes, sizes):
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(n, width, generator=generator)
        y = x + torch.randn(n, width, generator=generator)
        x, y = (rows.to(device, getattr(torch, dtype)).requires_grad_() for rows in (x, y))
        errors: list[float | None] = [None, None]
        if n <= MOST_CHECKED:
            wide = [rows.detach().double().requires_grad_() for rows in (x, y)]
            truth = _gradient(contest.usual, wide)
            for place, loss in enumerate((contest.ours, contest.usual)):
                errors[place] = ((_gradient(loss, (x, y)) - truth).norm() / truth.norm()).item()
        times = [_time(loss, x, y, seconds) for loss in (contest.ours, contest.usual)]
        yield Row(contest.name, dtype, n, times[0], times[1], errors[0], errors[1])


def _gradient(loss: Loss, sides: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss(*sides), sides)
    return torch.cat([gradient.double() for gradient in found])


def _time(loss: Loss, x: Tensor, y: Tensor, seconds: float) -> float:
    timer = Timer("grad(loss(x, y), (x, y))", globals={"grad": torch.autograd.grad, "loss": loss, "x": x, "y": y},
                  num_threads=torch.get_num_threads())  # fmt: skip
    return timer.blocked_autorange(min_run_time=seconds).median


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
