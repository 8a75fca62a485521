"""Every Triton kernel compiles for GPUs that are not there, within their registers and shared memory.

In processes of their own: the interpreter, which the other tests switch on, puts another class in a kernel's place.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("triton")

from benchmarks.aot import table
from benchmarks.aot.devices import Compiled, Device, step_of
from benchmarks.results import ROOT, page_of, split_document

KERNELS = {
    *("pack_pairs", "pack_candidates", "block_lse", "fold_slots", "weigh_rows", "block_weights", "kept_weights"),
    *("add_weighed", "finish_pairs", "finish_candidates", "block_sigmoids"),
    *("small_products", "small_close", "small_gradient"),
}
# Only on sm_90, and only where they are switched on.
SPECIALISED = {"hopper_lse", "hopper_weights"}
PRODUCTS = {"block_lse", "block_weights", "add_weighed", "small_products", "small_gradient", "block_sigmoids"}
ARCHITECTURES = {"80": "sm_80", "89": "sm_89", "90": "sm_90", "100": "sm_100", "gfx942": "gfx942"}
# Cosines take more registers than dot products. The first text finds a call's other options too, so each of them is
# compiled for one format of half precision on either device; `python -m benchmarks.aot` compiles all for all.
EVERYWHERE = [
    "float32 n=50 d=768 cosine",
    "float32 n=300 d=75 cosine medium cross scalar transposed",
    "float32 n=30 d=768 cosine highest",
]
# Where calls of all kinds are compiled; elsewhere only those that differ there.
WHOLLY = ("80", "90")
BESIDES = {
    "80": [
        " float16 n=1500 d=768 cosine",
        "float32 n=1500 d=768 cosine highest ",
        "float32 n=1500 d=768 cosine high +8192",
        "bfloat16 n=1500 d=768 dot highest +8192",
    ],
    "90": [
        "bfloat16 n=1500 d=768 cosine",
        "float32 n=1500 d=768 cosine highest own",
        "bfloat16 n=300 d=768",
        "bfloat16 n=1500 d=75 cosine",
        "bfloat16 n=30000",
    ],
    "100": [
        "bfloat16 n=30000",
        "float32 n=1500 d=768 cosine high own",
        "float32 n=60 d=75 cosine high transposed",
    ],
    "gfx942": [" float16 n=300 d=768", "float32 n=1500 d=768 cosine medium own"],
}

# Calls of which every weight is in registers; each architecture's own are those that win there.
NARROW = {
    "89": ["bfloat16 n=1500 d=64 cosine"],
    "90": ["float16 n=1500 d=64 cosine", "float16 n=1500 d=128", "bfloat16 n=1500 d=64 dot", "bfloat16 n=600 d=64"],
}

# With ids and candidates: they are switched off. Of all others the table in docs/lab/kernels.md tells.
SWITCHED_ON = ["bfloat16 specialised n=1500 d=768 cosine highest cross x"]


def process(*options: str, interpreted: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.aot", *options]
    variables = os.environ | {"TRITON_INTERPRET": interpreted}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def compile_calls(arch: str, *options: str) -> tuple[int, list[dict[str, str]]]:
    """The command's exit status and the lines that it prints."""
    finished = process("--arch", arch, *options, interpreted="0")
    assert finished.returncode in (0, 1), finished.stderr
    return finished.returncode, list(csv.DictReader(finished.stdout.splitlines(), delimiter="\t"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", BESIDES)
def test_no_spills_and_shared_memory_fits(arch: str) -> None:
    everywhere = EVERYWHERE if arch in WHOLLY else EVERYWHERE[:1]
    status, rows = compile_calls(arch, "--only", *everywhere, *BESIDES[arch])
    found = {row["kernel"] for row in rows}
    assert found == KERNELS if arch in WHOLLY else found <= KERNELS
    assert {row["arch"] for row in rows} == {ARCHITECTURES[arch]}
    unsound = [row for row in rows if int(row["spilled"]) or int(row["shared"]) > int(row["shared_limit"])]
    assert unsound == []
    assert status == 0
    products = [row for row in rows if row["kernel"] in PRODUCTS]
    plain = [row["case"] for row in products if row["tensor_core"] == "none"]
    assert plain
    # Sides of several dtypes are multiplied as float32.
    single = [case for case in plain if "mixed" not in case]
    assert all("highest" in case for case in plain)
    assert all(case.startswith("float32") or "n=50" in case for case in single)


@pytest.mark.slow
@pytest.mark.parametrize("arch", NARROW)
def test_narrow_rows_keep_their_weights_in_registers(arch: str) -> None:
    status, rows = compile_calls(arch, "--only", *NARROW[arch])
    assert status == 0
    assert "flash_gradient" in {row["kernel"] for row in rows}
    assert {"block_weights", "add_weighed"}.isdisjoint(row["kernel"] for row in rows)
    assert all(int(row["blocks_per_sm"]) >= 2 for row in rows if row["kernel"] == "flash_gradient")


@pytest.mark.slow
def test_rows_of_two_ranks_do_not_spill() -> None:
    status, rows = compile_calls("90", "--only", "float32 ranks n=300 d=768 cosine highest")
    assert status == 0
    assert {row["kernel"] for row in rows} == {
        *("pack_pairs", "block_lse", "fold_slots", "known_sums", "weigh_rows"),
        *("block_weights", "add_weighed", "finish_pairs"),
    }


@pytest.mark.slow
def test_specialised_kernels_do_not_spill() -> None:
    """With whatever registers their consumers have; nor does a loop that multiplies hold more than it has to."""
    status, rows = compile_calls("90", "--only", *SWITCHED_ON)
    assert status == 0
    assert {row["kernel"] for row in rows} == SPECIALISED
    for row in rows:
        assert (row["spilled"], row["tensor_core"]) == ("0", "wgmma:16")
        # Eight products and 128 sums of two parts; the rest is waiting and addresses.
        assert 136 < int(row["step"]) < 256


def test_the_interpreter_is_refused() -> None:
    finished = process("--only", "nothing", interpreted="1")
    assert finished.returncode == 2
    assert "TRITON_INTERPRET" in finished.stderr


def compiled(kernel: str, case: str, registers: int, arch: str = "sm_90") -> Compiled:
    return Compiled(kernel, arch, case, registers, 0, 2560, 232448, 3, "wgmma:4", step=0)


def test_table_keeps_the_largest_launch_and_joins_equal_calls() -> None:
    found = [
        compiled("lse", "float32 n=50 cosine", 90),
        compiled("fold", "float32 n=50 cosine", 30),
        compiled("lse", "float32 n=50 cosine", 80),
        compiled("lse", "float32 n=9 cosine", 70),
        compiled("fold", "float32 n=9 cosine", 30),
    ]
    assert table_rows(table.markdown(found)) == [
        ["kernel", "call", "sm_90"],
        ["---", "---", "---"],
        ["`lse`", "n=50", "90 / 0 / 2.5 / 3 / wgmma 4"],
        ["`lse`", "n=9", "70 / 0 / 2.5 / 3 / wgmma 4"],
        ["`fold`", "every one", "30 / 0 / 2.5 / 3 / wgmma 4"],
    ]


def test_table_leaves_out_what_a_device_does_not_run() -> None:
    found = [compiled("lse", "n=50", 90, "sm_80"), replace(compiled("fast", "n=50", 168), step=188)]
    assert table_rows(table.markdown(found))[2:] == [
        ["`lse`", "every one", "90 / 0 / 2.5 / 3 / wgmma 4", "-"],
        ["`fast`", "every one", "-", "168 / 0 / 2.5 / 3 / wgmma 4, 188 a step"],
    ]


CODE = """
.L_x_1:
    /*0000*/  SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2 ;
    /*0010*/  @!P0 BRA `(.L_x_1) ;
.L_x_2:
    /*0020*/  MOV R1, R2 ;
.L_x_3:
    /*0030*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
    /*0040*/  FADD R1, R1, R24 ;
    /*0050*/  @P0 BRA `(.L_x_3) ;
    /*0060*/  @P1 BRA `(.L_x_2) ;
    /*0070*/  @P2 BRA `(.L_x_4) ;
.L_x_4:
    /*0080*/  EXIT ;
"""


def test_the_loop_that_multiplies_is_counted() -> None:
    assert step_of(CODE) == 3
    assert step_of(CODE.replace("HGMMA", "FFMA")) == 0


def test_occupancy() -> None:
    """By registers in eights, by shared memory with what each block reserves, by threads."""
    ada = Device.nvidia(89, 101376, threads=1536)
    assert ada.blocks(registers=121, shared=0, threads=256) == 2
    assert ada.blocks(registers=32, shared=50176, threads=256) == 2
    assert ada.blocks(registers=32, shared=50177, threads=256) == 1
    assert ada.blocks(registers=32, shared=0, threads=256) == 6


def table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_documented_table_is_complete() -> None:
    """Figures change with the compiler; the rows and columns do not."""
    _, shown, _ = split_document(page_of(table.COMMAND), table.COMMAND)
    assert re.search(r"Compiled by triton \d+\.\d+", shown)
    header, _, *rows = table_rows(shown)
    assert header == ["kernel", "call", *ARCHITECTURES.values()]
    assert {row[0].strip("`") for row in rows} == KERNELS | SPECIALISED
    assert {n for row in rows for n in re.findall(r"n=\d+", row[1])} == {"n=1500", "n=300", "n=50"}
    for row in rows:
        assert len(row) == len(header)
        figures = r"\d+ / 0 / [\d.]+ / [1-9]\d* / "
        for name, cell in zip(header[2:], row[2:], strict=True):
            if row[0].strip("`") in SPECIALISED:
                wanted = figures + r"wgmma \d+, \d+ a step" if name == "sm_90" else "-"
            else:
                wanted = figures + r"(none|(mma|wgmma|tcgen05|mfma) \d+)"
            assert re.fullmatch(wanted, cell), cell
