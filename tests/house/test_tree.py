"""The repository as files: telling names, and nothing of the machine they were written on."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINE = re.compile(r"/(work|root|home|tmp)/\w|[.][.]/shared")
MACHINE_IS_MEANT = {".ci/run"}


def files(*patterns: str) -> list[str]:
    """Tracked files and new ones that are not ignored, by their path from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", files("*.py"))
def test_module_is_named_for_one_job(name: str) -> None:
    assert not {"utils", "util", "helpers", "misc", "common"} & set(Path(name).with_suffix("").parts)


def test_a_folder_holds_a_dozen_modules_at_most() -> None:
    folders = Counter(str(Path(name).parent) for name in files("*.py", "*.pyi", "*.h", "*.cpp"))
    assert not {folder: count for folder, count in folders.items() if count > 12}


def test_nothing_names_a_machine() -> None:
    found = []
    for name in files():
        if name in MACHINE_IS_MEANT:
            continue
        try:
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{number}: {line}" for number, line in enumerate(lines, 1) if MACHINE.search(line)]
    assert found == []


def test_the_machine_pattern_catches() -> None:
    folder = "/wo" + "rk/main"
    assert MACHINE.search(f"open('{folder}/x')")
    assert MACHINE.search("tar xf ." + "./shared/x")
    assert not MACHINE.search("framework/main and ./shared/x")


def test_files_are_small() -> None:
    assert [name for name in files() if (ROOT / name).stat().st_size > 1_000_000] == []


def test_links_stay_inside() -> None:
    """The links make kernels/ and reference/ parts of the package, and must hold in a clone elsewhere."""
    for name in ("kernels", "reference"):
        link = ROOT / "ctloss" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
