"""A multiprocessor on numpy that runs the Hopper kernels' Gluon sources, in an unlucky order.

Partitions are threads of which one runs at a time; whenever one waits or acts on shared memory, a seeded generator
chooses who goes on, or which copy or product that was begun earlier happens now. A slot that a copy is on its way to
holds NaN. What a thread writes to shared memory is hidden from copies until a fence, and so are new barriers. If nobody
can go on, that is a deadlock. Registers, layouts and time are not modelled.

The kernels' modules import Gluon from one place, ``names``, and get this module's stand-in for it.
"""

from __future__ import annotations

import random
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ctloss.kernels.triton_path import hopper

FOLDER = Path(hopper.__file__).parent
MODULES = ("pipeline", "tiles", "lse", "weights")
# Pieces of source and what they become, by module.
Changes = Mapping[str, Sequence[tuple[str, str]]]
Test = Callable[[], bool]
FLOATS = {"float32": np.float32, "float16": np.float16}
INTEGERS = {"int16": np.int16, "int32": np.int32, "int64": np.int64}


class Deadlock(RuntimeError):
    """Every partition waits for something that cannot happen any more."""


class Misuse(RuntimeError):
    """An access that has no meaning: out of bounds, twice, or to a barrier that is not there yet."""


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


@dataclass
class Partition:
    """A thread of the block, and what it waits for.

    Attributes:
        stores: for each copy out, whether it has read its source.
        unfenced: what to do for copies to see what this thread wrote to shared memory.
    """

    may_go_on: Test = lambda: True
    done: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    stores: list[list[bool]] = field(default_factory=list)
    unfenced: list[Callable[[], None]] = field(default_factory=list)


class Stopped(BaseException):
    """Ends a thread whose block has failed."""


class Block:
    """One block of a launch."""

    def __init__(self, program: int, programs: int, seed: int) -> None:
        self.program, self.programs = program, programs
        self.random = random.Random(f"{seed} {program}")
        # How soon what was begun happens.
        self.haste = (0.5, 0.1, 0.9)[(seed + program) % 3]
        self.current = Partition()
        self.begun: list[Callable[[], None]] = []
        self.back = threading.Semaphore(0)
        self.failure: BaseException | None = None

    def wait(self, may_go_on: Test = lambda: True) -> None:
        """Let others go on until this partition may."""
        partition = self.current
        partition.may_go_on = may_go_on
        self.back.release()
        partition.turn.acquire()
        if self.failure is not None:
            raise Stopped

    def run(self, parts: Sequence[tuple[Callable[..., object], tuple[Any, ...]]]) -> None:
        """Run partitions to their ends, and all that they began."""
        partitions = [Partition() for _ in parts]

        def live(partition: Partition, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
            partition.turn.acquire()
            try:
                if self.failure is None:
                    function(*arguments)
                if not all(has_read for (has_read,) in partition.stores):
                    raise Misuse("a partition ended before its copies had read its shared memory")
            except Stopped:
                pass
            except BaseException as error:
                self.failure = error
            partition.done = True
            self.back.release()

        threads = [
            threading.Thread(target=live, args=(partition, *part), daemon=True)
            for partition, part in zip(partitions, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        while not all(partition.done for partition in partitions):
            ready = [each for each in partitions if not each.done and (self.failure or each.may_go_on())]
            if not ready and not self.begun:
                self.failure = Deadlock("every partition waits")
                continue
            if self.begun and (not ready or self.random.random() < self.haste):
                self.begun.pop(self.random.randrange(len(self.begun)))()
                continue
            self.current = self.random.choice(ready)
            self.current.turn.release()
            self.back.acquire()
        if self.failure is not None:
            raise self.failure
        self.random.shuffle(self.begun)
        for action in self.begun:
            action()


BLOCK: list[Block] = []


def block() -> Block:
    """The block that runs."""
    return BLOCK[-1]


class Memory:
    """Shared memory as copies and tensor cores see it, and as threads do."""

    def __init__(self, seen: np.ndarray, written: np.ndarray) -> None:
        self.seen, self.written = seen, written

    def _view(self, of: Callable[[np.ndarray], np.ndarray]) -> Memory:
        return Memory(of(self.seen), of(self.written))

    def index(self, position: Any) -> Memory:
        return self._view(lambda array: array[int(position)])

    def slice(self, start: Any, length: Any) -> Memory:
        return self._view(lambda array: array[int(start) : int(start) + int(length)])

    def permute(self, order: Sequence[int]) -> Memory:
        return self._view(lambda array: array.transpose(order))

    def store(self, new: Any) -> None:
        if np.shape(new) != self.written.shape:
            raise Misuse(f"expected values of shape {self.written.shape}, got {np.shape(new)}")
        block().wait()
        self.written[...] = new
        block().current.unfenced.append(lambda: np.copyto(self.seen, self.written))


class Barrier:
    """An mbarrier: a phase ends when all have arrived, and all expected bytes."""

    def __init__(self) -> None:
        self.count = self.left = self.bytes = self.phase = 0
        self.visible = False

    def settle(self) -> None:
        if self.left < 0 or not self.visible:
            raise Misuse("a barrier has more arrivals than it counts, or none could see it yet")
        if self.left == 0 and self.bytes == 0:
            self.phase, self.left = self.phase + 1, self.count


class Barriers:
    """As many barriers as a ring has slots."""

    def __init__(self, count: int) -> None:
        self.barriers = [Barrier() for _ in range(count)]

    def index(self, position: Any) -> Barrier:
        return self.barriers[int(position)]


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


def wait_for_copies_out(pendings: int) -> None:
    stores = block().current.stores
    older = stores[: len(stores) - pendings]
    block().wait(lambda: all(has_read for (has_read,) in older))


def count_writes(written: np.ndarray, place: Any) -> None:
    written[place] += 1
    if np.any(written[place] > 1):
        raise Misuse("an entry was written twice")


def fence_async_shared() -> None:
    for show in block().current.unfenced:
        show()
    block().current.unfenced.clear()


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


def init_barrier(barrier: Barrier, count: int) -> None:
    barrier.count = barrier.left = count
    block().current.unfenced.append(lambda: setattr(barrier, "visible", True))


def wait_for_barrier(barrier: Barrier, phase: Any) -> None:
    parity = int(phase)
    block().wait(lambda: barrier.phase & 1 != parity)


def expect_bytes(barrier: Barrier, count: int) -> None:
    barrier.bytes += count
    barrier.left -= 1
    barrier.settle()
    block().wait()


def arrive_at(barrier: Barrier, count: int) -> None:
    barrier.left -= count
    barrier.settle()
    block().wait()


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
