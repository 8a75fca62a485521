"""What a compiled kernel takes of a device: registers, spills, shared memory, tensor-core instructions.

NVIDIA's figures are read from the assembler's report, AMD's from the metadata and the text of the assembly.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

# Both vendors grant a thread's registers in eights.
REGISTER_STEP = 8
TENSOR_CORE = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma": r"\bmma\.sync",
    "mfma": r"\bv_mfma_",
}


@dataclass(frozen=True)
class Device:
    """A GPU as the compiler knows it, and the limits that it does not check.

    Attributes:
        name: what the compiler's vendor calls it.
        arch: what the path's configurations are chosen by.
        target: what Triton compiles for.
        shared_limit: bytes of shared memory that one block may ask for.
        reserved: bytes that every block takes beyond what it asks for.
        registers: 32-bit registers of a multiprocessor.
        threads: threads that are resident on one.
    """

    name: str
    arch: int
    target: GPUTarget
    shared_limit: int
    reserved: int
    registers: int
    threads: int

    @classmethod
    def nvidia(cls, arch: int, shared_limit: int, threads: int = 2048) -> Device:
        """A compute capability, times ten. A single block may take all shared memory but its reserve."""
        return cls(f"sm_{arch}", arch, GPUTarget("cuda", arch, 32), shared_limit, 1024, 65536, threads)

    def blocks(self, registers: int, shared: int, threads: int) -> int:
        """How many blocks share a multiprocessor, by registers per thread and a block's shared memory and threads."""
        granted = -(-max(registers, 1) // REGISTER_STEP) * REGISTER_STEP
        return min(
            self.registers // (granted * threads),
            (self.shared_limit + self.reserved) // max(shared + self.reserved, 1),
            self.threads // threads,
        )


@dataclass(frozen=True)
class Compiled:
    """What a launch takes of one architecture.

    Attributes:
        registers: of a thread; where warps trade them, what each begins with.
        spilled: bytes stored and loaded.
        tensor_core: instructions that multiply, by kind.
        step: instructions of the innermost loop around them, if warps trade registers, else 0.
    """

    kernel: str
    arch: str
    case: str
    registers: int
    spilled: int
    shared: int
    shared_limit: int
    blocks_per_sm: int
    tensor_core: str
    step: int

    @property
    def sound(self) -> bool:
        """Whether no register is spilled and the device has the shared memory."""
        return self.spilled == 0 and self.shared <= self.shared_limit


def compile_for(device: Device, source: ASTSource, options: Mapping[str, int], name: str, case: str) -> Compiled:
    """Compile a launch of the kernel ``name`` and read what it takes."""
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        # A kernel found in the cache would leave no report.
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        kernel = triton.compile(source, target=device.target, options=dict(options))
    assembly = kernel.asm["ptx" if device.target.backend == "cuda" else "amdgcn"]
    registers, spilled = _registers(kernel, log.getvalue())
    shared = kernel.metadata.shared
    used = {what: len(re.findall(pattern, assembly)) for what, pattern in TENSOR_CORE.items()}
    return Compiled(
        kernel=name,
        arch=device.name,
        case=case,
        registers=registers,
        spilled=spilled,
        shared=shared,
        shared_limit=device.shared_limit,
        blocks_per_sm=device.blocks(registers, shared, device.target.warp_size * kernel.metadata.num_warps),
        tensor_core=" ".join(f"{what}:{count}" for what, count in used.items() if count) or "none",
        step=step_of(disassembled(kernel)) if "setmaxnreg" in assembly else 0,
    )


def disassembled(kernel: CompiledKernel) -> str:
    """The machine code of a kernel as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", binary.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def step_of(code: str) -> int:
    """Instructions of the shortest loop around Hopper's tensor-core instructions, in disassembled code."""
    lines = code.splitlines()
    labels = {found[1]: line for line, text in enumerate(lines) if (found := re.match(r"(\.L_x_\d+):", text.strip()))}
    ends = ((line, re.search(r"BRA.*`\((\.L_x_\d+)\)", text)) for line, text in enumerate(lines))
    loops = [lines[labels[found[1]] : line + 1] for line, found in ends if found and labels.get(found[1], line) < line]
    counts = [
        sum(bool(re.match(r"\s*/\*[0-9a-f]{4,5}\*/", text)) for text in loop)
        for loop in loops
        if any("HGMMA" in text for text in loop)
    ]
    return min(counts, default=0)


def _registers(kernel: CompiledKernel, report: str) -> tuple[int, int]:
    """Registers of a thread and bytes that it spills."""
    if "amdgcn" in kernel.asm:
        # Vector registers include accumulation registers here; spills go to a thread's private segment.
        metadata = kernel.asm["amdgcn"]
        return _found(r"\.vgpr_count:\s+(\d+)", metadata), _found(r"\.private_segment_fixed_size:\s+(\d+)", metadata)
    stores, loads = _found(r"(\d+) bytes spill stores", report), _found(r"(\d+) bytes spill loads", report)
    return _found(r"Used (\d+) registers", report), stores + loads


def _found(pattern: str, report: str) -> int:
    match = re.search(pattern, report)
    if match is None:
        raise RuntimeError(f"expected {pattern!r} in the compiler's report, got: {report[-2000:]}")
    return int(match.group(1))
