"""The reference path over ranks: each forms what one process with all rows would, in float64, and takes its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.ops import NO_SECOND_DERIVATIVE, Refused
from ..kernels.problem import Batch
from ..reference import ranks as reference
from .agreement import watched
from .batches import Layout, own_batch
from .contrast import Call
from .transport import Gathered, Part, pack, size_of, unpack


class Defined(torch.autograd.Function):
    """(z, positive) of a rank's anchors, as :class:`~ctloss.ranks.contrast.Shared` returns them."""

    @staticmethod
    def forward(ctx: Any, call: Call, ids: Any, temperature: Any, taking_part: Tensor, *sides: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.needs = ctx.needs_input_grad
        leaves = [side.detach().requires_grad_() for side in sides]
        tau = temperature
        if isinstance(temperature, Tensor):
            tau = temperature.detach().requires_grad_()
        batch = Batch(leaves[0], leaves[1], tuple(leaves[2:]), tau, *ids)
        with watched(call.ranks, call.description):
            brought = _gathered(call, batch)
        problem = call.problem
        with torch.enable_grad(), torch.autocast(sides[0].device.type, enabled=False):
            found = reference.contrast(
                brought,
                negatives=problem.negatives,
                directions=problem.directions,
                normalize=problem.normalize,
                margin=problem.margin,
                shared_candidates=call.num_shared > 0,
            )
        own = found[call.ranks.rank]
        ctx.call, ctx.graph = call, (found, leaves, tau)
        ctx.save_for_backward(*sides)
        return own[0].detach().clone(), own[1].detach().clone()

    @staticmethod
    def backward(ctx: Any, of_z: Tensor | None, of_positive: Tensor | None) -> tuple[Tensor | None, ...]:
        call, (found, leaves, tau) = ctx.call, ctx.graph
        ranks = call.ranks
        own = torch.stack(
            [torch.zeros_like(found[ranks.rank][0]) if one is None else one for one in (of_z, of_positive)]
        )
        parts = [[Part((2, call.anchors(rank)), torch.float64)] for rank in range(ranks.world)]
        with torch.no_grad(), watched(ranks, call.description):
            message = pack([own], parts[ranks.rank])
            arriving = Gathered(ranks, message, [size_of(one) for one in parts], ranks.world - 1)
            upstream = {ranks.rank: own}
            for hop, arrived in enumerate(arriving, 1):
                upstream[ranks.peer(hop)] = unpack(arrived, parts[ranks.peer(hop)])[0]
            num_own = len(leaves) - call.num_shared
            gradients = _gradients(found, upstream, leaves[:num_own])
            # What all ranks have is theirs to average: each brings the part of its own anchors.
            alone = {ranks.rank: upstream[ranks.rank]}
            shared = _gradients(found, alone, leaves[num_own:])
            slope = _gradients(found, alone, [tau])[0] if isinstance(tau, Tensor) else None
        results: list[Tensor | None] = [slope, *gradients, *shared]
        if torch.is_grad_enabled():
            sources = [one for one in (of_z, of_positive, *ctx.saved_tensors) if one is not None]
            results = [None if one is None else Refused.apply(one, NO_SECOND_DERIVATIVE, *sources) for one in results]
        return None, None, results[0], None, *results[1:]


def _gathered(call: Call, batch: Batch) -> list[reference.Rows]:
    """What every rank brings; this rank's own tensors among them."""
    ranks, own = call.ranks, own_batch(batch, call.num_shared)
    layout = Layout.of(own)
    parts = [layout.parts(one, call.problem.num_directions) for one in call.terms]
    message = pack([one.detach() for one in layout.tensors(own)], parts[ranks.rank])
    arriving = Gathered(ranks, message, [size_of(one) for one in parts], ranks.world - 1)
    shared = batch.candidates[len(batch.candidates) - call.num_shared :]
    tau = batch.temperature.detach() if isinstance(batch.temperature, Tensor) else batch.temperature
    found = {ranks.rank: batch}
    for hop, arrived in enumerate(arriving, 1):
        peer = ranks.peer(hop)
        other = layout.batch(unpack(arrived, parts[peer]), tau)
        found[peer] = other._replace(
            candidates=(*other.candidates, *shared),
            candidate_ids=(*other.candidate_ids, *batch.candidate_ids[len(own.candidates) :]),
        )
    of_ranks = [found[rank] for rank in range(ranks.world)]
    return [
        reference.Rows(one.x, one.y, one.candidates, one.temperature, one.ids, one.candidate_ids) for one in of_ranks
    ]


def _gradients(
    found: list[tuple[Tensor, Tensor]], upstream: dict[int, Tensor], leaves: list[Tensor]
) -> list[Tensor | None]:
    if not leaves:
        return []
    outputs = [output for rank in upstream for output in found[rank]]
    given = [one for rank in upstream for one in upstream[rank]]
    return list(
        torch.autograd.grad(outputs, leaves, given, retain_graph=True, allow_unused=True, materialize_grads=True)
    )
