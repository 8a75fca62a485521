"""Tile shapes and number formats of the kernels: pure functions of the problem, its shape and the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import torch

from ...problem import Problem, Shape

Products = Literal["double", "ieee", "tf32x3", "tf32"]

HALF_PRECISION = (torch.bfloat16, torch.float16)
# Embeddings whose weights may be rounded so coarsely that keeping cosines in 16 bits adds little.
COARSE = (torch.bfloat16,)

# Each side's rows are padded to a multiple of the first, or in small batches of the second; tiles divide it.
ROW_PADDING, SMALL_PADDING = 128, 64
# Packed rows are padded with zeros to a multiple of this many columns, so that products load them without masks.
WIDTH_PADDING = 64
# Stand-ins for a compute capability: the interpreter, and AMD's gfx942 (MI300).
INTERPRETER, CDNA3 = 0, 942
# From this many pairs on, large tiles fill a device, and weights are rounded like the embeddings. In smaller batches
# the weights' product costs next to nothing, and where one negative's push balances the positive's pull, the error of
# a rounded weight can become the gradient's.
MANY_PAIRS = 1024
# Up to twice this many rows, whose rounding hardly averages out, products are formed in float64 in negligible time.
FEW_PAIRS = 64
# Up to this many pairs launches cost more than work: all products are kept, and three kernels do everything.
SMALL_PAIRS = 512
# Whether the warp-specialised kernels run where they can. No GPU has timed them yet; benchmarks set it, or the field of
# a configuration that it decides.
SPECIALISED = False
# Columns of two rows that are multiplied, with and without tensor cores, while a byte goes to memory and back.
TENSOR_COLUMNS, PLAIN_COLUMNS = 100, 20


@dataclass(frozen=True, kw_only=True)
class Formats:
    """The number formats of products.

    Attributes:
        products: how the operands of logits are multiplied: "double" in float64, otherwise float32 operands as named
            (half-precision operands are multiplied exactly).
        rescale: whether the inputs' exponents can leave the range in which products of raw rows are safe.
        weight_dtype: the dtype in which weights multiply embeddings; large batches leave bfloat16 to cuBLAS.
        weight_terms: how many numbers of that dtype add up to a weight; three bfloat16 numbers hold a whole float32.
        weight_products: how a kernel multiplies float32 weights and embeddings.
    """

    products: Products
    rescale: bool
    weight_dtype: torch.dtype
    weight_terms: int
    weight_products: Products

    @property
    def weight_bytes(self) -> int:
        """The bytes that a weight takes."""
        return self.weight_terms * self.weight_dtype.itemsize

    @property
    def rounds_weights(self) -> bool:
        """Whether weights are float32 numbers with no more digits than one tf32 product keeps."""
        return self.weight_dtype == torch.float32 and self.weight_products == "tf32"


class RowConfig(Protocol):
    """What the row-wise kernels need of a configuration."""

    @property
    def row_block(self) -> int:
        """Rows per program."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Formats):
    """How the kernels of one call are compiled.

    Attributes:
        block: side of the square tiles of logits and weights.
        depth: columns of the embeddings multiplied at a time.
        num_warps: warps of a program that computes logits or weights.
        num_stages: loads in flight in the loops of those programs.
        group: rows of tiles swept together, so that they share the L2 cache.
        gemm_rows, gemm_columns, gemm_depth, gemm_warps, gemm_stages: the tile of the kernel that multiplies weights.
        row_block: rows per program of the row-wise kernels (norms, positives, projection).
        kept_dtype: how the forward keeps a logit: as float32, or a cosine as int16.
        keeps: whether reading a kept logit is faster than forming it again.
        specialised: whether Hopper's warp-specialised kernels compute logits, and weights of which no logit is kept.
    """

    block: int
    depth: int
    num_warps: int
    num_stages: int
    group: int
    gemm_rows: int
    gemm_columns: int
    gemm_depth: int
    gemm_warps: int
    gemm_stages: int
    row_block: int
    kept_dtype: torch.dtype
    keeps: bool
    specialised: bool

    def __post_init__(self) -> None:
        """Check the relations that the kernels rely on when they load without masks."""
        if self.specialised and (self.block, self.depth) != (ROW_PADDING, WIDTH_PADDING):
            raise ValueError(f"expected tiles of {ROW_PADDING} rows and {WIDTH_PADDING} columns, got {self}")
        if any(ROW_PADDING % extent for extent in (self.block, self.gemm_rows, self.gemm_depth)):
            raise ValueError(f"expected block, gemm_rows and gemm_depth to divide {ROW_PADDING}, got {self}")
        if any(WIDTH_PADDING % extent for extent in (self.depth, self.gemm_columns)):
            raise ValueError(f"expected depth and gemm_columns to divide {WIDTH_PADDING}, got {self}")


@dataclass(frozen=True, kw_only=True)
class SmallConfig(Formats):
    """How the three kernels of a small batch are compiled.

    Attributes:
        block: side of the square tiles of products.
        depth: columns of the embeddings multiplied at a time.
        num_stages: loads in flight in that loop.
        row_block: pairs whose norms, or rows whose loss, one program finds.
        gradient_rows, gradient_columns: the tile of the gradient that one program computes.
        gradient_depth: weights of a row formed and multiplied at a time.
        gradient_warps: warps of such a program; all others have 4.
        gradient_stages: loads in flight in that loop.
        exponentials: whether the second kernel may leave exponentials in the place of products.
        overlap: whether the second kernel is launched before the first one ends (programmatic dependent launch).
    """

    block: int
    depth: int
    num_stages: int
    row_block: int
    gradient_rows: int
    gradient_columns: int
    gradient_depth: int
    gradient_warps: int
    gradient_stages: int
    exponentials: bool
    overlap: bool

    def __post_init__(self) -> None:
        """Check the relations that keep every tile and every step within the rows of one side, in whole tiles."""
        extents = self.block, self.row_block, self.gradient_rows, self.gradient_depth
        if any(SMALL_PADDING % extent for extent in extents):
            names = "block, row_block, gradient_rows and gradient_depth"
            raise ValueError(f"expected {names} to divide {SMALL_PADDING}, got {self}")


@dataclass(frozen=True, kw_only=True)
class FlashConfig(Formats):
    """How the gradient's kernel that keeps weights in registers is compiled.

    Attributes:
        block: rows that a program owns, and rows that it multiplies them with at a time.
        depth: columns of the embeddings multiplied at a time; rows have once or twice this many.
        num_warps: warps of a program.
        num_stages: loads in flight in its loop.
        row_block: rows per program of the projection.
    """

    block: int
    depth: int
    num_warps: int
    num_stages: int
    row_block: int


def are_few(n: int, m: int) -> bool:
    """Whether the rows of n pairs and m candidates are too few for rounding to average out."""
    return 2 * n + m <= 2 * FEW_PAIRS


def are_many(shape: Shape, problem: Problem) -> bool:
    """Whether there are enough pairs, and enough negatives per row, for the rounding of weights to average out."""
    return shape.n >= MANY_PAIRS and (problem.negatives != "none" or sum(shape.candidates) >= MANY_PAIRS)


def choose(shape: Shape, arch: int, problem: Problem) -> BlockConfig:
    """The configuration for such a batch on ``arch``: 90 for compute capability 9.0, or INTERPRETER or CDNA3.

    >>> choose(Shape(4096, 768, dtype=torch.bfloat16), 90, Problem()).block
    128
    """
    half = shape.dtype in HALF_PRECISION
    formats = choose_formats(shape, arch, problem)
    coarse = shape.dtype in COARSE and problem.normalize and are_many(shape, problem)
    kept = torch.int16 if coarse else torch.float32
    columns = PLAIN_COLUMNS if formats.products == "ieee" and not half else TENSOR_COLUMNS
    # The registers of three tf32 products leave none for the store.
    crowded = formats.products == "tf32x3" and not half and INTERPRETER < arch < 90
    tile: dict[str, Any]
    gemm: dict[str, Any]
    if arch == INTERPRETER:
        tile = {"block": 64, "depth": 64, "num_warps": 4, "num_stages": 1}
        gemm = {"gemm_rows": 64, "gemm_columns": 64, "gemm_depth": 64, "gemm_warps": 4, "gemm_stages": 1}
    else:
        # Larger tiles spill, except on compute capability 9.0, whose tensor cores read their operands from shared
        # memory; and even there where rows and columns need two sets of numbers.
        if formats.products == "double":
            tile = {"block": 16, "depth": 16, "num_warps": 4, "num_stages": 2}
        elif arch == CDNA3:
            # A wavefront has twice a warp's threads.
            tile = {"block": 64, "depth": 32, "num_warps": 4, "num_stages": 2}
        elif half and shape.n >= MANY_PAIRS and 90 <= arch < 100 and not has_two_sets(shape, problem):
            tile = {"block": 128, "depth": 64, "num_warps": 8, "num_stages": 3}
        elif half and 90 <= arch < 100:
            tile = {"block": 64, "depth": 64, "num_warps": 4, "num_stages": 4}
        else:
            tile = {"block": 64, "depth": 32 if half or arch >= 90 else 16, "num_warps": 8, "num_stages": 2}
        # Without tensor cores both operands pass through registers: a larger tile spills.
        rows = 32 if formats.weight_products == "ieee" and arch != CDNA3 else 64
        gemm = {"gemm_rows": rows, "gemm_columns": 64, "gemm_depth": 32, "gemm_warps": 4, "gemm_stages": 2}
        # Before 9.0 tensor cores read registers, and widening float16 rows takes more of them.
        if formats.weight_products == "ieee" or (half and arch < 90):
            gemm["gemm_depth"] = 16
    return BlockConfig(
        **vars(formats),
        **tile,
        **gemm,
        group=8,
        row_block=_row_block(shape, arch),
        kept_dtype=kept,
        # With a temperature for each row, one product gives two logits.
        keeps=shape.d >= kept.itemsize * columns and not crowded and not shape.per_row,
        specialised=SPECIALISED and can_specialise(shape, arch, problem),
    )


def can_specialise(shape: Shape, arch: int, problem: Problem) -> bool:
    """Whether Hopper's warp-specialised kernels compute such a batch without spilling registers.

    They copy packed rows, whose strides suit tensor maps whatever the width, and read the temperature on the device, so
    neither matters. They have the shipped kernels' tiles of 128 x 128. Dot products with ids would spill; so would, in
    triton 3.6, cosines of so few negatives that weights take all their digits.

    >>> can_specialise(Shape(4096, 768, dtype=torch.bfloat16), 80, Problem())
    False
    """
    if arch != 90 or shape.dtype not in HALF_PRECISION or shape.n < MANY_PAIRS or has_two_sets(shape, problem):
        return False
    return (are_many(shape, problem) if problem.normalize else not shape.masked) and _has_gluon()


@cache
def _has_gluon() -> bool:
    """Whether Triton has the names that those kernels are written in: Gluon is experimental."""
    try:
        from ..hopper import names  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


def choose_small(shape: Shape, arch: int, problem: Problem) -> SmallConfig:
    """The configuration of the three kernels of a small batch: enough small tiles to occupy a device.

    >>> choose_small(Shape(512, 768, dtype=torch.bfloat16), 90, Problem()).block
    64
    """
    n, formats = shape.n, choose_formats(shape, arch, problem)
    half = shape.dtype in HALF_PRECISION
    tile: dict[str, Any]
    gradient: dict[str, Any]
    if arch == INTERPRETER:
        tile = {"block": 64, "depth": 64, "num_stages": 1}
        gradient = {"gradient_rows": 64, "gradient_depth": 64, "gradient_warps": 4, "gradient_stages": 1}
    else:
        tall = half and n > 256
        if formats.products == "double":
            tile = {"block": 8, "depth": 64, "num_stages": 4}
        else:
            # With transposed rows, more columns would take more registers than there are.
            narrow = (formats.products == "ieee" and arch < 90) or (formats.products == "tf32x3" and arch >= 100)
            # Without tensor cores the work itself matters, and smaller tiles share it more evenly.
            tile = {"block": 64 if tall else 32, "depth": 64 if half else 16 if narrow else 32, "num_stages": 3}
        rows = 16 if n <= 128 else 64 if tall else 32
        warps = 8 if tall else 4
        # Without tensor cores, and before 9.0 with float32 operands on them, more columns take too many registers.
        wide = formats.weight_products == "tf32" or shape.dtype == torch.bfloat16 or (arch >= 90 and arch != CDNA3)
        depth = 32 if wide and formats.weight_products != "ieee" else 16
        gradient = {"gradient_rows": rows, "gradient_depth": depth, "gradient_warps": warps, "gradient_stages": 2}
    shared: dict[str, Any] = {"gradient_columns": 64, "row_block": _row_block(shape, arch)}
    # Exponentials need a quick logarithm, and overlapping launches compute capability 9.0; both are NVIDIA's.
    shared |= {"exponentials": arch != CDNA3, "overlap": 90 <= arch < CDNA3}
    return SmallConfig(**vars(formats), **tile, **gradient, **shared)


def choose_flash(shape: Shape, arch: int, problem: Problem) -> FlashConfig:
    """The configuration of the gradient with weights in registers, for rows of up to 128 columns.

    >>> choose_flash(Shape(4096, 64, dtype=torch.bfloat16), 90, Problem()).block
    64
    """
    # Larger tiles would spill, and smaller ones take each row from the L2 cache more often.
    tile: dict[str, Any] = {"block": 64, "num_stages": 1 if arch == INTERPRETER else 3}
    formats = choose_formats(shape, arch, problem)
    return FlashConfig(**vars(formats), **tile, depth=WIDTH_PADDING, num_warps=4, row_block=_row_block(shape, arch))


def flash_wins(shape: Shape, arch: int, problem: Problem) -> bool:
    """Whether forming every weight twice is expected to take less time than writing it once and reading it twice.

    By the count in docs/lab/gpu.md that holds for half precision where rows fill one tile of 64 columns and the
    device computes fast for its memory: not in float32 without tensor cores, nor before compute capability 8.9, nor
    from 10.0 on. float16's panels take four bytes per weight and a slower product, so two tiles win there as well. On
    8.9 anything but a single bfloat16 term would spill. A margin must leave out exactly the pairs that it left out of
    the sums, and with a temperature for each row a pair has two logits; such weights use the tiles of the forward.

    >>> [flash_wins(Shape(4096, d, dtype=torch.bfloat16), 90, Problem()) for d in (64, 128)]
    [True, False]
    """
    d, formats = shape.d, choose_formats(shape, arch, problem)
    if has_two_sets(shape, problem):
        return False
    if not 89 <= arch < 100 or shape.dtype not in HALF_PRECISION or formats.products == "double":
        return False
    if formats.weight_dtype == torch.bfloat16:
        return d <= WIDTH_PADDING and (arch >= 90 or formats.weight_terms == 1)
    return d <= 2 * WIDTH_PADDING and arch >= 90 and formats.rounds_weights


def choose_formats(shape: Shape, arch: int, problem: Problem) -> Formats:
    """The number formats for such embeddings.

    Products of few rows are summed in float64. Half-precision embeddings go to the tensor cores as they are. With many
    normalised bfloat16 rows W is bfloat16: the projection removes the error of its rounding along the row, and the
    rest averages out. Without the projection, or where a few weights may make up the gradient, W is the sum of three
    bfloat16 matrices. float16 rows have 11 significant bits, and W needs a range of exponents that float16 lacks: with
    many normalised rows W is float32 rounded to tf32's 11 bits, whose product is exact in tf32; otherwise it is float32
    in three tf32 products. float32 embeddings keep float32 weights, and both products follow ``precision``. CDNA3's
    matrix cores multiply float32 itself, which replaces three tf32 products there.
    """
    precise: Products = "ieee" if arch == CDNA3 else "tf32x3"
    by_precision: dict[str, Products] = {"highest": "ieee", "high": precise, "medium": "tf32"}
    products = by_precision[problem.precision]
    weight_dtype, weight_products, terms = torch.float32, products, 1
    dtype = shape.dtype
    short = problem.normalize and are_many(shape, problem)
    if dtype in HALF_PRECISION:
        weight_products = "tf32" if short else precise
    if dtype == torch.bfloat16:
        weight_dtype, terms = torch.bfloat16, 1 if short else 3
    few = are_few(shape.n, sum(shape.candidates)) and (dtype in HALF_PRECISION or problem.precision == "highest")
    return Formats(
        products="double" if few else products,
        rescale=problem.normalize and dtype != torch.float16,
        weight_dtype=weight_dtype,
        weight_terms=terms,
        weight_products=weight_products,
    )


def has_two_sets(shape: Shape, problem: Problem) -> bool:
    """Whether a pair's logit, or whether it counts, depends on which of its rows is the anchor."""
    return shape.per_row or problem.margin is not None


def _row_block(shape: Shape, arch: int) -> int:
    if arch == INTERPRETER:
        return 64
    # Four bfloat16 rows spill on 10.0 and later, and four rows with their own temperatures spill everywhere.
    return 2 if shape.per_row or 100 <= arch < CDNA3 else 4
