"""The losses in what trains on several ranks: DDP, FSDP2, accumulation, checkpointing, compilers, DTensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ctloss
from support.calls import WHOLE_GRAPHS
from support.ranks.pool import shared

WIDTH, N = 6, 13


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    return queries, queries + 0.5 * torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)


class Encoder(nn.Module):
    """Two layers, and the temperature of the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Linear(WIDTH, 8, dtype=torch.float64)
        self.outer = nn.Linear(8, WIDTH, dtype=torch.float64)
        self.temperature = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def forward(self, queries: Tensor, documents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = (self.outer(torch.tanh(self.inner(rows))) for rows in (queries, documents))
        return x, y, self.temperature.clone()


def of_one_process(steps: int, loss: Callable[..., Tensor]) -> list[Tensor]:
    """The losses and the last gradients of one process with the whole batch."""
    encoder, losses = Encoder(), []
    for step in range(steps):
        x, y, temperature = encoder(*batch(step))
        losses.append(loss(x, y, temperature=temperature))
        (losses[-1] / steps).backward()
    return [torch.stack(losses).detach(), *(one.grad for one in encoder.parameters() if one.grad is not None)]


def own(rows: Tensor, group: Any, empty: bool) -> Tensor:
    """A rank's rows: uneven parts, the last of them empty if so."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    bounds = [0, *(N * (k + 1) // (world + 1) + (k if not empty else 0) for k in range(world - 1)), N]
    if empty:
        bounds[-2] = N
    return rows[bounds[rank] : bounds[rank + 1]]


def under_ddp(group: Any, steps: int, empty: bool) -> list[Tensor]:
    encoder, losses = DistributedDataParallel(Encoder(), process_group=group), []
    for step in range(steps):
        last = step == steps - 1
        with encoder.no_sync() if not last else torch.enable_grad():
            x, y, temperature = encoder(*(own(rows, group, empty) for rows in batch(step)))
            loss = ctloss.info_nce(x, y, temperature=temperature, group=group)
            (loss / steps).backward()
        losses.append(loss.detach())
    return [torch.stack(losses), *(one.grad for one in encoder.parameters() if one.grad is not None)]


def agree(of_ranks: list[list[Tensor]], wanted: list[Tensor]) -> None:
    torch.testing.assert_close(torch.stack([one[0] for one in of_ranks]).mean(0), wanted[0], rtol=1e-12, atol=1e-12)
    for found in of_ranks:
        assert len(found) == len(wanted)
        for gradient, exact in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("world", "steps", "empty"), [(2, 1, False), (3, 1, True), (4, 3, False)])
def test_ddp_is_one_process_also_with_accumulation(world: int, steps: int, empty: bool) -> None:
    found = shared().run(world, under_ddp, [steps] * world, [empty] * world)
    agree(found, of_one_process(steps, ctloss.info_nce))


def from_chunks(group: Any) -> list[Tensor]:
    encoder = DistributedDataParallel(Encoder(), process_group=group)
    queries, documents = (own(rows, group, False) for rows in batch())
    cache = ctloss.GradientCache(chunk=2)

    def encode(rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y, _ = encoder(*rows)
        return x, y

    x, y = cache(encode, (queries, documents))
    loss = ctloss.info_nce(x, y, temperature=encoder.module.temperature, group=group)
    loss.backward()
    return [loss.detach().view(1), *(one.grad for one in encoder.parameters() if one.grad is not None)]


def test_the_gradient_cache_under_ddp_is_one_process() -> None:
    agree(shared().run(3, from_chunks), of_one_process(1, ctloss.info_nce))


def under_fsdp(group: Any) -> list[Tensor]:
    encoder = Encoder()
    mesh = DeviceMesh.from_group(group, "cpu")
    # A scalar cannot be sharded.
    kept = {encoder.temperature}
    fully_shard(encoder.inner, mesh=mesh)
    fully_shard(encoder, mesh=mesh, ignored_params=kept)
    x, y, temperature = encoder(*(own(rows, group, False) for rows in batch()))
    loss = ctloss.cz_nce(x, y, temperature=temperature, group=mesh)
    loss.backward()
    assert encoder.temperature.grad is not None
    dist.all_reduce(encoder.temperature.grad, group=group)
    encoder.temperature.grad /= dist.get_world_size(group)
    gradients = [one.grad for one in encoder.parameters() if one.grad is not None]
    whole = [one.full_tensor() if isinstance(one, DTensor) else one for one in gradients]
    return [loss.detach().view(1), *whole]


def test_fsdp2_is_one_process() -> None:
    agree(shared().run(2, under_fsdp), of_one_process(1, ctloss.cz_nce))


def added_up(group: Any) -> list[Tensor]:
    encoder = Encoder()
    x, y, temperature = encoder(*(own(rows, group, False) for rows in batch()))
    loss = ctloss.cz_nce(x, y, temperature=temperature, group=group, average="sum")
    loss.backward()
    gradients = [one.grad for one in encoder.parameters() if one.grad is not None]
    for gradient in gradients:
        dist.all_reduce(gradient, group=group)
    return [loss.detach().view(1) * dist.get_world_size(group), *gradients]


def test_engines_that_add_gradients() -> None:
    agree(shared().run(3, added_up), of_one_process(1, ctloss.cz_nce))


def checkpointed(group: Any) -> list[Tensor]:
    encoder = DistributedDataParallel(Encoder(), process_group=group)

    def loss_of(queries: Tensor, documents: Tensor) -> Tensor:
        x, y, temperature = encoder.module(queries, documents)
        return ctloss.info_nce(x, y, temperature=temperature, group=group)

    rows = [own(one, group, False) for one in batch()]
    # The module inside takes part in the gradient, so DDP is told of a forward.
    encoder(*rows)
    loss = checkpoint(loss_of, *rows, use_reentrant=False)
    loss.backward()
    return [loss.detach().view(1), *(one.grad for one in encoder.parameters() if one.grad is not None)]


def test_activation_checkpointing_runs_the_exchange_again() -> None:
    agree(shared().run(2, checkpointed), of_one_process(1, ctloss.info_nce))


def of_dtensors(group: Any) -> list[Tensor]:
    mesh = DeviceMesh.from_group(group, "cpu")
    leaves = [distribute_tensor(rows, mesh, [Shard(0)]).requires_grad_() for rows in batch()]
    loss = ctloss.info_nce(*leaves, temperature=0.3)
    loss.backward()
    messages = []
    for wrong in ({"x": distribute_tensor(batch()[0], mesh, [Replicate()])}, {"group": dist.group.WORLD}):
        try:
            ctloss.info_nce(**({"x": leaves[0], "y": leaves[1]} | wrong))
        except (TypeError, ValueError) as error:
            messages.append(str(error))
    assert "expected a DTensor sharded along its rows" in messages[0]
    assert "expected the group of x's mesh" in messages[1]
    gradients = [leaf.grad.full_tensor() for leaf in leaves if isinstance(leaf.grad, DTensor)]
    return [loss.detach().view(1), *(one / dist.get_world_size(group) for one in gradients)]


def test_sharded_rows_are_taken_as_what_they_are() -> None:
    leaves = [rows.requires_grad_() for rows in batch()]
    loss = ctloss.info_nce(*leaves, temperature=0.3)
    loss.backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    agree(shared().run(2, of_dtensors), [loss.detach().view(1), *gradients])


def frozen_here(group: Any, frozen: bool) -> Tensor | None:
    """One rank's rows need no gradient; the others' still get all of theirs."""
    x, y = (own(rows, group, False).clone() for rows in batch())
    if not frozen:
        x.requires_grad_()
    loss = ctloss.cz_nce(x, y, temperature=0.3, group=group)
    assert loss.requires_grad
    loss.backward()
    return x.grad


def test_a_rank_whose_rows_need_no_gradient_takes_part() -> None:
    x = batch()[0].requires_grad_()
    ctloss.cz_nce(x, batch()[1], temperature=0.3).backward()
    assert x.grad is not None
    found = shared().run(3, frozen_here, [False, True, False])
    assert found[1] is None
    bounds = [0, N // 4, 2 * N // 4 + 1, N]
    for rank in (0, 2):
        torch.testing.assert_close(found[rank] / 3, x.grad[bounds[rank] : bounds[rank + 1]])


def compiled_around(group: Any) -> list[Tensor]:
    encoder = Encoder()
    before = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    after = torch.compile(lambda loss: loss * 2.0, fullgraph=True, backend="aot_eager")

    def step(queries: Tensor, documents: Tensor) -> Tensor:
        x, y, temperature = before(queries, documents)
        return after(ctloss.info_nce(x, y, temperature=temperature, group=group)) / 2.0

    rows = [own(one, group, False) for one in batch()]
    loss = step(*rows)
    # Whole steps compiled break their graph at the loss, and give the same.
    again = torch.compile(step, backend="aot_eager")(*rows)
    assert torch.equal(loss, again)
    labels = torch.arange(len(rows[0]))
    for other in (
        lambda x, y: ctloss.sig_lip(x, y, group=group) * 2,
        lambda x, y: ctloss.sup_con(x, labels, group=group) * 2,
        lambda x, y: ctloss.contrast(x, y, group=group).z * 2,
    ):
        assert torch.equal(torch.compile(other, backend="aot_eager")(*rows), other(*rows))
    loss.backward()
    gradients = [one.grad for one in encoder.parameters() if one.grad is not None]
    for gradient in gradients:
        dist.all_reduce(gradient, group=group)
        gradient /= dist.get_world_size(group)
    return [loss.detach().view(1), *gradients]


def test_compiled_functions_on_either_side() -> None:
    agree(shared().run(2, compiled_around), of_one_process(1, ctloss.info_nce))


@WHOLE_GRAPHS
def test_no_group_is_no_reason_to_break_a_graph() -> None:
    x, y = batch()
    compiled = torch.compile(lambda x, y: ctloss.info_nce(x, y, group=None), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), ctloss.info_nce(x, y))


def twice(group: Any, dtype: torch.dtype) -> list[Tensor]:
    found = []
    for _ in range(2):
        x, y = (own(rows, group, False).to(dtype).requires_grad_() for rows in batch())
        loss = ctloss.info_nce(x, y, group=group)
        loss.backward()
        found.append((loss.detach(), x.grad, y.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    return [one for one in found[0] if one is not None]


def test_the_same_ranks_give_the_same_bits() -> None:
    assert len(shared().run(3, twice, [torch.float32] * 3)) == 3


def of_module(group: Any) -> tuple[Tensor, str, str]:
    x, y = (own(rows, group, False) for rows in batch())
    criterion = ctloss.InfoNCELoss(temperature=0.3, group=group)
    plan = ctloss.explain(x.float(), y.float(), group=group)
    return criterion(x, y), repr(criterion), str(plan)


def test_modules_and_plans_know_their_ranks() -> None:
    found = shared().run(2, of_module)
    wanted = ctloss.info_nce(*batch(), temperature=0.3)
    torch.testing.assert_close(torch.stack([one[0] for one in found]).mean(), wanted)
    assert "group=" in found[0][1]
    assert "negatives of: 2 ranks, their rows gathered" in found[0][2]
