"""pytest-benchmark suites: ``pytest benchmarks/bench_losses.py --benchmark-group-by=group``.

One process, a group for each problem; ``python -m benchmarks`` gives the interleaved medians that are published.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import batches, providers
from benchmarks.measure import PASSES
from benchmarks.providers import DTYPES, LOSSES, Case, NotOffered

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = [name for name in providers.DEFAULT if name != "compile"]
SIZES = [(32, 256), (128, 256), (512, 256)]
# Metric learning's N x N x N comparison takes seconds from here on.
MOST_BYTES = 2**30


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NAMES)
def test_time(benchmark: BenchmarkFixture, name: str, loss: str, dtype: str, n: int, d: int, which: str) -> None:
    """One provider on one problem."""
    benchmark.group = f"{loss} {dtype} n={n} d={d} {which}"
    case = Case(loss, n, d, dtype, DEVICE)
    try:
        call = providers.build(name, case, MOST_BYTES)
    except NotOffered as reason:
        pytest.skip(str(reason))
    run = PASSES[which](call, *batches.untrained(n, d, dtype=DTYPES[dtype], device=DEVICE))

    def finished() -> None:
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(finished)
