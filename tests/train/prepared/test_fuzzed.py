"""A small run of the command that prepares drawn text of every form."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from benchmarks.pretraining import fuzz
from ctloss.train.prepared import reading


def test_every_drawn_line_is_a_row_or_counted(tmp_path: Path) -> None:
    found = fuzz.fuzz(tmp_path, 300, seed=2, each=150)
    assert found["corpora"] == 2
    assert found["lines"] == 300
    assert found["rows"] > 100
    assert found["bad line"] > 10


def test_a_line_that_is_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = reading.Part.write

    def forgetting(part: reading.Part, path: Path) -> None:
        # As if a bad line had never been read.
        number = min(part.bad)
        part.bad[number] -= 1
        part.given[number] -= 1
        usual(part, path)

    monkeypatch.setattr(reading.Part, "write", forgetting)
    with pytest.raises(AssertionError):
        fuzz.fuzz(tmp_path, 200, seed=1, each=200)
