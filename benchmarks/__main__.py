"""The command line: ``python -m benchmarks [all | sweep | memory | numerics | plot]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Before torch: threads that spin while they wait spoil each other's timings on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from benchmarks import memory, numerics, plots, providers, sweep
from benchmarks.results import Row, write_csv

EPILOG = """
Files: RESULTS/sweep-DEVICE.csv, memory-DEVICE.csv, numerics-DEVICE.csv; FIGURES/speed.png, memory.png, numerics.png
(CPU), speed-cuda.png and so on (GPU). Times are medians of interleaved samples in one process; cpu_s is the
calling thread's CPU time. Errors are against float64 on the same rounded inputs; of a gradient, |g - g_ref| / |g_ref|.
Peak memory is taken in a fresh process each.

Providers:
"""
EPILOG += "\n".join(f"  {provider.name:22} {provider.about}" for provider in providers.PROVIDERS.values())

SIZES: dict[str, dict[str, list[int]]] = {
    "sweep": {"n": [32, 128, 512, 2048], "d": [256]},
    "memory": {"n": [512, 2048, 8192], "d": [256]},
}
QUICK: dict[str, dict[str, list[int]]] = {
    "sweep": {"n": [32, 128], "d": [128]},
    "memory": {"n": [256, 512], "d": [128]},
}
# A process for each measurement is slow, and memory hardly depends on the rest.
LOSSES = {"sweep": ["cz-both", "info-both", "info-cross"], "memory": ["info-both"]}
KINDS = {"sweep": ["float32", "bfloat16"], "memory": ["float32"]}
MEMORY_PROVIDERS = ("ctloss-torch", "ctloss-triton", "eager", "lightly", "open_clip", "sentence-transformers")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time, memory and error of ctloss beside the implementations in use elsewhere.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("what", nargs="?", default="all", choices=("all", "sweep", "memory", "numerics", "plot"),
        help="default: all, a few minutes on two cores")  # fmt: skip
    add(
        "--n",
        type=int,
        nargs="+",
        metavar="N",
        help="pairs in a batch (default: 32 128 512 2048; of memory 512 2048 8192)",
    )
    add("--d", type=int, nargs="+", metavar="D", help="dimensions (default: 256)")
    add("--dtype", nargs="+", choices=tuple(providers.DTYPES), help="default: float32 bfloat16; of memory float32")
    add(
        "--loss",
        nargs="+",
        choices=tuple(providers.LOSSES),
        help="default: cz-both info-both info-cross; of memory info-both",
    )
    add(
        "--providers", nargs="+", choices=tuple(providers.PROVIDERS), metavar="NAME", help="default: all (listed below)"
    )
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:INDEX (default: %(default)s)",
    )
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--temperature", type=float, default=0.07, help="default: 0.07")
    add("--seconds", type=float, help="for each case and pass, shared by the providers (default: 1, quick: 0.2)")
    add("--quick", action="store_true", help="smaller sizes and fewer samples: under a minute or so")
    add("--output", type=Path, default=Path("benchmarks/results"), metavar="RESULTS", help="default: %(default)s")
    add("--figures", type=Path, default=Path("docs/figures"), help="default: %(default)s")
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be run, with what was expected."""
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"expected --device cpu, got {options.device}: torch {torch.__version__} sees no CUDA device")
    if not options.device.startswith("cuda") and options.device != "cpu":
        sys.exit(f"expected --device cpu, cuda or cuda:INDEX, got {options.device}")
    for name, smallest in (("n", 2), ("d", 1)):
        for value in getattr(options, name) or ():
            if value < smallest:
                sys.exit(f"expected --{name} of at least {smallest}, got {value}")
    if options.threads < 1:
        sys.exit(f"expected --threads of at least 1, got {options.threads}")
    if not options.temperature > 0:
        sys.exit(f"expected --temperature above 0, got {options.temperature}")


def memory_limit(device: str) -> float:
    """Bytes that one provider may use: two thirds of what is free."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] * 2 / 3
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 / 3


def grid(options: argparse.Namespace, table: str, names: tuple[str, ...]) -> sweep.Grid:
    """The sweep that the options ask for."""
    sizes = (QUICK if options.quick else SIZES)[table]
    return sweep.Grid(
        n=options.n or sizes["n"],
        d=options.d or sizes["d"],
        dtypes=options.dtype or KINDS[table],
        losses=options.loss or LOSSES[table],
        providers=options.providers or names,
        device=options.device,
        temperature=options.temperature,
        seconds=options.seconds or (0.2 if options.quick else 1.0),
        memory_limit=memory_limit(options.device),
    )


def main(arguments: list[str] | None = None) -> None:
    """Run what the arguments ask for."""
    options = parser().parse_args(arguments)
    check(options)
    torch.set_num_threads(options.threads)
    kind = options.device.partition(":")[0]

    def keep(table: str, rows: list[Row]) -> None:
        path = options.output / f"{table}-{kind}.csv"
        write_csv(path, [{**row, "device_kind": kind} for row in rows])
        print(f"{len(rows)} rows: {path}")

    if options.what in ("all", "numerics"):
        phis = numerics.PHIS[::3] if options.quick else numerics.PHIS
        keep("numerics", [*numerics.run(
            options.loss or ["info-both", "info-cross", "cz-both"],
            options.providers or numerics.PROVIDERS,
            device=options.device,
            phis=phis,
        )])  # fmt: skip
    if options.what in ("all", "sweep"):
        keep("sweep", [*sweep.run(grid(options, "sweep", providers.DEFAULT))])
    if options.what in ("all", "memory"):
        keep("memory", [*memory.run(grid(options, "memory", MEMORY_PROVIDERS))])
    for path in plots.draw_all(options.output, options.figures, kind):
        print(path)


if __name__ == "__main__":
    main()
