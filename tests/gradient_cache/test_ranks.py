"""Under DDP and FSDP2 the gradients are those without a cache, and DDP reduces them once. Two real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.ranks import gradient_cache as ranks
from support.ranks.pool import Pool, shared

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch knows no other processes"),
]

# Of two ranks, so that with chunks of 4 the first has three of them and the second four.
ROWS = [9, 13]


@pytest.fixture(scope="module")
def pool() -> Pool:
    return shared()


def assert_same(found: list[ranks.Gradients], expected: list[ranks.Gradients]) -> None:
    assert len(found) == len(expected) == 2
    for one, want in zip(found, expected, strict=True):
        assert one.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(one[name], want[name], rtol=1e-12, atol=1e-12)


CASES: dict[str, tuple[Any, bool, dict[str, Any]]] = {
    "one tower, called twice": (ranks.one_tower, False, {"find_unused_parameters": True}),
    "two towers in one model": (ranks.two_towers, False, {}),
    "accumulated": (ranks.two_towers, True, {"gradient_as_bucket_view": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_distributed_data_parallel(name: str, pool: Pool) -> None:
    """Two steps, of other numbers of chunks on each rank; a temperature in the model is used by the loss only."""
    loss, accumulated, options = CASES[name]

    def run(chunk: int | None) -> list[tuple[list[ranks.Gradients], int]]:
        return pool.run(2, ranks.reduced, 2 * [loss], 2 * [chunk], ROWS, 2 * [accumulated], 2 * [options])

    for (found, reductions), (expected, wanted) in zip(run(4), run(None), strict=True):
        assert_same(found, expected)
        assert reductions == wanted == (1 if accumulated else 2)


def test_a_step_within_distributed_data_parallel(pool: Pool) -> None:
    def run(chunk: int | None) -> list[tuple[list[ranks.Gradients], int]]:
        return pool.run(2, ranks.wrapped_step, 2 * [chunk], ROWS)

    for (found, reductions), (expected, wanted) in zip(run(4), run(None), strict=True):
        assert_same(found, expected)
        assert reductions == wanted == 2


@pytest.mark.parametrize("accumulated", [False, True])
def test_fully_shard(accumulated: bool, pool: Pool) -> None:
    """Layers are freed after they ran in the replay too."""

    def run(chunk: int | None) -> list[tuple[list[ranks.Gradients], list[bool]]]:
        return pool.run(2, ranks.sharded, 2 * [chunk], [9, 12], 2 * [accumulated])

    for (found, freed), (expected, _) in zip(run(4), run(None), strict=True):
        assert_same(found, expected)
        # Two steps, two sides, three chunks, two passes.
        assert freed == 24 * [True]


def test_as_many_chunks_on_every_rank(pool: Pool) -> None:
    for done, answer in pool.answers(2, ranks.sharded, 2 * [4], ROWS):
        assert not done
        assert "as many chunks on every rank of a model under fully_shard, got from 3 to 4" in answer


@pytest.mark.parametrize("name", ranks.REFUSED)
def test_refusals(name: str, pool: Pool) -> None:
    for message in pool.run(2, ranks.refused, 2 * [name]):
        assert ranks.REFUSED[name] in message
