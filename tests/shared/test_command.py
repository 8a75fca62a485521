"""Threads of our commands sleep while they wait, as OpenMP itself reports, unless the environment says otherwise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the report of libgomp")


def spins(*command: str, **environment: str) -> list[int]:
    """How often threads look before they sleep, for every library of OpenMP that the command's process loads."""
    told = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**told, **environment, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: " in done.stdout
    return [int(count) for count in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)]


def test_threads_spin_by_default() -> None:
    """Otherwise the commands would have nothing to change."""
    assert spins("-c", "import torch; print('usage: none')")[0] > 0


@pytest.mark.parametrize("package", ["ctloss.train", "ctloss.evaluate"])
def test_our_commands_start_over_with_threads_that_sleep(package: str) -> None:
    found = spins("-m", package, "--help")
    assert found[0] > 0
    assert found[-1] == 0


@pytest.mark.parametrize("package", ["benchmarks", "benchmarks.ablation"])
def test_benchmarks_set_the_variable_before_torch_is_loaded(package: str) -> None:
    assert set(spins("-m", package, "--help")) == {0}


def test_the_environments_own_setting_is_kept() -> None:
    found = spins("-m", "ctloss.train", "--help", OMP_WAIT_POLICY="active")
    assert found
    assert min(found) > 0


def test_tests_run_with_the_variable_set() -> None:
    assert "OMP_WAIT_POLICY" in os.environ
