"""What a step of the Triton path holds at its peak beyond its inputs, added up: ``python -m benchmarks.gpu.memory``.

A pure function of the call: nothing is run, so it holds for batches that no machine at hand can take.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.results import table
from ctloss.kernels.problem import Problem, Shape
from ctloss.kernels.triton_path.plan import config, layout, memory
from ctloss.kernels.triton_path.plan.layout import length

# float64 numbers that a loss of the rows holds for each of them while its gradient is formed: z, the positive's logit,
# the row's loss and its derivatives, the factors a and b, and what makes them.
ROW_NUMBERS = 10
MIB = 1 << 20
REPORTED = ((16384, 64), (65536, 64), (65536, 256), (16384, 1024), (65536, 1024))


def forward_bytes(shape: Shape, arch: int, problem: Problem, *, moment: bool = False) -> int:
    """The forward of a large batch without candidates: packed rows, statistics, kept logits, and slots of a panel."""
    stack, chosen = layout.stack_of(shape), config.choose(shape, arch, problem)
    blocks = layout.blocks(stack, problem, chosen.block)
    planes = 3 if moment else 2
    kept = kept_bytes(shape, arch, problem)
    size = layout.forward_panel(stack, chosen.block, planes, problem.workspace - kept)
    slots = max(
        panel.pairs // chosen.block * (2 if panel.serves_columns else 1) for panel in layout.panels(blocks, size, stack)
    )
    return (
        _packed(shape) + _saved(shape) + kept + 4 * planes * slots + 8 * stack.padded + _results(shape, problem, moment)
    )


def backward_bytes(shape: Shape, arch: int, problem: Problem, *, moment: bool = False) -> int:
    """Its backward: gradients, packed rows, what the forward left, sums, and a panel of weights."""
    stack, chosen = layout.stack_of(shape), config.choose(shape, arch, problem)
    kept = kept_bytes(shape, arch, problem)
    plan = memory.plan_backward(stack, chosen.weight_bytes, problem.workspace - kept)
    wanted = layout.wanted_spans((True, True), stack)
    if plan.shared:
        blocks = layout.blocks(stack, problem, chosen.block)
        panels = list(layout.panels(blocks, plan.size, stack))
        rows = stack.num_rows
    else:
        runs = memory.runs(wanted, plan, stack, problem)
        panels = [panel for run in runs for panel, _ in run.panels]
        rows = max((length(run.rows) for run in runs if not run.held), default=0)
        rows += sum(map(length, memory.held_spans(wanted, plan)))
    weights = chosen.weight_bytes * max(panel.pairs for panel in panels)
    gradients = 2 * shape.n * shape.d * shape.dtype.itemsize
    factors = 4 * stack.num_rows + 4 * stack.padded + 8
    left = _saved(shape) + kept + _results(shape, problem, moment)
    return gradients + _packed(shape) + left + factors + 4 * rows * stack.width + weights


def peak_bytes(shape: Shape, arch: int, problem: Problem) -> int:
    """The larger of both passes, and the vectors of a mean loss of the rows.

    >>> problem = Problem(loss="cz_nce", workspace=64 << 20)
    >>> [peak_bytes(Shape(n, 768, dtype=torch.bfloat16), 90, problem) >> 20 for n in (16384, 65536)]
    [144, 443]
    """
    vectors = 8 * ROW_NUMBERS * shape.n * problem.num_directions
    return max(forward_bytes(shape, arch, problem), backward_bytes(shape, arch, problem)) + vectors


def kept_bytes(shape: Shape, arch: int, problem: Problem) -> int:
    """Logits kept for the backward."""
    chosen = config.choose(shape, arch, problem)
    return layout.kept_tiles(shape, chosen, problem) * layout.tile_bytes(chosen)


def _packed(shape: Shape) -> int:
    stack = layout.stack_of(shape)
    return stack.num_rows * stack.width * shape.dtype.itemsize


def _saved(shape: Shape) -> int:
    return 4 * layout.stack_of(shape).saved_floats


def _results(shape: Shape, problem: Problem, moment: bool) -> int:
    return 8 * (3 if moment else 2) * shape.n * problem.num_directions


def times_formed(shape: Shape, arch: int, problem: Problem) -> float:
    """How often a pair's weight is formed in the mean: once, or up to twice where not all sums fit."""
    stack, chosen = layout.stack_of(shape), config.choose(shape, arch, problem)
    plan = memory.plan_backward(stack, chosen.weight_bytes, problem.workspace - kept_bytes(shape, arch, problem))
    if plan.shared:
        return 1.0
    wanted = layout.wanted_spans((True, True), stack)
    runs = memory.runs(wanted, plan, stack, problem)
    formed = sum(panel.pairs / (2 if panel.diagonal else 1) for run in runs for panel, _ in run.panels)
    needed = sum(
        length(block.rows) * length(block.columns) / (2 if block.square else 1)
        for block in layout.blocks(stack, problem, chosen.block)
    )
    return formed / needed


def report() -> str:
    """Peaks in MiB, by pass, and how often weights are formed, at the limits that the documentation names."""
    rows = []
    for negatives, loss in (("both", "cz_nce"), ("cross", "info_nce")):
        for n, limit in REPORTED:
            problem = Problem(loss=loss, negatives=negatives, workspace=limit * MIB)  # type: ignore[arg-type]
            shape = Shape(n, 768, dtype=torch.bfloat16)
            parts = [call(shape, 90, problem) / MIB for call in (forward_bytes, backward_bytes, peak_bytes)]
            cells = [f"{value:,.0f}" for value in parts]
            rows.append(
                [f"{loss}, {negatives}", f"{n:,}", f"{limit:,}", *cells, f"{times_formed(shape, 90, problem):.2f}"]
            )
    return table(["loss", "n", "limit", "forward", "backward", "peak of a step", "weights formed"], rows)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(report())
