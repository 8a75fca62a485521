"""What the parts of the GPU run share: where they run, what they call ours, and a row for whatever fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks import providers
from benchmarks.gpu.race import rivals
from benchmarks.peers import PairLoss
from benchmarks.providers import Case, NotOffered, OtherLosses

Result = TypeVar("Result")

OURS = "ctloss-triton"
LOSSES = ("cz-both", "info-both", "info-cross")
ALL = {**providers.PROVIDERS, **rivals.PROVIDERS}


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

    @contextmanager
    def noting(self, **about: object) -> Iterator[None]:
        """Record an error of any kind as a row of its own and continue; a provider of other losses is no error."""
        try:
            yield
        except OtherLosses:
            pass
        except NotOffered as reason:
            self.emit(**about, note=str(reason)[:300])
        except Exception as error:  # what a compiler raises derives from Exception only
            self.emit(**about, note=f"{type(error).__name__}: {error}"[:300])

    def sizes(self, *full: int) -> Sequence[int]:
        """The sizes of a part, or two tiny ones in a dry run."""
        return (6, 17) if self.dry else full

    def dtypes(self, *full: str) -> Sequence[str]:
        """The dtypes of a part; the interpreter computes bfloat16 wrongly, so that a dry run has only float32."""
        return ("float32",) if self.dry else full

    @property
    def d(self) -> int:
        """Dimensions: the paper's encoder's 768."""
        return 24 if self.dry else 768


def build(name: str, case: Case) -> PairLoss:
    """A provider's loss; NotOffered where it has none."""
    return ALL[name].build(case)


def captured(step: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result, Result]:
    """A CUDA graph of a call, what the call returned before, and the tensors that a replay writes."""
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
