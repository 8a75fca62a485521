"""The benchmarks' command line from end to end at tiny sizes, and the arithmetic behind their figures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import batches, forms, providers
from benchmarks.cpu import comparisons, family, memory, report
from benchmarks.exact import errors, exact, log_ratios
from benchmarks.measure import STATUS, Timing, interleaved
from benchmarks.providers import Case, NotOffered
from benchmarks.results import ROOT, insert, markers, page_of, read_csv, write_csv

TINY = ["--n", "4", "6", "--d", "5", "--dtype", "float32", "--seconds", "0.01", "--device", "cpu"]
COLUMNS = {"provider", "pass", "wall_s", "cpu_s", "gradient_error", "value_error", "loss", "n", "d", "dtype", "device",
           "threads", "torch", "triton", "ctloss", "peers"}  # fmt: skip


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Benchmarks set torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(tmp_path: Path, *arguments: str) -> list[dict[str, str]]:
    command.main([*arguments, "--output", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")])
    return read_csv(tmp_path / "results" / f"{arguments[0]}-cpu.csv")


def process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)


def test_sweep_measures_every_provider(tmp_path: Path) -> None:
    names = ["ctloss-torch", "ctloss-reference", "eager", "cross_entropy", "naive"]
    rows = run(tmp_path, "sweep", *TINY, "--loss", "info-both", "--providers", *names)
    assert set(rows[0]) >= COLUMNS
    measured = {(row["provider"], row["n"], row["pass"]) for row in rows if float(row["wall_s"]) > 0}
    assert measured == {(name, n, which) for name in names for n in "46" for which in ("forward", "forward+backward")}
    assert all(float(row["gradient_error"]) < 1e-5 for row in rows)
    picture = tmp_path / "figures" / "speed.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_provider_without_the_loss_says_so(tmp_path: Path) -> None:
    rows = run(tmp_path, "sweep", *TINY, "--loss", "cz-both", "--providers", "eager", "open_clip")
    notes = {row["provider"]: row["note"] for row in rows if not row["wall_s"]}
    assert notes == {"open_clip": "computes only info-cross and siglip"}


def test_numerics_shows_where_cross_entropy_loses_its_gradient(tmp_path: Path) -> None:
    options = ["--quick", "--device", "cpu", "--loss", "info-both", "--providers", "ctloss", "cross_entropy"]
    rows = run(tmp_path, "numerics", *options)
    worst = {
        name: max(float(row["gradient_error"]) for row in rows if row["provider"] == name and row["mode"] == "float32")
        for name in ("ctloss", "cross_entropy")
    }
    assert worst["ctloss"] < 1e-4
    assert worst["cross_entropy"] > 0.1
    assert (tmp_path / "figures" / "numerics.png").is_file()


@pytest.mark.skipif(not STATUS.is_file(), reason="peak memory on the CPU is read from /proc")
def test_memory_in_a_fresh_process(tmp_path: Path) -> None:
    options = ["--n", "1024", "--d", "8", "--dtype", "float32", "--device", "cpu"]
    rows = run(tmp_path, "memory", *options, "--loss", "info-both", "--providers", "eager")
    # One 2048 x 2048 matrix of float32 is 16 MiB; the eager form holds a few.
    assert 16 * 2**20 < float(rows[0]["peak_bytes"]) < 16 * 16 * 2**20


def test_memory_of_an_impossible_case_is_a_note() -> None:
    answer = memory.in_fresh_process(Case("info-cross", 4, 4, "float32", "cpu"), "metric-learning", threads=1)
    assert answer["note"] == "computes only info-both"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "1"], "expected --n of at least 2, got 1"),
        (["--d", "0"], "expected --d of at least 1, got 0"),
        (["--threads", "0"], "expected --threads of at least 1, got 0"),
        (["--temperature", "0"], "expected --temperature above 0"),
        (["--device", "tpu"], "expected --device cpu, cuda or cuda:INDEX, got tpu"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command.main(arguments)


def test_help_lists_the_providers() -> None:
    done = process(sys.executable, "-m", "benchmarks", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in providers.PROVIDERS)


def test_ratio_is_to_the_fastest_eager_form() -> None:
    shared = {"loss": "info-both", "n": "8", "d": "4", "dtype": "float32", "device": "x", "threads": "1",
              "device_kind": "cpu", "pass": "forward+backward", "wall_s": "9"}  # fmt: skip
    times = {"ctloss-torch": "1", "eager": "4", "cross_entropy": "2"}
    rows = [{**shared, "provider": name, "cpu_s": seconds} for name, seconds in times.items()]
    ratios = {row["provider"]: float(row["ratio"]) for row in report.time_ratios(rows)}
    assert ratios == {"ctloss-torch": 0.5, "eager": 2.0, "cross_entropy": 1.0}


def test_interleaved_tells_slow_from_fast_and_records_failures() -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel\nat line 3")

    # So far apart that other work on the machine does not bring them together.
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: None, "broken": broken}
    found = interleaved(calls, device="cpu", seconds=0.05)
    assert isinstance(found["slow"], Timing)
    assert isinstance(found["fast"], Timing)
    assert found["slow"].wall > 2 * found["fast"].wall
    assert found["slow"].cpu < found["slow"].wall
    assert found["broken"] == "RuntimeError: no such kernel"


def test_a_case_beyond_the_memory_is_not_started() -> None:
    with pytest.raises(NotOffered, match="would need about"):
        providers.build("eager", Case("info-both", 10**6, 8, "float32", "cpu"), 2**34)


def test_trained_batch_has_the_phi_asked_for() -> None:
    x, y = batches.trained(16, 64, dtype=torch.float32, device="cpu")
    temperature = batches.temperature_for(x, y, 1e-9)
    rows = torch.nn.functional.normalize(torch.cat((x, y)).double(), dim=1)
    z = log_ratios(rows, negatives="both", temperature=temperature, step=5)
    assert torch.exp(z.mean()).item() == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("panel_bytes", [1, 2**20])
def test_exact_sigmoid_loss_is_its_formula(panel_bytes: int) -> None:
    x, y = batches.untrained(9, 6, dtype=torch.float64, device="cpu")
    truth = exact(x, y, loss="sig_lip", negatives="cross", temperature=0.1, panel_bytes=panel_bytes)
    assert max(errors(forms.eager("sig_lip", "cross", 0.1), x, y, truth).values()) < 1e-13


def test_errors_undo_the_gradient_scale() -> None:
    x, y = batches.untrained(6, 5, dtype=torch.float64, device="cpu")
    truth = exact(x, y, loss="info_nce", negatives="cross", temperature=0.1)
    call = providers.build("eager", Case("info-cross", 6, 5, "float64", "cpu", 0.1))
    assert errors(call, x, y, truth, scale=1024.0)["gradient_error"] < 1e-13
    assert errors(lambda a, b: 2 * call(a, b), x, y, truth)["gradient_error"] == pytest.approx(1)


def test_csv_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_csv(path, [{"a": 1, "b": 0.123456789}, {"a": 2, "note": 'says "no", twice'}])
    assert read_csv(path) == [{"a": "1", "b": "0.123457", "note": ""}, {"a": "2", "b": "", "note": 'says "no", twice'}]
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


def test_tables_show_ratios_with_their_goals(tmp_path: Path) -> None:
    shared = {"loss": "info-both", "d": "256", "dtype": "float32", "device": "x", "threads": "1", "device_kind": "cpu",
              "wall_s": "9", "torch": "2", "gradient_error": "1e-7"}  # fmt: skip
    sweep = [
        {**shared, "provider": name, "n": n, "pass": which, "cpu_s": seconds, "product_flops": flops}
        for n, flops in (("512", ""), ("2048", "2e10"))
        for name, seconds in (("ctloss-torch", 5), ("eager", 10))
        for which in ("forward", "forward+backward")
    ]
    write_csv(tmp_path / "sweep-cpu.csv", sweep)
    write_csv(tmp_path / "memory-cpu.csv", [{"provider": "eager", "n": "512", "peak_bytes": 2.0**21}])
    page = report.tables(tmp_path)
    assert "| float32 | 512 | 0.50 | 0.65 met | 0.55 met |" in page
    assert "| float32 | 2,048 | 0.50 | 0.45 missed | 0.38 missed |" in page
    # 3 · 4096² · 256 flops in 5 s, of 2e10 a second.
    assert "| info-both | 1 | 256 | float32 | 2,048 | 0.50 | 0.50 | 13% |" in page
    assert "| 512 | 2 |" in page


def test_results_go_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "page.md"
    path.parent.mkdir()
    path.write_text("before\n" + "\nold\n".join(markers("a command")) + "\nafter\n")
    for _ in range(2):
        insert(page_of("a command", tmp_path), "a command", "new\n")
        begin, end = markers("a command")
        assert path.read_text() == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"expected the lines .*another.* in a page below .*, found none; add them"):
        page_of("another", tmp_path)
    path.write_text("no markers")
    with pytest.raises(ValueError, match=r"expected the lines .* in .*page\.md, found none; add them"):
        insert(path, "a command", "new")
    assert path.read_text() == "no markers"


@pytest.mark.parametrize("name", [report.COMMAND, family.COMMAND])
def test_documents_have_a_place_for_the_tables(name: str) -> None:
    assert page_of(name).is_file()


@pytest.mark.parametrize("line", [*comparisons.lines((10,), 8)], ids=lambda line: line.name)
def test_family_lines_compute_what_they_say(line: comparisons.Line) -> None:
    inputs = line.draw(line.n, line.d)
    assert all(family.gradient_error(way, inputs) < 1e-5 for way in line.ways.values())
    if line.other.name == "plain PyTorch":
        ours, other = (way.truth(inputs.double()).item() for way in line.ways.values())
        assert ours == pytest.approx(other, rel=1e-12)


@pytest.mark.skipif(not STATUS.is_file(), reason="peak memory on the CPU is read from /proc")
def test_family_from_measurement_to_table(tmp_path: Path) -> None:
    line = next(comparisons.lines((16,), 8))
    write_csv(tmp_path / "family-cpu.csv", family.run([line], seconds=0.01, fewest_rounds=1))
    measured = read_csv(tmp_path / "family-cpu.csv")
    assert [row["role"] for row in measured] == ["ours", "other"]
    assert all(float(row["cpu_s"]) > 0 and int(row["peak_bytes"]) >= 0 for row in measured)
    ours, other = ({**row, "n": "1024"} for row in measured)
    ours |= {"cpu_s": "0.9", "peak_bytes": "40"}
    other |= {"cpu_s": "1.0", "peak_bytes": "100"}
    shown = family.table([ours, other])
    assert "| queries to documents | 1,024 | plain PyTorch | 900 | 0.90 | 0.8 missed | 0.40 | 0.5 met |" in shown
