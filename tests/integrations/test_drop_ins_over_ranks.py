"""Integrations that gather, on real gloo ranks under DistributedDataParallel, beside the classes they replace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers
from ctloss.integrations import lightly, open_clip
from support.calls import present
from support.integrations.drop_ins import rows
from support.integrations.ranks import ROWS, Encoder, banks, trained, unequal
from support.ranks.pool import LARGEST, Pool, shared

pytestmark = pytest.mark.numeric
WORLD, STEPS = LARGEST, 3


@pytest.fixture(scope="module")
def pool() -> Pool:
    for library, module in (("lightly", "lightly.loss.dcl_loss"), ("open_clip_torch", "open_clip.loss")):
        present(peers.loss_class, library, module, "DCLLoss" if library == "lightly" else "ClipLoss")  # type: ignore[arg-type]
    return shared()


def on_ranks(pool: Pool, library: str, name: str, ours: bool, **options: Any) -> list[tuple[Tensor, Any, Any]]:
    given: list[Any] = [library, name, ours, options, STEPS]
    return pool.run(WORLD, trained, *([one] * WORLD for one in given))


def in_one_process(loss: Any) -> tuple[Tensor, list[Tensor]]:
    encoder = Encoder()
    value = loss(*encoder(rows(ROWS * WORLD, 7)))
    return value.detach(), list(torch.autograd.grad(value, list(encoder.parameters()), materialize_grads=True))


EXACT: list[tuple[str, str, dict[str, Any]]] = [
    ("lightly", "NTXentLoss", {"temperature": 0.3}),
    ("lightly", "DCLLoss", {"temperature": 0.3}),
    ("lightly", "DCLWLoss", {"temperature": 0.3}),
    ("open_clip", "ClipLoss", {"gather_with_grad": True}),
    ("open_clip", "ClipLoss", {"gather_with_grad": True, "local_loss": True}),
    ("open_clip", "CoCaLoss", {"caption_loss_weight": 2.0, "clip_loss_weight": 0.5, "gather_with_grad": True}),
    ("open_clip", "DistillClipLoss", {"gather_with_grad": True}),
    ("open_clip", "DistillClipLoss", {"gather_with_grad": True, "local_loss": True}),
    ("open_clip", "SigLipLoss", {"dist_impl": "bidir"}),
    ("open_clip", "SigLipLoss", {"dist_impl": "gather"}),
]


@pytest.mark.parametrize(("library", "name", "options"), EXACT)
def test_same_losses_gradients_and_weights(pool: Pool, library: str, name: str, options: dict[str, Any]) -> None:
    """Every rank's losses, and after DDP's averaging the gradients and the weights that training ends with."""
    mine, theirs = (on_ranks(pool, library, name, ours, **options) for ours in (True, False))
    for found, wanted in zip(mine, theirs, strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"local_loss": True}])
def test_clip_without_gather_with_grad_has_the_gradient_of_one_process(pool: Pool, options: dict[str, Any]) -> None:
    """Ours always; theirs is too small by the number of ranks, or with a local loss alone points elsewhere."""
    value, exact = in_one_process(open_clip.ClipLoss())
    mine, theirs = (on_ranks(pool, "open_clip", "ClipLoss", ours, **options) for ours in (True, False))
    for (losses, gradients, _), (other_losses, other_gradients, _) in zip(mine, theirs, strict=True):
        torch.testing.assert_close(losses[0], other_losses[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradients, exact, rtol=1e-9, atol=1e-11)
        for of_encoder, wanted in zip(other_gradients[2:], exact[2:], strict=True):
            if options:
                assert (of_encoder - wanted).norm() > 0.1 * wanted.norm()
            else:
                torch.testing.assert_close(WORLD * of_encoder, wanted, rtol=1e-9, atol=1e-11)
    if not options:
        torch.testing.assert_close(mine[0][0][0], value)


def test_ranks_with_different_numbers_of_rows_are_told(pool: Pool) -> None:
    sizes = ", ".join(str(ROWS + rank) for rank in range(WORLD))
    for said in pool.run(WORLD, unequal):
        assert said.startswith(f"rows: expected as many on every rank, got {sizes}; drop the last batch")


def test_every_rank_s_bank_takes_the_rows_of_all(pool: Pool) -> None:
    of_ranks = pool.run(WORLD, banks)
    whole = lightly.NTXentLoss(memory_bank_size=(30, 6))
    torch.manual_seed(7)
    expected = nn.functional.normalize(torch.randn(30, 6), dim=1)
    for step in range(2):
        batch = torch.cat([rows(ROWS, 6, dtype=torch.float32, seed=10 * step + 2 * rank + 1) for rank in range(WORLD)])
        expected[WORLD * ROWS * step :][: WORLD * ROWS] = nn.functional.normalize(batch, dim=1)
    for bank, pointer, _ in of_ranks:
        torch.testing.assert_close(bank, expected)
        assert int(pointer) == 2 * WORLD * ROWS < len(whole.memory_bank.bank)
    assert of_ranks[0][2] != of_ranks[1][2]
