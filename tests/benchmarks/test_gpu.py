"""The one command for a GPU: its parts in order, within their time, from end to end under the interpreter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.gpu.__main__ import read_rows, run_part
from benchmarks.gpu.checks import SOFTMAX_LOSSES
from benchmarks.gpu.compiling import share, tasks
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.plan import PLAN, Part
from benchmarks.gpu.race import counters, variants
from benchmarks.gpu.race.case import Run
from benchmarks.gpu.race.changes import changed
from benchmarks.gpu.race.variants import SHIPPED, VARIANTS, Variant
from benchmarks.results import ROOT
from ctloss.kernels.triton_path import engine, gradient
from ctloss.kernels.triton_path.plan.config import BlockConfig
from support.regimes import Case
from support.triton_calls import ON_GPU, in_panels, pairs

HERE = Path(__file__).parent


def command(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHON": sys.executable, **variables}
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh")]
    return subprocess.run([*script, *options], cwd=HERE, env=given, capture_output=True, text=True)


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    """From end to end under the interpreter, without the parts that take long there."""
    parts = [
        "compiling",
        "ceilings",
        SHIPPED,
        "together",
        "counters",
        "small",
        "graphs",
        "shapes",
        "memcheck",
        "choices",
    ]
    relative = os.path.relpath(tmp_path, HERE)
    done = command("--dry", "--minutes", "60", "--output", relative, "--parts", *parts)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    statuses = {name: part["status"] for name, part in result["parts"].items()}
    skipped = {"compiling", "memcheck"}
    assert statuses == {name: "skipped" if name in skipped else "ok" for name in parts}
    rows = {name: part["rows"] for name, part in result["parts"].items()}
    assert {row["loss"] for row in rows["shapes"]} == set(SOFTMAX_LOSSES)
    assert all(row["gradient_error"] < 1e-5 for row in rows["shapes"])
    for name in (SHIPPED, "together"):
        verified, alike, *timed = rows[name]
        assert verified["gradient_error"] < 1e-5
        assert verified["equal"] == verified["repeats"]
        assert alike["apart"] < 1e-5
        assert [set(row["ms"]) for row in timed] == [{SHIPPED, name}] * 2
    assert [row["note"] for row in rows["counters"]] == ["a dry run has no GPU"]
    page = (tmp_path / "gpu.md").read_text()
    assert "| memcheck | skipped |" in page
    raced = rows["small"] + rows["choices"]
    assert len({row["choice"] for row in raced}) == 5
    for row in raced:
        assert "note" not in row, row
        assert {row["winner"], row["shipped"]} <= row["ms"].keys() == row["gradient_error"].keys()
        assert row["forward_ms"].keys() in (set(), row["ms"].keys())
        assert row["won"] == (row["ms"][row["shipped"]] <= 1.02 * row["ms"][row["winner"]])
        assert max(row["gradient_error"].values()) < 1e-5
        assert f"| {row['winner']} | {row['shipped']} | {'yes' if row['won'] else '**no**'} |" in page


def test_time_is_counted_from_the_start_of_the_shell(tmp_path: Path) -> None:
    done = command("--dry", "--output", str(tmp_path), "--started", "0", "--parts", "ceilings", "shapes")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["why"] for part in result["parts"].values()} == {"no time left"}
    assert list((tmp_path / "rows").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param((), "expected a CUDA device", marks=pytest.mark.skipif(ON_GPU, reason="there is a CUDA device")),
        (("--parts", "shape"), "expected parts among compiling, ceilings, shipped, .*, got shape"),
    ],
)
def test_refuses(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = command("--output", str(tmp_path), *options)
    assert done.returncode != 0
    assert re.search(message, done.stderr.replace("\n", " "))


def test_what_a_part_found_outlives_it(tmp_path: Path) -> None:
    """A hang costs the part alone, and ends the processes that it started."""
    rows = tmp_path / "part.jsonl"
    script = (
        f"echo '{{\"found\": 1}}' >> {rows}; printf '{{\"cut' >> {rows}; sleep 600 & echo $! > {tmp_path}/child; wait"
    )
    found = run_part(Part(("bash", "-c", script), 0), 5, rows)
    assert found["status"] == "stopped after 5 s"
    assert found["rows"] == [{"found": 1}, {"note": "a line was cut off"}]
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    # It was told to end, which on a busy machine takes a moment.
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.05)


def test_a_part_runs_with_its_variables_and_keeps_its_output(tmp_path: Path) -> None:
    part = Part(("bash", "-c", "echo $ANSWER; exit 3"), 0, variables=(("ANSWER", "42"),))
    found = run_part(part, 60, tmp_path / "part.jsonl")
    assert (found["status"], found["rows"], found["log"]) == ("failed (3)", [], "42\n")
    assert read_rows(tmp_path / "none.jsonl") == []


def test_parts_stand_in_order_of_worth(tmp_path: Path) -> None:
    """Compiled, then what is shipped against what could be, then small batches, tests, checkers, others."""
    raced = [variant.name for variant in VARIANTS]
    assert raced[0] == SHIPPED
    assert len(set(raced)) == len(raced)
    rest = ["counters", "small", "graphs", "shapes", "tests", "memcheck", "racecheck", "large"]
    assert list(PLAN)[: 2 + len(raced) + len(rest)] == ["compiling", "ceilings", *raced, *rest]
    for name, ask in PLAN.items():
        part = ask(tmp_path / "rows.jsonl", False)
        assert part.command or part.why
        if "benchmarks.gpu.parts" in part.command:
            assert part.command[part.command.index("benchmarks.gpu.parts") + 1] in PARTS, name


def test_settings_of_variants_are_those_of_the_configuration() -> None:
    known = {field.name for field in fields(BlockConfig)}
    for variant in VARIANTS:
        assert variant.settings.keys() <= known
        assert (variant.name == SHIPPED) != bool(variant.settings or variant.changes())


def test_a_wrong_variant_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*given: object) -> None:
        gradient_of(*given)  # type: ignore[arg-type]
        sums = given[2]
        assert isinstance(sums, Tensor)
        sums.mul_(0.5)

    gradient_of = gradient.add_gradient
    wrong = Variant("wrong", changes=lambda: ((gradient, "add_gradient", half),))
    monkeypatch.setitem(variants.BY_NAME, "wrong", wrong)
    run = Run("cpu", True, tmp_path / "rows.jsonl")
    with pytest.raises(ArithmeticError, match="expected about the error that is shipped"):
        variants.race(run, "wrong")
    assert read_rows(run.path) == []
    monkeypatch.setattr(variants, "checked_on", lambda run: [])
    with pytest.raises(ArithmeticError, match=f"within {variants.APART} of what is shipped"):
        variants.race(run, "wrong")
    assert read_rows(run.path) == []


# Both halves of a tile, ragged ones, both kinds of peak, squares and rectangles, several panels.
TOGETHER = [
    Case("random", 150, 40),
    Case("hard", 100, 33, negatives="cross", temperature=0.01),
    Case("scaled", 70, 20, normalize=False, temperature=1.0),
    Case("zeros", 70, 20, negatives="own", directions="x"),
    Case("random", 70, 20, dtype=torch.float16),
]


@pytest.mark.parametrize("case", TOGETHER, ids=lambda case: f"{case.regime}-{case.n}")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_tiles_in_halves_mean_the_same(case: Case, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only add the sums of two halves: the logits that are kept are the same bits."""
    in_panels(monkeypatch)
    batch, asked = pairs(case), replace(case.problem(), workspace=1 << 28)
    found = []
    for name in (SHIPPED, "together"):
        settings = replace(variants.BY_NAME[name], settings={"keeps": kept})
        with changed(settings.all_changes()):
            forward = engine.forward(batch, asked, moment=False, gradient=True)
            a = torch.ones_like(forward.z)
            found.append([forward.z, *engine.backward(forward.state, a, a, (True, True))])
    shipped, together = found
    for one, other in zip(together, shipped, strict=True):
        assert one is not None
        assert other is not None
        assert one.isfinite().all()
        scale = other.double().abs().max()
        tolerance = 1e-5 if one.dtype != torch.float16 else 2e-3
        assert (one.double() - other.double()).abs().max() <= tolerance * scale
    assert not torch.equal(together[0], shipped[0]), "the variant was not used"


def test_every_task_of_compiling_has_one_process() -> None:
    every = tasks("cpu")
    for parts in (1, 3, 16):
        shares = [share(every, part, parts) for part in range(parts)]
        assert sorted(map(id, chain(*shares))) == sorted(map(id, every))
    assert len(set(every)) == len(every)


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="the GPU run itself compiles")
def test_kernels_are_compiled_without_a_device(tmp_path: Path) -> None:
    """By the path that launches them, so that a later process finds them in Triton's cache."""
    script = """
from benchmarks.gpu.compiling import Task, compile_task, launching_nothing, standing_in
from benchmarks.providers import Case
with standing_in(90), launching_nothing():
    compile_task(Task(Case("cz-both", 1500, 768, "bfloat16", "cpu")))
    compile_task(Task(Case("siglip", 300, 40, "float32", "cpu")))
"""
    variables = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=variables, check=True)
    compiled = {file.stem for file in tmp_path.glob("*/*.cubin")}
    assert compiled >= {"pack_pairs", "block_lse", "fold_slots", "weigh_rows", "kept_weights", "block_sigmoids"}


def test_metrics_of_the_hardware() -> None:
    page = [
        "==PROF== Connected to process 7",
        '"ID","Kernel Name","sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active","smsp__cycles.sum"',
        '"","","%","cycle"',
        '"0","block_lse","41.5","7"',
        '"1","block_weights, x","39","8"',
    ]
    name = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
    assert list(counters.metrics(page)) == [
        {"kernel": "block_lse", name: "41.5 %"},
        {"kernel": "block_weights, x", name: "39 %"},
    ]
    assert list(counters.metrics(["==ERROR== no permission"])) == []
