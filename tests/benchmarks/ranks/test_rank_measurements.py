"""Real ranks at tiny sizes: what each contestant computes and sends, each library's contract, and ranks that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ranks import __main__ as command
from benchmarks.ranks.contract import SETTINGS
from benchmarks.ranks.probes import KINDS
from benchmarks.ranks.processes import RanksFailed, ask_all
from benchmarks.ranks.rivals import CONTESTANTS, OURS, WHOLE
from benchmarks.results import read_csv

RANKS, ROWS, D = 2, 8, 16
BLOCK = 2 * ROWS * D * 4
"""Bytes of a rank's rows of both sides."""
# Of a tiny batch in float32; a wrong loss is off by a part of 1.
ERROR = 1e-5

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def answers() -> list[list[Any] | RanksFailed]:
    """Several problems solved by the same two ranks."""
    about = {"rows": ROWS, "d": D, "dtype": "float32", "contestants": list(CONTESTANTS), "seconds": 0.0}
    return ask_all(
        [
            ("times", {"loss": "both", **about}),
            ("contract", {}),
            ("hops", {"sizes": [-1]}),
            ("products", {"loss": "cross", "rows": [4, 8], "d": D}),
            ("hops", {"sizes": [64]}),
        ],
        RANKS,
    )


def found(answer: list[Any] | RanksFailed) -> list[Any]:
    if isinstance(answer, RanksFailed):
        raise answer
    return answer


def by_name(rows: list[dict[str, Any]], key: str) -> Rows:
    return {row[key]: row for row in rows}


def test_command_measures_every_contestant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ranks.csv"
    command.main(["--ranks", f"{RANKS}", "--rows", f"{ROWS}", "--d", f"{D}", "--losses", "cross", "--seconds", "0",
                  "--device", "cpu", "--csv", str(file)])  # fmt: skip
    rows = by_name(read_csv(file), "contestant")
    assert set(rows) == set(CONTESTANTS)
    assert rows["lightly"]["note"] == "computes only both"
    for name, row in rows.items():
        if CONTESTANTS[name].only != "both":
            assert not row["note"]
            assert float(row["gradient_error"]) < ERROR
            assert float(row["value_error"]) < ERROR
            assert row["peak_bytes"]
    # Rows to the other rank, and their gradient back.
    for name in (WHOLE, "open_clip", "sentence-transformers"):
        assert float(rows[name]["sent_bytes"]) == 2 * BLOCK
    # No gradient: rows once by a gather, again in the backward by a ring; two numbers an anchor; a call's terms.
    ring, gather = (float(rows[name]["sent_bytes"]) for name in OURS)
    numbers = 2 * 2 * ROWS * 8
    assert BLOCK + numbers < gather < BLOCK + 2 * numbers
    assert ring - gather == BLOCK
    shown = capsys.readouterr().out
    assert all(name in shown for name in CONTESTANTS)


def test_contestants_compute_the_loss_with_all_negatives(answers: list[list[Any] | RanksFailed]) -> None:
    first, second = (by_name(rows, "contestant") for rows in found(answers[0]))
    takes_part = {name for name, contestant in CONTESTANTS.items() if contestant.only != "cross"}
    assert {name for name, row in first.items() if row.get("gradient_error", 1.0) < ERROR} == takes_part
    assert all("gradient_error" not in row for row in second.values())


def test_contracts_of_all_libraries(answers: list[list[Any] | RanksFailed]) -> None:
    rows = by_name(found(answers[1])[0], "setting")
    assert set(rows) == set(SETTINGS)
    known = {
        "open_clip ClipLoss()": 1 / RANKS,
        **dict.fromkeys((name for name in SETTINGS if name.startswith("ours")), 1.0),
        "open_clip local_loss, gather_with_grad": 1.0,
        "lightly gather_distributed": 1.0,
        "sentence-transformers gather_across_devices": 1.0,
        "pytorch-metric-learning DistributedLossWrapper": 1.0,
    }
    for name, scale in known.items():
        assert rows[name]["scale"] == pytest.approx(scale)
        assert rows[name]["residual"] < 1e-9
    for name in ("open_clip local_loss", "pytorch-metric-learning efficient"):
        assert rows[name]["residual"] > 0.1
    assert rows["pytorch-metric-learning DistributedLossWrapper"]["value"] == pytest.approx(RANKS)


def test_a_problem_that_fails_leaves_the_others(answers: list[list[Any] | RanksFailed]) -> None:
    failed = answers[2]
    assert isinstance(failed, RanksFailed)
    assert "rank 0 of 2: RuntimeError" in str(failed)
    for of_rank in found(answers[3]):
        assert set(of_rank) == set(KINDS)
        assert all(len(sizes) == 2 for sizes in of_rank.values())
    assert all(len(of_rank) == 1 for of_rank in found(answers[4]))
