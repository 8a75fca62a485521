"""Compile every Triton kernel for GPUs that need not be there: registers, spills, shared memory, tensor-core use.

    python -m benchmarks.aot
    python -m benchmarks.aot --arch 90 --only "bfloat16 n=1500"
    python -m benchmarks.aot --write docs/lab/kernels.md

The launches that the path would make are recorded, with the types and divisibilities that Triton specialises them for,
and compiled ahead of time by the compiler that Triton ships. The compiler does not mind shared memory that a device
lacks, only a launch does, so it is compared with the device's limit here. Must run without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as SwizzledDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.aot.calls import SHIPPED, TABLED, Shipped
from benchmarks.aot.devices import Compiled, Device, compile_for
from benchmarks.aot.table import COMMAND, markdown
from benchmarks.results import insert
from ctloss.kernels import blocks, triton_path
from ctloss.kernels.blocks import triton_path as triton_blocks
from ctloss.kernels.triton_path import engine, hopper, sig_lip, tiles
from ctloss.kernels.triton_path.plan import config

MODULES = [
    importlib.import_module(f"{package.__name__}.{each.name}")
    for package in (triton_path, hopper)
    for each in iter_modules(package.__path__)
]
KERNELS = {
    name: value for module in MODULES for name, value in vars(module).items() if isinstance(value, triton.JITFunction)
}
DEVICES = {
    device.name.removeprefix("sm_"): device
    for device in (
        Device.nvidia(80, 166912),
        Device.nvidia(89, 101376, threads=1536),
        Device.nvidia(90, 232448),
        Device.nvidia(100, 232448),
        # Four SIMD units with 512 registers by 64 lanes and eight wavefronts each.
        Device("gfx942", config.CDNA3, GPUTarget("hip", "gfx942", 64), 65536, 0, 131072, 2048),
    )
}
TRITON_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int16: "i16",
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch as Triton would specialise it."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, int], ...]


class Recorder:
    """Takes a kernel's place: notes its launches and computes nothing."""

    def __init__(self, kernel: triton.runtime.JITFunction, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        return self

    def __call__(self, *args: object, **options: Any) -> None:
        """Classify the arguments as Triton's launcher does."""
        names = self.kernel.arg_names
        given = dict(zip(names, args, strict=False)) | {k: v for k, v in options.items() if k in names}
        signature, constants, aligned = [], [], []
        constexprs = {p.name for p in self.kernel.params if p.is_constexpr}
        for position, name in enumerate(names):
            value = given[name]
            if name in constexprs or value is None or (isinstance(value, int) and value == 1):
                constants.append((name, value))
                kind, divisible = "constexpr", False
            elif isinstance(value, torch.Tensor):
                kind, divisible = "*" + TRITON_TYPES[value.dtype], value.data_ptr() % 16 == 0
            elif isinstance(value, TensorDescriptor):
                kind, divisible = f"tensordesc<{TRITON_TYPES[value.base.dtype]}{value.block_shape}>", False
            elif isinstance(value, SwizzledDescriptor):
                part = f"{TRITON_TYPES[value.base.dtype]}{value.block_shape}"
                kind, divisible = f"tensordesc<{part},{value.layout!r}>", False
            elif isinstance(value, float):
                kind, divisible = "fp32", False
            else:
                assert isinstance(value, int)
                kind, divisible = "i32" if value < 2**31 else "i64", value % 16 == 0
            signature.append((name, kind))
            aligned += [position] * divisible
        compile_options = tuple(sorted((k, v) for k, v in options.items() if k not in names))
        self.launches.append(
            Launch(self.kernel.__name__, tuple(signature), tuple(constants), tuple(aligned), compile_options)
        )


@contextlib.contextmanager
def recording(arch: int) -> Iterator[list[Launch]]:
    """Record launches instead of making them, with the configuration of ``arch``."""
    launches: list[Launch] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(engine, "_arch", lambda: arch))
        for module in MODULES:
            for name in KERNELS.keys() & vars(module).keys():
                stack.enter_context(patch.object(module, name, Recorder(KERNELS[name], launches)))
            # What cuBLAS multiplies is not compiled here.
            if hasattr(module, "library_product"):
                stack.enter_context(patch.object(module, "library_product", lambda *operands: None))
        yield launches


def compile_launch(recorded: Launch, device: Device, case: str) -> Compiled:
    """Compile a launch for a device and read what the compiler reports."""
    kernel = KERNELS[recorded.kernel]
    written_in = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = written_in(
        fn=kernel,
        signature=dict(recorded.signature),
        constexprs=dict(recorded.constants),
        attrs={(position,): [["tt.divisibility", 16]] for position in recorded.aligned},
    )
    return compile_for(device, source, dict(recorded.options), recorded.kernel, case)


def launches_of(arch: int, shipped: Shipped) -> list[Launch]:
    """The distinct launches of forwards and backwards, with logits kept or not and moments requested or not."""
    if shipped.specialised:
        with patch.object(config, "SPECIALISED", True):
            found = launches_of(arch, replace(shipped, specialised=False))
        return [launch for launch in found if isinstance(KERNELS[launch.kernel], GluonJITFunction)]
    batch, problem = shipped.batch, shipped.problem
    a = torch.ones(shipped.n * problem.num_directions, dtype=torch.float64)
    with recording(arch) as launches:
        if shipped.sigmoid:
            for need in (True, False):
                sig_lip.solve(batch, -10.0, problem, needs=(need, need, need, need))
            return list(dict.fromkeys(launches))
        if shipped.ranks:
            anchors = blocks.Anchors(a, a)
            for moment in (shipped.moment, False):
                triton_blocks.meet(batch, batch, problem, mutual=True, moment=moment)
            triton_blocks.pull(batch, batch, problem, anchors, anchors, (True,) * len(batch.sides))
            return list(dict.fromkeys(launches))
        for gradient in (True, False):
            forward = engine.forward(batch, problem, moment=shipped.moment, gradient=gradient)
            engine.forward(batch, problem, moment=False, gradient=gradient)
            engine.backward(forward.state, a, a, (True,) * len(batch.sides))
    return list(dict.fromkeys(launches))


def compile_shipped(shipped: Shipped, device: Device, known: dict[tuple[Launch, str], Compiled]) -> Iterator[Compiled]:
    """The compiled launches of a call; those that are not in ``known`` are compiled and added to it."""
    for recorded in launches_of(device.arch, shipped):
        if (recorded, device.name) not in known:
            known[recorded, device.name] = compile_launch(recorded, device, str(shipped))
        yield replace(known[recorded, device.name], case=str(shipped))


def main() -> int:
    """Print a line for every kernel; the exit status is 1 if one spills or asks for too much shared memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--only", nargs="+", help="compile the calls whose description contains one of these texts")
    parser.add_argument("--markdown", action="store_true", help="end with a Markdown table of the most telling calls")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put that table between the markers in a document")
    options = parser.parse_args()
    if tiles.INTERPRETED.value:
        parser.error("expected real kernels, got the interpreter's; unset TRITON_INTERPRET")
    tabled = options.markdown or options.write is not None
    chosen = TABLED if tabled else SHIPPED
    if options.only:
        # Between spaces, so that a text can ask for a whole word.
        chosen = [shipped for shipped in SHIPPED if any(text in f" {shipped} " for text in options.only)]
    print(f"triton {triton.__version__}", file=sys.stderr)
    known: dict[tuple[Launch, str], Compiled] = {}
    found: list[Compiled] = []
    for shipped in chosen:
        for arch in options.arch:
            print(f"{arch}: {shipped}", file=sys.stderr, flush=True)
            found += compile_shipped(shipped, DEVICES[arch], known)
    names = [field.name for field in fields(Compiled)]
    print("\t".join(names))
    for compiled in known.values():
        print("\t".join(str(getattr(compiled, name)) for name in names))
    if tabled:
        if options.markdown:
            print(markdown(found))
        if options.write is not None:
            insert(options.write, COMMAND, markdown(found))
    return 0 if all(compiled.sound for compiled in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
