"""How the gradient's memory is spent, and in which order its panels come where sums of all rows do not fit.

Such a gradient is finished run by run: a run's rows have sums while its weights are formed, panel by panel. A weight
between two runs is then formed for each of them. What room is left holds the sums of the last rows throughout; a weight
of theirs is formed once, for both of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt

from ...problem import Problem
from . import layout
from .config import ROW_PADDING
from .layout import Block, Panel, Span, Stack, fit, length, partners
from .layout import cut as cut_span

# A run's products with 768 columns are one full wave on 132 SMs, long enough in these many terms.
LARGEST_RUN, MOST_COLUMNS = 44 * ROW_PADDING, 20 * ROW_PADDING


@dataclass(frozen=True)
class BackwardPlan:
    """What is held at a time.

    Attributes:
        size, columns: the largest panel of weights.
        shared: all rows have float32 sums throughout, so each panel of weights serves both of its sides. Otherwise one
            run of rows is finished before the next begins.
        held: how many rows, the last ones, have sums throughout even so.
    """

    size: int
    columns: int
    shared: bool
    held: int


def plan_backward(stack: Stack, weight_bytes: int, workspace: int) -> BackwardPlan:
    """Share panels if the sums of all rows leave half of the workspace to the weights, otherwise hold what sums fit.

    Sums of less than a quarter of the rows save too little for their memory.

    >>> from ctloss.kernels.triton_path.plan.layout import Shape, stack_of
    >>> plan_backward(stack_of(Shape(65536, 768)), 2, 2**26)
    BackwardPlan(size=5632, columns=2560, shared=False, held=0)
    >>> plan_backward(stack_of(Shape(65536, 768)), 2, 2**28)
    BackwardPlan(size=5632, columns=2560, shared=False, held=72320)
    >>> plan_backward(stack_of(Shape(65536, 768)), 2, 2**30)
    BackwardPlan(size=11264, columns=11264, shared=True, held=131072)
    """
    width = 4 * stack.width
    sums = stack.num_rows * width
    if 2 * sums <= workspace:
        size = fit(stack, min(layout.LARGEST_PANEL, isqrt((workspace - sums) // weight_bytes)))
        return BackwardPlan(size, size, shared=True, held=stack.num_rows)
    # With half as many columns as rows, size² weight_bytes / 2 + size · width = workspace.
    size = fit(stack, min(LARGEST_RUN, (isqrt(width**2 + 2 * weight_bytes * workspace) - width) // weight_bytes))
    columns = max(ROW_PADDING, min(MOST_COLUMNS, size // 2) // ROW_PADDING * ROW_PADDING)
    room = workspace - size * (width + columns * weight_bytes)
    held = max(0, room) // width // ROW_PADDING * ROW_PADDING
    return BackwardPlan(size, columns, shared=False, held=held if 4 * held >= stack.num_rows else 0)


@dataclass(frozen=True)
class Run:
    """Rows whose gradient is finished at a time, in panels.

    Attributes:
        rows: the rows.
        held: whether they have sums throughout.
        panels: the panels, and whether each also serves its columns, which are held.
    """

    rows: Span
    held: bool
    panels: list[tuple[Panel, bool]]


def held_spans(wanted: Sequence[Span], plan: BackwardPlan) -> list[Span]:
    """The wanted rows that have sums throughout.

    >>> held_spans([(0, 512), (1024, 1536)], BackwardPlan(256, 128, False, 640))
    [(384, 512), (1024, 1536)]
    """
    found: list[Span] = []
    left = plan.held
    for start, stop in reversed(wanted):
        count = min(left, stop - start)
        if count:
            found.insert(0, (stop - count, stop))
        left -= count
    return found


def runs(wanted: Sequence[Span], plan: BackwardPlan, stack: Stack, problem: Problem) -> list[Run]:
    """All wanted rows, those that are held last; every wanted row meets each of its partners once."""
    held = held_spans(wanted, plan)
    found = []
    for span in wanted:
        swept = partners(stack.side(span[0]), stack, problem)
        alone = _cut(_without(swept, held), plan.columns, stack)
        shared = _cut(_within(swept, held), plan.columns, stack)
        for rows in _cut(_without([span], held), plan.size, stack):
            panels = [(Panel(rows, part), False) for part in alone]
            found.append(Run(rows, False, panels + [(Panel(rows, part), True) for part in shared]))
    # Panels among held rows are square, and each is met from one of its sides.
    side = max(ROW_PADDING, isqrt(plan.size * plan.columns) // ROW_PADDING * ROW_PADDING)
    among = _cut(held, side, stack)
    for position, rows in enumerate(among):
        swept = partners(stack.side(rows[0]), stack, problem)
        panels = [(Panel(rows, part), False) for part in _cut(_without(swept, wanted), plan.columns, stack)]
        if _within([rows], swept):
            panels.append((Panel(rows, rows, Block(rows, rows, True, 0)), False))
        panels += [(Panel(rows, other), True) for other in among[position + 1 :] if _within([other], swept)]
        found.append(Run(rows, True, panels))
    return found


def _cut(spans: Iterable[Span], size: int, stack: Stack) -> list[Span]:
    return [part for span in spans for part in cut_span(span, size, stack)]


def _within(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The parts of spans that lie in one of the others."""
    parts = [(max(start, first), min(stop, last)) for start, stop in spans for first, last in others]
    return [part for part in parts if length(part) > 0]


def _without(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The parts of spans that lie in none of the others."""
    left = list(spans)
    for first, last in others:
        left = [part for start, stop in left for part in ((start, min(stop, first)), (max(start, last), stop))]
        left = [part for part in left if length(part) > 0]
    return left
