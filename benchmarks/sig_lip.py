"""The sigmoid loss beside open_clip's, forward and backward: thread CPU time, interleaved in one process.

OMP_NUM_THREADS=1 python -m benchmarks.sig_lip --n 1024 --d 256
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import ctloss
from benchmarks import batches, peers
from benchmarks.peers import PairLoss
from benchmarks.timing import Timing, interleaved

TEMPERATURE, BIAS = 0.1, -10.0


def ours(impl: str, *, with_ids: bool = False) -> PairLoss:
    """``ctloss.sig_lip`` on a path, with ids that leave nothing out if asked."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        ids = torch.arange(len(x), device=x.device) if with_ids else None
        return ctloss.sig_lip(x, y, temperature=TEMPERATURE, bias=BIAS, ids=ids, impl=impl)  # type: ignore[arg-type]

    return loss


def contenders() -> dict[str, PairLoss]:
    """Every form that is timed, by name."""
    return {
        "ctloss": ours("auto"),
        "ctloss, ids": ours("auto", with_ids=True),
        "open_clip": peers.open_clip_sig_lip(TEMPERATURE, BIAS),
    }


def measure(n: int, d: int, *, dtype: torch.dtype, device: str, seconds: float) -> dict[str, Timing | str]:
    """Time a forward and backward pass of each contender on the same rows."""
    x, y = (side.requires_grad_() for side in batches.untrained(n, d, dtype=dtype, device=device))

    def both_passes(loss: PairLoss) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(x, y), (x, y))

    calls = {name: both_passes(loss) for name, loss in contenders().items()}
    return interleaved(calls, device=device, seconds=seconds)


def main() -> None:
    """Print each contender's time and its ratio to open_clip's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    found = measure(options.n, options.d, dtype=dtype, device=options.device, seconds=options.seconds)
    baseline = found["open_clip"]
    for name, timing in found.items():
        if isinstance(timing, str) or isinstance(baseline, str):
            print(f"{name}\t{timing}")
            continue
        # On a GPU the host's time is not the work's.
        mine, theirs = (one.cpu if options.device == "cpu" else one.wall for one in (timing, baseline))
        print(f"{name}\t{mine * 1e3:.2f} ms\t{mine / theirs:.2f} of open_clip's")


if __name__ == "__main__":
    main()
