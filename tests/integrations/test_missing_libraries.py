"""Integrations that extend another library's classes say which one is missing; the others need none."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "library", "said"),
    [
        ("pytorch_metric_learning", "pytorch_metric_learning", "pip install pytorch-metric-learning"),
        ("transformers", "transformers", r"pip install 'ctloss\[train\]'"),
    ],
)
def test_the_missing_library_is_named(module: str, library: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"ctloss.integrations.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"ctloss.integrations.{module}: expected .*{said}"):
        importlib.import_module(f"ctloss.integrations.{module}")


def test_lightly_and_open_clip_need_only_torch() -> None:
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "import ctloss.integrations.lightly, ctloss.integrations.open_clip\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "['ctloss']"
