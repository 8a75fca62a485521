"""Rows whose sum is dominated by few negatives, summed again in float64.

Where z is returned row by row, no mean averages out the rounding of float32 logits. A sum over many comparable
negatives does, but where one pair of high cosine makes up most of a row's sum, its whole error stays: up to 3e-7 / τ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problem import Batch, Problem
from .denominators import Denominators, raise_to_largest
from .layout import Layout, columns
from .logits import Logits
from .rows import unit_rows

# With a smaller share of the sum, a negative's rounding, weighed by that share, is within the sum's own rounding.
DOMINANT = 0.1
# The error of a product grows with its partial sums; below this cosine it is less than half of what is allowed.
HIGH_COSINE = 0.5
# Stacked rows of a tile, and anchors summed at a time.
COLUMNS, ANCHORS = 256, 64


def may_be_dominated(lse: Tensor, logits: Logits) -> bool:
    """Whether any anchor may have a negative of high cosine; one whose lse is below that logit has none.

    Args:
        lse: ``(rows,)`` base-2.
        logits: what it was summed from.
    """
    return logits.rows.norms is None or bool((lse > logits.scale * HIGH_COSINE).any())


def dominated(found: Denominators, logits: Logits, plan: Layout) -> Tensor:
    """The anchors with a negative that makes up more than a tenth of the sum, by their place in the stack.

    Args:
        found: the sums, with panels or shares kept.
        logits: what they were summed from.
        plan: the panels.

    Returns:
        Indices, ``(k,)``.
    """
    if found.largest is None:
        assert found.total is not None
        assert found.kept is not None
        if not may_be_dominated(found.lse, logits):
            return torch.empty(0, dtype=torch.int64)
        largest = torch.zeros_like(found.total)
        for panel, entries in zip(plan.panels, found.kept, strict=True):
            raise_to_largest(largest, entries.view(panel.height, panel.width), panel)
        found.largest = largest / found.total
    return (found.largest > DOMINANT).nonzero().flatten()


def lse_of(anchors: Tensor, batch: Batch, logits: Logits, problem: Problem) -> Tensor:
    """Base-2 log-sum-exps of some anchors over their negatives, in float64 throughout.

    Args:
        anchors: places in the stack.
        batch: the raw rows.
        logits: their scale, ids and limits.
        problem: which rows are compared.

    Returns:
        ``(k,)`` float64; −inf for an anchor without negatives.
    """
    n = logits.n
    found = torch.empty(len(anchors), dtype=torch.float64)
    for side in range(problem.num_directions):
        of_side = ((anchors >= side * n) & (anchors < (side + 1) * n)).nonzero().flatten()
        for start in range(0, len(of_side), ANCHORS):
            chosen = of_side[start : start + ANCHORS]
            rows = batch.sides[side][anchors[chosen] - side * n]
            met = columns(side, n, len(logits.rows.stacked), problem.negatives)
            found[chosen] = lse_over(anchors[chosen], rows, met, batch.sides, logits, problem)
    return found


def lse_over(
    anchors: Tensor,
    rows: Tensor,
    met: Sequence[tuple[int, int]],
    sides: Sequence[Tensor],
    logits: Logits,
    problem: Problem,
) -> Tensor:
    """Base-2 log-sum-exps of a few anchors over some runs of stacked rows, in float64 throughout.

    Args:
        anchors: places in the stack.
        rows: their raw rows.
        met: the runs.
        sides: the raw rows of the whole stack.
        logits: their scale, ids and limits.
        problem: whether similarities are cosines.

    Returns:
        ``(k,)`` float64; −inf for an anchor without negatives.
    """
    n, ids = logits.n, logits.ids
    if ids is None:
        ids = ((slice(0, 2 * n), torch.arange(n).repeat(2)),)
    units = unit_rows(rows, problem.normalize)
    scale = logits.scale[anchors, None] if isinstance(logits.scale, Tensor) else logits.scale
    total = torch.full((len(anchors),), -torch.inf, dtype=torch.float64)
    for first, last in met:
        offset = 0
        for side in sides:
            low, high = max(first, offset), min(last, offset + len(side))
            for start in range(low, high, COLUMNS):
                stop = min(start + COLUMNS, high)
                others = unit_rows(side[start - offset : stop - offset], problem.normalize)
                entries = torch.mm(units, others.t()).mul_(scale)
                if logits.limits is not None:
                    entries.masked_fill_(entries > logits.limits[anchors, None], -torch.inf)
                for run, own in ids:
                    begin, end = max(run.start, start), min(run.stop, stop)
                    if begin < end:
                        same = ids[0][1][anchors, None] == own[begin - run.start : end - run.start]
                        entries[:, begin - start : end - start].masked_fill_(same, -torch.inf)
                peak = entries.amax(1).clamp_min(-1e300)
                part = torch.log2(torch.exp2(entries - peak.unsqueeze(1)).sum(1)) + peak
                total = torch.logaddexp2(total, part)
            offset += len(side)
    return total
