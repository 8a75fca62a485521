"""The compiled kernels by themselves: what each instruction set's object holds, and answers next to plain loops'."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels/native/src"
DRIVER = Path(__file__).with_name("compare.cpp")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
WIDE = re.compile(r"%[yz]mm|\tv[a-z0-9]+ ")


def run(*command: str | Path, **environment: str) -> str:
    """The standard output of a command, which must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(folder: Path, *, sanitize: bool) -> dict[str, Path]:
    """The objects of a build like an installation's, by instruction set or source."""
    command = (sys.executable, "setup.py", "build_ext", "--build-temp", folder / "temp", "--build-lib", folder / "lib")
    run(*command, CTLOSS_NATIVE="1", CTLOSS_SANITIZE=str(int(sanitize)))
    found = (folder / "temp").rglob("*.o")
    return {path.relative_to(folder / "temp").parts[0] if path.stem == "isa" else path.stem: path for path in found}


@pytest.fixture(scope="module")
def objects(compiler: str | None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if compiler is None:
        pytest.skip("needs a C++ compiler: GCC 12 or Clang 14, or later")
    return build(tmp_path_factory.mktemp("objects"), sanitize=False)


def test_no_function_is_shared_between_instruction_sets(objects: dict[str, Path]) -> None:
    """Of functions with one name the linker keeps one, and it may be one that the processor cannot run."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    sets = sorted(set(objects) - {"module", "threads"})
    assert "portable" in sets
    for name in sets:
        listed = [line.split()[-2:] for line in run("nm", objects[name]).splitlines()]
        # Those in lower case are the object's own, except for v and w, which are weak; U are others'.
        shared = [symbol for kind, symbol in listed if (kind.isupper() or kind in "vwu") and kind != "U"]
        # The namespace of the set, as compilers write it.
        own = f"6ctloss{len(name)}{name}"
        assert [symbol for symbol in shared if own not in symbol] == []
        assert any(f"{own}14solve_contrast" in symbol for symbol in shared)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64")
def test_only_the_wide_sets_need_more_than_the_first_x86_64(objects: dict[str, Path]) -> None:
    """Everything else runs before the processor was asked."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    wide = {name for name, path in objects.items() if WIDE.search(run("objdump", "-d", "--no-show-raw-insn", path))}
    assert wide == set(objects) - {"portable", "module", "threads"}
    assert {"portable", "module", "threads"} <= set(objects)


@pytest.mark.slow
def test_answers_next_to_plain_loops(compiler: str | None, tmp_path: Path) -> None:
    """For every set that this processor has, with each address and each operation checked."""
    if compiler is None:
        pytest.skip("needs a C++ compiler: GCC 12 or Clang 14, or later")
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    trial = [compiler, *SANITIZE, tmp_path / "empty.cpp", "-o", tmp_path / "empty"]
    if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the sanitizers' libraries")
    objects = build(tmp_path, sanitize=True)
    sets = [name for name in objects if name not in ("module", "threads")]
    linked = [objects[name] for name in (*sets, "threads")]
    defined = [f"-DCTLOSS_{name.upper()}" for name in sets]
    program = tmp_path / "compare"
    run(compiler, "-std=gnu++17", *SANITIZE, *defined, f"-I{SOURCES}", DRIVER, *linked, "-pthread", "-o", program)
    assert re.search(r"^portable: \d+ calls$", run(program), re.MULTILINE)


def test_answers_of_a_64_bit_arm(tmp_path: Path) -> None:
    """The same program for AArch64, emulated."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64")
    program = tmp_path / "compare"
    flags = ["-O3", "-std=gnu++17", "-fno-math-errno", "-pthread", "-static", "-DCTLOSS_ISA=portable", f"-I{SOURCES}"]
    run(compiler, *flags, DRIVER, SOURCES / "isa.cpp", SOURCES / "threads.cpp", "-o", program)
    assert re.search(r"^portable: \d+ calls$", run(emulator, program), re.MULTILINE)
