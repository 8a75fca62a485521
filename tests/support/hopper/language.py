"""Gluon on numpy: what the Hopper kernels' sources say, done on the machine next door.

A slot that a copy is on its way to holds NaN. Registers, layouts and time are not modelled. The kernels' modules import
Gluon from one place, ``names``, and get this module's stand-in for it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ctloss.kernels.triton_path import hopper

from .machine import (
    BLOCK,
    Barrier,
    Barriers,
    Block,
    Memory,
    Misuse,
    arrive_at,
    block,
    expect_bytes,
    fence_async_shared,
    init_barrier,
    wait_for_barrier,
    wait_for_copies_out,
)

FOLDER = Path(hopper.__file__).parent
MODULES = ("pipeline", "tiles", "lse", "weights")
# Pieces of source and what they become, by module.
Changes = Mapping[str, Sequence[tuple[str, str]]]
FLOATS = {"float32": np.float32, "float16": np.float16}
INTEGERS = {"int16": np.int16, "int32": np.int32, "int64": np.int64}


class Values(np.ndarray):
    """A Gluon tensor or scalar."""

    type = SimpleNamespace(layout=None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return values(array)

    # Gluon's += binds a name anew; numpy's would change every name of the array.
    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]
        return self + other

    def __isub__(self, other: Any) -> Any:  # type: ignore[misc]
        return self - other

    def __imul__(self, other: Any) -> Any:  # type: ignore[misc]
        return self * other

    def to(self, dtype: str, bitcast: bool = False) -> Any:
        """Another dtype; bfloat16 is held as the float32 numbers that it has."""
        if bitcast:
            return values(np.ascontiguousarray(self).view(INTEGERS.get(dtype) or FLOATS[dtype]))
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(self, np.float32).view(np.uint32)
            kept = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
            return values(np.where(np.isnan(self), np.float32(np.nan), kept))
        if dtype in INTEGERS:
            return values(self.astype(np.int64).astype(INTEGERS[dtype]))
        return values(self.astype(FLOATS[dtype]).astype(np.float32))


def values(array: Any) -> Any:
    return np.asarray(array).view(Values)


class Pointer:
    """An address in global memory."""

    def __init__(self, memory: np.ndarray, offset: Any, written: np.ndarray) -> None:
        self.memory, self.offset, self.written = memory, offset, written

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.memory, values(self.offset + np.asarray(more)), self.written)

    def place(self) -> np.ndarray:
        place = np.asarray(self.offset)
        if place.size and not (place.min() >= 0 and place.max() < self.memory.size):
            raise Misuse(f"expected a place among {self.memory.size}, got {place.min()} to {place.max()}")
        return place


@dataclass
class Descriptor:
    """A matrix in global memory, in parts that are copied as a whole."""

    matrix: np.ndarray
    part: list[int]
    dtype: str
    written: np.ndarray
    tensor: Tensor
    layout: None = None

    @classmethod
    def from_tensor(cls, tensor: Tensor, part: list[int], layout: None) -> Descriptor:
        # numpy has no bfloat16.
        matrix = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        written = np.zeros(matrix.shape, np.int32)
        return cls(matrix, part, str(tensor.dtype).removeprefix("torch."), written, tensor)

    def slices(self, corner: Sequence[Any]) -> tuple[slice, slice]:
        """The part at a corner, as far as it lies inside."""
        (row, column), (rows, columns) = map(int, corner), self.part
        return slice(row, row + rows), slice(column, column + columns)


def pointer_to(tensor: Tensor) -> Pointer:
    """The address of a tensor, from which all of its storage can be reached."""
    whole = tensor.new_empty(0).set_(tensor.untyped_storage()).numpy()
    return Pointer(whole, values(tensor.storage_offset()), np.zeros(whole.size, np.int32))


def copy_in(source: Descriptor, corner: Sequence[Any], barrier: Barrier, target: Memory) -> None:
    if list(target.seen.shape) != source.part:
        raise Misuse(f"expected a target of shape {source.part}, got {target.seen.shape}")
    if not barrier.visible:
        raise Misuse("a copy began before its barrier could be seen")
    rows, columns = source.slices(corner)
    target.seen[...] = np.nan

    def arrive() -> None:
        part = source.matrix[rows, columns]
        target.seen[...] = 0
        target.seen[: part.shape[0], : part.shape[1]] = part
        barrier.bytes -= 2 * target.seen.size
        barrier.settle()

    block().begun.append(arrive)
    block().wait()


def copy_out(target: Descriptor, corner: Sequence[Any], source: Memory) -> None:
    if list(source.seen.shape) != target.part:
        raise Misuse(f"expected a source of shape {target.part}, got {source.seen.shape}")
    part = target.slices(corner)
    has_read = [False]

    def leave() -> None:
        rows, columns = target.matrix[part].shape
        target.matrix[part] = source.seen[:rows, :columns]
        target.tensor[part] = torch.from_numpy(target.matrix[part]).to(target.tensor.dtype)
        count_writes(target.written, part)
        has_read[0] = True

    block().current.stores.append(has_read)
    block().begun.append(leave)
    block().wait()


def count_writes(written: np.ndarray, place: Any) -> None:
    written[place] += 1
    if np.any(written[place] > 1):
        raise Misuse("an entry was written twice")


class Product:
    """A product of tiles in shared memory, which are read at some time before it is waited for."""

    def __init__(self, a: Memory, b: Memory) -> None:
        self.a, self.b = a, b
        self.value: Any = None

    def compute(self) -> None:
        if self.value is None:
            self.value = values(self.a.seen @ self.b.seen)


def warpgroup_mma(a: Memory, b: Memory, accumulator: Any, *, use_acc: bool, is_async: bool) -> Product:
    assert is_async
    assert not use_acc
    product = Product(a, b)
    block().begun.append(product.compute)
    block().wait()
    return product


def warpgroup_mma_wait(outstanding: int, deps: list[Product]) -> Any:
    assert outstanding == 0
    block().wait()
    deps[0].compute()
    return deps[0].value


def load(pointer: Pointer) -> Any:
    return values(pointer.memory[pointer.place()])


def store(pointer: Pointer, new: Any, mask: Any = True) -> None:
    if mask:
        place = pointer.place()
        count_writes(pointer.written, place)
        pointer.memory[place] = new


def exp2(assembly: str, constraints: str, arguments: list[Any], dtype: str, is_pure: bool, pack: int) -> Any:
    assert assembly == "ex2.approx.ftz.f32 $0, $1;"
    power = np.exp2(np.asarray(arguments[0], np.float64))
    return values(np.where(power < 2.0**-126, 0.0, power).astype(np.float32))


def allocate(dtype: str, shape: list[int], layout: str | None) -> Memory | Barriers:
    if layout == "barriers":
        return Barriers(shape[0])
    return Memory(np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32))


def constexpr(value: Any = None) -> Any:
    return value


GL = SimpleNamespace(
    **{name: name for name in ("bfloat16", *FLOATS, *INTEGERS)},
    constexpr=constexpr,
    program_id=lambda axis: block().program,
    num_programs=lambda axis: block().programs,
    NVMMADistributedLayout=lambda **about: None,
    NVMMASharedLayout=SimpleNamespace(get_default_for=lambda part, dtype: None),
    SliceLayout=lambda axis, layout: None,
    arange=lambda first, last, layout: values(np.arange(first, last)),
    full=lambda shape, value, dtype, layout: values(np.full(shape, value, FLOATS[dtype])),
    zeros=lambda shape, dtype, layout: values(np.zeros(shape, FLOATS[dtype])),
    where=lambda condition, one, other: values(
        np.where(condition, *(np.float32(each) if isinstance(each, float) else each for each in (one, other)))
    ),
    minimum=lambda one, other: values(np.fmin(one, other)),
    maximum=lambda one, other: values(np.fmax(one, other)),
    fma=lambda x, y, z: values((np.asarray(x, np.float64) * y + z).astype(np.float32)),
    sum=lambda x, axis: values(np.add.reduce(np.asarray(x), axis)),
    max=lambda x, axis: values(np.fmax.reduce(np.asarray(x), axis)),
    reshape=lambda x, shape: x.reshape(shape),
    permute=lambda x, order: x.transpose(order),
    split=lambda x: (x[..., 0], x[..., 1]),
    load=load,
    store=store,
    inline_asm_elementwise=exp2,
    static_range=range,
    allocate_shared_memory=allocate,
    warp_specialize=lambda parts, warps, registers: block().run(parts),
)


class Kernel:
    """A jitted function: called by others as it is, launched with tensors over a grid."""

    # Set for a while by whoever launches.
    seed = 0

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, maxnreg: int, **options: Any) -> None:
            given = [pointer_to(each) if isinstance(each, Tensor) else each for each in arguments]
            for program in range(grid[0]):
                BLOCK.append(Block(program, grid[0], Kernel.seed))
                try:
                    with np.errstate(all="ignore"):
                        self.function(*given, **options)
                finally:
                    BLOCK.pop()

        return launch


def simulated(changes: Changes | None = None) -> SimpleNamespace:
    """The kernels' modules, by name, on this machine; each of the ``changes`` must find its piece of source once."""
    package = types.ModuleType("simulated")
    package.__path__ = []
    names = types.ModuleType("simulated.names")
    names.__dict__.update(
        TensorDescriptor=Descriptor,
        copy_in=copy_in,
        copy_out=copy_out,
        fence_async_shared=fence_async_shared,
        gl=GL,
        jit=Kernel,
        mbarrier=SimpleNamespace(
            init=init_barrier,
            wait=wait_for_barrier,
            expect=expect_bytes,
            arrive=arrive_at,
            MBarrierLayout=lambda: "barriers",
        ),
        seen_as=lambda memory, like, shape: memory._view(lambda array: array.reshape(shape)),
        wait_for_copies_out=wait_for_copies_out,
        warpgroup_mma=warpgroup_mma,
        warpgroup_mma_wait=warpgroup_mma_wait,
    )
    found = {"simulated": package, "simulated.names": names}
    with patch.dict(sys.modules, found):
        for name in MODULES:
            source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
            for old, new in (changes or {}).get(name, ()):
                assert source.count(old) == 1, f"expected once in {name}: {old}"
                source = source.replace(old, new)
            module = types.ModuleType(f"simulated.{name}")
            module.__package__ = "simulated"
            sys.modules[module.__name__] = found[module.__name__] = module
            exec(compile(source, str(FOLDER / f"{name}.py"), "exec"), module.__dict__)
    return SimpleNamespace(**{name: found[f"simulated.{name}"] for name in MODULES})
