"""The dot products that a small batch keeps, each as one float32 number or as two that add up to it.

Two hold 48 of float64's 53 bits, and are numbers like any others to whoever is handed the statistics they are part of.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_products(products_ptr, plane, offsets, product, PARTS: tl.constexpr):
    """Store products, whose second parts lie ``plane`` numbers behind their first."""
    part = product.to(tl.float32)
    tl.store(products_ptr + offsets, part)
    if PARTS == 2:
        # Nothing is left of what float32 cannot hold.
        rest = tl.where(part - part == 0, product.to(tl.float64) - part.to(tl.float64), 0.0)
        tl.store(products_ptr + plane + offsets, rest.to(tl.float32))


@triton.jit
def load_products(products_ptr, plane, offsets, PARTS: tl.constexpr):
    """Products that :func:`store_products` stored, of two parts in float64."""
    product = tl.load(products_ptr + offsets)
    if PARTS == 2:
        product = product.to(tl.float64) + tl.load(products_ptr + plane + offsets).to(tl.float64)
    return product
