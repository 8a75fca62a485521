"""The losses of pairs over ranks: one call of all of them, and each rank's part of the loss.

The gradient that reaches a rank's rows is that of the sum of all ranks' losses. So with n pairs in all, W ranks and
``average="mean"``, where engines divide summed gradients by W, a rank's loss is W times its part of the loss that one
process would have with the whole batch; with ``"sum"`` it is that part. Ranks of equal size get the mean over their own
anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from ..core import rows
from ..core.ops import forward_mode, output_dtype
from ..core.plan import cached_plan
from ..kernels.problem import Batch, Problem
from .agreement import Description, Terms, agree, total
from .batches import Layout, own_batch
from .contrast import Call, Shared
from .definition import Defined
from .group import Across, Ranks, check_backend
from .schedule import at_once, transport
from .transport import size_of


def describe(problem: Problem, across: Across, more: Mapping[str, object]) -> Description:
    """What must be the same on all ranks, by name; ``more`` replaces an option of its name."""
    options = {field.name: repr(getattr(problem, field.name)) for field in fields(problem)}
    options |= {name: repr(getattr(across, name)) for name in ("average", "even", "shared_candidates")}
    return options | {name: str(value) for name, value in more.items()} | {"gradients": _modes()}


def _modes() -> str:
    return "enabled" if torch.is_grad_enabled() else "disabled (torch.no_grad)"


def refuse_transforms() -> None:
    """Refuse a call that torch.func or forward-mode differentiation transforms.

    Raises:
        RuntimeError: if one is active.
    """
    if torch._C._are_functorch_transforms_active() or forward_mode():
        raise RuntimeError(
            "group: expected a plain call, got one under a transform of torch.func or forward-mode differentiation, "
            "which cannot follow messages between ranks; leave out group= there"
        )


def call_of(
    problem: Problem,
    across: Across,
    ranks: Ranks,
    batch: Batch,
    *,
    bias: float | Tensor | None = None,
    about: Mapping[str, object] | None = None,
) -> tuple[Call, Batch]:
    """Agree on a call with all ranks; the batch is given back with its temperature as the others give theirs.

    Whatever decides what is exchanged later has to be the same everywhere. A loss with a bias forms the gradients of it
    and of the temperature from rows that travel again.

    Raises:
        RuntimeError: on every rank, if one makes another call.
        ValueError: on every rank, if none has any pairs.
    """
    if batch.ids is None and any(one is not None for one in batch.candidate_ids):
        raise ValueError(
            "ids: expected ids together with candidate_ids and group=, got None, which stands for places, and those of "
            "two ranks coincide; number the pairs over all ranks"
        )
    num_shared = len(batch.candidates) if across.shared_candidates else 0
    own = batch.candidates[: len(batch.candidates) - num_shared]
    temperature = batch.temperature
    masked = [one is not None for one in (batch.ids, *batch.candidate_ids)]
    more: dict[str, object] = {
        "d": batch.x.shape[1],
        "dtypes": ", ".join(str(side.dtype).removeprefix("torch.") for side in batch.sides),
        "ids": ", ".join("given" if one else "none" for one in masked),
    }
    if bias is None:
        # The sums of anchors travel with their moments, or without.
        more["learns_temperature"] = isinstance(temperature, Tensor) and temperature.requires_grad
    else:
        # With even=True a number that changes from step to step would be a new kind of call each time.
        more["bias"] = "a tensor" if isinstance(bias, Tensor) else "a number" if across.even else float(bias)
    description = describe(problem, across, {**more, **(about or {})})
    check_backend(ranks, batch.x.device)
    leaves = batch.sides if bias is None else (*batch.sides, temperature, bias)
    needs = torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in leaves)
    number = float("nan") if isinstance(temperature, Tensor) else float(temperature)
    per_row = isinstance(temperature, Tensor) and temperature.dim() > 0
    terms = Terms(batch.x.shape[0], tuple(side.shape[0] for side in own), needs, number, per_row)
    of_ranks = agree(ranks, terms, description, batch.x.device, even=across.even)
    if not any(one.n for one in of_ranks):
        raise ValueError("x and y: expected at least 1 row on some rank, got none on any; skip an empty batch")
    # Of a rank's only pair, one number may be that pair's own.
    several = any(one.per_row for one in of_ranks) or all(one.n <= 1 for one in of_ranks)
    if isinstance(temperature, Tensor) and not per_row and several:
        batch = batch._replace(temperature=temperature.expand(problem.num_directions * batch.x.shape[0]))
    return Call(ranks, of_ranks, description, problem, num_shared), batch


def contrasts(
    problem: Problem, across: Across, ranks: Ranks, batch: Batch, *, about: Mapping[str, object] | None = None
) -> tuple[Tensor, Tensor, Call]:
    """z and the positives' logits of a rank's anchors over the negatives of all ranks, float64, and the call.

    Single rows are as exact as ``problem.by_row`` says. ``about`` is what else has to be the same on all ranks.
    """
    refuse_transforms()
    call, batch = call_of(problem, across, ranks, batch, about=about)
    # The paths see no loss: only whether they return single rows.
    alone = replace(problem, loss="contrast" if problem.by_row else "cz_nce", form="log")
    # A rank without need of gradients takes part in the backward of those that have it.
    taking_part = torch.zeros((), requires_grad=call.needed and torch.is_grad_enabled())
    ids = batch.ids, batch.candidate_ids
    path = cached_plan(batch.shape._replace(n=max(1, batch.x.shape[0])), problem).path
    function = Defined if path == "reference" else Shared
    z, positive = function.apply(replace(call, problem=alone), ids, batch.temperature, taking_part, *batch.sides)
    return z, positive, call


def contrast(across: Across, ranks: Ranks, whole: Problem, problem: Problem, batch: Batch) -> tuple[Tensor, Tensor]:
    """z and the positives' logits of a rank's anchors over the negatives of all ranks.

    ``whole`` is the caller's problem, which ranks agree on; ``problem`` that of one of its widths.
    """
    z, positive, _ = contrasts(problem, across, ranks, batch, about={"dims": whole.dims})
    dtype = output_dtype(batch.shape.dtype)
    return z.to(dtype), positive.to(dtype)


def loss(
    across: Across, ranks: Ranks, weights: Tensor | None, whole: Problem, problem: Problem, batch: Batch
) -> Tensor:
    """A rank's loss, float64: see the head of this file. ``whole`` as for :func:`contrast`."""
    weighted = "none" if weights is None else "given"
    about = {"weights": weighted, "dims": whole.dims, "dim_weights": whole.dim_weights}
    z, _, call = contrasts(problem, across, ranks, batch, about=about)
    return part_of_loss(call, across, rows.values(problem, z), weights)


def part_of_loss(
    call: Call, across: Across, losses: Tensor, weights: Tensor | None, *, count: float | Tensor | None = None
) -> Tensor:
    """A rank's part of the loss of all ranks, from its row losses, times W where engines will take a mean.

    Args:
        call: whose reduction and sizes count.
        across: whether gradients are averaged or summed.
        losses: ``(rows,)`` float64.
        weights: ``(rows,)`` float64, or ``None``.
        count: the rows of all ranks in a mean without weights; all anchors by default.

    Returns:
        ``()``, or the row losses for the reduction "none".
    """
    problem, ranks = call.problem, call.ranks
    if weights is not None:
        weights = weights.double()
        losses = losses * weights
    if problem.reduction == "none":
        return losses
    factor = float(ranks.world) if across.average == "mean" else 1.0
    own = losses.sum() * factor
    if problem.reduction == "sum":
        return own
    if weights is None:
        return own / (count if count is not None else problem.num_directions * sum(one.n for one in call.terms))
    parts = torch.stack((weights.detach().sum(), own.detach()))
    of_weights, of_losses = total(ranks, call.description, parts)
    divisor = torch.where(of_weights == 0, 1.0, of_weights)
    if not weights.requires_grad:
        return own / divisor
    # The divisor is the same on all ranks, and falls with each weight of each of them: so does the sum of their losses.
    mine = weights.sum()
    return own / divisor - (of_losses / divisor**2) * (mine - mine.detach())


def explained(ranks: Ranks, across: Across, batch: Batch, problem: Problem) -> str:
    """How the rows of such a call get from rank to rank, if all ranks bring as many."""
    own = own_batch(batch, len(batch.candidates) if across.shared_candidates else 0)
    terms = Terms(own.x.shape[0], tuple(own.sizes[2:]), False, 0.0, False)
    num_bytes = size_of(Layout.of(own).parts(terms, problem.num_directions))
    how = {"gather": "gathered", "ring": "sent round a ring"}[transport(ranks.world, num_bytes, problem.workspace)]
    if how == "gathered" and at_once([sum(own.sizes)] * ranks.world, problem.workspace):
        how += " and met at once"
    return f"{ranks.world} ranks, their rows {how}, {num_bytes / 2**20:.1f} MiB each"
