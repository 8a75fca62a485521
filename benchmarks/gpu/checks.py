"""Parts of the GPU run that are not races: ceilings, errors, equal bits, CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks import batches
from benchmarks.exact import errors
from benchmarks.gpu.race.case import LOSSES, OURS, Run, build, captured
from benchmarks.measure import Timing, interleaved
from benchmarks.peers import PairLoss
from benchmarks.providers import DTYPES, Case

# Batches for every set of kernels: small ones with products in float64 and without; panels; narrow rows; kept logits.
KINDS = ((17, 100), (130, 72), (600, 72), (1030, 64), (1030, 200))
SHAPES = (*KINDS, (2, 8), (300, 768))
SOFTMAX_LOSSES = ("cz-both", "cz-cross", "info-both", "info-cross")


def ceilings(run: Run) -> None:
    """What the machine can do: bytes per second of a copy (read and written), flops of a bfloat16 product."""
    size = 2**20 if run.dry else 2**30
    source = torch.randint(0, 127, (size,), dtype=torch.int8, device=run.device)
    target = torch.empty_like(source)
    side = 256 if run.dry else 8192
    a, b = (torch.randn(side, side, device=run.device).bfloat16() for _ in range(2))
    timed = interleaved(
        {"copy": lambda: target.copy_(source), "product": lambda: a @ b},
        device=run.device,
        seconds=0.2 if run.dry else 3,
    )
    for name, work in (("copy", 2 * size), ("product", 2 * side**3)):
        outcome = timed[name]
        found = {"tera_per_s": work / outcome.wall / 1e12} if isinstance(outcome, Timing) else {"note": outcome}
        run.emit(what=name, **found)


def _batches(
    run: Run, shapes: Sequence[tuple[int, int]], dtypes: Sequence[str], losses: Sequence[str]
) -> Iterator[tuple[Case, Tensor, Tensor, dict[str, object]]]:
    """Every case with its inputs and the columns that describe it."""
    for (n, d), dtype, loss in product(shapes, run.dtypes(*dtypes), losses):
        x, y = batches.untrained(n, d, dtype=DTYPES[dtype], device=run.device)
        about: dict[str, object] = {"loss": loss, "n": n, "d": d, "dtype": dtype}
        yield Case(loss, n, d, dtype, run.device), x.requires_grad_(), y.requires_grad_(), about


def shapes(run: Run) -> None:
    """Errors on small ragged shapes."""
    sizes = ((6, 24),) if run.dry else SHAPES
    for case, x, y, about in _batches(run, sizes, ("bfloat16", "float16", "float32"), SOFTMAX_LOSSES):
        with run.noting(**about):
            run.emit(**about, **errors(build(OURS, case), x, y, case.exact(x.detach(), y.detach())))


def checked(run: Run) -> None:
    """A forward and backward pass on a few ragged shapes and little else: for the memory and race checkers."""
    sizes = ((6, 24),) if run.dry else KINDS
    for case, x, y, about in _batches(run, sizes, ("bfloat16", "float16", "float32"), ("cz-both", "info-cross")):
        gradients = torch.autograd.grad(build(OURS, case)(x, y), (x, y))
        run.emit(**about, finite=all(bool(gradient.isfinite().all()) for gradient in gradients))


def repeats(run: Run) -> None:
    """Twenty passes over the same inputs: are all bits of loss and gradients equal?"""
    sizes = [(n, run.d) for n in run.sizes(300, 1000, 4096)]
    for case, x, y, about in _batches(run, sizes, ("bfloat16", "float32"), LOSSES):
        with run.noting(**about):
            call = build(OURS, case)
            first, *others = (_step(call, x, y) for _ in range(2 if run.dry else 20))
            equal = sum(_same(first, other) for other in others)
            run.emit(**about, repeats=1 + len(others), equal=1 + equal)


def graphs(run: Run) -> None:
    """Forward and backward captured in a CUDA graph: time of a replay, and that it gives what a plain call gives."""
    if run.dry:
        run.emit(note="needs a CUDA device")
        return
    for loss in LOSSES:
        sizes = [(n, run.d) for n in (64, 128, 256, 512)]
        for case, x, y, about in _batches(run, sizes, ("bfloat16",), (loss,)):
            for name in (OURS, "eager"):
                # A failed capture is a finding of its own.
                with run.noting(provider=name, **about):
                    call = build(name, case)
                    graph, plain, recorded = captured(partial(_step, call, x, y))
                    outcome = interleaved({"replay": graph.replay}, device=case.device, seconds=0.3)["replay"]
                    found: dict[str, object] = {"note": outcome}
                    if isinstance(outcome, Timing):
                        found = {"wall_us": outcome.wall * 1e6, "same_as_plain": _same(plain, recorded)}
                    run.emit(provider=name, **about, **found)


def _step(call: PairLoss, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """A loss and its gradients."""
    value = call(x, y)
    return (value.detach(), *torch.autograd.grad(value, (x, y)))


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
