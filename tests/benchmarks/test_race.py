"""The race at tiny sizes: which cells there are, that all compute the same loss, the goals, and what tables keep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.cpu import race, race_cells, race_report
from benchmarks.cpu.race import COMPILED, EAGER, NO_TIME, NOT_REACHED, OURS, PASSES, Field
from benchmarks.cpu.race_cells import AXES, EAGER_BYTES, FIELDS, GOALS, SOFTMAX_LOSSES, Cell, cells, goal, only
from benchmarks.measure import Timing
from benchmarks.results import markers, page_of, read_csv, write_csv

SMALL = Cell("info_nce", "both", "float32", 8, 64, 1)
TINY = [Cell(loss, negatives, "float32", n, 8, 1) for loss, negatives, n in itertools.product(
    SOFTMAX_LOSSES, race_cells.KINDS, (2, 8))]  # fmt: skip
TINY += [Cell(loss, negatives, "float32", n, 8, 1) for n in (2, 8)
         for loss, negatives in (("sup_con", "both"), ("sig_lip", "cross"))]  # fmt: skip


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """A field sets torch's threads and how compilers behave."""
    threads, limit = torch.get_num_threads(), torch._dynamo.config.recompile_limit
    yield
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = limit
    torch.fx.experimental._config.use_duck_shape = True
    torch.compiler.set_stance("default")


def row(cell: Cell, contestant: str, took: float | str, which: str = "forward") -> dict[str, str]:
    """One row of a race as it is read back from its file."""
    values = {name: str(getattr(cell, name)) for name in FIELDS}
    about = {"pass": which, "contestant": contestant, "seconds": str(took), "note": ""}
    return {**values, **about, "device": "a processor", "torch": "2"}


@pytest.mark.parametrize("full", [False, True])
def test_cells_cover_every_value_and_the_pairs_that_matter(full: bool) -> None:
    chosen = cells(full=full)
    assert len(set(chosen)) == len(chosen)
    for name, values in AXES.items():
        assert {getattr(cell, name) for cell in chosen} == set(values)
    pairs = [("loss", "n"), ("loss", "dtype"), ("loss", "threads"), ("negatives", "dtype"), ("negatives", "threads"),
             ("dtype", "threads"), ("negatives", "d")]  # fmt: skip
    for one, other in pairs:
        met = {(getattr(cell, one), getattr(cell, other)) for cell in chosen}
        assert met >= {pair for pair in itertools.product(AXES[one], AXES[other]) if pair != ("sup_con", 8192) or full}
    plain = {(cell.loss, cell.negatives, cell.n, cell.d) for cell in chosen if cell.dtype == "float32"}
    assert plain >= {*itertools.product(SOFTMAX_LOSSES, race_cells.KINDS, (2, 8, 32, 128, 512), AXES["d"])}
    assert all(4 * race_cells.EAGER_MATRICES * cell.logits <= EAGER_BYTES for cell in chosen)


def test_the_most_important_cells_come_first() -> None:
    chosen = cells()
    first = [
        cell.dtype == "float32" and cell.n <= 512 and cell.d in (256, 768) and cell.threads == 1 for cell in chosen
    ]
    assert first == sorted(first, reverse=True)
    assert sum(first) == 2 * 7 * 5 * 2 + 2 * 5


def test_only_keeps_what_is_asked_for() -> None:
    chosen = only(cells(), ["n=2,8", "loss=sup_con", "threads=1"])
    assert {(cell.loss, cell.n, cell.threads) for cell in chosen} == {("sup_con", 2, 1), ("sup_con", 8, 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "m=2"], "expected loss, negatives, dtype, n, d, threads before the = in --only, got 'm=2'"),
        (["--only", "n=3"], "expected n among 2, 8, 32, 128, 512, 2048, 8192 in --only, got 'n=3'"),
        (["--only", "loss=sup_con", "n=8192"], "expected --only to leave a cell, got none"),
        (["--n", "8"], "expected --only to choose the race's cells, got n by options of their own"),
    ],
)
def test_bad_choices_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command.main(["race", "--device", "cpu", *arguments])


@pytest.mark.parametrize("cell", TINY, ids=lambda cell: f"{cell.loss}-{cell.negatives}-{cell.n}")
def test_all_compute_the_same_loss(cell: Cell) -> None:
    inputs = race_cells.draw(cell)
    exact = race_cells.truth(cell, inputs)
    assert exact is not None
    value, gradients = exact
    forms = {"ours": race_cells.ours(cell), **race_cells.rivals(cell)}
    assert len(forms) > 1
    for form in forms.values():
        found, of_form = inputs.double().gradients(form)
        assert found.item() == pytest.approx(value, abs=1e-12)
        for one, other in zip(of_form, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_half_precision_has_every_form_twice() -> None:
    half = replace(SMALL, dtype="bfloat16")
    names = race_cells.rivals(SMALL)
    assert list(race_cells.rivals(half)) == [*names, *(f"{name}, in float32" for name in names)]
    values = {name: race_cells.draw(half).gradients(form)[0].dtype for name, form in race_cells.rivals(half).items()}
    assert {name for name, dtype in values.items() if dtype == torch.bfloat16} == set(names)


@pytest.mark.parametrize(
    ("n", "dtype", "wanted"),
    [(2, "float32", 0.5), (128, "float32", 0.5), (128, "bfloat16", 1.0), (512, "float32", 1.0), (2048, "float32", 1.0),
     (8192, "float32", 0.28), (8192, "float16", 0.28)],
)  # fmt: skip
def test_goals(n: int, dtype: str, wanted: float) -> None:
    assert goal(replace(SMALL, n=n, dtype=dtype)) == wanted
    assert str(wanted) in GOALS


def test_a_field_measures_all_and_names_a_path_that_cannot_run() -> None:
    rows = Field(["torch", "nowhere"], seconds=1e-3).measure(SMALL)
    for which in PASSES:
        here = {str(each["contestant"]): each for each in rows if each["pass"] == which}
        timed = {name for name, each in here.items() if "seconds" in each}
        assert timed == {OURS + "torch", *(EAGER + name for name in race_cells.rivals(SMALL))}
        assert "impl: expected one of" in str(here[OURS + "nowhere"]["note"])
        assert here[COMPILED]["note"] == NO_TIME
    errors = [each["gradient_error"] for each in rows if "gradient_error" in each]
    assert len(errors) == len(race_cells.rivals(SMALL)) + 1
    assert max(float(str(error)) for error in errors) < 1e-4


@pytest.mark.slow
def test_a_form_is_compiled_once_for_all_sizes() -> None:
    field = Field(["torch"], seconds=1e-3)
    for n, d, budget in ((8, 64, 600.0), (2, 96, 0.0)):
        rows = field.measure(replace(SMALL, n=n, d=d), budget)
        compiled = [each for each in rows if each["contestant"] == COMPILED]
        assert len(compiled) == len(PASSES)
        assert all("seconds" in each and str(each["note"]).startswith("of eager, ") for each in compiled)


def test_slow_forms_are_left_out_of_larger_batches() -> None:
    group = ("info_nce", "both", "float32", "forward")
    field = Field(["torch"])
    times = {OURS + "torch": 0.1, EAGER + "a": 1.0, EAGER + "b": 2.0, EAGER + "c": 9.0, COMPILED: 0.5}
    field.remember(group, replace(SMALL, n=128), {name: Timing(took, took, 1) for name, took in times.items()})
    may_win = {
        n: {name for name in times if field.may_win(group, name, n)} - {OURS + "torch"} for n in (128, 512, 2048)
    }
    assert may_win == {128: set(times) - {OURS + "torch"}, 512: {EAGER + "a", EAGER + "b", COMPILED},
                       2048: {EAGER + "a", COMPILED}}  # fmt: skip


def test_the_clock_is_the_threads_own_if_there_is_one() -> None:
    assert race.clock(SMALL, Timing(2.0, 1.0, 1)) == 1.0
    assert race.clock(replace(SMALL, threads=2), Timing(2.0, 1.0, 1)) == 2.0


def test_ratio_is_to_the_best_rival_and_misses_are_listed() -> None:
    other = replace(SMALL, n=128, d=256)
    rows = [
        row(SMALL, OURS + "auto", 0.004), row(SMALL, EAGER + "a", 0.02), row(SMALL, COMPILED, 0.01),
        row(other, OURS + "auto", 0.008), row(other, EAGER + "a", 0.01), row(other, COMPILED, ""),
        {**row(replace(SMALL, n=8192), "", ""), "pass": "", "note": NOT_REACHED},
    ]  # fmt: skip
    page = race_report.tables(rows)
    assert "1 of 2 meet their goal: 50%." in page
    assert "| info_nce | both | forward | 0.40 (64) | **0.80** (256) |" in page
    assert "| info_nce | both | float32 | 128 | 256 | 1 | forward | 0.80 | 0.5 | 8 | eager, a |  |" in page
    assert "| info_nce | both | float32 | 8 | 64 |" not in page
    unreached = "- info_nce, both, float32, d = 64, threads = 1: n = 8192\n"
    assert f"Cells not reached in the time given: 1.</summary>\n\n{unreached}" in page


def test_reasons_survive_when_the_table_is_written_again() -> None:
    cell = replace(SMALL, n=2048)
    rows = [row(cell, OURS + "auto", 0.03), row(cell, EAGER + "a", 0.02)]
    page = race_report.tables(rows)
    empty = "| info_nce | both | float32 | 2,048 | 64 | 1 | forward | 1.50 | 1.0 | 30 | eager, a |  |"
    assert empty in page
    reason = "bound by the bandwidth, p. 3"
    page = page.replace(empty, empty.removesuffix("  |") + f" {reason} |")
    slower = [row(cell, OURS + "auto", 0.04), row(cell, EAGER + "b", 0.02)]
    page = race_report.tables(slower, page)
    assert f"| 2,048 | 64 | 1 | forward | 2.00 | 1.0 | 40 | eager, b | {reason} |" in page
    # Another cell alone: this one's reason waits for it.
    page = race_report.tables([row(SMALL, OURS + "auto", 0.01), row(SMALL, EAGER + "a", 0.02)], page)
    assert f"| 2,048 | 64 | 1 | forward | not measured |  |  |  | {reason} |" in page
    page = race_report.tables(slower, page)
    assert f"| eager, b | {reason} |" in page
    # Met: the reason goes.
    assert reason not in race_report.tables([row(cell, OURS + "auto", 0.01), row(cell, EAGER + "a", 0.02)], page)


def test_paths_side_by_side() -> None:
    rows = [row(SMALL, OURS + "torch", 1.0), row(SMALL, OURS + "other", 4.0), row(SMALL, EAGER + "a", 2.0)]
    larger = replace(SMALL, d=256)
    rows += [row(larger, OURS + "torch", 1.0), row(larger, OURS + "other", 1.0), row(larger, EAGER + "a", 2.0)]
    page = race_report.tables(rows)
    assert "Time of `ctloss torch`" in page
    assert "| ctloss torch | forward | 0.50 |" in page
    assert "| ctloss other | forward | 1.00 |" in page


def test_from_the_command_to_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "COMPILE_SHARE", 0.0)
    options = ["--only", "n=2", "d=64", "loss=info_nce", "negatives=documents", "dtype=float32", "threads=1"]
    options += ["--seconds", "0.001", "--minutes", "1"]
    file = tmp_path / "race.csv"
    command.main(["race", "--device", "cpu", *options, "--impl", "nowhere,torch", "--csv", str(file)])
    rows = read_csv(file)
    assert {"device", "torch", "seconds", "gradient_error", "note", *FIELDS} <= set(rows[0])
    timed = {each["contestant"] for each in rows if each["seconds"]}
    assert timed >= {OURS + "torch", EAGER + "scaled rows"}
    shown = capsys.readouterr().out
    assert "Time of `ctloss torch` over that of the best rival" in shown
    assert "| ctloss nowhere | 2 | ValueError: impl: expected one of" in shown


def test_cells_that_are_not_reached_say_so() -> None:
    (only_row,) = race.run([SMALL], minutes=0)
    assert only_row["note"] == NOT_REACHED
    assert only_row["threads"] == SMALL.threads


def test_a_process_that_ends_costs_one_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(race, "MODULE", "benchmarks.cpu.nowhere")
    (only_row,) = race.run([SMALL], minutes=1)
    assert only_row["note"] == "its process ended"
    write_csv(tmp_path / "race.csv", [only_row])
    assert "| everybody | 1 | its process ended |" in race_report.tables(read_csv(tmp_path / "race.csv"))


def test_the_document_has_a_place_for_the_tables() -> None:
    begin, _ = markers(race_report.COMMAND)
    assert begin in page_of(race_report.COMMAND).read_text(encoding="utf-8")
