"""Where the stacked rows lie, which blocks of the similarity matrix are computed, in what order and how much memory.

x's rows come first, then y's, then the rows of all candidate sides in turn; x, y and the candidates are each padded to
whole tiles. Every set of negatives is a list of rectangles of stacked rows. A side compared with itself, or both sides
with each other, make a square of which half is computed. Blocks are cut into panels whose temporary memory fits the
workspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import isqrt

import torch
from torch import Tensor

from ...problem import Batch, Problem, Shape
from . import config
from .config import ROW_PADDING, BlockConfig

X, Y, CANDIDATES = range(3)

# The planes of the statistics table, one float32 number per stacked row in each. FACTOR + RESIDUE is what a row
# contributes to a cosine's logit: sqrt(log2(e)/τ)/|row| for both rows or, where each row has its own temperature,
# log2(e)/τ/|row| for the anchor and 1/|row| = INVERSE + REST for the other row. The margin leaves out logits above
# LIMIT, in units of log 2.
PLANES = 10
SCALE, INVERSE, REST, FACTOR, RESIDUE, RATE, LIMIT, PEAK, TOTAL, MOMENT = range(PLANES)
# Peaks of rows without logits: before any is seen, and after all are. Finite, so that their difference is not NaN.
LOWEST, HIGHEST = -3.0e38, 3.0e38

# A larger panel of weights gains nothing; its products with 768 columns are two full waves on 132 SMs.
LARGEST_PANEL = 88 * ROW_PADDING

# Where weights stay in registers: programs for two full waves of three on each of 132 SMs, and their shortest sweep.
FLASH_PROGRAMS = 768
LEAST_SWEEP = 256

Span = tuple[int, int]


def length(span: Span) -> int:
    """The number of rows in a span."""
    return span[1] - span[0]


@dataclass(frozen=True)
class Stack:
    """Where the stacked rows of n pairs and m candidates lie.

    Attributes:
        n: pairs.
        candidates: rows of each candidate side.
        padded: rows of x, and of y, with their padding.
        padding: sides, and the spans whose gradient is wanted, are padded to a multiple of this.
        num_rows: all rows, padding included.
        width: columns of the packed rows.
    """

    n: int
    candidates: tuple[int, ...]
    padded: int
    padding: int
    num_rows: int
    width: int

    @property
    def m(self) -> int:
        """Candidates of all sides."""
        return sum(self.candidates)

    def candidate_spans(self) -> list[Span]:
        """The rows of each candidate side; there is no padding between them."""
        lasts = [2 * self.padded + last for last in accumulate(self.candidates)]
        return [(last - count, last) for count, last in zip(self.candidates, lasts, strict=True)]

    def span(self, side: int) -> Span:
        """The rows of x, of y or of all candidates, padding included."""
        if side == CANDIDATES:
            return 2 * self.padded, self.num_rows
        return side * self.padded, (side + 1) * self.padded

    def side(self, row: int) -> int:
        """X, Y or CANDIDATES: which of them a stacked row belongs to."""
        return min(row // self.padded, CANDIDATES)

    @property
    def saved_floats(self) -> int:
        """Size of the statistics table in float32 numbers."""
        return PLANES * self.num_rows


def stack_of(shape: Shape, padding: int | None = None) -> Stack:
    """Where the rows of such a call lie. Small batches have tiles, and so padding, half as large by default.

    >>> stack_of(Shape(300, 100)).num_rows, stack_of(Shape(1100, 100, (5, 6))).num_rows
    (640, 2432)
    """
    padding = padding or (config.ROW_PADDING if shape.n >= config.MANY_PAIRS else config.SMALL_PADDING)
    padded = _up_to(shape.n, padding)
    num_rows = 2 * padded + _up_to(sum(shape.candidates), padding)
    return Stack(shape.n, shape.candidates, padded, padding, num_rows, _up_to(shape.d, config.WIDTH_PADDING))


def _up_to(count: int, padding: int) -> int:
    return -(-count // padding) * padding


def wanted_spans(needs: Sequence[bool], stack: Stack) -> list[Span]:
    """The stacked rows of the sides whose gradients are needed; candidates are rounded out to whole tiles."""
    found = [stack.span(side) for side in (X, Y) if needs[side]]
    candidates = 2 * stack.padded
    for (first, last), need in zip(stack.candidate_spans(), needs[CANDIDATES:], strict=True):
        if need and first < last:
            start = first // stack.padding * stack.padding
            if found and candidates <= found[-1][0] and start <= found[-1][1]:
                start = found.pop()[0]
            found.append((start, _up_to(last, stack.padding)))
    return found


def table(saved: Tensor, stack: Stack) -> Tensor:
    """The statistics table, (planes, stacked rows), at the front of ``saved``; logits or products follow it."""
    return saved[: stack.saved_floats].view(PLANES, stack.num_rows)


def identities(batch: Batch, stack: Stack) -> Tensor | None:
    """A 32-bit number for every stacked row: equal where ids are, −1 for padding; None if no ids are given.

    Ids are ranked on the device, so the host never reads them. Candidates without ids get numbers that no other row
    has.
    """
    if not batch.shape.masked:
        return None
    own = torch.arange(stack.n, device=batch.x.device) if batch.ids is None else batch.ids
    return identities_of([(batch._replace(ids=own), stack)])


def identities_of(stacks: Sequence[tuple[Batch, Stack]]) -> Tensor:
    """As :func:`identities`, for the rows of several stacks one after the other, all of whose pairs have ids."""
    given = [ids for batch, _ in stacks for ids in (batch.ids, *batch.candidate_ids) if ids is not None]
    ordered, order = torch.cat(given).sort()
    steps = torch.zeros_like(ordered, dtype=torch.int32)
    steps[1:] = ordered[1:] != ordered[:-1]
    numbers = torch.empty_like(steps)
    numbers[order] = steps.cumsum(0, dtype=torch.int32)
    parts = list(numbers.split([len(ids) for ids in given]))
    found = numbers.new_full((sum(stack.num_rows for _, stack in stacks),), -1)
    unused, start = numbers.numel(), 0
    for batch, stack in stacks:
        own = found[start : start + stack.num_rows]
        pair_numbers = parts.pop(0)
        for side in (X, Y):
            first, _ = stack.span(side)
            own[first : first + stack.n] = pair_numbers
        of_candidates = batch.candidate_ids or (None,) * len(batch.candidates)
        for (first, last), ids in zip(stack.candidate_spans(), of_candidates, strict=True):
            if ids is None:
                own[first:last] = torch.arange(unused, unused + last - first, dtype=torch.int32, device=own.device)
                unused += last - first
            else:
                own[first:last] = parts.pop(0)
        start += stack.num_rows
    return found


def _tiles(rows: Span, columns: Span, tile: int, half: bool) -> int:
    """Tiles of a rectangle, or of a square's half on and above the diagonal."""
    height, breadth = length(rows) // tile, length(columns) // tile
    return height * (height + 1) // 2 if half else height * breadth


@dataclass(frozen=True)
class Block:
    """Stacked rows that are compared with others.

    Attributes:
        rows: the anchors.
        columns: the rows that they are compared with; the same span for a square, whose upper half is computed.
        mirrored: the columns are anchors too, and are compared with the rows.
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
        """The number of tiles that hold every pair once."""
        return _tiles(self.rows, self.columns, tile, self.square)


@dataclass(frozen=True)
class Panel:
    """A part of a block: half-open ranges of whole tiles.

    With ``block`` None the panel holds any rows and columns of which either are the anchors, and only the gradient's
    sums of the rows are wanted.
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
        """Whether the columns are anchors too whose logits no other panel holds."""
        return self.block is not None and self.block.mirrored and not self.diagonal

    @property
    def pairs(self) -> int:
        """The number of pairs."""
        return length(self.rows) * length(self.columns)

    def tiles(self, tile: int) -> int:
        """The number of tiles that are computed; the lower half of a diagonal panel mirrors the upper one."""
        return _tiles(self.rows, self.columns, tile, self.diagonal)


def is_compared(side: int, other: int, stack: Stack, problem: Problem) -> bool:
    """Whether a side's rows are anchors whose negatives include the other side's rows."""
    if side == CANDIDATES or (side == Y and problem.directions == "x"):
        return False
    if other == CANDIDATES:
        return stack.m > 0
    return problem.negatives == "both" or problem.negatives == {True: "own", False: "cross"}[side == other]


def blocks(stack: Stack, problem: Problem, tile: int) -> list[Block]:
    """Every pair of rows of which one is compared with the other, once."""
    found: list[Block] = []

    def append(rows: Span, columns: Span, mirrored: bool) -> None:
        found.append(Block(rows, columns, mirrored, num_tiles(found, tile)))

    if problem.negatives == "both" and problem.directions == "both":
        pairs = 0, 2 * stack.padded
        append(pairs, pairs, True)
        if stack.m:
            append(pairs, stack.span(CANDIDATES), False)
        return found
    for side, other in ((X, X), (X, Y), (Y, Y), (X, CANDIDATES), (Y, CANDIDATES)):
        if is_compared(side, other, stack, problem):
            append(stack.span(side), stack.span(other), is_compared(other, side, stack, problem))
    return found


def num_tiles(found: Sequence[Block], tile: int) -> int:
    """The number of tiles that hold every pair of rows once.

    >>> num_tiles(blocks(stack_of(Shape(300, 8)), Problem(), 64), 64)
    55
    """
    return found[-1].tiles_before + found[-1].tiles(tile) if found else 0


def partners(side: int, stack: Stack, problem: Problem) -> list[Span]:
    """All rows that a side's gradient sums over, in as few spans as possible."""
    found: list[Span] = []
    for other in (X, Y, CANDIDATES):
        if is_compared(side, other, stack, problem) or is_compared(other, side, stack, problem):
            start, stop = stack.span(other)
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, stop))
    return found


def cut(span: Span, size: int, stack: Stack, edge: int | None = None) -> list[Span]:
    """Cut stacked rows into runs of at most ``size``; if there are several, none crosses from side to side.

    A run is cut once more at the row ``edge`` unless that leaves less than a quarter of ``size`` on a side.

    >>> stack = stack_of(Shape(300, 8))
    >>> cut((0, 640), 256, stack)
    [(0, 256), (256, 320), (320, 576), (576, 640)]
    >>> cut((0, 640), 640, stack), cut((0, 640), 640, stack, 192)
    ([(0, 640)], [(0, 192), (192, 640)])
    """
    runs = [span]
    if length(span) > size:
        sides = [stack.span(side) for side in (X, Y, CANDIDATES)]
        inside = [(max(start, span[0]), min(stop, span[1])) for start, stop in sides]
        runs = [(start, min(start + size, stop)) for first, stop in inside for start in range(first, stop, size)]
    if edge is None:
        return runs
    least = size // 4
    ends = [(start, edge, stop) if start + least <= edge <= stop - least else (start, stop) for start, stop in runs]
    return [piece for each in ends for piece in pairwise(each)]


def panels(found: Sequence[Block], size: int, stack: Stack, edge: int | None = None) -> Iterator[Panel]:
    """Every pair of rows once, in panels of at most ``size`` rows and columns; ``edge`` as in :func:`cut`."""
    for block in found:
        columns_of_rows = cut(block.columns, size, stack, edge)
        for position, rows in enumerate(cut(block.rows, size, stack, edge)):
            for columns in columns_of_rows[position if block.square else 0 :]:
                yield Panel(rows, columns, block)


def keeps_products(shape: Shape, problem: Problem) -> bool:
    """Whether the batch is small and plain, and the dot products of all its rows fit the workspace."""
    plain = not shape.candidates and not shape.masked and not shape.per_row and problem.margin is None
    if not plain or problem.negatives not in ("both", "cross") or shape.n > config.SMALL_PAIRS:
        return False
    return 4 * product_floats(stack_of(shape), problem) <= problem.workspace


def product_columns(stack: Stack, problem: Problem) -> int:
    """The number of stacked rows that a row of a small batch is multiplied with."""
    return stack.padded if problem.negatives == "cross" else 2 * stack.padded


def product_parts(stack: Stack) -> int:
    """How many float32 numbers hold a product: two for a few rows, whose products are formed in float64."""
    return 2 if config.are_few(stack.n, stack.m) else 1


def product_floats(stack: Stack, problem: Problem) -> int:
    """How many float32 numbers hold the dot products of all stacked rows.

    >>> product_floats(stack_of(Shape(300, 8)), Problem()) == 640 * 640
    True
    """
    return 2 * stack.padded * product_columns(stack, problem) * product_parts(stack)


def kept_tiles(shape: Shape, chosen: BlockConfig, problem: Problem) -> int:
    """How many tiles of logits the forward keeps: all that fit, or none if that is less than half of them.

    They leave room for the sums of all rows and for the largest panel of weights that is of any use. So the backward
    shares its panels, which then lie above the diagonal as the kept tiles do.
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
    """The memory that a tile of kept logits takes."""
    return chosen.block**2 * chosen.kept_dtype.itemsize


def _longest(stack: Stack) -> int:
    """Rows of the longest side that panels are cut from."""
    return max(2 * stack.padded, stack.num_rows - 2 * stack.padded)


def fit(stack: Stack, size: int) -> int:
    """At least one padded run of rows, at most the longest side, and a multiple of the padding."""
    return max(ROW_PADDING, min(size // ROW_PADDING * ROW_PADDING, _longest(stack)))


def forward_panel(stack: Stack, block: int, planes: int, workspace: int) -> int:
    """Side of the square panels whose slots fit: a panel of p rows and columns has 2 p (p / block) of them."""
    return fit(stack, isqrt(max(0, workspace) * block // (2 * 4 * planes)))


@dataclass(frozen=True)
class FlashPlan:
    """How programs share the gradient of some rows without a matrix of weights.

    Attributes:
        shares: programs that split the rows that one row is compared with; each keeps a float32 sum of every row.
        sweep: stacked rows that one of them sweeps.
        run: stacked rows whose sums are kept at a time.
    """

    shares: int
    sweep: int
    run: int


def plan_flash(num_rows: int, num_columns: int, width: int, block: int, workspace: int) -> FlashPlan:
    """Enough shares to occupy a device, as long as each sweep is worth a start and the sums fit the workspace.

    >>> plan_flash(8192, 8192, 64, 64, 2**30)
    FlashPlan(shares=6, sweep=1408, run=8192)
    """
    row_bytes = 4 * width
    wanted = min(-(-FLASH_PROGRAMS * block // num_rows), num_columns // LEAST_SWEEP)
    shares = max(1, min(wanted, workspace // (num_rows * row_bytes)))
    # Rows that are compared with nothing have sums too, of nothing.
    sweep = max(1, -(-num_columns // (shares * block))) * block
    shares = max(1, -(-num_columns // sweep))
    run = workspace // (shares * row_bytes) // ROW_PADDING * ROW_PADDING
    return FlashPlan(shares, sweep, max(ROW_PADDING, min(run, num_rows)))


def flash_runs(wanted: Sequence[Span], stack: Stack, problem: Problem) -> list[tuple[Span, list[Span]]]:
    """The rows whose gradient is wanted and the spans they sweep; neighbours that sweep the same spans are one run."""
    found: list[tuple[Span, list[Span]]] = []
    for start, stop in wanted:
        swept = partners(stack.side(start), stack, problem)
        if found and found[-1][0][1] == start and found[-1][1] == swept:
            start = found.pop()[0][0]
        found.append(((start, stop), swept))
    return found
