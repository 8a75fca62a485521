"""One command for a bare CUDA machine: kernels compiled, raced, tested, checked, timed; one JSON, one Markdown table.

``bash benchmarks/gpu.sh --output FOLDER``. Each part runs in a process of its own under a time limit; a failure is
recorded and the next part starts. What a part finds is appended to FOLDER/rows/PART.jsonl line by line, and the summary
is written after every part, so that a run that is killed leaves what it has found. ``--dry`` runs everything on the CPU
under Triton's interpreter at tiny sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu import report
from benchmarks.gpu.plan import PLAN, Part
from benchmarks.results import ROOT, describe
from ctloss.shared.files import write_atomically

MINUTES = 9.0
LOG_CHARACTERS = 6000
# Seconds that an interrupted part gets to end on its own, and that the last summary takes.
LAST_WORDS, SUMMARY = 5, 3
# A part that has less time than this is not begun.
WORTHWHILE = 8


def run_part(part: Part, seconds: float, rows: Path) -> dict[str, object]:
    """Run a part to its end or its limit in seconds; its rows are read from the file, its output goes next to it.

    Returns:
        ``status`` (ok, failed, stopped, skipped), ``seconds``, ``rows`` and the end of its output.
    """
    if not part.command:
        return {"status": "skipped", "why": part.why, "seconds": 0.0, "rows": []}
    started = time.monotonic()
    log = rows.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env={**os.environ, **dict(part.variables)}, stdout=output, stderr=subprocess.STDOUT,
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
    return {
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "rows": read_rows(rows),
        "log": log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:],
    }


def read_rows(file: Path) -> list[dict[str, object]]:
    """What a part has found so far; its last line may be cut off."""
    found: list[dict[str, object]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            found.append({"note": "a line was cut off"})
    return found


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
    default = Path(tempfile.gettempdir()) / "ctloss-gpu"
    parser.add_argument("--output", type=Path, default=default, help=f"default: {default}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything (default: {MINUTES:g})")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--dry", action="store_true", help="on the CPU, under Triton's interpreter, at tiny sizes")
    # The shell passes these on: seconds since 1970 at which it began, and where it was called.
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="origin", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.parts or ()) - set(PLAN)
    if unknown:
        parser.error(f"expected parts among {', '.join(PLAN)}, got {', '.join(sorted(unknown))}")
    if not options.dry and not torch.cuda.is_available():
        sys.exit(f"expected a CUDA device, torch {torch.__version__} sees none; --dry runs without one")
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    end = options.started + 60 * options.minutes - LAST_WORDS - SUMMARY
    output = options.origin / options.output
    print(f"results: {output}", flush=True)
    folder = output / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"machine": machine("cpu" if options.dry else "cuda"), "dry": options.dry}
    done: dict[str, dict[str, object]] = {}
    for name in options.parts or PLAN:
        rows = folder / f"{name.replace(' ', '-')}.jsonl"
        rows.unlink(missing_ok=True)
        left = end - time.time()
        if left < WORTHWHILE:
            done[name] = {"status": "skipped", "why": "no time left", "seconds": 0.0, "rows": []}
        else:
            part = PLAN[name](rows, options.dry)
            # The parts' limits are for a GPU; a dry run takes as long as the CPU and its load need.
            done[name] = run_part(part, left if options.dry else min(part.seconds, left), rows)
        print(f"{name}: {done[name]['status']}, {done[name]['seconds']} s", flush=True)
        result |= {"parts": done, "seconds": round(time.time() - options.started, 1)}
        write_atomically(output / "gpu.json", json.dumps(result, indent=1) + "\n")
        write_atomically(output / "gpu.md", report.markdown(result))
    print((output / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
