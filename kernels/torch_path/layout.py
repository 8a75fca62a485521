"""Which panels of logits are formed, how high they are, and whether they are kept after the forward.

All sides are stacked, ``Z = [x; y; candidates]``. A panel is a run of anchors against a run of columns of Z, so every
set of negatives is a list of panels. Where x and y are both anchors, or a side is compared with itself, one panel can
also serve the anchors among its columns: its transposed entries are their logits. That requires a logit that is the
same both ways, hence one temperature for all rows and no margin; otherwise every anchor has panels of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..problem import Problem, Shape
from .rows import accumulation_dtype

# The largest square formed at once, by whether it is symmetric: if so, panels would form only half of it.
DENSE_ROWS = {True: 256, False: 512}
TALLEST = 256
SHORTEST = 16
TILE = 256
# Up to this many stacked rows everything is formed in float64: over so few, rounding hardly averages out.
FEW_ROWS = 64


@dataclass(frozen=True)
class Panel:
    """Stacked rows ``start:stop``, anchors of one side, against the columns ``first:last``.

    Attributes:
        start: first anchor.
        stop: one past the last anchor.
        first: first column.
        last: one past the last column.
        own: whether the first ``stop - start`` columns are the anchors themselves, and serve them both ways.
        mirror: one past the last of the columns that are anchors the panel serves too; they begin after the panel's
            own columns. Equal to where they begin if there are none.
    """

    start: int
    stop: int
    first: int
    last: int
    own: bool
    mirror: int

    @property
    def height(self) -> int:
        """Number of anchors."""
        return self.stop - self.start

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.last - self.first

    @property
    def both_ways(self) -> bool:
        """Whether any entry serves two anchors: that of its row and that of its column."""
        return self.own or self.mirror > self.first

    @property
    def outside(self) -> int:
        """The first column outside the panel's own square."""
        return self.stop if self.own else self.first


@dataclass(frozen=True)
class Layout:
    """The panels of one problem.

    Attributes:
        n: pairs.
        count: stacked rows of all sides.
        num_anchors: stacked rows that are anchors, the first ones.
        panels: every panel.
        height: most anchors of a panel.
        keep: keep every panel from the forward until the gradient is formed, instead of forming it twice.
        few: try everything at once, in float64, before any panels.
        dense: try all logits at once, as a square, before any panels.
    """

    n: int
    count: int
    num_anchors: int
    panels: tuple[Panel, ...]
    height: int
    keep: bool
    few: bool
    dense: bool

    @property
    def entries(self) -> int:
        """Number of logits in all panels."""
        return sum(panel.height * panel.width for panel in self.panels)

    @property
    def largest(self) -> int:
        """Entries of the largest panel."""
        return max((panel.height * panel.width for panel in self.panels), default=0)


def columns(side: int, n: int, count: int, negatives: str) -> list[tuple[int, int]]:
    """The runs of stacked rows that anchors of a side are compared with, self and positive among them.

    Args:
        side: 0 for x, 1 for y.
        n: pairs.
        count: stacked rows.
        negatives: as in the problem.

    Returns:
        Half-open ranges, none of them empty.

    Example:
        >>> columns(0, 4, 10, "cross"), columns(1, 4, 10, "cross")
        ([(4, 10)], [(0, 4), (8, 10)])
    """
    of_sides = {"both": (0, 1), "cross": (1 - side,), "own": (side,), "none": ()}[negatives]
    runs: list[tuple[int, int]] = []
    for first, last in [(other * n, (other + 1) * n) for other in of_sides] + [(2 * n, count)]:
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], last)
        elif first < last:
            runs.append((first, last))
    return runs


def _panels(n: int, count: int, height: int, mirrored: bool, problem: Problem) -> Iterator[Panel]:
    """Every panel, x's anchors first; none holds anchors of both x and y."""
    num_anchors = problem.num_directions * n
    for side in range(problem.num_directions):
        for start in range(side * n, (side + 1) * n, height):
            stop = min(start + height, (side + 1) * n)
            for first, last in columns(side, n, count, problem.negatives):
                if not mirrored or first >= num_anchors:
                    yield Panel(start, stop, first, last, own=False, mirror=first)
                elif first <= side * n < last:
                    # Earlier anchors have been compared with these already.
                    yield Panel(start, stop, start, last, own=True, mirror=max(stop, min(last, num_anchors)))
                elif side == 0:
                    yield Panel(start, stop, first, last, own=False, mirror=min(last, num_anchors))


@lru_cache(maxsize=1024)
def layout(shape: Shape, problem: Problem) -> Layout:
    """Choose the panels: a pure function of sizes, dtype, device type and options.

    The workspace holds two copies of the rows in the accumulation dtype, one of them centred, two panels of scratch
    and, if there is room for them, all panels. If even the shortest panels do not fit, they are used nevertheless. With
    nested embeddings every width has panels of its own; those at the same place are worked on together.

    Args:
        shape: sizes, dtype and device of the sides.
        problem: the loss call's options.

    Returns:
        The :class:`Layout`.

    Example:
        >>> layout(Shape(2048, 256), Problem()).keep
        True
        >>> [(p.first, p.last) for p in layout(Shape(4, 8, (6,)), Problem(negatives="own")).panels]
        [(0, 4), (8, 14), (4, 14)]
    """
    n, d = shape.n, shape.d
    count = 2 * n + sum(shape.candidates)
    mirrored = not shape.per_row and problem.margin is None
    item = accumulation_dtype(shape.dtype).itemsize
    spare = problem.workspace // item - 2 * count * d
    widest = max((last - first for first, last in columns(0, n, count, problem.negatives)), default=1)
    tallest = TALLEST if n >= 512 else 128
    if problem.dims is not None and len(problem.dims) > 1:
        # Gradients and a copy of the rows in float64, for all widths except the widest.
        spare -= 4 * count * sorted(problem.dims)[-2]
    widths = 1 if problem.dims is None else len(problem.dims)
    scratch = 2 if problem.dims is None else widths + 2
    height = max(SHORTEST, min(tallest, n, spare // (scratch * widest)))
    panels = tuple(_panels(n, count, height, mirrored, problem))
    # Only x and y, with no other options: the calls that the shortcuts are written for.
    plain = (
        mirrored
        and problem.dims is None
        and not shape.candidates
        and not shape.masked
        and problem.directions == "both"
        and problem.negatives in ("both", "cross")
        and shape.device_type == "cpu"
        and n > 1
    )
    side = 2 * n if problem.negatives == "both" else n
    fits = side <= DENSE_ROWS[problem.negatives == "both"] and 3 * side * side <= spare
    candidate = Layout(n, count, problem.num_directions * n, panels, height, True, plain and count <= FEW_ROWS, False)
    return Layout(
        n,
        count,
        problem.num_directions * n,
        panels,
        height,
        keep=widths * candidate.entries + scratch * candidate.largest <= spare,
        few=candidate.few,
        dense=plain and fits,
    )
