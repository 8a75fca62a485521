"""The compiled kernels as a Markdown table, and its place in a document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import triton

from benchmarks.aot_devices import Compiled
from benchmarks.markdown import insert as insert_between
from benchmarks.markdown import table as format_table

BEGIN, END = "<!-- benchmarks.aot: begin -->", "<!-- benchmarks.aot: end -->"


def markdown(found: Sequence[Compiled]) -> str:
    """A row for every kernel and call, calls that take the same together, and a column for every architecture.

    Of several launches of a kernel in one call the one that takes most registers.
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
        calls.setdefault((kernel, *(_cell(by_arch[arch]) for arch in architectures)), []).append(call)
    num_calls = len({call for _, call in most})
    caption = (
        f"Compiled by triton {triton.__version__}; {' '.join(shared)}. Registers of a thread / bytes spilled / KiB of "
        "shared memory / blocks on a multiprocessor / tensor-core instructions, of a kernel's launches in a call the "
        "one with most registers."
    )
    lines = []
    for kernel in dict.fromkeys(compiled.kernel for compiled in found):
        for row, names in calls.items():
            if row[0] == kernel:
                label = "every one" if len(names) == num_calls else ", ".join(names)
                lines.append([f"`{kernel}`", label, *row[1:]])
    return caption + "\n\n" + format_table(["kernel", "call", *architectures], lines)


def insert(document: Path, table: str) -> None:
    """Put a table in place of what a document holds between its two markers."""
    insert_between(document, BEGIN, END, f"\n\n{table}\n\n")


def _cell(compiled: Compiled) -> str:
    shared = f"{compiled.shared / 1024:.1f}".removesuffix(".0")
    figures = [compiled.registers, compiled.spilled, shared, compiled.blocks_per_sm, compiled.tensor_core]
    return " / ".join(str(figure).replace(":", " ") for figure in figures)
