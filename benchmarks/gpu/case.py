"""What the parts of the GPU run share: where they run, what they call ours, and a loss that fails in one way only."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks import gpu_peers, providers
from benchmarks.exact import Exact, exact
from benchmarks.peers import PairLoss
from benchmarks.providers import Case, NotOffered

Result = TypeVar("Result")

OURS = "ctloss-triton"
LOSSES = ("cz-both", "info-both", "info-cross")
ALL = {**providers.PROVIDERS, **gpu_peers.PROVIDERS}


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


def captured(step: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result, Result]:
    """A CUDA graph of a call, what the call gave before, and the tensors that a replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            plain = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    return graph, plain, recorded
