"""The compiled kernels as a Markdown table, and its place in a document."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import triton

from benchmarks.aot_devices import Compiled

BEGIN, END = "<!-- benchmarks.aot: begin -->", "<!-- benchmarks.aot: end -->"


def markdown(found: Iterable[Compiled]) -> str:
    """A row for every kernel and call, a column for every architecture.

    Of several launches of a kernel in one call the one that takes most registers; launches that an earlier call makes
    too stand there alone.
    """
    most: dict[tuple[str, str], dict[str, Compiled]] = {}
    architectures: list[str] = []
    for compiled in found:
        if compiled.arch not in architectures:
            architectures.append(compiled.arch)
        row = most.setdefault((compiled.kernel, compiled.case), {})
        known = row.get(compiled.arch)
        if known is None or compiled.registers > known.registers:
            row[compiled.arch] = compiled
    caption = (
        f"Compiled by triton {triton.__version__}: registers of a thread / bytes spilled / KiB of shared memory / "
        "blocks on a multiprocessor / tensor-core instructions. Of a kernel's launches in a call the one with most "
        "registers; what a call shares with one above it is not repeated."
    )
    lines = [caption, "", "| " + " | ".join(["kernel", "call", *architectures]) + " |"]
    lines.append("| --- " * (2 + len(architectures)) + "|")
    for kernel in dict.fromkeys(kernel for kernel, _ in most):
        for case in (case for name, case in most if name == kernel):
            row = most[kernel, case]
            cells = [_cell(row[arch]) if arch in row else "as above" for arch in architectures]
            lines.append("| " + " | ".join([f"`{kernel}`", case, *cells]) + " |")
    return "\n".join(lines)


def insert(document: Path, table: str) -> None:
    """Put a table in place of what a document holds between its two markers."""
    text = document.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r} in {document}, found none; add them")
    scratch = document.with_name(document.name + ".part")
    scratch.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")
    os.replace(scratch, document)


def _cell(compiled: Compiled) -> str:
    shared = f"{compiled.shared / 1024:.1f}".removesuffix(".0")
    figures = [compiled.registers, compiled.spilled, shared, compiled.blocks_per_sm, compiled.tensor_core]
    return " / ".join(str(figure).replace(":", " ") for figure in figures)
