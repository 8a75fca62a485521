"""Which gradient is expected to win on an H100: ``python -m benchmarks.aot.flash`` counts, ``--write`` documents it.

Panels write weights to memory once and read them twice; the flash kernel computes each of them twice and keeps them in
registers. Both are charged their instructions, products, exponentials and memory traffic; none of these calls was
timed. Instructions per pair are counted in what Triton 3.7.1 compiles for sm_90: those on the path through a tile that
needs no mask, at a temperature whose logits share a peak, divided by the pairs of the tile.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch

from benchmarks.results import insert, page_of, table
from ctloss.kernels.problem import Problem, Shape
from ctloss.kernels.triton_path.plan import layout
from ctloss.kernels.triton_path.plan.config import WIDTH_PADDING, choose_formats, flash_wins
from ctloss.kernels.triton_path.plan.layout import stack_of

COMMAND = "python -m benchmarks.aot.flash"
# Measured: products by cuBLAS, memory. tf32 has half of bfloat16's rate, float32 no tensor core.
PRODUCTS = {"half": 744e12, "tf32": 372e12, "ieee": 60e12}
MEMORY = 2.96e12
# Assumed: an L2 cache of 50 MB, its bandwidth, and a launch in a graph.
CACHE, CACHED = 50e6, 5.5e12
LAUNCH = 2e-6
# 132 multiprocessors at 1.755 GHz issue 128 instructions per clock, at most 16 of them exponentials or conversions.
ISSUED, SPECIAL = 2.97e13, 3.7e12
# The measured weights kernel takes 1.5 times what instructions and products one after the other would, at d = 768.
HANDICAP = 1.5


@dataclass(frozen=True)
class Counted:
    """Instructions for an ordered pair: those that do not depend on d, and those for every 64 columns.

    ``special`` are those of the slow unit: exponentials, and conversions that are not made in pairs.
    """

    weights: tuple[float, float]
    product: float
    flash: tuple[float, float]
    special: float


BY_WEIGHT = {
    "one bfloat16": Counted((12.3, 1.0), 0, (14.6, 3.0), 1),
    "three bfloat16": Counted((15.0, 1.0), 0, (17.0, 8.0), 3),
    "one tf32": Counted((15.8, 1.0), 8.7, (21.1, 5.2), 1),
    # Without multiplications, which are charged as products.
    "one float32": Counted((15.0, 0.0), 0, (16.0, 0.0), 1),
}


def asked(normalize: bool) -> Problem:
    """What is counted, with the workspace that is the default on CUDA."""
    return Problem(normalize=normalize, workspace=1 << 30)


def pair_seconds(dtype: torch.dtype, normalize: bool, n: int, d: int, handicap: float) -> tuple[float, float]:
    """Seconds per ordered pair in panels and in flash; ``handicap`` is how much longer our kernels take than counted.

    >>> panels, flash = pair_seconds(torch.bfloat16, True, 65536, 64, 1.0)
    >>> flash < panels
    True
    """
    chunks = -(-d // WIDTH_PADDING)
    width = WIDTH_PADDING * chunks
    shape = Shape(n, d, dtype=dtype)
    formats = choose_formats(shape, 90, asked(normalize))
    counted = BY_WEIGHT[_name(dtype, formats.weight_terms)]
    logit_rate = PRODUCTS["ieee" if dtype == torch.float32 else "half"]
    rate = PRODUCTS[{torch.bfloat16: "half", torch.float16: "tf32", torch.float32: "ieee"}[dtype]]
    logits, product = 2 * width / logit_rate, 2 * width * formats.weight_terms / rate
    held = (2 * stack_of(shape).padded) ** 2 * formats.weight_bytes
    memory = CACHED if held < CACHE else MEMORY
    weights = handicap * ((counted.weights[0] + counted.weights[1] * chunks) / ISSUED + logits / 2)
    weights = max(weights, formats.weight_bytes / 2 / memory)
    own = handicap if dtype != torch.bfloat16 else 1.0
    multiplied = max(own * (product + counted.product * chunks / ISSUED), formats.weight_bytes / memory)
    issued = max((counted.flash[0] + counted.flash[1] * chunks) / ISSUED, counted.special / SPECIAL)
    return weights + multiplied, handicap * (issued + logits + product)


def milliseconds(dtype: torch.dtype, normalize: bool, n: int, d: int) -> tuple[float, float, float]:
    """The gradient's kernels in panels, in flash, and in flash if more programs a multiprocessor undo the handicap."""
    problem, shape = asked(normalize), Shape(n, d, dtype=dtype)
    stack = stack_of(shape)
    rows = 2 * stack.padded
    pairs = rows**2
    terms = choose_formats(shape, 90, problem).weight_terms
    plan = layout.plan_flash(rows, rows, stack.width, 64, problem.workspace)
    programs = plan.shares * rows // 64
    # Two or three programs share each multiprocessor; what they leave idle at the end, or in a small batch, is lost.
    places = 132 * (3 if d <= WIDTH_PADDING and dtype == torch.bfloat16 else 2)
    idle = math.ceil(programs / places) * places / programs
    panels, flash = pair_seconds(dtype, normalize, n, d, HANDICAP)
    _, hidden = pair_seconds(dtype, normalize, n, d, 1.0)
    return (
        1e3 * (pairs * panels + (2 + terms) * LAUNCH),
        1e3 * (pairs * flash * idle + 2 * LAUNCH),
        1e3 * (pairs * hidden * idle + 2 * LAUNCH),
    )


def _name(dtype: torch.dtype, terms: int) -> str:
    if dtype == torch.bfloat16:
        return "one bfloat16" if terms == 1 else "three bfloat16"
    return "one tf32" if dtype == torch.float16 else "one float32"


def counted_table() -> str:
    """A row for every kind of call and d, a column for every n."""
    lines = []
    kinds = [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, True), (torch.float32, True)]
    for dtype, normalize in kinds:
        for d in (32, 64, 128, 256):
            cells = [
                " / ".join(f"{value:.3g}" for value in milliseconds(dtype, normalize, n, d))
                for n in (1024, 4096, 16384, 65536)
            ]
            chosen = "flash" if flash_wins(Shape(4096, d, dtype=dtype), 90, asked(normalize)) else "panels"
            name = f"{str(dtype).removeprefix('torch.')}, {'cosines' if normalize else 'dot products'}"
            lines.append([name, str(d), *cells, chosen])
    return table(["call", "d", "n = 1,024", "4,096", "16,384", "65,536", "taken"], lines)


def main() -> None:
    """Print the table or put it into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into its page of docs/")
    if parser.parse_args().write:
        insert(page_of(COMMAND), COMMAND, counted_table())
    else:
        print(counted_table())


if __name__ == "__main__":
    main()
