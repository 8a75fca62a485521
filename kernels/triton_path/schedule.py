"""Which blocks of the similarity matrix are computed, in what order, within how much memory.

The 2n rows are stacked, x's before y's, each side padded to whole tiles. Both languages' negatives are all pairs of
stacked rows, cross-only ones the rectangle x by y; in either, two rows of equal positions (a row itself, or its
positive) are left out. Blocks are cut into panels whose temporary memory fits the workspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

from ..problem import Problem
from . import config
from .config import ROW_PADDING, SMALL_PADDING, WIDTH_PADDING, BlockConfig

X, Y = 0, 1
# Beyond this side a panel of weights gains nothing; its products with 768 columns are two full waves on 132 SMs.
LARGEST_PANEL = 88 * ROW_PADDING

# Where weights stay in registers: programs for two full waves of three on each of 132 SMs, and their shortest sweep.
FLASH_PROGRAMS = 768
LEAST_SWEEP = 256


@dataclass(frozen=True)
class Panel:
    """Stacked rows against stacked rows; half-open ranges of whole tiles."""

    a_start: int
    a_stop: int
    b_start: int
    b_stop: int

    @property
    def diagonal(self) -> bool:
        """Whether the panel is a block of rows with themselves, hence symmetric."""
        return self.a_start == self.b_start


def padded_rows(n: int) -> int:
    """Rows of one side with its padding to whole tiles, which are half as large in small batches.

    >>> padded_rows(300), padded_rows(1100)
    (320, 1152)
    """
    padding = ROW_PADDING if n >= config.MANY_PAIRS else SMALL_PADDING
    return -(-n // padding) * padding


def padded_width(d: int) -> int:
    """Columns of the packed rows.

    >>> padded_width(100)
    128
    """
    return -(-d // WIDTH_PADDING) * WIDTH_PADDING


def keeps_products(n: int, problem: Problem) -> bool:
    """Whether the batch is small, and the dot products of all its rows fit the workspace."""
    if n > config.SMALL_PAIRS:
        return False
    return 4 * product_floats(n, problem) <= problem.workspace


def product_columns(n: int, problem: Problem) -> int:
    """Stacked rows that a row is multiplied with."""
    return padded_rows(n) if problem.negatives == "cross" else 2 * padded_rows(n)


def product_parts(n: int) -> int:
    """How many float32 numbers a product is kept as: few are formed in float64, which two hold."""
    return 2 if n <= config.FEW_PAIRS else 1


def product_floats(n: int, problem: Problem) -> int:
    """How many float32 numbers the dot products of all stacked rows are kept as.

    >>> product_floats(300, Problem("cz_nce", "both", True, "mean", "highest", 2**28)) == 640 * 640
    True
    """
    return 2 * padded_rows(n) * product_columns(n, problem) * product_parts(n)


def side_runs(n: int, size: int, side: int) -> list[tuple[int, int]]:
    """Cut one side's stacked rows into runs of ``size``, the last one shorter.

    >>> side_runs(300, 256, Y)
    [(320, 576), (576, 640)]
    """
    padded = padded_rows(n)
    first, last = side * padded, (side + 1) * padded
    return [(start, min(start + size, last)) for start in range(first, last, size)]


def runs(n: int, size: int) -> list[tuple[int, int]]:
    """Cut all stacked rows into runs: one if it can hold both sides, else runs within a side."""
    padded = padded_rows(n)
    return [(0, 2 * padded)] if 2 * padded <= size else side_runs(n, size, X) + side_runs(n, size, Y)


def unordered_panels(n: int, size: int, problem: Problem) -> Iterator[Panel]:
    """Every pair of rows once: a panel serves its rows and, unless it is diagonal, its columns too."""
    if problem.negatives == "both":
        parts = runs(n, size)
        for position, rows in enumerate(parts):
            for columns in parts[position:]:
                yield Panel(*rows, *columns)
        return
    for rows in side_runs(n, size, X):
        for columns in side_runs(n, size, Y):
            yield Panel(*rows, *columns)


def row_panels(n: int, size: int, side: int, rows: tuple[int, int], problem: Problem) -> Iterator[Panel]:
    """All that a run of rows of one side is compared with: panels that serve their rows alone."""
    for columns in runs(n, size) if problem.negatives == "both" else side_runs(n, size, 1 - side):
        yield Panel(*rows, *columns)


def num_tiles(n: int, block: int, problem: Problem) -> int:
    """Tiles that hold every pair of rows once.

    >>> num_tiles(300, 64, Problem("cz_nce", "both", True, "mean", "highest", 2**28))
    55
    """
    tiles = padded_rows(n) // block
    return tiles * tiles if problem.negatives == "cross" else tiles * (2 * tiles + 1)


def kept_tiles(n: int, d: int, chosen: BlockConfig, problem: Problem) -> int:
    """How many tiles of logits the forward keeps: all, as many as fit, or none if that is less than half of them.

    Beside them there has to be room for the sums of all rows and for as large a panel of weights as is any use: so the
    backward's plan is a shared one, whose panels lie above the diagonal as the kept tiles do.
    """
    if not chosen.keeps or chosen.halves != "none" or n <= config.SMALL_PAIRS:
        return 0
    sums = 2 * padded_rows(n) * 4 * padded_width(d)
    panel = min(LARGEST_PANEL, 2 * padded_rows(n)) ** 2 * chosen.weight_bytes
    room = problem.workspace - sums - max(sums, panel)
    every = num_tiles(n, chosen.block, problem)
    kept = min(every, room // tile_bytes(chosen))
    return kept if 2 * kept >= every else 0


def tile_bytes(chosen: BlockConfig) -> int:
    """What a tile of kept logits takes in memory."""
    return chosen.block**2 * chosen.kept_dtype.itemsize


def _fit(n: int, size: int) -> int:
    """At least one padded run of rows, at most all of them, and a multiple of the padding."""
    return max(ROW_PADDING, min(size // ROW_PADDING * ROW_PADDING, 2 * padded_rows(n)))


def forward_panel(n: int, block: int, planes: int, workspace: int) -> int:
    """Side of the square panels whose slots fit: a panel of p rows and columns has 2 p (p / block) of them."""
    return _fit(n, isqrt(workspace * block // (2 * 4 * planes)))


@dataclass(frozen=True)
class BackwardPlan:
    """How the gradient's memory is spent.

    Attributes:
        size: side of the square panels of weights.
        shared: each panel of weights serves both of its sides, which keeps float32 sums for all rows. Otherwise one
            run of rows is finished before the next is begun, and every weight is computed twice.
    """

    size: int
    shared: bool


def plan_backward(n: int, d: int, weight_bytes: int, workspace: int) -> BackwardPlan:
    """Share panels if the sums of all rows leave half of the workspace to the weights.

    >>> plan_backward(65536, 768, 2, 2**28)
    BackwardPlan(size=10752, shared=False)
    >>> plan_backward(65536, 768, 2, 2**30)
    BackwardPlan(size=11264, shared=True)
    """
    width = 4 * padded_width(d)
    sums = 2 * padded_rows(n) * width
    if 2 * sums <= workspace:
        return BackwardPlan(_fit(n, min(LARGEST_PANEL, isqrt((workspace - sums) // weight_bytes))), shared=True)
    # size² weight_bytes + size · width = workspace.
    size = (isqrt(width**2 + 4 * weight_bytes * workspace) - width) // (2 * weight_bytes)
    return BackwardPlan(_fit(n, min(LARGEST_PANEL, size)), shared=False)


@dataclass(frozen=True)
class FlashPlan:
    """How the gradient without a matrix of weights is shared out.

    Attributes:
        shares: programs that share all that a row is compared with; each keeps a float32 sum of every row.
        sweep: stacked rows that one of them sweeps.
        run: stacked rows that sums are kept of at a time.
    """

    shares: int
    sweep: int
    run: int


def plan_flash(n: int, d: int, block: int, problem: Problem) -> FlashPlan:
    """As many shares as occupy a device, sweep enough to be worth a start, and fit the workspace.

    >>> plan_flash(4096, 64, 64, Problem("cz_nce", "both", True, "mean", "highest", 2**30))
    FlashPlan(shares=6, sweep=1408, run=8192)
    """
    num_rows, num_columns = 2 * padded_rows(n), product_columns(n, problem)
    row_bytes = 4 * padded_width(d)
    wanted = min(-(-FLASH_PROGRAMS * block // num_rows), num_columns // LEAST_SWEEP)
    shares = max(1, min(wanted, problem.workspace // (num_rows * row_bytes)))
    sweep = -(-num_columns // (shares * block)) * block
    shares = -(-num_columns // sweep)
    return FlashPlan(shares, sweep, _fit(n, problem.workspace // (shares * row_bytes)))
