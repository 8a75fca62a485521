"""gather_across_devices: under DDP, values and gradients are sentence-transformers', and those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import torch
import two_ranks
from tiny_sentence_model import gradients, tokens
from two_ranks import CASES, GUIDED, ROWS, WORLD, loss_of, model

from support.integrations import two_towers
from support.integrations.installed_losses import lacking, skip_if

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def written(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, two_ranks.__file__, folder, str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def of_ranks(written: Path) -> list[dict[tuple[str, str], Any]]:
    return [torch.load(written / f"rank{rank}.pt") for rank in range(WORLD)]


def assert_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(one.abs().max().item() for one in expected.values())
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-4, atol=2e-6 * largest)


@pytest.mark.parametrize("case", CASES)
def test_same_as_theirs(of_ranks: list[dict[tuple[str, str], Any]], case: str) -> None:
    name, _, options = CASES[case]
    skip_if(lacking(name, [*options, "gather_across_devices"]))
    for found in of_ranks:
        (value, gradient), (expected, expected_gradient) = found[case, "ours"], found[case, "theirs"]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        assert_gradients(gradient, expected_gradient)


@pytest.mark.parametrize("case", [case for case in CASES if case not in GUIDED])
def test_same_as_one_process(of_ranks: list[dict[tuple[str, str], Any]], folder: str, case: str) -> None:
    """A guide compares anchors with those of their own process only."""
    name, _, options = CASES[case]
    skip_if(lacking(name, options))
    encoder = model(folder)
    value = loss_of(case, "theirs", encoder, folder, gather=False)(tokens(encoder, ROWS, CASES[case][1]), None)
    value.backward()
    values = torch.stack([found[case, "ours"][0] for found in of_ranks])
    torch.testing.assert_close(values.mean(), value.detach(), rtol=1e-5, atol=1e-6)
    for found in of_ranks:
        assert_gradients(found[case, "ours"][1], gradients(encoder))


def test_transformers_trainer_ends_with_the_weights_of_one_process(written: Path) -> None:
    expected = two_towers.by_hand(WORLD)
    for rank in range(WORLD):
        found = torch.load(written / f"trainer{rank}.pt")
        assert found.keys() == {"counted", "given", "contrastive"}
        for weights in found.values():
            torch.testing.assert_close(weights, expected)


def test_a_single_process_gathers_nothing(folder: str) -> None:
    encoder = model(folder)
    alone, gathered = (
        loss_of("pairs", "ours", encoder, folder, gather)(tokens(encoder, 4), None) for gather in (False, True)
    )
    torch.testing.assert_close(alone, gathered, rtol=0, atol=0)
