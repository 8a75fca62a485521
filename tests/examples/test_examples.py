"""Every script of examples/ runs as it stands and shows that it learned; that of two ranks in processes of its own."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TWO_RANKS = "ddp_gradcache"
SHOWN = re.compile(r"^(.+): (\d\.\d\d) before, (\d\.\d\d) after$", re.M)
# What is needed beyond the test command's packages.
WANTED = {"hard_negatives": "ctloss.integrations.sentence_transformers"}


def improvements(printed: str) -> dict[str, tuple[float, float]]:
    return {name: (float(before), float(after)) for name, before, after in SHOWN.findall(printed)}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_learns(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if script.stem in WANTED:
        pytest.importorskip(WANTED[script.stem])
    if script.stem == TWO_RANKS:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        done = subprocess.run(
            launch, capture_output=True, text=True, check=False, env=os.environ, cwd=ROOT, timeout=900
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        with torch.random.fork_rng():
            runpy.run_path(str(script), run_name="__main__")
        printed = capsys.readouterr().out
    found = improvements(printed)
    assert found, printed
    assert all(after >= 0.8 and after - before >= 0.25 for before, after in found.values()), printed
    if script.stem == "global_loss":
        # Printed with two digits: what both solve is equal.
        assert found["SogCLR, views found"][1] >= found["infoNCE, views found"][1]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_listed(script: Path) -> None:
    assert 30 <= len(script.read_text(encoding="utf-8").splitlines()) <= 85
    assert f"({script.name})" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
