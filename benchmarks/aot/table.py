"""The compiled kernels as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

import triton

from benchmarks.aot.devices import Compiled
from benchmarks.results import table

COMMAND = "python -m benchmarks.aot"


def markdown(found: Sequence[Compiled]) -> str:
    """A row for every kernel and call, and a column for every architecture.

    Calls that take the same share a row; of several launches of a kernel in a call the one with most registers counts.
    """
    architectures = list(dict.fromkeys(compiled.arch for compiled in found))
    words = [compiled.case.split() for compiled in found]
    shared = [word for word in words[0] if all(word in case for case in words)]
    most: dict[tuple[str, str], dict[str, Compiled]] = {}
    for compiled in found:
        call = " ".join(word for word in compiled.case.split() if word not in shared)
        by_arch = most.setdefault((compiled.kernel, call), {})
        by_arch[compiled.arch] = max(by_arch.get(compiled.arch, compiled), compiled, key=lambda each: each.registers)
    calls: dict[tuple[str, ...], list[str]] = {}
    for (kernel, call), by_arch in most.items():
        calls.setdefault((kernel, *(_cell(by_arch.get(arch)) for arch in architectures)), []).append(call)
    num_calls = len({call for _, call in most})
    caption = (
        f"Compiled by triton {triton.__version__}; {' '.join(shared)}. Registers of a thread / bytes spilled / KiB of "
        "shared memory / blocks on a multiprocessor / tensor-core instructions and, for warp-specialised kernels, "
        "instructions of the loop around them; of a kernel's launches in a call the one with most registers."
    )
    lines = []
    for kernel in dict.fromkeys(compiled.kernel for compiled in found):
        for row, names in calls.items():
            if row[0] == kernel:
                label = "every one" if len(names) == num_calls else ", ".join(names)
                lines.append([f"`{kernel}`", label, *row[1:]])
    return caption + "\n\n" + table(["kernel", "call", *architectures], lines)


def _cell(compiled: Compiled | None) -> str:
    if compiled is None:
        # The call takes another kernel there.
        return "-"
    shared = f"{compiled.shared / 1024:.1f}".removesuffix(".0")
    figures = [compiled.registers, compiled.spilled, shared, compiled.blocks_per_sm, compiled.tensor_core]
    cell = " / ".join(str(figure).replace(":", " ") for figure in figures)
    return f"{cell}, {compiled.step} a step" if compiled.step else cell
