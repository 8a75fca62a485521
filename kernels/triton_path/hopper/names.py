"""Gluon's names, the same for every Triton from 3.6 on. Nothing else in this package imports Gluon.

Gluon is experimental: names change from one Triton to the next, and all that did are settled here.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import shared_memory_descriptor
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

__all__ = [
    "TensorDescriptor",
    "copy_in",
    "copy_out",
    "fence_async_shared",
    "gl",
    "jit",
    "mbarrier",
    "seen_as",
    "wait_for_copies_out",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]

jit = gluon.jit
wait_for_copies_out = tma.store_wait
# async_load and async_store since 3.8.
copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
copy_out = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

if hasattr(shared_memory_descriptor, "reinterpret"):  # since 3.9

    @jit
    def seen_as(memory, like, shape: gl.constexpr):
        """Shared memory as entries of another shape, laid out as the descriptor ``like`` has them."""
        return memory.reinterpret(like.dtype, shape, like.layout)

else:

    @jit
    def seen_as(memory, like, shape: gl.constexpr):
        """Shared memory as entries of another shape, laid out as the descriptor ``like`` has them."""
        return memory._reinterpret(like.dtype, shape, like.layout)
