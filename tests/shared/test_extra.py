"""The shared layer needs torch only, and missing packages of an extra are named before anything else is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ctloss.shared.extra import require_extra

ROOT = Path(__file__).resolve().parents[2]


def test_missing_modules_are_named() -> None:
    require_extra("train", ("torch", "json"))
    with pytest.raises(ModuleNotFoundError, match=r"ctloss\.evaluate: .* got none named no_a, no_b; pip") as refusal:
        require_extra("evaluate", ("torch", "no_a", "no_b"))
    assert refusal.value.name == "no_a"


def test_every_module_imports_with_torch_only() -> None:
    modules = [path.stem for path in (ROOT / "ctloss" / "shared").glob("*.py")]
    assert len(modules) > 5
    program = (
        "import sys, torch\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        f"for name in {modules}:\n"
        "    __import__(f'ctloss.shared.{name}')\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(after - before - sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['ctloss']"
