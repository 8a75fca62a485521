"""What the tests of evaluation share."""

import os
from pathlib import Path

import pytest

from support import tiny_tasks


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny BERT that labelled tasks can be learnt with."""
    return tiny_tasks.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def real_data() -> Path:
    """The folder of real text."""
    if "CTLOSS_DATA" not in os.environ:
        pytest.skip("CTLOSS_DATA names no folder of real text")
    return Path(os.environ["CTLOSS_DATA"])
