"""Every example in a docstring of the package runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import ctloss

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).resolve().parents[2]


def modules_with_examples() -> list[str]:
    folders = {"ctloss": "ctloss", "kernels": "ctloss.kernels", "reference": "ctloss.reference"}
    found = []
    for folder, package in folders.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = [part for part in path.relative_to(ROOT / folder).with_suffix("").parts if part != "__init__"]
                found.append(".".join([package, *parts]))
    return found


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples(module: str) -> None:
    outcome = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_public_functions_have_examples() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    public = {name: getattr(ctloss, name) for name in ctloss.__all__}
    # A dataclass is shown in the example of the function that returns it.
    called = {name: value for name, value in public.items() if callable(value) and not is_dataclass(value)}
    without = [name for name, value in called.items() if not any(test.examples for test in finder.find(value, name))]
    assert called
    assert without == []
