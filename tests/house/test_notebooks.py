"""The notebooks run, and what they show stored is what they show when run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Bytes; they are read on code hosts, where pictures belong to them.
LARGEST = 400_000


def form(output: Any) -> tuple[str, ...]:
    """What kind of output it is, whatever its numbers."""
    return (output["output_type"], *sorted(output.get("data", {output.get("name", ""): None})))


def outputs(notebook: Any) -> list[list[tuple[str, ...]]]:
    """The forms of each code cell's outputs, warnings and progress left out."""
    return [
        [form(output) for output in cell["outputs"] if output.get("name") != "stderr"]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["align-an-encoder", "where-gradients-die"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_as_stored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    monkeypatch.setenv("CTLOSS_SMALL_NOTEBOOK", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.from_dict(stored)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert outputs(notebook) == outputs(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_small_and_in_order(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [cell for cell in cells if any(output.get("name") == "stderr" for output in cell["outputs"])]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) >= 3
    assert path.stat().st_size < LARGEST
