"""The parts of the GPU run, each in a process of its own: ``python -m benchmarks.gpu_parts NAME ROWS [--dry]``.

A part appends a JSON line to the file ROWS for everything it measures, so that what it has done survives its end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import batches, gpu_peers, providers
from benchmarks.exact import Exact, errors, exact
from benchmarks.peers import PairLoss
from benchmarks.providers import DTYPES, Case, NotOffered
from benchmarks.sweep import PASSES, forward, forward_backward
from benchmarks.timing import Timing, interleaved

OURS = "ctloss-triton"
LOSSES = ("cz-both", "info-both", "info-cross")
ALL = {**providers.PROVIDERS, **gpu_peers.PROVIDERS}
RIVALS = (
    OURS, "eager", "lightly", "open_clip", "memeff", "inf-cl", "cut-cross-entropy", "cut-cross-entropy-exact",
    "siglip-kernel",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Where a part runs and where its rows go."""

    device: str
    dry: bool
    path: Path

    def emit(self, **row: object) -> None:
        """Append a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sizes(self, *full: int) -> Sequence[int]:
        """The sizes of a part, or two tiny ones in a dry run."""
        return (6, 17) if self.dry else full

    def dtypes(self, *full: str) -> Sequence[str]:
        """The dtypes of a part; the interpreter, which computes bfloat16 wrongly, gets float32 in a dry run."""
        return ("float32",) if self.dry else full

    @property
    def d(self) -> int:
        """Dimensions: the paper's encoder's 768."""
        return 24 if self.dry else 768


def guarded(call: PairLoss) -> PairLoss:
    """The loss, whose errors of any kind (a compiler's too) are RuntimeErrors."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        try:
            return call(x, y)
        except Exception as error:  # what a compiler raises derives from Exception alone
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    return run


def truth_of(case: Case, x: Tensor, y: Tensor) -> Exact:
    """The float64 answer to a case."""
    if case.loss == gpu_peers.SIGLIP:
        return gpu_peers.siglip_exact(x, y, temperature=case.temperature)
    loss, negatives = case.parts
    return exact(x, y, loss=loss, negatives=negatives, temperature=case.temperature)


def build(name: str, case: Case) -> PairLoss:
    """A provider's loss, guarded; NotOffered where it has none."""
    if case.loss == gpu_peers.SIGLIP and name in providers.PROVIDERS:
        raise NotOffered("computes no sigmoid loss")
    return guarded(ALL[name].build(case))


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """The allocator's peak during a call beyond what was held before."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def times(run: Run, cases: Sequence[Case], names: Sequence[str]) -> None:
    """Error, peak memory and times of every provider on every case."""
    for case in cases:
        x, y = batches.untrained(case.n, case.d, dtype=DTYPES[case.dtype], device=case.device)
        about = {"loss": case.loss, "n": case.n, "d": case.d, "dtype": case.dtype}
        try:
            truth = truth_of(case, x, y)
        except RuntimeError as error:
            run.emit(**about, note=f"no float64 answer: {error}")
            continue
        rows: dict[str, dict[str, object]] = {}
        calls = {}
        for name in names:
            try:
                call = build(name, case)
                row: dict[str, object] = {**errors(call, x, y, truth)}
                row["peak_bytes"] = peak_bytes(forward_backward(call, x, y), case.device)
                rows[name], calls[name] = row, call
            except NotOffered as reason:
                if "alone" not in str(reason) and "sigmoid" not in str(reason):
                    run.emit(provider=name, **about, note=str(reason)[:300])
            except Exception as error:  # a rival's failure is a row of the table, whatever it is
                run.emit(provider=name, **about, note=f"{type(error).__name__}: {error}"[:300])
        del truth
        for which, prepare in zip(PASSES, (forward, forward_backward), strict=True):
            timed = interleaved(
                {name: prepare(call, x, y) for name, call in calls.items()},
                device=case.device,
                seconds=0.05 if run.dry else 0.8,
                fewest_rounds=3,
            )
            for name, outcome in timed.items():
                found = (
                    {"wall_ms": outcome.wall * 1e3, "rounds": outcome.rounds}
                    if isinstance(outcome, Timing)
                    else {"note": outcome[:300]}
                )
                run.emit(provider=name, **about, which=which, **found, **rows[name])


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


def shapes(run: Run) -> None:
    """Errors on small ragged shapes: what the memory and race checkers look at."""
    for n, d in ((6, 24),) if run.dry else ((2, 8), (17, 100), (130, 64), (257, 200), (300, 768)):
        for dtype in run.dtypes("bfloat16", "float16", "float32"):
            for loss in providers.LOSSES:
                case = Case(loss, n, d, dtype, run.device)
                x, y = batches.untrained(n, d, dtype=DTYPES[dtype], device=run.device)
                row = {"loss": loss, "n": n, "d": d, "dtype": dtype}
                try:
                    run.emit(**row, **errors(build(OURS, case), x, y, truth_of(case, x, y)))
                except Exception as error:  # recorded; the other shapes are still to be checked
                    run.emit(**row, note=f"{type(error).__name__}: {error}"[:300])


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

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            plain = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    outcome = interleaved({"replay": graph.replay}, device=case.device, seconds=0.3)["replay"]
    if not isinstance(outcome, Timing):
        return {"note": outcome}
    same = all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))
    return {"wall_us": outcome.wall * 1e6, "same_as_plain": same}


def bfloat16(run: Run, *n: int) -> None:
    """The main table: bfloat16 by loss and n."""
    cases = [
        Case(loss, size, run.d, dtype, run.device)
        for size in run.sizes(*n)
        for dtype in run.dtypes("bfloat16")
        for loss in (*LOSSES, gpu_peers.SIGLIP)
    ]
    times(run, cases, RIVALS)


def precisions(run: Run) -> None:
    """float32 and float16 at a few sizes."""
    cases = [
        Case(loss, n, run.d, dtype, run.device)
        for n in run.sizes(512, 4096, 16384)
        for dtype in run.dtypes("float32", "float16")
        for loss in ("cz-both", "info-cross")
    ]
    times(run, cases, (OURS, "eager", "memeff", "inf-cl", "siglip-kernel"))


def compiled(run: Run) -> None:
    """Beside torch.compile of the eager form."""
    cases = [
        Case(loss, n, run.d, dtype, run.device)
        for n in run.sizes(4096, 512, 16384)[-3 if not run.dry else -1 :]
        for dtype in run.dtypes("bfloat16")
        for loss in (("info-both",) if run.dry else ("info-both", "cz-both", "info-cross"))
    ]
    times(run, cases, (OURS, "eager", "compile"))


PARTS: dict[str, Callable[[Run], None]] = {
    "ceilings": ceilings,
    "shapes": shapes,
    "repeats": repeats,
    "graphs": graphs,
    "small": lambda run: bfloat16(run, 128, 512, 1024),
    "large": lambda run: bfloat16(run, 4096, 16384, 65536),
    "precisions": precisions,
    "compiled": compiled,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(PARTS))
    parser.add_argument("rows", type=Path, help="file of JSON lines, appended to")
    parser.add_argument("--dry", action="store_true", help="on the CPU, under Triton's interpreter, at tiny sizes")
    options = parser.parse_args()
    started = time.perf_counter()
    PARTS[options.name](Run("cpu" if options.dry else "cuda", options.dry, options.rows))
    print(f"{options.name}: {math.ceil(time.perf_counter() - started)} s")


if __name__ == "__main__":
    main()
