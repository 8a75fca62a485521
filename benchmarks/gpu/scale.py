"""Scale on paper: ``python -m benchmarks.scale`` predicts a step's time and memory as n outgrows what was measured.

One GPU to 2^20 pairs, and a ring of GPUs to 2^24. Negatives from other ranks are not implemented in ctloss: this is a
prediction to design them by. What a GPU does in a second is measured (benchmarks/results/gpu-h100.json); what the
network does is assumed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.markdown import insert, table
from benchmarks.ring import BACKWARD_VECTORS, Gpu, Network, Step, cost

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu-h100.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- python -m benchmarks.scale -->\n\n", "\n<!-- end of python -m benchmarks.scale -->\n"

MEASURED_D = 768
CALIBRATED_ON = "info-cross"  # one rectangle of logits a call, as between two ranks
CALIBRATED_AT = (16384, 65536)
CHECKED_ON = "cz-both"  # the triangle over both sides' rows, as within a rank


def measured_seconds(results: Path, loss: str, n: int) -> tuple[float, float]:
    """Seconds of forward and backward in the GPU results, bfloat16 at the measured d."""
    found = {}
    for part in json.loads(results.read_text(encoding="utf-8"))["parts"].values():
        for row in part["rows"]:
            key = tuple(row.get(name) for name in ("provider", "loss", "n", "d", "dtype"))
            if key == ("ctloss-triton", loss, n, MEASURED_D, "bfloat16") and "which" in row:
                found[row["which"]] = row["wall_ms"] / 1000
    if set(found) != {"forward", "forward+backward"}:
        raise ValueError(
            f"expected times of {loss} at n={n}, d={MEASURED_D}, bfloat16 in {results}; run benchmarks/gpu.sh"
        )
    return found["forward"], found["forward+backward"] - found["forward"]


def measured_gpu(results: Path, *, graph: bool = False) -> Gpu:
    """Rates and fixed costs from two measured sizes of rectangles.

    A line through both gives the fixed cost of a call from Python and the rates; the weights' rate is what the
    backward leaves beside its products at the measured ceiling.

    Args:
        results: what benchmarks/gpu.sh wrote.
        graph: take half of a CUDA graph's time at the smallest n, launches alone, as each pass's fixed cost instead.
    """
    parts = json.loads(results.read_text(encoding="utf-8"))["parts"]
    product = 1e12 * next(row["tera_per_s"] for row in parts["ceilings"]["rows"] if row["what"] == "product")
    small, large = (2 * n * n * MEASURED_D for n in CALIBRATED_AT)
    at_small, at_large = (measured_seconds(results, CALIBRATED_ON, n) for n in CALIBRATED_AT)
    forward, backward = ((b - a) / (large - small) for a, b in zip(at_small, at_large, strict=True))
    fixed = max(0.0, at_small[0] - small * forward), max(0.0, at_small[1] - small * backward)
    if graph:
        ours = (
            row for row in parts["graphs"]["rows"] if (row["provider"], row["loss"]) == ("ctloss-triton", CHECKED_ON)
        )
        fixed = (min((row["n"], row["wall_us"]) for row in ours)[1] / 2e6,) * 2
    return Gpu(product, 1 / forward, 1 / (backward - 2 / product), *fixed)


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    return table(head.split(" | "), rows) + "\n"


def _power(n: int) -> str:
    return f"2^{n.bit_length() - 1}"


def _floor(step: Step, gpu: Gpu) -> float:
    """Seconds of 4N²d flops at the ceiling of products."""
    return 4 * (2 * step.n) ** 2 * step.d / gpu.product / step.ranks


def one_gpu_table(gpu: Gpu, d: int) -> str:
    """To 2^20 pairs, under the default workspace and under one in which the sums of all rows fit."""
    rows = []
    for log_n, workspace in ((14, 1), (16, 1), (17, 1), (18, 1), (19, 1), (20, 1), (20, 12)):
        step = Step(2**log_n, d=d, workspace=workspace << 30)
        found = cost(step, gpu, Network())
        known = step.n in CALIBRATED_AT and d == MEASURED_D
        taken = f"{sum(measured_seconds(RESULTS, CHECKED_ON, step.n)):.3g}" if known else ""
        seconds = (f"{value:.3g}" for value in (found.forward, found.backward, found.total))
        share = f"{_floor(step, gpu) / found.total:.0%}"
        rows.append([_power(step.n), f"{workspace}", *seconds, taken, share, f"{found.memory / 2**30:.1f}"])
    return _table("n | workspace, GiB | forward, s | backward, s | step, s | measured, s | of floor | GiB", rows)


def ring_table(launched: Mapping[str, Gpu], d: int) -> str:
    """To 2^24 pairs over 1,024 GPUs, by the ways to launch a call."""
    rows = []
    for log_n, ranks in ((17, 8), (20, 8), (20, 64), (20, 256), (20, 1024), (22, 1024), (24, 1024)):
        for name, gpu in launched.items():
            step = Step(2**log_n, ranks, d)
            found = cost(step, gpu, Network())
            parts = [f"{found.forward:.3g}", f"{1e3 * found.all_reduce:.2g}", f"{found.backward:.3g}"]
            # Sums in another order leave a zero a few roundings below it.
            waits = max(0.0, 1 - (found.busy + found.all_reduce) / found.total)
            parts += [f"{found.total:.3g}", f"{waits:.0%}", f"{_floor(step, gpu) / found.total:.0%}"]
            per_gpu = [f"{ranks:,}", f"{step.n // ranks:,}", name]
            rows.append([_power(step.n), *per_gpu, *parts, f"{found.memory / 2**30:.2f}"])
    head = "n | GPUs | pairs a GPU | launched | forward, s | all-reduce, ms | backward, s | step, s"
    return _table(f"{head} | waits for links | of floor | GiB a GPU", rows)


def hop_table(gpu: Gpu, d: int) -> str:
    """What a hop takes beside the work that hides it, fixed costs left out."""
    network, rows = Network(), []
    for pairs in (1024, 2048, 4096, 8192, 16384, 65536):
        step = Step(pairs, d=d)
        num_bytes = step.hop_bytes(BACKWARD_VECTORS)
        between, inside = network.hops(network.gpus_per_node + 1, num_bytes)[:2].tolist()
        rectangle = 2 * step.rows**2 * d
        work = rectangle / gpu.logits, rectangle / gpu.weights + rectangle / gpu.product
        times = (f"{1e3 * seconds:.3g}" for seconds in (inside, between, *work))
        rows.append([f"{pairs:,}", f"{num_bytes / 2**20:.1f}", *times])
    return _table("pairs a GPU | MiB a hop | NVLink, ms | InfiniBand, ms | forward, ms | backward, ms", rows)


def report(d: int = MEASURED_D) -> str:
    """The tables in Markdown, with the numbers they rest on."""
    python, graph, network = measured_gpu(RESULTS), measured_gpu(RESULTS, graph=True), Network()
    return f"""\
From measurements on one H100: products {python.product / 1e12:.0f} TFLOP/s, logits {python.logits / 1e12:.0f}, \
weights {python.weights / 1e12:.0f};
fixed cost of a block {python.forward_fixed * 1e3:.2f} ms (forward) and {python.backward_fixed * 1e3:.2f} ms \
(backward) called from Python, {graph.forward_fixed * 1e3:.2f} ms in a CUDA graph.
Assumed: {network.gpus_per_node} GPUs a node, NVLink {network.nvlink / 1e9:.0f} GB/s and \
{network.nvlink_latency * 1e6:.0f} µs a hop, InfiniBand {network.infiniband / 1e9:.0f} GB/s and \
{network.infiniband_latency * 1e6:.0f} µs a hop.

One GPU, predicted but for the column that says measured (d = {d}, bfloat16, negatives of both languages):

{one_gpu_table(python, d)}
A ring of GPUs, predicted (workspace of 1 GiB on each):

{ring_table({"from Python": python, "in a graph": graph}, d)}
One hop beside the work on one block, predicted, without the block's fixed cost:

{hop_table(python, d)}"""


def main() -> None:
    """Print the tables, or put them in their place in docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--d", type=int, default=MEASURED_D, help="columns; rates stay those of %(default)s, the default"
    )
    parser.add_argument("--write", action="store_true", help="put the tables of the default d into docs/performance.md")
    options = parser.parse_args()
    if options.d < 1:
        parser.error(f"expected --d of at least 1, got {options.d}")
    if not options.write:
        print(report(options.d), end="")
        return
    insert(PAGE, BEGIN, END, report())


if __name__ == "__main__":
    main()
