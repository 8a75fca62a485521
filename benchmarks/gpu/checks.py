"""Parts of the GPU run that are not races: ceilings, errors, equal bits, CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import batches, providers
from benchmarks.exact import errors
from benchmarks.gpu_case import LOSSES, OURS, Run, build, captured, truth_of
from benchmarks.peers import PairLoss
from benchmarks.providers import DTYPES, Case
from benchmarks.timing import Timing, interleaved


def ceilings(run: Run) -> None:
    """What the machine can do: bytes a second of a copy (read and written), flops of a bfloat16 product."""
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
        run.emit(
            what=name,
            **({"tera_per_s": work / outcome.wall / 1e12} if isinstance(outcome, Timing) else {"note": outcome}),
        )


# Batches in every set of kernels: small ones with products in float64 and without; panels; narrow rows; kept logits.
KINDS = ((17, 100), (130, 72), (600, 72), (1030, 64), (1030, 200))


def shapes(run: Run) -> None:
    """Errors on small ragged shapes."""
    for n, d in ((6, 24),) if run.dry else (*KINDS, (2, 8), (300, 768)):
        for dtype in run.dtypes("bfloat16", "float16", "float32"):
            for loss in providers.LOSSES:
                case = Case(loss, n, d, dtype, run.device)
                x, y = batches.untrained(n, d, dtype=DTYPES[dtype], device=run.device)
                row = {"loss": loss, "n": n, "d": d, "dtype": dtype}
                try:
                    run.emit(**row, **errors(build(OURS, case), x, y, truth_of(case, x, y)))
                except Exception as error:  # recorded; the other shapes are still to be checked
                    run.emit(**row, note=f"{type(error).__name__}: {error}"[:300])


def checked(run: Run) -> None:
    """A forward and backward pass on a few ragged shapes and little else: for the memory and race checkers."""
    for n, d in ((6, 24),) if run.dry else KINDS:
        for dtype in run.dtypes("bfloat16", "float16", "float32"):
            for loss in ("cz-both", "info-cross"):
                case = Case(loss, n, d, dtype, run.device)
                x, y = batches.untrained(n, d, dtype=DTYPES[dtype], device=run.device)
                x, y = x.requires_grad_(), y.requires_grad_()
                gradients = torch.autograd.grad(providers.build(OURS, case)(x, y), (x, y))
                finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
                run.emit(loss=loss, n=n, d=d, dtype=dtype, finite=finite)


def repeats(run: Run) -> None:
    """Twenty passes over the same inputs: are all bits of loss and gradients equal?"""
    for n in run.sizes(300, 1000, 4096):
        for dtype in run.dtypes("bfloat16", "float32"):
            for loss in LOSSES:
                case = Case(loss, n, run.d, dtype, run.device)
                x, y = batches.untrained(n, run.d, dtype=DTYPES[dtype], device=run.device)
                x, y = x.requires_grad_(), y.requires_grad_()
                row = {"loss": loss, "n": n, "dtype": dtype}
                try:
                    call = build(OURS, case)
                    passes = []
                    for _ in range(2 if run.dry else 20):
                        value = call(x, y)
                        passes.append((value.detach(), *torch.autograd.grad(value, (x, y))))
                    first = passes[0]
                    equal = [all(torch.equal(a, b) for a, b in zip(first, other, strict=True)) for other in passes]
                    run.emit(**row, repeats=len(equal), equal=sum(equal))
                except Exception as error:  # recorded; the other cases are still to be checked
                    run.emit(**row, note=f"{type(error).__name__}: {error}"[:300])


def graphs(run: Run) -> None:
    """Forward and backward captured in a CUDA graph: time of a replay, and that it gives what a plain call gives."""
    if run.dry:
        run.emit(note="needs a CUDA device")
        return
    for loss in LOSSES:
        for n in (64, 128, 256, 512):
            case = Case(loss, n, run.d, "bfloat16", run.device)
            for name in (OURS, "eager"):
                row = {"provider": name, "loss": loss, "n": n, "d": run.d, "dtype": "bfloat16"}
                try:
                    run.emit(**row, **_replay(build(name, case), case))
                except Exception as error:  # a failed capture is a finding of its own
                    run.emit(**row, note=f"{type(error).__name__}: {error}"[:300])


def _replay(call: PairLoss, case: Case) -> dict[str, object]:
    x, y = (
        rows.requires_grad_() for rows in batches.untrained(case.n, case.d, dtype=torch.bfloat16, device=case.device)
    )

    def step() -> tuple[Tensor, ...]:
        value = call(x, y)
        return (value, *torch.autograd.grad(value, (x, y)))

    graph, plain, recorded = captured(step)
    outcome = interleaved({"replay": graph.replay}, device=case.device, seconds=0.3)["replay"]
    if not isinstance(outcome, Timing):
        return {"note": outcome}
    same = all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    return {"wall_us": outcome.wall * 1e6, "same_as_plain": same}
