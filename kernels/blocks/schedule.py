"""Which blocks of the similarity matrix are computed, in what order, within how much memory.

Every loss is a list of rectangular blocks: both languages' negatives are (x, x), (y, y) and (x, y), cross-only ones
(x, y) alone. In each the pair of equal positions is left out: a row itself, or its positive. Blocks are
cut into panels whose temporary memory fits the workspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

from ..problem import Problem
from .config import ROW_PADDING

X, Y = 0, 1


@dataclass(frozen=True)
class Panel:
    """Rows of one side against rows of another; half-open ranges that start at multiples of the row padding."""

    a: int
    a_start: int
    a_stop: int
    b: int
    b_start: int
    b_stop: int

    @property
    def diagonal(self) -> bool:
        """Whether the panel is a block of one side's rows with themselves, hence symmetric."""
        return (self.a, self.a_start) == (self.b, self.b_start)

    @property
    def excluded(self) -> int:
        """j - i, within the panel, of the pair that the two sides' equal positions make."""
        return self.a_start - self.b_start


def ranges(n: int, size: int) -> list[tuple[int, int]]:
    """Cut n rows into runs of ``size``, the last one shorter.

    >>> ranges(300, 128)
    [(0, 128), (128, 256), (256, 300)]
    """
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def unordered_panels(n: int, size: int, problem: Problem) -> Iterator[Panel]:
    """Every pair of rows once: a panel serves its rows and, unless it is diagonal, its columns too."""
    parts = ranges(n, size)
    for side in (X, Y) if problem.negatives == "both" else ():
        for position, rows in enumerate(parts):
            for columns in parts[position:]:
                yield Panel(side, *rows, side, *columns)
    for rows in parts:
        for columns in parts:
            yield Panel(X, *rows, Y, *columns)


def row_panels(n: int, size: int, side: int, rows: tuple[int, int], problem: Problem) -> Iterator[Panel]:
    """All that some rows of one side are compared with: panels that serve their rows alone."""
    for other in (side, 1 - side) if problem.negatives == "both" else (1 - side,):
        for columns in ranges(n, size):
            yield Panel(side, *rows, other, *columns)


def _fit(n: int, size: int) -> int:
    """At least one padded run of rows, at most all of them, and a multiple of the padding."""
    padded = padded_rows(n)
    return max(ROW_PADDING, min(size // ROW_PADDING * ROW_PADDING, padded))


def padded_rows(n: int) -> int:
    """The length of a vector over n rows."""
    return -(-n // ROW_PADDING) * ROW_PADDING


def forward_panel(n: int, block: int, planes: int, workspace: int) -> int:
    """Side of the square panels whose slots fit: a panel of p rows and columns has 2 p (p / block) of them."""
    return _fit(n, isqrt(workspace * block // (2 * 4 * planes)))


@dataclass(frozen=True)
class BackwardPlan:
    """How the gradient's memory is spent.

    Attributes:
        size: side of the square panels of weights.
        shared: each panel of weights serves both of its sides, which keeps float32 sums for all rows (the outputs
            themselves when they are float32). Otherwise one run of rows is finished before the next is begun, and
            every weight is computed twice.
    """

    size: int
    shared: bool


def plan_backward(
    n: int, d: int, weight_bytes: int, sums_are_outputs: bool, sides: int, workspace: int
) -> BackwardPlan:
    """Share panels if the sums of all rows leave half of the workspace to the weights.

    >>> plan_backward(65536, 768, 2, False, 2, 2**28)
    BackwardPlan(size=10752, shared=False)
    """
    sums = 0 if sums_are_outputs else sides * n * d * 4
    if 2 * sums <= workspace:
        return BackwardPlan(_fit(n, isqrt((workspace - sums) // weight_bytes)), shared=True)
    # size² weight_bytes + size · 4 d = workspace.
    size = (isqrt((4 * d) ** 2 + 4 * weight_bytes * workspace) - 4 * d) // (2 * weight_bytes)
    return BackwardPlan(_fit(n, size), shared=False)
