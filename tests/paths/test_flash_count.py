"""What the documentation says of narrow embeddings, and the choice that rests on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import flash
from ctloss.kernels.problem import Shape
from ctloss.kernels.triton_path.config import flash_wins

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def test_documented_count_is_the_count() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(flash.BEGIN)
    table, end, _ = rest.partition(flash.END)
    assert end
    assert table == flash.counted_table() + "\n", "stale: python -m benchmarks.flash --write, then read what follows it"


@pytest.mark.parametrize(
    ("dtype", "normalize"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, True)]
)
@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("n", [16384, 65536])
def test_nothing_is_taken_that_the_count_speaks_against(dtype: torch.dtype, normalize: bool, d: int, n: int) -> None:
    """Midway, on the scale of ratios, between flash handicapped and not."""
    panels, handicapped, hidden = flash.milliseconds(dtype, normalize, n, d)
    if flash_wins(Shape(n, d, dtype=dtype), 90, flash.asked(normalize)):
        assert (handicapped * hidden) ** 0.5 < panels
    else:
        assert (handicapped * hidden) ** 0.5 > 0.99 * panels


@pytest.mark.parametrize("d", [1, 64, 128, 256])
def test_float32_never_wins(d: int) -> None:
    panels, handicapped, hidden = flash.milliseconds(torch.float32, True, 16384, d)
    assert (handicapped * hidden) ** 0.5 > panels
    assert not flash_wins(Shape(16384, d), 90, flash.asked(True))
