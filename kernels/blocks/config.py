"""Tile shapes and number formats of the block kernels: a pure function of what is computed and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..problem import Problem

Products = Literal["ieee", "tf32x3", "tf32"]

# Vectors over rows are padded to a multiple of this, so that a tile's loads of them need no mask; tiles divide it.
ROW_PADDING = 128
INTERPRETER = 0
# From so many pairs on, large tiles fill a device, and weights are rounded as the embeddings are. In smaller batches
# exact weights cost next to nothing, and there a single negative may balance the positive's pull: the error of its
# rounded weight would be the gradient's.
MANY_PAIRS = 1024


@dataclass(frozen=True)
class BlockConfig:
    """How the kernels of one call are compiled.

    Attributes:
        block: side of the square tiles of logits and weights.
        depth: columns of the embeddings multiplied at a time.
        num_warps: warps of a program that computes logits or weights.
        num_stages: loads in flight in those kernels' loops.
        group: rows of tiles swept together, for their operands to meet in the L2 cache.
        products: how float32 operands of logits are multiplied (half-precision operands are multiplied exactly).
        promote: sum every ``depth`` columns apart before adding them to the total.
        rescale: whether the inputs' exponents can leave the range that products of raw rows are safe in.
        weight_dtype: what blocks of weights are stored as.
        weight_products: how weights and embeddings are multiplied.
        gemm_rows, gemm_columns, gemm_depth, gemm_warps, gemm_stages: the tile of that product.
        row_block: rows that a program of the row-wise kernels (norms, positives, projection) takes.
    """

    block: int
    depth: int
    num_warps: int
    num_stages: int
    group: int
    products: Products
    promote: bool
    rescale: bool
    weight_dtype: torch.dtype
    weight_products: Products
    gemm_rows: int
    gemm_columns: int
    gemm_depth: int
    gemm_warps: int
    gemm_stages: int
    row_block: int

    def __post_init__(self) -> None:
        """Hold the relations that the kernels rely on when they load without masks."""
        if ROW_PADDING % self.block or self.block % self.gemm_rows or self.block % self.gemm_depth:
            raise ValueError(
                f"expected block to divide {ROW_PADDING} and to be a multiple of gemm_rows and gemm_depth, got {self}"
            )

    @property
    def rounds_weights(self) -> bool:
        """Whether weights are stored in float32 with no more digits than one tf32 product keeps."""
        return self.weight_dtype == torch.float32 and self.weight_products == "tf32"

    @property
    def promotes_weights(self) -> bool:
        """Whether sums over rows are broken up as ``promote`` breaks up sums over columns: beside float32 weights."""
        return self.weight_dtype == torch.float32


def choose(n: int, d: int, dtype: torch.dtype, arch: int, problem: Problem) -> BlockConfig:
    """The configuration for n pairs of d columns on compute capability ``arch`` (90 for 9.0; 0: Triton's interpreter).

    Formats. Half-precision embeddings go to the tensor cores as they are. Beside many normalised bfloat16 rows W is
    bfloat16: the projection removes what its rounding does along the row, and the rest averages out. float16 rows have
    11 significant bits and W a range of exponents that float16 lacks: W is float32 rounded to tf32's 11 bits, a product
    exact in tf32. Without the projection, or where a few weights may make up the gradient, W is float32 in three tf32
    products. float32 embeddings keep float32 weights, and both products follow ``precision``.

    >>> problem = Problem("cz_nce", "both", True, "mean", "highest", 2**28)
    >>> choose(4096, 768, torch.bfloat16, 90, problem).block
    128
    """
    half = dtype in (torch.bfloat16, torch.float16)
    products: Products = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[problem.precision]  # type: ignore[assignment]
    weight_dtype, weight_products = torch.float32, products
    if half:
        short = problem.normalize and n >= MANY_PAIRS
        weight_products = "tf32" if short else "tf32x3"
        if short and dtype == torch.bfloat16:
            weight_dtype = torch.bfloat16
    # Rows that do not begin at multiples of 16 bytes cannot be copied to shared memory past the registers.
    aligned = d * dtype.itemsize % 16 == 0
    rescale = problem.normalize and dtype != torch.float16
    # Larger tiles spill: of float16 rows from compute capability 10.0 on, of rows that pass through registers anywhere.
    if arch == INTERPRETER:
        tile = {"block": 32, "depth": 64, "num_warps": 4, "num_stages": 1}
    elif half and aligned and n >= MANY_PAIRS and (dtype == torch.bfloat16 or arch < 100):
        tile = {"block": 128, "depth": 64, "num_warps": 8, "num_stages": 3}
    else:
        tile = {"block": 64, "depth": 32 if aligned else 16, "num_warps": 8, "num_stages": 2}
    if arch == INTERPRETER:
        gemm = {"gemm_rows": 32, "gemm_columns": 128, "gemm_depth": 32, "gemm_warps": 4, "gemm_stages": 1}
    elif weight_dtype == torch.bfloat16 and aligned:
        gemm = {"gemm_rows": 128, "gemm_columns": 128, "gemm_depth": 64, "gemm_warps": 8, "gemm_stages": 3}
    else:
        # Without tensor cores both operands pass through registers: a larger tile spills.
        rows = 32 if weight_products == "ieee" else 64
        gemm = {"gemm_rows": rows, "gemm_columns": 64, "gemm_depth": 32, "gemm_warps": 4, "gemm_stages": 2}
    return BlockConfig(
        **tile,
        **gemm,
        group=8,
        products=products,
        promote=True,
        rescale=rescale,
        weight_dtype=weight_dtype,
        weight_products=weight_products,
        row_block=32 if arch == INTERPRETER else 4,
    )
