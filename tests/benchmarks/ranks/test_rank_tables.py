"""What is made of the measurements of ranks: which cells there are, merged rows, tables, and predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu.ring import shares
from benchmarks.ranks import __main__ as command
from benchmarks.ranks import probes, race, report
from benchmarks.ranks.probes import Calibration, Line, Loopback, Processor, Seconds
from benchmarks.ranks.processes import RanksFailed
from benchmarks.ranks.race import NOT_REACHED, Cell, cells, merged
from benchmarks.ranks.rivals import CONTESTANTS, OURS, WHOLE
from benchmarks.results import markers, page_of, write_csv

RING, GATHER = OURS


def row(contestant: str, cpu: float, peak: float, **more: str) -> dict[str, str]:
    """One row as it is read back from its file."""
    about = {"loss": "both", "ranks": "2", "rows": "1024", "d": "256", "contestant": contestant, "note": ""}
    numbers = {"cpu_s": str(cpu), "wall_s": str(2 * cpu), "sent_bytes": str(2**20), "peak_bytes": str(peak)}
    machine = {"device": "a processor", "cores": "2", "torch": "2", "peers": "a library 1", "backend": "gloo"}
    return {**about, **numbers, "gradient_error": "3e-7", **machine, **more}


def lines(text: str, start: str) -> list[list[str]]:
    """The rows of the table after a line that begins so."""
    after = text[text.index(start) :].splitlines()
    first = next(number for number, line in enumerate(after) if line.startswith("| ---")) + 1
    count = next((number for number, line in enumerate(after[first:]) if not line.startswith("|")), len(after) - first)
    return [[part.strip() for part in line[1:-1].split("|")] for line in after[first : first + count]]


def test_cells_with_goals_come_first() -> None:
    chosen = cells(race.LOSSES, race.RANKS, race.ROWS)
    assert [race.judged(cell) for cell in chosen] == [True] * 2 + [False] * 16
    work = [cell.ranks * cell.rows for cell in chosen[2:]]
    assert work == sorted(work)


def test_merged_rows_hold_means_and_maxima() -> None:
    one = {"contestant": "a", "cpu_s": 1.0, "wall_s": 2.0, "sent_bytes": 3.0, "rounds": 5, "gradient_error": 1e-7}
    other = {"contestant": "a", "cpu_s": 2.0, "wall_s": 1.0, "sent_bytes": 4.0, "rounds": 5}
    noted = {"contestant": "b", "note": "computes only both"}
    assert merged([[one, noted], [other, noted]]) == [
        {**one, "cpu_s": 1.5, "wall_s": 2.0, "sent_bytes": 4.0}, noted]  # fmt: skip


def test_what_fails_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {"cpu_s": 1.0, "wall_s": 1.0, "sent_bytes": 0.0}

    def ask_all(problems: list[tuple[str, dict[str, list[str]]]], *_: object, **__: object) -> list[object]:
        names = problems[0][1]["contestants"]
        assert WHOLE not in names
        rows = [{"contestant": name, **timed} for name in names]
        return [[rows, rows], RanksFailed("rank 1 of 2: killed"), *[[7, 9]] * (len(problems) - 2)]

    monkeypatch.setattr(race, "ask_all", ask_all)
    monkeypatch.setattr(race, "_free_bytes", lambda device: 2.9 * 4 * 4 * 2.0**22)
    rows = race.run([Cell("both", 2, 512)], (RING, GATHER, WHOLE))
    assert [(each["contestant"], each.get("peak_bytes")) for each in rows] == [(WHOLE, None), (RING, None), (GATHER, 9)]
    assert "would need about" in str(rows[0]["note"])
    assert rows[1]["memory_note"] == "rank 1 of 2: killed"
    assert [each["note"] for each in race.run([Cell("both", 2, 512)], minutes=-1)] == [NOT_REACHED]


def test_goals_are_judged_against_the_best_other() -> None:
    rows = [row(RING, 0.5, 10), row(GATHER, 0.7, 40), row(WHOLE, 2.0, 90), row("lightly", 1.0, 50),
            row("open_clip", 0.0, 0, cpu_s="", note="computes only cross")]  # fmt: skip
    text = report.race(rows)
    judged = lines(text, "The goals")
    assert judged[0] == ["both", RING, "0.50", "lightly", "0.6 met", "0.11", "1/3 met"]
    assert judged[1] == ["both", GATHER, "0.70", "lightly", "0.6 missed", "0.44", "1/3 missed"]
    assert judged[2][4] == "0.8 not measured"
    (times,) = lines(text, "CPU time a rank")
    assert times == ["both", "2", "1,024", "500 / 1e+03", "700 / 1.4e+03", "2e+03 / 4e+03", "", "1e+03 / 2e+03", "0.50"]
    assert lines(text, "MiB that")[0][3:6] == ["1", "1", "1"]
    assert "Not measured" not in text


def test_work_of_a_rank_is_at_most_its_share() -> None:
    for ranks in (1, 2, 3, 4, 8):
        of_passes = [(shares(ranks, which).sum(0) / ranks).max().item() for which in report.PASSES]
        assert max(of_passes) <= 1.05
        assert of_passes[0] == 0.5
    text = report.race([row(RING, 1, 1), row(RING, 1, 1, ranks="4")])
    assert lines(text, "Logits that") == [["2", "0.5", "0.75"], ["4", "0.5", "0.875"]]


def test_what_was_not_measured_is_listed() -> None:
    reason = "would need about 4.0 GiB a rank"
    text = report.race([row(RING, 1, 1), row(WHOLE, 0, 0, cpu_s="", peak_bytes="", note=reason),
                        row("lightly", 1, 0, peak_bytes="", memory_note="rank 1 of 2: killed")])  # fmt: skip
    assert lines(text, "Not measured") == [
        [WHOLE, "both 2 × 1,024", reason], ["lightly, memory", "both 2 × 1,024", "rank 1 of 2: killed"]]  # fmt: skip


def test_contract_has_a_line_for_each_setting() -> None:
    about = {"negatives": "cross", "torch": "2", "peers": "a library 1"}
    rows = [{"setting": "one", "ranks": "2", "scale": "0.5", "residual": "2e-16", "value": "1", **about},
            {"setting": "one", "ranks": "4", "scale": "0.25", "residual": "0.33", "value": "1", **about},
            {"setting": "other", "ranks": "2", "note": "not installed", **about}]  # fmt: skip
    assert lines(report.contract(rows), "gloo") == [
        ["one", "cross", "0.500", "0.250", "0", "0.33", "1.000", "1.000"],
        ["other", "cross", *[""] * 6]]  # fmt: skip
    assert "other: not installed" in report.contract(rows)


def test_predictions_are_compared_by_their_ratio() -> None:
    times = {"predicted_cpu_s": "1", "measured_cpu_s": "2"}
    rows = [{**row(RING, 0, 0), "predicted_s": "0.3", "measured_s": measured, **times} for measured in ("0.25", "0.2")]
    text = report.simulator(rows)
    assert "Of 2 predictions 1 by the wall clock and 0 of CPU time are within 25%" in text
    assert [line[4:] for line in lines(text, "a processor")] == [
        ["300", "250", "1.20", "1e+03", "2e+03", "0.50"], ["300", "200", "1.50", "1e+03", "2e+03", "0.50"]]  # fmt: skip


def test_a_prediction_adds_up_probes_by_the_schedule() -> None:
    d, rows = 4, 16
    rectangle = 2 * (2 * rows) ** 2 * d
    kinds = {"own forward": 1.0, "meet": 10.0, "own backward": 100.0, "pull": 1000.0}
    kinds |= {"meet at once": 20.0, "pull from kept": 500.0}
    processor = Processor({kind: Line(0.0, seconds / rectangle) for kind, seconds in kinds.items()})
    free = Loopback(Line(0.0, 0.0))
    few = {name: Seconds(0.0, 0.0) for name in OURS}
    for ranks in (2, 4):
        calibration = Calibration(ranks, d, "cpu", processor, processor, free, few)
        # Forward: half of the rectangles with other ranks; backward: all of them.
        wanted = 1 + 10 * (ranks - 1) / 2 + 100 + 1000 * (ranks - 1)
        assert calibration.predicted(RING, rows) == pytest.approx((wanted, wanted))
        # Few gathered rows meet all others at once: all rectangles, formed once.
        wanted = 1 + 20 * (ranks - 1) + 100 + 500 * (ranks - 1)
        assert calibration.predicted(GATHER, rows) == pytest.approx((wanted, wanted))
    beyond = Calibration(2, d, "cpu", processor, processor, free, {name: Seconds(5000.0, 0.0) for name in OURS})
    (few_rows,) = {calibration.predicted(RING, probes.FEW_ROWS).wall for calibration in [beyond]}
    assert few_rows == pytest.approx(5000.0)
    assert beyond.predicted(RING, rows).wall > 5000.0


def test_slow_links_delay_a_ring() -> None:
    processor = Processor(dict.fromkeys(probes.KINDS, Line(1.0, 0.0)))
    few = {name: Seconds(0.0, 0.0) for name in OURS}
    found = {hop: Calibration(2, 4, "cpu", processor, processor, Loopback(Line(hop, 0.0)), few).predicted(RING, 16)
             for hop in (0.5, 3.0)}  # fmt: skip
    # Own rows and one block in each pass; the sums of the forward come back in the open.
    assert found[0.5] == pytest.approx((4.5, 4.0))
    # Both hops outlast the work on own rows.
    assert found[3.0] == pytest.approx((3 + 1 + 3 + 3 + 1, 4.0))


def test_probes_are_taken_of_the_slowest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, d = (2, 4), 4
    work = [2.0 * (2 * own) ** 2 * d for own in sizes]
    of_rank = [{kind: [(factor * each, each) for each in work] for kind in probes.KINDS} for factor in (2.0, 3.0)]
    timed = [[{"contestant": name, "wall_s": wall, "cpu_s": 1.0} for name in OURS] for wall in (5.0, 4.0)]
    answers = [of_rank, [[1.0, 2.0], [1.5, 1.0]], timed]
    monkeypatch.setattr(probes, "ask_all", lambda *_, **__: answers)
    calibration = probes.calibrated("both", 2, d, "cpu", sizes)
    assert calibration.wall.lines == dict.fromkeys(probes.KINDS, Line(0.0, 3.0))
    assert calibration.cpu.lines == dict.fromkeys(probes.KINDS, Line(0.0, 1.0))
    assert calibration.links.into(2, 1, probes.MESSAGE_BYTES[1]).tolist() == pytest.approx([2.0, 2.0])
    assert calibration.few == dict.fromkeys(OURS, Seconds(5.0, 1.0))
    assert torch.equal(calibration.links.into(3, 1, 0.0), calibration.links.into(3, -1, 0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contract", "--simulator"], "expected one of --contract and --simulator, got both"),
        (["--contract", "--ranks", "1"], "expected --ranks of at least 2, got 1"),
        (["--ranks", "0"], "expected --ranks of at least 1, got 0"),
        (["--rows", "1"], "expected --rows of at least 2, got 1"),
        (["--d", "0"], "expected --d of at least 1, got 0"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command.main([*arguments, "--device", "cpu"])


def test_tables_are_written_into_their_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wanted in (("", "ranks.md"), (" --contract", "many-ranks.md"), (" --simulator", "ranks.md")):
        assert page_of(command.COMMAND + name).name == wanted
    page, file = tmp_path / "page.md", tmp_path / "ranks.csv"
    page.write_text("\n".join(["Before.", *markers(command.COMMAND), "After."]), encoding="utf-8")
    write_csv(file, [row(name, 1, 1) for name in CONTESTANTS])
    monkeypatch.setattr(command, "page_of", lambda _: page)
    command.main(["--show", "--write", "--csv", str(file), "--device", "cpu"])
    written = page.read_text(encoding="utf-8")
    assert written.startswith("Before.")
    assert written.endswith("After.")
    assert "| both | 2 | 1,024 |" in written
