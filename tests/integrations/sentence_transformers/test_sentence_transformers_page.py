"""The page's examples run as printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from support.integrations.installed_losses import trains

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guide" / "integrations" / "sentence-transformers.md"
EXAMPLES = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@trains
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    losses = []
    for example in EXAMPLES:
        exec(compile(example, PAGE.name, "exec"), names)
        losses.append(type(names.get("loss")).__name__)
    assert losses == [
        "NoneType",
        "MultipleNegativesRankingLoss",
        "CachedMultipleNegativesRankingLoss",
        "CachedMultipleNegativesRankingLoss",
        "CachedGISTEmbedLoss",
        "CZNCELoss",
    ]
