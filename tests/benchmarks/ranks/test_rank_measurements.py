"""Real ranks at tiny sizes: what each contestant computes and sends, each library's contract, and ranks that fail."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.ranks import __main__ as command
from benchmarks.ranks import race
from benchmarks.ranks.contract import SETTINGS
from benchmarks.ranks.probes import KINDS
from benchmarks.ranks.processes import Question, RanksFailed, ask_all
from benchmarks.ranks.rivals import OURS, WHOLE
from benchmarks.results import read_csv

RANKS, ROWS, D = 2, 8, 16
BLOCK = 2 * ROWS * D * 4
"""Bytes of a rank's rows of both sides."""
# Of a tiny batch in float32; a wrong loss is off by a part of 1.
ERROR = 1e-5

# Of the command; the other libraries are among the contracts.
MEASURED = (*OURS, WHOLE, "streaming ring", "open_clip", "lightly")
TINY = {"rows": ROWS, "d": D, "dtype": "float32", "seconds": 0.0}
MORE: list[Question] = [
    ("times", {"loss": "both", "contestants": [*OURS, WHOLE, "streaming ring", "lightly"], **TINY}),
    ("contract", {}),
    ("hops", {"sizes": [-1]}),
    ("products", {"loss": "cross", "rows": [4, 8], "d": D}),
    ("hops", {"sizes": [64]}),
]

VALUES_TIMES_RANKS = {"pytorch-metric-learning DistributedLossWrapper", "pytorch-metric-learning efficient"}

Rows = dict[str, dict[str, Any]]
Answers = list[list[Any] | RanksFailed]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Answers]:
    """What the command measures of one cell, and what the same two processes answer to more questions."""
    file = tmp_path_factory.mktemp("ranks") / "ranks.csv"
    answers: Answers = []

    def ask_more(questions: list[Question], ranks: int, **options: Any) -> Answers:
        every = ask_all([*questions, *MORE], ranks, **options)
        answers.extend(every[len(questions) :])
        return every[: len(questions)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "ask_all", ask_more)
        command.main(["--ranks", f"{RANKS}", "--rows", f"{ROWS}", "--d", f"{D}", "--losses", "cross", "--seconds", "0",
                      "--device", "cpu", "--csv", str(file), "--contestants", *MEASURED])  # fmt: skip
    return by_name(read_csv(file), "contestant"), answers


def found(answer: list[Any] | RanksFailed) -> list[Any]:
    if isinstance(answer, RanksFailed):
        raise answer
    return answer


def by_name(rows: list[dict[str, Any]], key: str) -> Rows:
    """Rows by name, without those of libraries that are not installed, unless CI has promised them."""
    missing = [row["note"] for row in rows if "installed" in (row.get("note") or "")]
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI installs the peers: {missing}")
    return {row[key]: row for row in rows if row.get("note") not in missing}


def test_command_measures_every_contestant(measured: tuple[Rows, Answers]) -> None:
    rows, _ = measured
    assert {*OURS, WHOLE, "streaming ring"} <= set(rows) <= set(MEASURED)
    assert rows.pop("lightly")["note"] == "computes only both"
    for row in rows.values():
        assert not row["note"]
        assert float(row["gradient_error"]) < ERROR
        assert float(row["value_error"]) < ERROR
        assert row["peak_bytes"]
    # Rows to the other rank, and their gradient back.
    for name in {WHOLE, "open_clip"} & set(rows):
        assert float(rows[name]["sent_bytes"]) == 2 * BLOCK
    # No gradient: rows once by a gather, again in the backward by a ring; two numbers an anchor; a call's terms.
    ring, gather = (float(rows[name]["sent_bytes"]) for name in OURS)
    numbers = 2 * 2 * ROWS * 8
    assert BLOCK + numbers < gather < BLOCK + 2 * numbers
    # Few gathered rows meet at once, so no sums go back to the other rank.
    assert ring - gather == BLOCK + 2 * ROWS * 8


def test_contestants_compute_the_loss_with_all_negatives(measured: tuple[Rows, Answers]) -> None:
    first, second = (by_name(rows, "contestant") for rows in found(measured[1][0]))
    assert all(row["gradient_error"] < ERROR for row in first.values())
    assert set(first) == set(second) >= {*OURS, WHOLE, "streaming ring"}
    assert all("gradient_error" not in row for row in second.values())


def test_contracts_of_all_libraries(measured: tuple[Rows, Answers]) -> None:
    rows = by_name(found(measured[1][1])[0], "setting")
    assert set(rows) <= set(SETTINGS)
    known = {
        "open_clip ClipLoss()": 1 / RANKS,
        **dict.fromkeys((name for name in SETTINGS if name.startswith("ours")), 1.0),
        "open_clip local_loss, gather_with_grad": 1.0,
        "lightly gather_distributed": 1.0,
        "sentence-transformers gather_across_devices": 1.0,
        "pytorch-metric-learning DistributedLossWrapper": 1.0,
    }
    for name in set(known) & set(rows):
        scale = known[name]
        assert rows[name]["scale"] == pytest.approx(scale)
        assert rows[name]["residual"] < 1e-9
    for name in {"open_clip local_loss", "pytorch-metric-learning efficient"} & set(rows):
        assert rows[name]["residual"] > 0.1
    assert {name for name, row in rows.items() if row["value"] != pytest.approx(1)} <= VALUES_TIMES_RANKS


def test_a_problem_that_fails_leaves_the_others(measured: tuple[Rows, Answers]) -> None:
    failed, products, hops = measured[1][2:]
    assert isinstance(failed, RanksFailed)
    assert "rank 0 of 2: RuntimeError" in str(failed)
    for of_rank in found(products):
        assert set(of_rank) == set(KINDS)
        assert all(len(sizes) == 2 for sizes in of_rank.values())
    assert all(len(of_rank) == 1 for of_rank in found(hops))
