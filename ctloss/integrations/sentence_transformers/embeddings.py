"""The ranking loss of embeddings: which calls of the core make up each choice of directions, softmaxes and hardness.

With s a similarity times the scale, z = lse(negatives) − s⁺ as everywhere. A query's softmax over the documents is
softplus(z_q); a joint softmax over several directions is log(p + Σ e^z) with z one term for each part of the sum, and p
how often the positive stands in it. So everything below is a list of z, each of which one call of
:func:`ctloss.contrast` finds without forming n × n logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...contrast import Contrast
from ...core.units import unit_rows
from ...losses import contrast, cz_nce, info_nce
from ...objectives import epsilon_nce
from ...objectives.hardness import raised
from .settings import SYMMETRIC, Settings

FUNCTIONS = {"info_nce": info_nce, "cz_nce": cz_nce}
OF_ONE_RANK = 1 << 32
"""More pairs than a rank has, so that pairs of different ranks have different numbers."""


@dataclass(frozen=True)
class Columns:
    """The embeddings of one batch.

    Attributes:
        queries: ``(n, d)``.
        positives: ``(n, d)``, the document of each query.
        negatives: more documents of each query, ``(n, d)`` each.
        ids: ``(n,)`` integers; pairs with equal ids are no negatives of each other. ``None``: all pairs differ.
        group: the ranks whose rows are compared too, ``"world"`` or ``None``.
    """

    queries: Tensor
    positives: Tensor
    negatives: Sequence[Tensor] = ()
    ids: Tensor | None = None
    group: str | None = None

    @cached_property
    def hard(self) -> Tensor | None:
        """``(n k, d)``: all first negatives, then all second ones, and so on."""
        return torch.cat(list(self.negatives)) if self.negatives else None

    def numbered(self) -> Tensor:
        """``(n,)``: the ids; without them numbers that no other pair of any rank has."""
        if self.ids is not None:
            return self.ids
        first = 0 if self.group is None else dist.get_rank() * OF_ONE_RANK
        return torch.arange(first, first + len(self.queries), device=self.queries.device)


def ranking_loss(columns: Columns, settings: Settings) -> Tensor:
    """The mean loss of a batch, with several ranks this rank's part of it as :func:`ctloss.info_nce` has it.

    Returns:
        ``()``, in float32, or float64 for float64 embeddings.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`ctloss.info_nce`; ValueError for ids or a margin with a
            hardness mode that treats a query's own negatives apart.
    """
    hard = columns.hard
    blocks = _single_call(settings, hard is not None)
    options = _options(columns, settings)
    if blocks is not None:
        function = FUNCTIONS[str(settings.objective)]
        return function(
            columns.queries,
            columns.positives,
            temperature=1 / settings.scale,
            candidates=hard,
            ids=columns.ids,
            dim_weights=settings.dim_weights,
            **options,
            **blocks,
        )
    rows = torch.stack([_row_losses(softmaxes, settings) for softmaxes in _of_widths(columns, settings, options)])
    losses = _mean(rows, columns.group)
    weights = torch.tensor(settings.dim_weights or (1.0,) * len(losses), dtype=losses.dtype, device=losses.device)
    return (losses * weights).sum().to(torch.promote_types(columns.queries.dtype, torch.float32))


def _options(columns: Columns, settings: Settings) -> dict[str, Any]:
    return {
        "normalize": settings.cosine,
        "margin": settings.margin,
        "dims": settings.dims,
        "group": columns.group,
    }


def _single_call(settings: Settings, hard: bool) -> dict[str, Any] | None:
    """The options with which one call of a loss is the whole; ``None`` if several have to be put together."""
    if settings.hardness or callable(settings.objective):
        return None
    directions = set(settings.directions)
    if directions == {"query_to_doc"}:
        return {"negatives": "cross", "directions": "x"}
    if directions == {"query_to_doc", "query_to_query"}:
        return {"negatives": "both", "directions": "x"}
    if directions == set(SYMMETRIC) and settings.partition_mode == "per_direction" and not hard:
        return {"negatives": "cross", "directions": "both"}
    return None


@dataclass(frozen=True)
class Softmaxes:
    """What the rows of a batch are compared with, at one width or, with ``dims``, at each of several.

    Attributes:
        positive: the positives' logits, float64.
        of_queries: z of each part of the queries' sum, relative to the positive.
        of_documents: the same for the positives' documents.
    """

    positive: Tensor
    of_queries: list[Tensor]
    of_documents: list[Tensor]

    def at(self, width: int) -> Softmaxes:
        """The parts at one of several widths."""
        return Softmaxes(
            self.positive[width], [z[width] for z in self.of_queries], [z[width] for z in self.of_documents]
        )


def _of_widths(columns: Columns, settings: Settings, options: dict[str, Any]) -> Iterator[Softmaxes]:
    positive, of_queries = _query_parts(columns, settings, options)
    found = Softmaxes(positive, of_queries, list(_document_parts(columns, settings, options)))
    if settings.dims is None:
        yield found
        return
    yield from (found.at(width) for width in range(len(settings.dims)))


def _row_losses(softmaxes: Softmaxes, settings: Settings) -> Tensor:
    """``(n,)`` float64 losses at one width."""
    if settings.partition_mode == "joint":
        z = _added([*softmaxes.of_queries, *softmaxes.of_documents])
        return _objective(Contrast(z, softmaxes.positive), settings, settings.joint_positives)
    parts = [softmaxes.of_queries, softmaxes.of_documents] if softmaxes.of_documents else [softmaxes.of_queries]
    losses = [_objective(Contrast(_added(part), softmaxes.positive), settings, 1) for part in parts]
    return torch.stack(losses).mean(0)


def _objective(c: Contrast, settings: Settings, positives: int) -> Tensor:
    if callable(settings.objective):
        return settings.objective(c)
    if settings.objective == "cz_nce":
        return epsilon_nce(c, 0.0)
    # A row without negatives is left with its positives.
    return epsilon_nce(c, positives).where(c.z > -math.inf, math.log(positives))


def _added(parts: list[Tensor]) -> Tensor:
    """log Σ e^z; −∞ with a zero gradient where all are."""
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(parts)
    empty = stacked == -math.inf
    # Far below any logit, but finite: a difference of two infinities would be NaN.
    return torch.logsumexp(stacked.masked_fill(empty, -1e300), 0).masked_fill(empty.all(0), -math.inf)


def _query_parts(columns: Columns, settings: Settings, options: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The positives' logits, and z of every part of the queries' sum."""
    strength, hardness, hard = settings.hardness_strength, settings.hardness, columns.hard
    own_apart = hardness in ("in_batch_negatives", "hard_negatives") and hard is not None
    if hardness == "hard_negatives" and hard is None:
        hardness = None
    if own_apart and (columns.ids is not None or settings.margin is not None):
        raise ValueError(
            "hardness_mode: expected None or 'all_negatives' with hard negatives and ids or a margin, got "
            f"{hardness!r}, which treats each query's own negatives apart; leave out one of them"
        )
    raise_batch = hardness in ("in_batch_negatives", "all_negatives")
    factor = 1 + strength / settings.scale if raise_batch else 1.0
    among_queries = "query_to_query" in settings.directions
    with_queries = among_queries and not raise_batch
    ids = columns.numbered() if own_apart else columns.ids
    found = contrast(
        columns.queries,
        columns.positives,
        temperature=1 / (settings.scale * factor),
        candidates=hard,
        ids=ids,
        candidate_ids=_of_hard(ids, columns) if own_apart and ids is not None else None,
        negatives="both" if with_queries else "cross",
        directions="x",
        **options,
    )
    found = Contrast(found.z.double(), found.positive.double())
    parts = [raised(found, factor)]
    if among_queries and not with_queries:
        parts.append(_contrast(columns.queries, columns.positives, columns.ids, settings, options, negatives="own").z)
    if own_apart:
        parts.append(_own_negatives(columns, settings, strength if hardness == "hard_negatives" else 0.0))
    return found.positive / factor, [part.double() for part in parts]


def _document_parts(columns: Columns, settings: Settings, options: dict[str, Any]) -> Iterator[Tensor]:
    """z of every part of the documents' sum: a positive against queries, and against documents of other pairs."""
    to_queries, to_documents = (name in settings.directions for name in ("doc_to_query", "doc_to_doc"))
    if not to_queries and not to_documents:
        return
    hard = columns.hard if to_documents else None
    ids = columns.ids if hard is None else columns.numbered()
    negatives = ("both" if to_queries else "own") if to_documents else "cross"
    yield _contrast(
        columns.positives,
        columns.queries,
        ids,
        settings,
        options,
        negatives=negatives,
        candidates=hard,
        candidate_ids=_of_hard(ids, columns) if hard is not None and ids is not None else None,
    ).z.double()


def _contrast(
    x: Tensor, y: Tensor, ids: Tensor | None, settings: Settings, options: dict[str, Any], **more: Any
) -> Contrast:
    return contrast(x, y, temperature=1 / settings.scale, ids=ids, directions="x", **options, **more)


def _of_hard(ids: Tensor, columns: Columns) -> Tensor:
    """The ids of the hard negatives: those of their queries."""
    return ids.repeat(len(columns.negatives))


def _own_negatives(columns: Columns, settings: Settings, strength: float) -> Tensor:
    """z over each query's own hard negatives alone: n k products, which need no kernel."""

    def at(width: int | None) -> Tensor:
        sides = (columns.queries, columns.positives, *columns.negatives)
        queries, positives, *negatives = (
            unit_rows(side[:, :width]) if settings.cosine else side[:, :width].double() for side in sides
        )
        of_positive = (queries * positives).sum(1)
        similarities = torch.stack([(queries * one).sum(1) for one in negatives])
        logits = (similarities - of_positive) * settings.scale + strength * similarities.detach()
        return torch.logsumexp(logits, 0)

    with torch.autocast(columns.queries.device.type, enabled=False):
        return at(None) if settings.dims is None else torch.stack([at(width) for width in settings.dims])


def _mean(rows: Tensor, group: str | None) -> Tensor:
    """The mean over the last dimension; of several ranks, this rank's sum times their number over all rows."""
    if group is None:
        return rows.mean(-1)
    total = torch.tensor(rows.shape[-1], dtype=torch.float64, device=rows.device)
    dist.all_reduce(total)
    return rows.sum(-1) * (dist.get_world_size() / total.clamp(min=1))
