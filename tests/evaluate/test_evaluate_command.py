"""python -m ctloss.evaluate from end to end: results, resuming after a kill, refusals and reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file

from ctloss.evaluate import Outcome, Results, Score, TaskResult, read_results
from ctloss.evaluate import __main__ as entry
from ctloss.evaluate.__main__ import main
from ctloss.evaluate.data.sources import EVALUATIONS
from ctloss.evaluate.results.scores import add_result, write_results
from ctloss.evaluate.suite import RUNS
from support import tiny_tasks
from support.tiny_encoder import write
from support.tiny_results import made

PNG = b"\x89PNG\r\n\x1a\n"
SENTENCES = [f"the {noun} {verb} a dog ." for noun in tiny_tasks.NOUNS for verb in tiny_tasks.VERBS]
QUICK = ["--pooling", "mean", "--max-steps", "2", "--finetune-max-length", "32", "--finetune-batch-size", "8"]
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All evaluations' data; a language's sentences are the English ones, so that retrieval finds them all."""
    folder = tmp_path_factory.mktemp("data")
    for task in ("xnli", "pawsx", "udpos", "panx"):
        tiny_tasks.write_task(folder, task)
    tiny_tasks.write_questions(folder)
    write(folder / "tatoeba", tatoeba__deu___eng__deu=SENTENCES, tatoeba__deu___eng__eng=SENTENCES)
    for code in ("zh", "en"):
        lines = [f"{code}-{number}\t{sentence}" for number, sentence in enumerate(SENTENCES)]
        write(folder / "bucc2018", **{f"zh___en__dev__{code}": lines})
    write(folder / "bucc2018", zh___en__dev__gold=[f"zh-{number}\ten-{number}" for number in range(len(SENTENCES))])
    (folder / "multi30k").mkdir()
    write(folder / "multi30k", **{f"test_2016_flickr__{code}": SENTENCES for code in ("de", "en")})
    for code in ("deu_Latn", "eng_Latn"):
        write(folder / "flores" / "devtest", **{f"{code}__devtest": SENTENCES})
    for code in ("src__eng", "ref__deu"):
        write(folder / "ntrex" / "NTREX-128", **{f"newstest2019___{code}__txt": SENTENCES})
    write(folder / "lexicon", en__txt=tiny_tasks.NOUNS, de__txt=tiny_tasks.NOUNS)
    links = " ".join(f"{place}-{place}" for place in range(6))
    write(folder / "align", en___de__txt=[f"{text} ||| {text}" for text in SENTENCES])
    write(folder / "align", en___de__gold=[links] * len(SENTENCES))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: Any) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        read = capsys.readouterr()
        return status, read.err if status else read.out

    return call


def forbidden(*_: Any) -> Outcome:
    raise AssertionError("a kept result was computed again")


def test_all_evaluations_end_to_end(
    tmp_path: Path, model: str, data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    command = [model, "--tasks", *RUNS, "--data", data, "--output", output, "--before", model, *QUICK]
    status, printed = run(*command)
    assert status == 0
    assert "| **tiny** |" in printed
    results = read_results(output)
    assert set(results.tasks) == set(RUNS) == set(EVALUATIONS)
    scores = {(score.language, score.metric): score.value for score in results.tasks["tatoeba"].scores}
    assert scores["eng-deu", "accuracy"] == scores["deu-eng", "accuracy"] == scores["eng-X", "accuracy"] == 1
    assert ("mean", "f1_same_set", 1.0) in [(s.language, s.metric, s.value) for s in results.tasks["bucc"].scores]
    submission = output / "submission"
    submitted = {path.relative_to(submission).as_posix() for path in submission.rglob("*.tsv")}
    tuned = {f"{task}/test-{code}.tsv" for task in ("panx", "pawsx", "udpos", "xnli") for code in ("en", "xx")}
    assert submitted == tuned | {"bucc2018/test-zh.tsv", "tatoeba/test-de.tsv"}
    answered = {path.relative_to(submission).as_posix() for path in submission.rglob("*.json")}
    assert answered == {f"{task}/test-{code}.json" for task in ("xquad", "mlqa", "tydiqa") for code in ("de", "en")}
    shown = (output / "results.md").read_text(encoding="utf-8")
    assert shown.startswith("# Evaluation, zero-shot from English\n\n| model | XNLI acc. | PAWS-X acc. | POS F1 | ")
    changed = "max_steps 2; batch_size 8; max_length 32; otherwise XTREME's settings"
    assert f"- tiny, XNLI: en, xx; 1 seed; {changed}" in shown
    assert "- tiny, BUCC: zh-en; pooling 'mean'" in shown
    # What each item adds is kept of every evaluation, and sums to its score, else it would be left out.
    assert all(results.items(task) for task in RUNS)
    assert "| tiny | XNLI acc. | " in shown
    assert "| tiny | alignment error rate | 0.0 | 0.0 to 0.0 |\n" in shown
    assert '<img alt="Scores by language" src="languages.png">' in shown
    links = (output / "alignments" / "en-de.out").read_text(encoding="utf-8").splitlines()
    assert links == [" ".join(f"{place}-{place}" for place in range(6))] * len(SENTENCES)
    for picture in ("languages.png", "languages-dark.png", "words.png", "words-dark.png"):
        assert (output / picture).read_bytes().startswith(PNG)
    for task in RUNS:
        monkeypatch.setitem(RUNS, task, forbidden)
    before = (output / "results.json").read_bytes()
    assert run(*command)[0] == 0
    assert (output / "results.json").read_bytes() == before


def test_a_killed_run_resumes(
    tmp_path: Path, model: str, data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [model, "--tasks", "tatoeba", "bucc", "--data", data, "--output", tmp_path, "--pooling", "mean"]

    def killed(*_: Any) -> Outcome:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(RUNS, "bucc", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*command)
    assert list(read_results(tmp_path).tasks) == ["tatoeba"]
    monkeypatch.setitem(RUNS, "tatoeba", forbidden)
    assert run(*command)[0] == 0
    assert list(read_results(tmp_path).tasks) == ["tatoeba", "bucc"]


def test_processes_fine_tune_together_and_the_first_does_the_rest_after(tmp_path: Path, data: Path, run: Run) -> None:
    """Two processes take the steps of one: without dropout only rounding can differ."""
    model = tiny_tasks.save_model(tmp_path / "tiny", dropout=0.0)
    command = [model, "--tasks", "tatoeba", "pawsx", "--data", data, *QUICK, "--evaluation-batch-size", "3"]
    assert run(*command, "--output", tmp_path / "one")[0] == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = subprocess.run(
        [*launcher, "-m", "ctloss.evaluate", *map(str, command), "--output", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr.index("pawsx: ") < child.stderr.index("tatoeba: ")
    one, two = (read_results(tmp_path / name).tasks for name in ("one", "two"))
    assert two["tatoeba"].scores == one["tatoeba"].scores
    kinds = [[replace(score, value=0.0) for score in each["pawsx"].scores] for each in (one, two)]
    assert kinds[0] == kinds[1]
    start = load_file(Path(model) / "model.safetensors")
    first, second = (
        load_file(next((tmp_path / name / "finetuned").rglob("best*/model.safetensors"))) for name in ("one", "two")
    )
    # On the mean: Adam makes whole steps of gradients that are only rounding.
    moved = sum((first[f"bert.{name}"] - tensor).abs().sum().item() for name, tensor in start.items())
    apart = sum((first[f"bert.{name}"] - second[f"bert.{name}"]).abs().sum().item() for name in start)
    assert apart < 0.02 * moved


def test_results_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    """Each thread opens the folder itself, and then they exclude each other as processes do."""
    result = TaskResult({}, [Score("t", "de", "f1", 0.5)] * 100, 1.0)
    tasks = [f"task {number}" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda task: add_result(tmp_path, Results("a", "a"), task, result), tasks))
    assert sorted(read_results(tmp_path).tasks) == sorted(tasks)


def test_more_seeds_and_languages_are_added_and_other_settings_are_refused(
    tmp_path: Path, model: str, data: Path, run: Run
) -> None:
    command = [model, "--tasks", "pawsx", "--data", data, "--output", tmp_path, *QUICK]
    assert run(*command, "--languages", "xx")[0] == 0
    weights = tmp_path / "finetuned" / "pawsx" / "seed-1" / "finished.json"
    first = weights.stat().st_mtime_ns
    assert run(*command, "--languages", "en", "pawsx=xx", "pawsx=en", "--seeds", "2")[0] == 0
    scores = read_results(tmp_path).tasks["pawsx"].scores
    assert {(score.language, score.seed) for score in scores if score.seed} == {
        (language, seed) for language in ("en", "xx", "mean") for seed in (1, 2)
    }
    assert weights.stat().st_mtime_ns == first
    settings = read_results(tmp_path).tasks["pawsx"].settings
    for changes, name in (
        (["--languages", "en", "xx", "--seeds", "1"], "seeds"),
        (["--seeds", "2", "--languages", "xx"], "languages"),
        (["--seeds", "2", "--epochs", "pawsx=3"], "epochs"),
    ):
        status, error = run(*command, *changes)
        assert status == 2
        assert f"results.json, pawsx: expected a result with {name} " in error
        assert "choose another --output" in error
    assert read_results(tmp_path).tasks["pawsx"].settings == settings


def test_other_data_and_another_model_are_refused(tmp_path: Path, model: str, run: Run) -> None:
    texts = tmp_path / "texts"
    write(texts, tatoeba__deu___eng__deu=SENTENCES, tatoeba__deu___eng__eng=SENTENCES)
    command = ["--tasks", "tatoeba", "--data", f"tatoeba={texts}", "--output", tmp_path / "out", "--pooling", "mean"]
    assert run(model, *command)[0] == 0
    other = tiny_tasks.save_model(tmp_path / "other", positions=32)
    status, error = run(other, *command)
    assert status == 2
    assert f"expected results of {other} as it is, got those of another model ({model} as it was) for tatoeba" in error
    write(texts, tatoeba__deu___eng__deu=SENTENCES[::-1])
    status, error = run(model, *command)
    assert status == 2
    assert "tatoeba: expected a result with data (a digest of its files' names and contents) " in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected a MODEL, or --beside and --output"),
        ("MODEL", f"expected --tasks, some of {', '.join(EVALUATIONS)}, got none"),
        ("MODEL --tasks xnli", "xnli: expected files test-LANGUAGE.tsv, got none in no folder; give --data"),
        ("MODEL --tasks xnli --data DATA/nothing", "nothing: expected a folder of data, got no such"),
        (
            "MODEL --tasks ner --data DATA/lexicon",
            "test-LANGUAGE.tsv, got none in DATA/lexicon/panx, DATA/lexicon/ner, DATA/lexicon; give",
        ),
        ("MODEL --tasks pairs --data DATA/align", "such as test.de and test.en for the path test, got none"),
        ("MODEL --tasks tatoeba --data tatoeba=hub:x", "expected files for tatoeba, got 'hub:x'"),
        ("MODEL --tasks xnli --data nli=x", "expected TASK=PATH with a task of xnli, "),
        ("MODEL --tasks bucc --data DATA --languages de", "expected BUCC's corpora of 'de'"),
        ("MODEL --tasks xnli --data DATA --max-steps xnli=x", "--max-steps of xnli: expected a whole number, got 'x'"),
        ("MODEL --tasks xnli --data DATA --epochs 1 2", "--epochs of xnli: expected one value, got '1 2'"),
        ("MODEL --tasks xnli --data DATA --hold-out 2", "hold_out: expected a number from 0 up to"),
        ("MODEL --tasks words --data DATA --epochs 3", "expected --epochs for a task that uses it"),
        (
            "MODEL --tasks xnli --data DATA --finetune-batch-size pos=3",
            "expected --finetune-batch-size for a task that uses it, got 'pos=3' for xnli",
        ),
        ("MODEL --tasks xnli --data DATA pos=DATA", "expected --data for a task that uses it, got 'pos=DATA' for xnli"),
        (
            "MODEL --tasks xnli --data DATA --languages xnli=de pos=de",
            "expected --languages for a task that uses it, got 'pos=de' for xnli",
        ),
        (
            "MODEL --tasks xnli --data DATA --doc-stride 9",
            "expected --doc-stride for a task that uses it, got '9' for none",
        ),
        ("MODEL --tasks mlqa --data DATA --n-best mlqa=0", "n_best: expected at least 1, got 0"),
        ("MODEL --tasks mlqa --data DATA --train mlqa=DATA/no.json", "no.json: expected a readable"),
        ("MODEL --tasks xnli --data DATA --seeds 0", "expected --seeds at least 1, got 0"),
        ("MODEL --tasks xnli --data DATA --train DATA/no.tsv", "no.tsv: expected a readable file"),
        ("MODEL --tasks words --data DATA --device gpu", "expected a device of torch "),
        ("MODEL --tasks words --data DATA --before MODEL", "expected align among --tasks for --be"),
        ("MODEL --tasks align --data DATA --before DATA", "Hugging Face encoder, got 'DATA'"),
        # Before a model is fine-tuned, not after.
        ("MODEL --tasks xnli words --data DATA --layer 3", "expected layer from 0 "),
        ("DATA --tasks words --data DATA", "expected the name or folder of a Hugging Face encoder"),
        ("MODEL --tasks words --data DATA --beside DATA", "results.json: expected results of python"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, model: str, data: Path, run: Run, arguments: str, message: str
) -> None:
    filled = [argument.replace("MODEL", model).replace("DATA", str(data)) for argument in arguments.split()]
    status, error = run(*filled, *(["--output", tmp_path / "out"] if filled else []))
    assert status == 2
    assert "python -m ctloss.evaluate: error: " in error
    assert message.replace("DATA", str(data)) in error
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_output_that_cannot_be_written_to_is_refused(tmp_path: Path, model: str, data: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    command = [model, "--tasks", "tatoeba", "--data", data, "--pooling", "mean"]
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        status, error = run(*command, "--output", output)
        assert status == 2
        assert f"expected a folder to write to, got {output} " in error
        assert "tatoeba: " not in error


@pytest.mark.parametrize(("name", "there"), [("us/tiny", "us/tiny"), ("tiny", "local/tiny"), (None, None)])
def test_mteb_is_given_the_name(
    tmp_path: Path,
    model: str,
    data: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    there: str | None,
) -> None:
    mteb = SimpleNamespace(MtebEncoder=Mock(), write_results=Mock(return_value=[]))
    monkeypatch.setattr(entry, "mteb_integration", lambda tasks: mteb)
    # run is replaced too: what is asked is what mteb is told afterwards.
    monkeypatch.setattr(entry, "run", lambda *_, **__: made("tiny", 0.5))
    arguments = [model, "--tasks", "tatoeba", "--data", data, "--output", tmp_path / "out", "--as-mteb", tmp_path / "m"]
    status, _ = run(*arguments, *(["--name", name] if name else []))
    assert status == 0
    assert mteb.MtebEncoder.call_args.kwargs["name"] == there
    monkeypatch.setattr(entry, "run", forbidden)
    for wrong in ("a/b/c", "/b", "a/"):
        status, error = run(*arguments, "--name", wrong)
        assert status == 2
        assert f"expected --name as MODEL or ORGANISATION/MODEL for --as-mteb, got '{wrong}'" in error
    (tmp_path / "file").write_text("")
    status, error = run(*arguments[:-1], tmp_path / "file")
    assert status == 2
    assert "expected a folder to write to" in error


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path, model: str, data: Path, run: Run) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(model) / name, tmp_path)
    status, error = run(tmp_path, "--tasks", "xnli", "--data", data, "--output", tmp_path / "out")
    assert status == 2
    assert "expected a tokenizer with the model" in error


def test_names_and_the_order_of_languages_compute_nothing_again(
    tmp_path: Path, model: str, data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in ("deu", "fra"):
        write(tmp_path, **{f"tatoeba__{code}___eng__{side}": SENTENCES for side in (code, "eng")})
    command = [model, "--tasks", "tatoeba", "--data", tmp_path, "--output", tmp_path / "out"]
    with pytest.warns(UserWarning, match="2 layers, fewer than 8"):
        assert "| **tiny** |" in run(*command, "--languages", "deu", "fra")[1]
    monkeypatch.setitem(RUNS, "tatoeba", forbidden)
    assert "| **ours** |" in run(*command, "--languages", "fra", "deu", "--layer", "2", "--name", "ours")[1]
    assert "| **ours** |" in run(*command, "--languages", "fra", "deu", "--layer", "2")[1]
    shown = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "- ours, Tatoeba: deu-eng, eng-deu, fra-eng, eng-fra; pooling 'layer'; layer 2" in shown


def test_a_report_of_existing_results(tmp_path: Path, run: Run) -> None:
    for number, name in enumerate(("one", "two")):
        write_results(tmp_path / name, made(name, number / 10))
        assert read_results(tmp_path / name) == made(name, number / 10)
    status, printed = run("--beside", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "both")
    assert status == 0
    assert printed.index("| **one** |") < printed.index("| **two** |")
    assert (tmp_path / "both" / "languages.png").read_bytes().startswith(PNG)
    assert not (tmp_path / "both" / "results.json").exists()
    (tmp_path / "one" / "results.json").write_text(json.dumps({"name": "one"}))
    status, error = run("--beside", tmp_path / "one", "--output", tmp_path / "both")
    assert status == 2
    assert "expected results as python -m ctloss.evaluate writes them" in error
