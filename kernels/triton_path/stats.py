"""What the forward keeps of every row for the backward.

Rows of both sides are stacked: x's first, then y's, each side padded to whole tiles.
"""

from __future__ import annotations

from ..problem import Problem
from .schedule import padded_rows, product_floats

# Planes of the saved statistics, each (2, padded rows): x's rows, y's rows. WEIGHT 2^EXPONENT is ∂loss/∂z of a row;
# FACTOR + RESIDUE is sqrt(log2(e)/τ)/|row|.
PLANES = 9
WEIGHT, EXPONENT, PEAK, TOTAL, MOMENT, INVERSE, FACTOR, RESIDUE, SCALE = range(PLANES)
# The peak of no logits at all: finite, so that a difference of two of them is 0 and not NaN.
LOWEST = -3.0e38


def shape(n: int) -> tuple[int, int, int]:
    """The statistics' shape for n pairs: plane, side, row.

    >>> shape(100)
    (9, 2, 128)
    """
    return PLANES, 2, padded_rows(n)


def floats(n: int) -> int:
    """How many float32 numbers the statistics of n pairs are."""
    return PLANES * 2 * padded_rows(n)


def floats_with_products(n: int, problem: Problem) -> int:
    """float32 numbers that the forward of a small batch keeps: the statistics, then all products.

    >>> floats_with_products(100, Problem("cz_nce", "both", True, "mean", "highest", 2**28)) == 9 * 256 + 256 * 256
    True
    """
    return floats(n) + product_floats(n, problem)
