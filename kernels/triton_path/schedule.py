"""Which blocks of the similarity matrix are computed, in what order, within how much memory.

Which sides a side's rows are compared with makes a list of rectangles of stacked rows; a side, or both sides, with
itself is a square of which half is computed. Blocks are cut into panels whose temporary memory fits the workspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

from ..problem import Problem, Shape
from . import config
from .config import ROW_PADDING, BlockConfig
from .stack import CANDIDATES, Span, Stack, X, Y, stack_of

# Beyond this side a panel of weights gains nothing; its products with 768 columns are two full waves on 132 SMs.
LARGEST_PANEL = 88 * ROW_PADDING

# Where weights stay in registers: programs for two full waves of three on each of 132 SMs, and their shortest sweep.
FLASH_PROGRAMS = 768
LEAST_SWEEP = 256


@dataclass(frozen=True)
class Block:
    """Stacked rows that are compared with others.

    Attributes:
        rows: those compared, anchors all of them.
        columns: those that they are compared with; the same for a square, of which the upper half is computed.
        mirrored: the columns are anchors as well, compared with the rows.
        tiles_before: tiles of the blocks before this one.
    """

    rows: Span
    columns: Span
    mirrored: bool
    tiles_before: int

    @property
    def square(self) -> bool:
        """Whether rows are compared with themselves."""
        return self.rows == self.columns

    def tiles(self, tile: int) -> int:
        """Tiles that hold every pair once."""
        height, breadth = (length(span) // tile for span in (self.rows, self.columns))
        return height * (height + 1) // 2 if self.square else height * breadth


@dataclass(frozen=True)
class Panel:
    """A part of a block: half-open ranges of whole tiles.

    Or, with ``block`` None, any rows and others that weigh theirs or whose they weigh: only the gradient's sums of
    the rows are wanted.
    """

    rows: Span
    columns: Span
    block: Block | None = None

    @property
    def diagonal(self) -> bool:
        """Whether the panel is a block of rows with themselves, hence symmetric."""
        return self.block is not None and self.rows == self.columns

    @property
    def serves_columns(self) -> bool:
        """Whether the columns' logits belong to anchors too, and no other panel has them."""
        return self.block is not None and self.block.mirrored and not self.diagonal

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return length(self.rows) * length(self.columns)


def length(span: Span) -> int:
    """How many rows lie in a span."""
    return span[1] - span[0]


def is_compared(side: int, other: int, stack: Stack, problem: Problem) -> bool:
    """Whether a side's rows are anchors that the other's are negatives of."""
    if side == CANDIDATES or (side == Y and problem.directions == "x"):
        return False
    if other == CANDIDATES:
        return stack.m > 0
    return problem.negatives == "both" or problem.negatives == {True: "own", False: "cross"}[side == other]


def _whole(stack: Stack, problem: Problem) -> bool:
    """Whether both sides' rows are one square."""
    return problem.negatives == "both" and problem.directions == "both"


def blocks(stack: Stack, problem: Problem, tile: int) -> list[Block]:
    """Every pair of rows of which one is compared with the other, once."""
    found: list[Block] = []

    def append(rows: Span, columns: Span, mirrored: bool) -> None:
        before = found[-1].tiles_before + found[-1].tiles(tile) if found else 0
        found.append(Block(rows, columns, mirrored, before))

    if _whole(stack, problem):
        pairs = 0, 2 * stack.padded
        append(pairs, pairs, True)
        if stack.m:
            append(pairs, stack.span(CANDIDATES), False)
        return found
    for side, other in ((X, X), (X, Y), (Y, Y), (X, CANDIDATES), (Y, CANDIDATES)):
        if is_compared(side, other, stack, problem):
            append(stack.span(side), stack.span(other), is_compared(other, side, stack, problem))
    return found


def partners(side: int, stack: Stack, problem: Problem) -> list[Span]:
    """All rows that a side's gradient is a sum of, in as few spans as there are."""
    found: list[Span] = []
    for other in (X, Y, CANDIDATES):
        if is_compared(side, other, stack, problem) or is_compared(other, side, stack, problem):
            start, stop = stack.span(other)
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, stop))
    return found


def cut(span: Span, size: int, stack: Stack) -> list[Span]:
    """Cut stacked rows into runs of ``size``: one if it can hold them all, else runs within a side.

    >>> stack = stack_of(Shape(300, 8))
    >>> cut((0, 640), 256, stack)
    [(0, 256), (256, 320), (320, 576), (576, 640)]
    >>> cut((0, 640), 640, stack)
    [(0, 640)]
    """
    if length(span) <= size:
        return [span]
    sides = [stack.span(side) for side in (X, Y, CANDIDATES)]
    inside = [(max(start, span[0]), min(stop, span[1])) for start, stop in sides]
    return [(start, min(start + size, stop)) for first, stop in inside for start in range(first, stop, size)]


def panels(found: Sequence[Block], size: int, stack: Stack) -> Iterator[Panel]:
    """Every pair of rows once, in panels of at most ``size`` rows and columns."""
    for block in found:
        columns_of_rows = cut(block.columns, size, stack)
        for position, rows in enumerate(cut(block.rows, size, stack)):
            for columns in columns_of_rows[position if block.square else 0 :]:
                yield Panel(rows, columns, block)


def keeps_products(shape: Shape, problem: Problem) -> bool:
    """Whether the batch is small and plain, and the dot products of all its rows fit the workspace."""
    plain = not shape.candidates and not shape.masked and not shape.per_row and problem.margin is None
    if not plain or problem.negatives not in ("both", "cross") or shape.n > config.SMALL_PAIRS:
        return False
    return 4 * product_floats(stack_of(shape), problem) <= problem.workspace


def product_columns(stack: Stack, problem: Problem) -> int:
    """Stacked rows that a row of a small batch is multiplied with."""
    return stack.padded if problem.negatives == "cross" else 2 * stack.padded


def product_parts(stack: Stack) -> int:
    """How many float32 numbers a product is kept as: few are formed in float64, which two hold."""
    return 2 if config.are_few(stack.n, stack.m) else 1


def product_floats(stack: Stack, problem: Problem) -> int:
    """How many float32 numbers the dot products of all stacked rows are kept as.

    >>> product_floats(stack_of(Shape(300, 8)), Problem()) == 640 * 640
    True
    """
    return 2 * stack.padded * product_columns(stack, problem) * product_parts(stack)


def num_tiles(found: Sequence[Block], tile: int) -> int:
    """Tiles that hold every pair of rows once.

    >>> num_tiles(blocks(stack_of(Shape(300, 8)), Problem(), 64), 64)
    55
    """
    return found[-1].tiles_before + found[-1].tiles(tile) if found else 0


def kept_tiles(shape: Shape, chosen: BlockConfig, problem: Problem) -> int:
    """How many tiles of logits the forward keeps: all, as many as fit, or none if that is less than half of them.

    Beside them there has to be room for the sums of all rows and for as large a panel of weights as is any use: so the
    backward's plan is a shared one, whose panels lie above the diagonal as the kept tiles do.
    """
    if not chosen.keeps or shape.n <= config.SMALL_PAIRS:
        return 0
    stack = stack_of(shape)
    every = num_tiles(blocks(stack, problem, chosen.block), chosen.block)
    sums = stack.num_rows * 4 * stack.width
    panel = min(LARGEST_PANEL, _longest(stack)) ** 2 * chosen.weight_bytes
    room = problem.workspace - sums - max(sums, panel)
    kept = min(every, room // tile_bytes(chosen))
    return kept if 2 * kept >= every else 0


def tile_bytes(chosen: BlockConfig) -> int:
    """What a tile of kept logits takes in memory."""
    return chosen.block**2 * chosen.kept_dtype.itemsize


def _longest(stack: Stack) -> int:
    """Rows of the longest side that panels are cut from."""
    return max(2 * stack.padded, stack.num_rows - 2 * stack.padded)


def _fit(stack: Stack, size: int) -> int:
    """At least one padded run of rows, at most the longest side, and a multiple of the padding."""
    return max(ROW_PADDING, min(size // ROW_PADDING * ROW_PADDING, _longest(stack)))


def forward_panel(stack: Stack, block: int, planes: int, workspace: int) -> int:
    """Side of the square panels whose slots fit: a panel of p rows and columns has 2 p (p / block) of them."""
    return _fit(stack, isqrt(max(0, workspace) * block // (2 * 4 * planes)))


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


def plan_backward(stack: Stack, weight_bytes: int, workspace: int) -> BackwardPlan:
    """Share panels if the sums of all rows leave half of the workspace to the weights.

    >>> plan_backward(stack_of(Shape(65536, 768)), 2, 2**28)
    BackwardPlan(size=10752, shared=False)
    >>> plan_backward(stack_of(Shape(65536, 768)), 2, 2**30)
    BackwardPlan(size=11264, shared=True)
    """
    width = 4 * stack.width
    sums = stack.num_rows * width
    if 2 * sums <= workspace:
        return BackwardPlan(_fit(stack, min(LARGEST_PANEL, isqrt((workspace - sums) // weight_bytes))), shared=True)
    # size² weight_bytes + size · width = workspace.
    size = (isqrt(width**2 + 4 * weight_bytes * workspace) - width) // (2 * weight_bytes)
    return BackwardPlan(_fit(stack, min(LARGEST_PANEL, size)), shared=False)


@dataclass(frozen=True)
class FlashPlan:
    """How the gradient of some rows without a matrix of weights is shared out.

    Attributes:
        shares: programs that share all that a row is compared with; each keeps a float32 sum of every row.
        sweep: stacked rows that one of them sweeps.
        run: stacked rows that sums are kept of at a time.
    """

    shares: int
    sweep: int
    run: int


def plan_flash(num_rows: int, num_columns: int, width: int, block: int, workspace: int) -> FlashPlan:
    """As many shares as occupy a device, sweep enough to be worth a start, and fit the workspace.

    >>> plan_flash(8192, 8192, 64, 64, 2**30)
    FlashPlan(shares=6, sweep=1408, run=8192)
    """
    row_bytes = 4 * width
    wanted = min(-(-FLASH_PROGRAMS * block // num_rows), num_columns // LEAST_SWEEP)
    shares = max(1, min(wanted, workspace // (num_rows * row_bytes)))
    # Rows that meet none have sums as well, of nothing.
    sweep = max(1, -(-num_columns // (shares * block))) * block
    shares = max(1, -(-num_columns // sweep))
    run = workspace // (shares * row_bytes) // ROW_PADDING * ROW_PADDING
    return FlashPlan(shares, sweep, max(ROW_PADDING, min(run, num_rows)))


def flash_runs(wanted: Sequence[Span], stack: Stack, problem: Problem) -> list[tuple[Span, list[Span]]]:
    """The rows whose gradient is wanted and what they are swept over, neighbours that sweep the same together."""
    found: list[tuple[Span, list[Span]]] = []
    for start, stop in wanted:
        swept = partners(stack.side(start), stack, problem)
        if found and found[-1][0][1] == start and found[-1][1] == swept:
            start = found.pop()[0][0]
        found.append(((start, stop), swept))
    return found
