"""Which panels of logits are formed, how high they are, and whether they outlive the forward.

With the rows stacked as ``Z = [x; y]`` one shape of panel serves both kinds of negatives: rows ``start:stop`` of Z
against its columns from ``first`` on. Negatives of both languages make S symmetric, so a panel starts at its own
diagonal (``first = start``) and stands for its mirror image as well; its first ``stop - start`` columns are their own.
Negatives of the other language alone need x's rows against y's columns (``first = n``), read both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..problem import Problem
from .rows import accumulation_dtype

# Sides of a square formed at once, by whether it is symmetric: if so, panels would form but half of it.
DENSE_ROWS = {True: 256, False: 512}
TALLEST = 256
SHORTEST = 16
TILE = 256


@dataclass(frozen=True)
class Panel:
    """Rows ``start:stop`` of the stacked rows against the columns ``first:``.

    Attributes:
        start: first row.
        stop: one past the last row.
        first: first column.
        mirror: first column whose transposed entries belong to the panel too.
    """

    start: int
    stop: int
    first: int
    mirror: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """The panels of one problem.

    Attributes:
        n: pairs.
        symmetric: negatives of both languages.
        height: most rows of a panel.
        dense: try all logits at once, square, before any panels.
        keep: hold every panel from the forward until the gradient is formed, instead of forming it twice.
    """

    n: int
    symmetric: bool
    height: int
    keep: bool
    dense: bool

    def panels(self) -> Iterator[Panel]:
        """Every panel, x's rows first; none holds rows of both x and y."""
        for side in range(2 if self.symmetric else 1):
            for start in range(side * self.n, (side + 1) * self.n, self.height):
                stop = min(start + self.height, (side + 1) * self.n)
                yield Panel(start, stop, start if self.symmetric else self.n, stop if self.symmetric else self.n)

    @property
    def entries(self) -> int:
        """Logits in all panels together."""
        return sum(panel.height * (2 * self.n - panel.first) for panel in self.panels())


@lru_cache(maxsize=256)
def layout(n: int, d: int, dtype: torch.dtype, device_type: str, problem: Problem) -> Layout:
    """Choose the panels: a pure function of shape, dtype, device type and options.

    The workspace holds two copies of the rows in the accumulation dtype, one centred, two panels of scratch and, if
    they fit beside those, all panels; where row losses are returned one by one, also the rows and a tile in float64.
    Where even the shortest panels do not fit, they are used all the same.

    Args:
        n: pairs.
        d: columns.
        dtype: the inputs' dtype.
        device_type: ``"cpu"``, ``"cuda"``, …
        problem: the loss call's options.

    Returns:
        The :class:`Layout`.

    Example:
        >>> problem = Problem("cz_nce", "both", True, "mean", "highest", 1 << 28)
        >>> layout(2048, 256, torch.float32, "cpu", problem).keep
        True
    """
    symmetric = problem.negatives == "both"
    item = accumulation_dtype(dtype).itemsize
    one_by_one = problem.reduction == "none"
    # Two copies of the rows, and where row losses are returned one by one a third of twice the width.
    spare = problem.workspace // item - (8 if one_by_one else 4) * n * d
    width = 2 * n if symmetric else n
    tallest = TALLEST if n >= 512 else 128
    # A row of two panels, and of a float64 tile.
    row = 2 * width + (2 * TILE if one_by_one else 0)
    height = max(SHORTEST, min(tallest, n, spare // row))
    candidate = Layout(n, symmetric, height, keep=True, dense=False)
    keep = not one_by_one and candidate.entries + 2 * height * width <= spare
    dense = device_type == "cpu" and width <= DENSE_ROWS[symmetric] and 3 * width * width <= spare
    return Layout(n, symmetric, height, keep, dense)
