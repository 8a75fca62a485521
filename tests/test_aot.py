"""Every Triton kernel compiles for GPUs that are not there, within their registers and shared memory.

In processes of their own: the interpreter, which the other tests switch on, puts another class in a kernel's place.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parent.parent
KERNELS = {
    "pack_rows",
    "block_lse",
    "fold_slots",
    "weigh_rows",
    "block_weights",
    "add_weighed",
    "finish_gradient",
}
# Cosines take more registers than dot products.
CALLS = [
    "bfloat16 n=1500 d=768 cosine",
    "float16 n=1500 d=768 cosine",
    "bfloat16 n=1500 d=768 dot",
    "float32 n=1500 d=768 cosine",
    "bfloat16 n=300 d=768 cosine",
    "bfloat16 n=1500 d=75 cosine",
    "float32 n=50 d=768 cosine",
]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_no_spills_and_shared_memory_fits(arch: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot", "--arch", str(arch), "--only", *CALLS]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode in (0, 1), finished.stderr
    rows = list(csv.DictReader(finished.stdout.splitlines(), delimiter="\t"))
    assert {row["kernel"] for row in rows} == KERNELS
    unsound = [row for row in rows if int(row["spilled"]) or int(row["shared"]) > int(row["shared_limit"])]
    assert unsound == []
    assert finished.returncode == 0
    products = [row for row in rows if row["kernel"] in ("block_lse", "block_weights", "add_weighed")]
    plain = [row["case"] for row in products if row["tensor_core"] == "none"]
    assert plain
    assert all(case.endswith("highest") and (case.startswith("float32") or "n=50" in case) for case in plain)


def test_the_interpreter_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.aot", "--only", "nothing"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "TRITON_INTERPRET" in finished.stderr
