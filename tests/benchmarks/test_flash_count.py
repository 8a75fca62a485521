"""What the documentation says about narrow embeddings, and the choice that rests on it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.aot import flash
from benchmarks.results import page_of, split_document
from ctloss.kernels.problem import Shape
from ctloss.kernels.triton_path.plan.config import flash_wins


def test_documented_count_is_the_count() -> None:
    _, shown, _ = split_document(page_of(flash.COMMAND), flash.COMMAND)
    assert shown == flash.counted_table(), f"stale: {flash.COMMAND} --write, then read what follows it"


@pytest.mark.parametrize(
    ("dtype", "normalize"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, True)]
)
@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("n", [16384, 65536])
def test_choice_agrees_with_the_count(dtype: torch.dtype, normalize: bool, d: int, n: int) -> None:
    """Halfway, on the scale of ratios, between flash with the handicap and without."""
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
