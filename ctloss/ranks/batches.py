"""A rank's batch as others get it: spelled as a message, and cut in halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.problem import Batch
from . import schedule
from .agreement import Terms
from .transport import Part


class Layout(NamedTuple):
    """How a rank's batch is spelled as a message, in the same way on all ranks.

    Attributes:
        d: columns.
        dtypes: of x, y and the rank's own candidates.
        masked: whether there are ids: of the pairs, then of each set of candidates.
        per_row: whether each anchor has its own temperature.
    """

    d: int
    dtypes: tuple[torch.dtype, ...]
    masked: tuple[bool, ...]
    per_row: bool

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        """The layout of a batch without shared candidates."""
        ids = (batch.ids, *batch.candidate_ids)
        temperature = batch.temperature
        per_row = isinstance(temperature, Tensor) and temperature.dim() > 0
        masked = tuple(one is not None for one in ids)
        return cls(batch.x.shape[1], tuple(side.dtype for side in batch.sides), masked, per_row)

    def parts(self, terms: Terms, num_directions: int) -> list[Part]:
        """The tensors of a rank's message."""
        sizes = (terms.n, terms.n, *terms.candidates)
        parts = [Part((size, self.d), dtype) for size, dtype in zip(sizes, self.dtypes, strict=True)]
        of_ids = (terms.n, *terms.candidates)
        parts += [Part((size,), torch.int64) for size, one in zip(of_ids, self.masked, strict=False) if one]
        if self.per_row:
            parts.append(Part((num_directions * terms.n,), torch.float64))
        return parts

    def tensors(self, batch: Batch) -> list[Tensor]:
        """A batch's tensors, in the order of the parts."""
        ids = [one for one in (batch.ids, *batch.candidate_ids) if one is not None]
        of_rows = [batch.temperature] if self.per_row and isinstance(batch.temperature, Tensor) else []
        return [*batch.sides, *ids, *of_rows]

    def batch(self, tensors: list[Tensor], temperature: float | Tensor) -> Batch:
        """The batch of a message; ``temperature`` is that of all ranks, if one serves all anchors."""
        sides, rest = tensors[: len(self.dtypes)], iter(tensors[len(self.dtypes) :])
        own, *others = [next(rest) if one else None for one in self.masked] or [None]
        tau = next(rest) if self.per_row else temperature
        return Batch(sides[0], sides[1], tuple(sides[2:]), tau, own, tuple(others))


def own_batch(batch: Batch, num_shared: int) -> Batch:
    """The batch without the candidates that every rank has, computed in no narrower a dtype than with them.

    Example:
        >>> batch = Batch(torch.eye(2), torch.eye(2), (torch.eye(2).double(),))
        >>> own_batch(batch, 1).x.dtype, len(own_batch(batch, 1).candidates)
        (torch.float64, 0)
    """
    if not num_shared:
        return batch
    own = batch._replace(candidates=batch.candidates[:-num_shared], candidate_ids=batch.candidate_ids[:-num_shared])
    dtype = batch.shape.dtype
    return own if own.shape.dtype == dtype else own._replace(x=batch.x.to(dtype))


def part_of(batch: Batch, part: schedule.Part, num_directions: int) -> Batch:
    """One half of a batch's pairs and candidates, or all.

    Example:
        >>> part_of(Batch(torch.eye(3), torch.eye(3)), "second", 2).x
        tensor([[0., 1., 0.],
                [0., 0., 1.]])
    """
    n = batch.x.shape[0]
    if part == "all":
        return batch
    rows, temperature = schedule.half(n, part), batch.temperature
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = temperature.view(num_directions, n)[:, rows].flatten()
    halves = [schedule.half(side.shape[0], part) for side in batch.candidates]
    of_candidates = batch.candidate_ids or (None,) * len(halves)
    return Batch(
        batch.x[rows],
        batch.y[rows],
        tuple(side[own] for side, own in zip(batch.candidates, halves, strict=True)),
        temperature,
        None if batch.ids is None else batch.ids[rows],
        tuple(None if one is None else one[own] for one, own in zip(of_candidates, halves, strict=True)),
    )


def together(batches: list[Batch], num_directions: int) -> Batch:
    """The batches of several ranks as one.

    Example:
        >>> together([Batch(torch.eye(2), torch.eye(2)), Batch(torch.eye(2)[:1], torch.eye(2)[:1])], 2).x
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]])
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    sides = [torch.cat(of_ranks) for of_ranks in zip(*(one.sides for one in batches), strict=True)]
    ids = None if first.ids is None else torch.cat([one.ids for one in batches if one.ids is not None])
    candidate_ids = []
    for of_ranks in zip(*(one.candidate_ids for one in batches), strict=True):
        given = [one for one in of_ranks if one is not None]
        candidate_ids.append(torch.cat(given) if given else None)
    temperature = first.temperature
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = of_anchors([one.temperature for one in batches], num_directions)
    return Batch(sides[0], sides[1], tuple(sides[2:]), temperature, ids, tuple(candidate_ids))


def of_anchors(of_ranks: Sequence[Any], num_directions: int) -> Tensor:
    """Numbers of the anchors of several ranks, ``(…, anchors)`` each, as those of one: x's of all ranks come first.

    Example:
        >>> of_anchors([torch.tensor([1, 2]), torch.tensor([3, 4, 5, 6])], 2)
        tensor([1, 3, 4, 2, 5, 6])
    """
    parts = [one.unflatten(-1, (num_directions, -1)) for one in of_ranks]
    return torch.cat(parts, dim=-1).flatten(-2)


def anchors_of(n: int, part: schedule.Part, num_directions: int, device: torch.device) -> Tensor:
    """The places of a part's anchors among all of a rank's.

    Example:
        >>> anchors_of(3, "second", 2, torch.device("cpu"))
        tensor([1, 2, 4, 5])
    """
    return torch.arange(num_directions * n, device=device).view(num_directions, n)[:, schedule.half(n, part)].flatten()
