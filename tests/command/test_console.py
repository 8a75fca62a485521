"""The command ``ctloss``: what it hands on, what it prints, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ctloss
from ctloss.command import bench, doctor, entry
from ctloss.command.entry import main

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_word_and_loads_nothing_else() -> None:
    program = (
        "import sys\nfrom ctloss.command.entry import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({name for name in sys.modules if name.partition('.')[0] == 'transformers'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('ctloss.command.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    *told, theirs, ours = done.stdout.splitlines()
    assert [word for word in entry.PARTS if not re.search(rf"^  ctloss {word} ", "\n".join(told), re.M)] == []
    assert (theirs, ours) == ("[]", "['ctloss.command.entry']")


@pytest.mark.parametrize("word", ["train", "evaluate"])
def test_words_are_handed_on(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(SystemExit) as end:
        main([word, "--no-such-option"])
    assert end.value.code == 2
    assert f"python -m ctloss.{word}: error: unrecognized arguments" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(words: object) -> int:
        raise ModuleNotFoundError("ctloss.train: expected the packages of its extra; pip install 'ctloss[train]'")

    monkeypatch.setitem(entry.PARTS, "train", lacking)
    assert main(["train"]) == 2
    assert capsys.readouterr().err.endswith("pip install 'ctloss[train]'\n")
    monkeypatch.setitem(entry.PARTS, "train", lambda words: (_ for _ in ()).throw(ModuleNotFoundError("No module x")))
    with pytest.raises(ModuleNotFoundError, match="No module x"):
        main(["train"])


def test_nothing_and_nonsense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "ctloss doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["pretrain"])
    assert end.value.code == 2
    assert "got 'pretrain'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["64", "32", "--dtype", "float64"], {}),
        (["64", "32", "--loss", "info_nce", "--negatives", "cross", "--directions", "x"],
         {"loss": "info_nce", "negatives": "cross", "directions": "x"}),
        (["64", "32", "--candidates", "100", "--dot", "--impl", "torch"], {"normalize": False, "impl": "torch"}),
        (["64", "32", "--dims", "32", "8", "--reduction", "none", "--margin", "0.5"],
         {"dims": (32, 8), "reduction": "none", "margin": 0.5}),
    ],
)  # fmt: skip
def test_explain_prints_the_plan_of_such_a_call(
    words: list[str], options: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words]) == 0
    x = torch.randn(64, 32, dtype=torch.float64 if "float64" in words else torch.float32)
    candidates = torch.randn(100, 32) if "--candidates" in words else None
    plan = ctloss.explain(x, x, candidates=candidates, **options)  # type: ignore[call-arg]
    assert capsys.readouterr().out == f"{plan}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0", "8"], "expected sizes of at least 1, got 0 x 8"),
        (["4", "8", "--negatives", "all"], "negatives: expected one of"),
        (["4", "8", "--dims", "16"], "dims: expected widths of at most the embeddings' 8 columns"),
        (["4", "8", "--device", "nowhere"], "expected a device of this machine, got 'nowhere'"),
        (["4", "8", "--dtype", "float64", "--impl", "triton"], "cannot run here: the Triton path takes float32"),
    ],
)
def test_explain_refuses_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ctloss explain: error: ")
    assert message in told
    assert told.count("\n") == 1


def test_bench_compares_both_forms_with_float64() -> None:
    rows = list(bench.measured([5, 33], 16, ["float32", "bfloat16"], torch.device("cpu"), 1e-4))
    assert {(row.name, row.dtype, row.pairs) for row in rows} == {
        (contest.name, dtype, n) for contest in bench.CONTESTS for dtype in ("float32", "bfloat16") for n in (5, 33)
    }
    for row in rows:
        assert min(row.ours, row.usual) > 0
        assert row.our_error is not None
        assert row.our_error < (1e-5 if row.dtype == "float32" else 1e-2)
        assert row.usual_error is not None


def test_bench_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--sizes", "4", "--width", "8", "--dtypes", "float32", "--seconds", "1e-4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-3:]] == [[contest.name, "float32", "4"] for contest in bench.CONTESTS]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "8", "1"], "expected --sizes of at least 2 pairs, as one alone has no negatives, got 1"),
        (["--width", "0"], "expected --width of at least 1, got 0"),
        *[(["--seconds", text], f"expected --seconds above 0 and finite, got {text}") for text in ("0", "nan", "inf")],
        *[(["--device", name], f"that computes in float64, got '{name}'") for name in ("meta", "nowhere", "hpu")],
    ],
)
def test_bench_refuses_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ctloss bench: error: ")
    assert message in told
    assert told.count("\n") == 1


def test_doctor_tells_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"ctloss                     {ctloss.__version__}" in told
    assert re.search(r"^  torch +runs, off by \de-\d\d$", told, re.M)
    x = torch.zeros(512, 256)
    plan = ctloss.explain(x, x)
    assert f"cpu float32 512 x 256      {plan.path}: {plan.reason}" in told
    assert "What to do" in told


def test_doctor_finds_a_wrong_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "gradient_error", lambda path, device: 0.5 if path == "torch" else 1e-7)
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "COMPUTES SOMETHING WRONG, off by 5e-01" in told
    assert "the torch path is wrong on this machine" in told


def test_doctor_says_what_to_do_about_missing_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(path: str, device: str) -> float:
        if path == "native":
            raise RuntimeError("impl='native' cannot run here: this installation has none (x); impl='auto' takes one")
        return 1e-7

    monkeypatch.setattr(doctor, "gradient_error", error)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "native                     does not run: this installation has none (x)\n" in told
    assert "install GCC 12 or Clang 14" in told


def test_what_an_extra_lacks() -> None:
    found = list(
        doctor.missing(
            [
                "torch>=2.6",
                "torch>=2.6; extra == 'train'",
                'torch>=999.1 ; extra == "train"',
                "no-such-package>=1; extra == 'evaluate'",
                "ctloss[train]; extra == 'bench'",
                "no-such-package>=1; platform_system == 'Nowhere' and extra == 'triton'",
            ]
        )
    )
    assert [(each.extra, each.wanted) for each in found] == [
        ("train", "torch>=999.1"),
        ("evaluate", "no-such-package>=1"),
    ]
    assert found[0].found is not None
    assert found[1].found is None


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = f"{sys.executable} -m ctloss explain 8 8 | true; exit ${{PIPESTATUS[0]}}"
    child = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (141, "")


def test_a_misspelt_word_is_told_its_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dcotor"])
    assert end.value.code == 2
    assert "did you mean doctor?" in capsys.readouterr().err
