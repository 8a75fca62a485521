"""What both kernels are built on: the order of the tiles, the ring of operands, the warp that fills it, the products.

One block runs on every multiprocessor and works through its share of the tiles. A tile is 2 BLOCK rows high and BLOCK
columns wide; each of two warpgroups, the consumers, owns one half. The producer, a single warp, copies DEPTH columns of
the embeddings at a time into a ring of STAGES slots. Two barriers belong to a slot: ``full`` is passed when its bytes
have arrived, ``empty`` when both consumers have released it. The ring lets one consumer run ahead of the other, so that
one's epilogue falls into the other's products.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .names import (
    TensorDescriptor,
    copy_in,
    fence_async_shared,
    gl,
    jit,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

BLOCK, DEPTH = 128, 64
# A multiprocessor has registers for 168 a thread of three warpgroups. The producer gives most of its own to the
# consumers, which hold 128 accumulators and 64 sums each; a fifth slot would not fit into shared memory.
OPTIONS: dict[str, int] = {
    "GROUP": 8,
    "BLOCK": BLOCK,
    "DEPTH": DEPTH,
    "STAGES": 4,
    "CONSUMER_REGISTERS": 240,
    "PRODUCER_REGISTERS": 24,
    "num_warps": 4,
    "maxnreg": 168,
}
DTYPES = {
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
    torch.int16: gl.int16,
}


@jit
def tile_at(program, tiles_a, tiles_b, TRIANGLE: gl.constexpr, GROUP: gl.constexpr):
    """(pair, b): the row tiles 2 pair and 2 pair + 1 against column tile b; ``tiles_a`` and ``tiles_b`` count BLOCKs.

    TRIANGLE: only b >= 2 pair. Its rows of pairs are folded onto a rectangle half as high: row i of the fold holds the
    pair i and, in the space left, the pair P - 1 - i (P - i with an odd number of pairs, whose first row then holds one
    alone). GROUP rows of the rectangle are swept together, so that they share L2. A few tiles are
    nobody's: below the diagonal, or where a or b is beyond the last.
    """
    pairs = (tiles_a + 1) // 2
    if TRIANGLE:
        odd = pairs % 2
        height = (pairs + 1) // 2
        width = gl.where(odd == 1, tiles_a, tiles_a + 2 - tiles_a % 2)
    else:
        odd = 0
        height = pairs
        width = tiles_b
    group = program // (GROUP * width)
    first = group * GROUP
    size = gl.minimum(height - first, GROUP)
    rest = program - group * GROUP * width
    i = first + rest % size
    j = rest // size
    if TRIANGLE:
        own = j < tiles_a - 2 * i
        pair = gl.where(own, i, pairs - 1 - i + odd)
        b = gl.where(own, tiles_a - 1 - j, 2 * pair + j - (tiles_a - 2 * i))
    else:
        pair = i
        b = j
    return pair, b


def num_programs(tiles_a: int, tiles_b: int, triangle: bool) -> int:
    """How many (pair, b) :func:`tile_at` knows."""
    pairs = (tiles_a + 1) // 2
    if not triangle:
        return pairs * tiles_b
    return (pairs + 1) // 2 * (tiles_a if pairs % 2 else tiles_a + 2 - tiles_a % 2)


def grid(programs: int, device: torch.device) -> tuple[int]:
    """A block for every multiprocessor, as far as there are programs; 132 where kernels are only compiled."""
    resident = multiprocessors(device) if device.type == "cuda" else 132
    return (min(resident, programs),)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a GPU has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def described(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A contiguous matrix in parts of ``rows`` x ``columns``, swizzled as tensor cores read them."""
    part = [rows, columns]
    return TensorDescriptor.from_tensor(matrix, part, gl.NVMMASharedLayout.get_default_for(part, DTYPES[matrix.dtype]))


def operands(packed: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
    """The packed rows as the producer copies them for the rows and for the columns of a tile."""
    return described(packed, 2 * BLOCK, DEPTH), described(packed, BLOCK, DEPTH)


@jit
def next_slot(index, phase, STAGES: gl.constexpr):
    """The slot after this one, and the phase that its barriers are in when their turn has come."""
    index += 1
    wrapped = index == STAGES
    return gl.where(wrapped, 0, index), gl.where(wrapped, phase ^ 1, phase)


@jit
def make_ring(rows_desc, columns_desc, BLOCK: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr):
    """Slots for the rows and the columns of a step, and their barriers."""
    rows = gl.allocate_shared_memory(rows_desc.dtype, [STAGES, 2 * BLOCK, DEPTH], rows_desc.layout)
    columns = gl.allocate_shared_memory(columns_desc.dtype, [STAGES, BLOCK, DEPTH], columns_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    # The copies must find the barriers made.
    fence_async_shared()
    return rows, columns, full, empty


@jit
def staging(desc, otherwise, WANTED: gl.constexpr, BLOCK: gl.constexpr):
    """For each consumer, two buffers for the quarters that it copies out; ``otherwise`` if none are wanted."""
    if WANTED:
        first = gl.allocate_shared_memory(desc.dtype, [2, BLOCK // 2, BLOCK // 4], desc.layout)
        second = gl.allocate_shared_memory(desc.dtype, [2, BLOCK // 2, BLOCK // 4], desc.layout)
    else:
        first = otherwise
        second = otherwise
    return first, second


@jit
def producer(
    rows_desc,
    columns_desc,
    rows,
    columns,
    full,
    empty,
    pitch,
    programs,
    tiles_a,
    tiles_b,
    a_start,
    b_start,
    TRIANGLE: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Fill the ring with the operands of one tile after the other."""
    index = 0
    # No slot was ever full: the phase before the first counts as over.
    phase = 1
    for program in range(gl.program_id(0), programs, gl.num_programs(0)):
        pair, b = tile_at(program, tiles_a, tiles_b, TRIANGLE, GROUP)
        first_a = a_start + pair * 2 * BLOCK
        first_b = b_start + b * BLOCK
        for start in range(0, pitch, DEPTH):
            mbarrier.wait(empty.index(index), phase)
            arrived = full.index(index)
            mbarrier.expect(arrived, 3 * BLOCK * DEPTH * 2)
            copy_in(rows_desc, [first_a, start], arrived, rows.index(index))
            copy_in(columns_desc, [first_b, start], arrived, columns.index(index))
            index, phase = next_slot(index, phase, STAGES)


@jit
def products(
    rows,
    columns,
    full,
    empty,
    index,
    phase,
    pitch,
    SIDE: gl.constexpr,
    BLOCK: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The dot products of this consumer's upper and lower BLOCK / 2 rows with the tile's columns.

    The products of DEPTH columns are summed apart from the total: tensor cores round the sums of a long chain towards
    zero. While one consumer adds, the other's products run.
    """
    HALF: gl.constexpr = BLOCK // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
    upper = gl.zeros([HALF, BLOCK], gl.float32, layout)
    lower = gl.zeros([HALF, BLOCK], gl.float32, layout)
    nothing = gl.zeros([HALF, BLOCK], gl.float32, layout)
    for _ in range(0, pitch, DEPTH):
        mbarrier.wait(full.index(index), phase)
        own = rows.index(index)
        across = columns.index(index).permute([1, 0])
        part = warpgroup_mma(own.slice(SIDE * BLOCK, HALF), across, nothing, use_acc=False, is_async=True)
        part = warpgroup_mma_wait(0, deps=[part])
        upper += part
        part = warpgroup_mma(own.slice(SIDE * BLOCK + HALF, HALF), across, nothing, use_acc=False, is_async=True)
        part = warpgroup_mma_wait(0, deps=[part])
        mbarrier.arrive(empty.index(index), count=1)
        lower += part
        index, phase = next_slot(index, phase, STAGES)
    return upper, lower, index, phase
