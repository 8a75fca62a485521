"""The model that the tests of this folder train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_sentence_model import save

    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tiny(folder: str) -> Callable[[], Any]:
    """The same weights at every call."""
    from sentence_transformers import SentenceTransformer

    return lambda: SentenceTransformer(folder, device="cpu")
