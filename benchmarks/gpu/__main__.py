"""One command for a bare CUDA machine: correctness, checkers, ceilings, times; one JSON and one Markdown table.

``bash benchmarks/gpu.sh [--output FOLDER]``. Each part runs in a process of its own under a time limit; a failure is
recorded and the next part starts. The results are written after every part. ``--dry`` runs everything on the CPU under
Triton's interpreter at tiny sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu import report
from benchmarks.results import ROOT, describe
from ctloss.shared.files import write_atomically

# Tests that run kernels, the least tried first; those of corpora, training and packaging need no GPU.
TESTS = ("paths/test_triton_path*.py", "core/test_api.py")
MOST_WORKERS = 14
LOG_CHARACTERS = 6000
# Seconds that an interrupted part gets to end on its own.
LAST_WORDS = 5


@dataclass(frozen=True)
class Part:
    """A step of the run: a command (empty: skipped, ``why``), its limit, where its rows go."""

    name: str
    command: list[str]
    seconds: float
    rows: Path
    why: str = ""


def _measured(name: str, seconds: float, folder: Path, dry: bool) -> Part:
    rows = folder / f"{name}.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, str(rows)]
    return Part(name, [*command, "--dry"] if dry else command, seconds, rows)


def _tests(folder: Path, dry: bool) -> Part:
    rows = folder / "tests.jsonl"
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        return Part("tests", [], 0, rows, "pytest or hypothesis is not installed")
    files = [file for pattern in TESTS for file in sorted(glob.glob(str(ROOT / "tests" / pattern)))]
    if not files:
        return Part("tests", [], 0, rows, f"no files like {', '.join(TESTS)} in tests/")
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    if dry:
        return Part("tests", [*command, "--collect-only", *files], 60, rows)
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2)))]
    return Part("tests", [*command, *files], 120, rows)


def _checker(tool: str, folder: Path, dry: bool) -> Part:
    rows = folder / f"{tool}.jsonl"
    checker = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if dry or checker is None:
        return Part(tool, [], 0, rows, "a dry run has no GPU" if dry else "compute-sanitizer is not on this machine")
    measured = _measured("checked", 40, folder, dry).command[:-1]
    return Part(tool, [checker, "--tool", tool, "--error-exitcode", "9", *measured, str(rows)], 40, rows)


def parts(folder: Path, dry: bool) -> list[Part]:
    """Everything to run, the most valuable first: a run that is cut short has the first ones.

    A part takes at most its limit, in seconds. Those down to the checkers are expected to take 8 minutes on an H100,
    two of them the choices; the others (float32 and float16, torch.compile, other widths) share what is left.
    """
    return [
        _measured("ceilings", 20, folder, dry),
        _measured("shapes", 70, folder, dry),
        _measured("choices", 130, folder, dry),
        _measured("large", 60, folder, dry),
        _tests(folder, dry),
        _measured("graphs", 30, folder, dry),
        _measured("huge", 60, folder, dry),
        _measured("small", 50, folder, dry),
        _measured("repeats", 30, folder, dry),
        _checker("memcheck", folder, dry),
        _checker("racecheck", folder, dry),
        _measured("precisions", 60, folder, dry),
        _measured("compiled", 90, folder, dry),
        _measured("widths", 40, folder, dry),
    ]


def run_part(part: Part, seconds: float, variables: dict[str, str]) -> dict[str, object]:
    """Run a part to its end or its limit in seconds, with these variables added to its environment.

    Returns:
        ``status`` (ok, failed, stopped, skipped), ``seconds``, ``rows`` and the end of its output.
    """
    if not part.command:
        return {"status": "skipped", "why": part.why, "seconds": 0.0, "rows": []}
    started = time.perf_counter()
    log = part.rows.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
            status = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        finally:
            # A part's own children, such as pytest's workers, end with it; pytest gets to print its failures first.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=LAST_WORDS)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = part.rows.read_text(encoding="utf-8").splitlines() if part.rows.is_file() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            rows.append({"note": "a line was cut off"})
    text = log.read_text(encoding="utf-8", errors="replace")
    return {
        "status": status,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
        "log": text[-LOG_CHARACTERS:],
    }


def machine(device: str) -> dict[str, str]:
    """Device, versions, and what the driver says about clocks and power."""
    about = dict(describe(device))
    asked = "driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    if device != "cpu" and shutil.which("nvidia-smi"):
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        about |= dict(zip(asked.split(","), (value.strip() for value in answer.stdout.split(",")), strict=False))
    return about


def main() -> None:
    """Run the parts and write gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(
        prog="bash benchmarks/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="default: benchmarks/results"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything (default: 9.5)")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--dry", action="store_true", help="on the CPU, under Triton's interpreter, at tiny sizes")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        sys.exit(f"expected a CUDA device, torch {torch.__version__} sees none; --dry runs without one")
    started = time.perf_counter()
    device = "cpu" if options.dry else "cuda"
    result: dict[str, object] = {"machine": machine(device), "dry": options.dry}
    done: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        planned = parts(Path(folder), options.dry)
        unknown = set(options.parts or ()) - {part.name for part in planned}
        if unknown:
            parser.error(f"expected parts among {', '.join(part.name for part in planned)}, got {', '.join(unknown)}")
        for part in planned:
            if options.parts and part.name not in options.parts:
                continue
            left = options.minutes * 60 - (time.perf_counter() - started)
            if left < 5:
                done[part.name] = {"status": "skipped", "why": "no time left", "seconds": 0.0, "rows": []}
            else:
                variables = {"TRITON_INTERPRET": "1"} if options.dry else {}
                if part.name in ("memcheck", "racecheck"):
                    # Otherwise the checker sees one big block instead of each allocation.
                    variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
                # The parts' limits are for a GPU; a dry run takes as long as the CPU and its load need.
                done[part.name] = run_part(part, left if options.dry else min(part.seconds, left), variables)
            print(f"{part.name}: {done[part.name]['status']}, {done[part.name]['seconds']} s", flush=True)
            result |= {"parts": done, "seconds": round(time.perf_counter() - started, 1)}
            write_atomically(options.output / "gpu.json", json.dumps(result, indent=1) + "\n")
            write_atomically(options.output / "gpu.md", report.markdown(result))
    print((options.output / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
