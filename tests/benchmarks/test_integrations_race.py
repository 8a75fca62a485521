"""The race of integrations at a small size: it runs, finds equal gradients, and its table has every pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.integrations import __main__ as command
from benchmarks.integrations import pairs as all_pairs
from benchmarks.integrations import race
from benchmarks.results import page_of, read_csv
from support.calls import present

PAIRS = all_pairs.pairs()


@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("pair", PAIRS, ids=[f"{pair.library} {pair.name}" for pair in PAIRS])
def test_both_have_the_gradient_of_theirs_in_float64(pair: all_pairs.Pair) -> None:
    sides = [side.detach().double().requires_grad_() for side in race.rows(pair, 8, torch.float64)]
    wanted = race.gradients(present(pair.theirs, 8, torch.float64), sides)
    # A bank begins with rows of float32, which are of length 1 within its rounding; ours normalises them again.
    rounding = 1e-6 if "bank" in pair.name else 1e-10
    assert race.error(race.gradients(pair.ours(8, torch.float64), sides), wanted) < rounding


def test_the_command_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.csv"
    command.main(["--sizes", "8", "--libraries", "open_clip", "--seconds", "0.01", "--csv", str(found)])
    names = [row["loss"] for row in read_csv(found)]
    assert names == [pair.name for pair in PAIRS if pair.library == "open_clip"]
    for row in read_csv(found):
        assert float(row["ours ms"]) > 0
        assert float(row["theirs peak"]) > 0
        assert float(row["ours error"]) < 1e-4
    shown = capsys.readouterr().out
    assert all(f"open-clip {name}" in shown for name in names)
    assert page_of(command.COMMAND).name == "integrations.md"


def test_what_theirs_cannot_hold_has_a_dash() -> None:
    (large,) = (pair for pair in PAIRS if pair.name.startswith("NTXentLoss, 2 rows"))
    assert large.their_bytes(2048) > race.MOST_BYTES > large.their_bytes(128)
    row = {"library": large.library, "loss": large.name, "n": 2048, "d": 256, "ours ms": 1.0, "ours peak": 1.0}
    assert "| – | 1 | – |" in command.shown([row])
