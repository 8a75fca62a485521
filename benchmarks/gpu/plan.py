"""The parts of the GPU run: in which order, in what time, and the commands that they are."""

from __future__ import annotations

import glob
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.race.variants import VARIANTS
from benchmarks.results import ROOT

# Tests that run kernels, the least tried first; those of corpora, training and packaging need no GPU.
TESTS = ("paths/test_triton*.py", "core/test_api.py")
MOST_WORKERS = 14


@dataclass(frozen=True)
class Part:
    """A step of the run.

    Attributes:
        command: what is run; empty: it is skipped, ``why``.
        seconds: its limit.
        variables: added to its environment.
    """

    command: tuple[str, ...]
    seconds: float
    why: str = ""
    variables: tuple[tuple[str, str], ...] = ()


# From the file for a part's rows, and whether the run is dry, to the part. Asked right before the part begins: by then
# wheels that are being installed may be there.
Ask = Callable[[Path, bool], Part]


def _measured(name: str, seconds: float) -> Ask:
    def ask(rows: Path, dry: bool) -> Part:
        command = sys.executable, "-m", "benchmarks.gpu.parts", name, str(rows)
        return Part((*command, "--dry") if dry else command, seconds)

    return ask


def _compiling(rows: Path, dry: bool) -> Part:
    if dry:
        return Part((), 0, "the interpreter compiles nothing")
    return Part((sys.executable, "-m", "benchmarks.gpu.compiling"), 90)


def _tests(rows: Path, dry: bool) -> Part:
    importlib.invalidate_caches()
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        return Part((), 0, "pytest or hypothesis is not installed")
    files = [file for pattern in TESTS for file in sorted(glob.glob(str(ROOT / "tests" / pattern)))]
    if not files:
        return Part((), 0, f"no files like {', '.join(TESTS)} in tests/")
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    if dry:
        return Part((*command, "--collect-only", *files), 60)
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2)))]
    return Part((*command, *files), 110)


def _checker(tool: str) -> Ask:
    def ask(rows: Path, dry: bool) -> Part:
        checker = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if dry or checker is None:
            return Part((), 0, "a dry run has no GPU" if dry else "compute-sanitizer is not on this machine")
        measured = _measured("checked", 0)(rows, dry).command
        # Without the allocator's cache the checker sees each allocation instead of one big block.
        variables = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
        return Part((checker, "--tool", tool, "--error-exitcode", "9", *measured), 35, variables=variables)

    return ask


# The most valuable first: a run that is cut short has the first ones. Limits are in seconds. On an H100 everything down
# to the checkers is expected to take seven of the nine minutes; the others share what is left.
PLAN: dict[str, Ask] = {
    "compiling": _compiling,
    "ceilings": _measured("ceilings", 20),
    **{variant.name: _measured(variant.name, variant.seconds) for variant in VARIANTS},
    "counters": _measured("counters", 80),
    "small": _measured("small", 45),
    "graphs": _measured("graphs", 25),
    "shapes": _measured("shapes", 40),
    "tests": _tests,
    "memcheck": _checker("memcheck"),
    "racecheck": _checker("racecheck"),
    "large": _measured("large", 50),
    "huge": _measured("huge", 50),
    "few": _measured("few", 40),
    "repeats": _measured("repeats", 30),
    "choices": _measured("choices", 90),
    "precisions": _measured("precisions", 60),
    "compiled": _measured("compiled", 90),
    "widths": _measured("widths", 40),
}
