"""mteb itself, on files at hand: our vectors, its scores and its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctloss.evaluate import Encoder, evaluate_flores
from ctloss.evaluate.__main__ import main
from support import tiny_tasks
from support.tiny_encoder import write
from support.tiny_results import value

mteb: Any = pytest.importorskip("mteb")

from ctloss.integrations.mteb import MtebEncoder, local_task, write_results  # noqa: E402 (after the check above)

SENTENCES = [f"the {noun} {verb} a dog ." for noun in tiny_tasks.NOUNS for verb in tiny_tasks.VERBS]
# Three of them are not where they belong.
OTHERS = [*SENTENCES[1:3], SENTENCES[0], *SENTENCES[3:]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The four bitext tasks; the German sentences of XTREME's Tatoeba are not in the order of the English ones."""
    folder = tmp_path_factory.mktemp("bitext")
    write(folder / "t", de___en__de=OTHERS[::-1], de___en__en=SENTENCES)
    write(folder / "t", test___de__tsv=[str(place) for place in reversed(range(len(SENTENCES)))])
    for code, lines in (("zh", OTHERS), ("en", SENTENCES)):
        write(folder / "b", **{f"zh___en__dev__{code}": [f"{code}{n}\t{line}" for n, line in enumerate(lines)]})
    write(folder / "b", zh___en__dev__gold=[f"zh{n}\ten{n}" for n in (3, 7, 11)])
    for code, lines in (("deu_Latn", OTHERS), ("eng_Latn", SENTENCES), ("ace_Arab", SENTENCES)):
        write(folder / "f" / "devtest", **{f"{code}__devtest": lines})
    for code, lines in (("src__eng", SENTENCES), ("ref__zho___TW", OTHERS), ("ref__spa___MX", OTHERS)):
        write(folder / "n" / "NTREX-128", **{f"newstest2019___{code}__txt": lines})
    return {task: folder / task[0] for task in ("tatoeba", "bucc", "flores", "ntrex")}


def scores(path: Path) -> dict[str, dict[str, Any]]:
    read = json.loads(path.read_text(encoding="utf-8"))
    [split] = read["scores"].values()
    return {entry["hf_subset"]: entry for entry in split}


def test_mteb_scores_our_vectors(tmp_path: Path, model: str, data: dict[str, Path]) -> None:
    encoder = MtebEncoder(model, pooling="mean")
    written = write_results(encoder, data, tmp_path)
    assert [path.name for path in written] == [
        *("Tatoeba.json", "BUCC.v2.json", "FloresBitextMining.json", "NTREXBitextMining.json")
    ]
    assert encoder.mteb_model_meta.name == "local/tiny"
    assert written[0].parent == tmp_path / "results" / "local__tiny" / encoder.mteb_model_meta.revision
    # Its accuracies are ours; of the directions, it has those that both languages are in.
    found = scores(written[2])
    ours = evaluate_flores(encoder.encoder, data["flores"])
    assert found.keys() == {score.language for score in ours.scores if not score.about}
    for pair, entry in found.items():
        assert entry["accuracy"] == pytest.approx(value(ours, pair, "accuracy"), abs=1e-6)
    assert found["ace_Arab-eng_Latn"]["accuracy"] == 1
    assert found["deu_Latn-eng_Latn"]["accuracy"] == pytest.approx(1 - 3 / len(SENTENCES), abs=1e-6)
    # The same sentences in XTREME's order, by its label file.
    assert scores(written[0])["deu-eng"]["f1"] == found["deu_Latn-eng_Latn"]["f1"]
    assert scores(written[1]).keys() == {"zh-en"}
    # Chinese of Taiwan is mteb's zho_Hant; Mexican Spanish it does not have.
    assert scores(written[3]).keys() == {"zho_Hant-eng_Latn", "eng_Latn-zho_Hant"}
    assert json.loads(written[3].read_text(encoding="utf-8"))["dataset_revision"].startswith("local-")


def test_kept_results_are_those_of_the_same_vectors(
    tmp_path: Path, model: str, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"ntrex": data["ntrex"]}
    [first] = write_results(MtebEncoder(model, pooling="mean"), here, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(MtebEncoder, "encode", None)
        assert write_results(MtebEncoder(model, pooling="mean"), here, tmp_path) == [first]
    for options in ({"pooling": "cls"}, {"pooling": "mean", "prefix": "query: "}):
        assert write_results(MtebEncoder(model, **options), here, tmp_path) != [first]
    changed = Encoder(model, pooling="mean")
    with torch.no_grad():
        changed.model.embeddings.word_embeddings.weight += 1
    assert write_results(MtebEncoder(changed), here, tmp_path) != [first]


def revision(model: str, **buffers: torch.Tensor) -> str | None:
    encoder = Encoder(model, pooling="mean")
    for name, numbers in buffers.items():
        encoder.model.register_buffer(name, numbers)
    return MtebEncoder(encoder).mteb_model_meta.revision


def test_a_revision_is_of_numbers_shapes_and_dtypes(model: str) -> None:
    """A buffer without dimensions, or without numbers, too."""
    zeros = [torch.zeros(()), torch.zeros(1), torch.zeros(2, 0), torch.zeros(0), torch.zeros((), dtype=torch.int32)]
    found = [revision(model), *(revision(model, more=numbers) for numbers in (*zeros, torch.ones(())))]
    assert len(set(found)) == len(found)
    assert revision(model, more=torch.zeros(())) == found[1]


def test_bucc_gives_each_gold_pair_in_the_order_of_the_sentences(tmp_path: Path, model: str) -> None:
    lines = {code: [f"{code}{n}\t{code} {n}" for n in range(4)] for code in ("zh", "en")}
    write(tmp_path, **{f"zh___en__dev__{code}": each for code, each in lines.items()})
    write(tmp_path, zh___en__dev__gold=["zh2\ten3", "zh0\ten1", "zh2\ten0"])
    task = local_task("bucc", tmp_path)
    found = task.dataset["zh-en"]["test"]
    assert list(zip(found["sentence1"], found["sentence2"], strict=True)) == [
        ("zh 0", "en 1"),
        ("zh 2", "en 0"),
        ("zh 2", "en 3"),
    ]


def test_any_task_of_mteb_takes_it(model: str) -> None:
    """A task of sentence pairs, by its own evaluator: equal sentences have cosine 1, others less."""
    from datasets import Dataset, DatasetDict

    task = mteb.get_task("STSBenchmark")
    rows = {"sentence1": SENTENCES[:6], "sentence2": [*SENTENCES[:3], *SENTENCES[9:12]], "score": [5.0] * 3 + [0.0] * 3}
    task.dataset, task.data_loaded = DatasetDict(test=Dataset.from_dict(rows)), True
    result = mteb.evaluate(MtebEncoder(model, pooling="mean"), task, cache=None, co2_tracker=False)
    assert result.task_results[0].scores["test"][0]["cosine_spearman"] > 0.8


def test_vectors_are_the_encoders_and_cosine_compares_them(model: str) -> None:
    encoder = MtebEncoder(model, pooling="mean")
    vectors = encoder.encode([{"text": SENTENCES[:2]}, {"text": SENTENCES[2:3]}], hf_split="test")
    np.testing.assert_array_equal(vectors, encoder.encoder.sentences(SENTENCES[:3]))
    assert torch.as_tensor(encoder.similarity(vectors, vectors)).diagonal() == pytest.approx(1)


def test_refusals(tmp_path: Path, model: str, data: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"an evaluation that mteb has too \(tatoeba, .*got 'xnli'"):
        local_task("xnli", tmp_path)
    with pytest.raises(ValueError, match="expected languages of mteb's NTREXBitextMining, got others"):
        local_task("ntrex", data["ntrex"], ["spa_MX", "eng"])
    with pytest.raises(ValueError, match="expected name as ORGANISATION/MODEL, got 'mine'"):
        MtebEncoder(model, pooling="mean", name="mine")
    command = [model, "--tasks", "words", "--data", str(tmp_path), "--as-mteb", str(tmp_path)]
    assert main(command) == 2
    assert "expected a task that mteb has too (tatoeba, bucc, flores, ntrex) for --as-mteb" in capsys.readouterr().err


def test_from_the_command_line(
    tmp_path: Path, model: str, data: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"{task}={data[task]}" for task in ("tatoeba", "ntrex")]
    arguments = ["--languages", "ntrex=en", "ntrex=zh_TW", "--pooling", "mean", "--output", str(tmp_path / "out")]
    command = [model, "--tasks", "tatoeba", "ntrex", "--data", *where, *arguments, "--as-mteb", str(tmp_path / "mteb")]
    assert main(command) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mteb's result: ")]
    paths = [Path(line.removeprefix("mteb's result: ")) for line in shown]
    assert [path.name for path in paths] == ["Tatoeba.json", "NTREXBitextMining.json"]
    assert all(path.is_relative_to(tmp_path / "mteb" / "results") and scores(path) for path in paths)
