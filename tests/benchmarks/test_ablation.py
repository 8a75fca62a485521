"""benchmarks.ablation: no leak of the words asked for, equal terms for all rows, a small run."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.ablation import base, whole
from benchmarks.ablation.__main__ import PARTS, main
from benchmarks.ablation.base import Base, last_checkpoint
from benchmarks.ablation.corpus import prepare, split_lexicon
from benchmarks.ablation.plan import METHODS, Row, Scale, study_arms, study_row, table_rows
from benchmarks.ablation.run import recipe_of, tags_english, treebanks
from ctloss.evaluate import Results, TaskResult, read_results
from ctloss.evaluate.results.scores import write_results
from support import tiny_tasks
from support.tiny_encoder import write
from support.tiny_runs import OBJECTS, SUBJECTS, VERBS

TINY = Scale(
    base=Base(layers=1, hidden=16, heads=2, vocabulary=200, steps=2, batch_size=4),
    methods=("CZ-snt",),
    better_after=0,
    steps=2,
    batch_size=4,
    seeds=(1,),
    study_pairs=8,
    batch_sizes=(4,),
    finetuning={"": {"max_steps": 2, "batch_size": 8, "max_length": 32}},
)
WORDS = {**SUBJECTS, **VERBS, **OBJECTS}


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All corpora; every language but English is written in French words, which the lexicon translates."""
    folder = tmp_path_factory.mktemp("corpora")
    triples = list(itertools.product(SUBJECTS, VERBS, OBJECTS))
    english = [f"the {s} {v} a {o}" for s, v, o in triples]
    french = [f"le {SUBJECTS[s]} {VERBS[v]} un {OBJECTS[o]}" for s, v, o in triples]
    for code in ("ar", "es", "fr", "ru", "zh"):
        pairs = [f"{a}\t{b} {code}" for a, b in zip(english, french, strict=True)]
        write_lines(folder / "tatoeba-train" / f"en-{code}.tsv", pairs)
        write_lines(folder / "lexicon" / f"{code}_uni.txt", list(WORDS.values()))
    write_lines(folder / "lexicon" / "en_uni.txt", list(WORDS))
    for prefix in ("news/newstest2008-2011", "news/newstest2012-2013", "tico19/all", "bible/bible"):
        for code, lines in (("en", english), ("fr", french)):
            write_lines(folder / f"{prefix}.{code}", [f"{line} {prefix[:4]}" for line in lines[:20]])

    for code, lines in (("deu", french[:12]), ("eng", english[:12])):
        write(folder / "tatoeba", **{f"tatoeba__deu___eng__{code}": lines})
    for code, lines in (("zh", french[:12]), ("en", english[:12])):
        write(folder / "bucc", **{f"zh___en__dev__{code}": [f"{code}-{n}\t{line}" for n, line in enumerate(lines)]})
    write(folder / "bucc", zh___en__dev__gold=[f"zh-{n}\ten-{n}" for n in range(12)])
    (folder / "multi30k").mkdir()
    write(folder / "multi30k", test_2016_flickr__de=french[:12], test_2016_flickr__en=english[:12])
    write(folder / "align", en___fr__txt=[f"{a} ||| {b}" for a, b in zip(english[:6], french[:6], strict=True)])
    write(folder / "align", en___fr__gold=["0-0 1-1 2-2 3-3 4-4"] * 6)
    for name, count in (("en/en_ewt-ud-train", 16), ("en/en_ewt-ud-dev", 6), ("pud/en_pud-ud-test", 6)):
        tiny_tasks.write_words(folder / "ud" / f"{name}.tsv", tiny_tasks.pos_sentences(count, count))
    tiny_tasks.write_words(folder / "ud" / "test" / "de_gsd-ud-test.tsv", tiny_tasks.pos_sentences(6, 9))
    for name, count in (("train-en", 40), ("dev-en", 6), ("dev-de", 6)):
        tiny_tasks.write_words(folder / "ner" / f"{name}.tsv", tiny_tasks.entity_sentences(count, count))
    tiny_tasks.write_pairs(folder / "nli-train-en" / "one.tsv", tiny_tasks.nli_rows(16, 1))
    for name in ("dev-en", "test-en", "test-de"):
        tiny_tasks.write_pairs(folder / "xnli" / f"{name}.tsv", tiny_tasks.nli_rows(8, 2))
        tiny_tasks.write_pairs(folder / "pawsx" / f"{name}.tsv", tiny_tasks.paraphrase_rows(20, 3))
    return folder


def test_held_out_translations_are_in_no_line_to_train_with() -> None:
    english = [f"word{n % 90}" for n in range(100)]
    french = [f"mot{n % 90}, autre{n % 90}" for n in range(100)]
    kept, held = split_lexicon({"en": english, "fr": french})
    assert sum(map(bool, held["en"])) == 10
    trained = {word for word in kept["en"] if word}
    assert trained.isdisjoint(word for word in held["en"] if word)
    # Of the ten words that stand twice, some are held out: their second lines are in neither part.
    assert sum(map(bool, kept["en"])) < 90
    assert all(bool(a) == bool(b) for a, b in zip(kept["en"], kept["fr"], strict=True))


def test_corpus_is_made_once_and_follows_its_content(data: Path, tmp_path: Path) -> None:
    made = prepare(data, tmp_path, 30)
    assert len((made / "en-zh.tsv").read_text(encoding="utf-8").splitlines()) == 30
    # 30 of Tatoeba and 20 of each of the four that have French.
    assert len((made / "en-fr.tsv").read_text(encoding="utf-8").splitlines()) == 110
    assert prepare(data, tmp_path, 30) == made
    assert prepare(data, tmp_path, 29) != made
    with pytest.raises(FileNotFoundError, match="tatoeba-train"):
        prepare(tmp_path, tmp_path, 30)


def test_corpora_out_of_line_are_refused_by_name(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    (copy / "lexicon" / "zh_uni.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"zh_uni\.txt, got no such file"):
        prepare(copy, tmp_path, 30)
    write_lines(copy / "lexicon" / "zh_uni.txt", ["one"])
    with pytest.raises(ValueError, match=r"zh_uni\.txt, line 2: expected \d+ lines as in ar_uni\.txt, got 1;"):
        prepare(copy, tmp_path, 30)
    write_lines(copy / "bible" / "bible.fr", ["une"])
    with pytest.raises(ValueError, match=r"bible\.fr, line 2: expected 20 lines as in bible\.en, got 1;"):
        prepare(copy, tmp_path, 30)


def test_treebanks_are_those_of_the_data_given(data: Path, tmp_path: Path) -> None:
    treebanks(data, tmp_path)
    moved = shutil.copytree(data, tmp_path / "data")
    links = sorted(treebanks(moved, tmp_path).iterdir())
    assert [link.name for link in links] == ["test-de-gsd.tsv", "test-en.tsv"]
    assert all(link.resolve().is_relative_to(moved.resolve()) for link in links)


def test_base_continues_from_a_complete_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (500, 1000, 1500):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (500, 1000):
        write_lines(tmp_path / f"checkpoint-{step}" / "trainer_state.json", ["{}"])
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1000")


def test_base_of_other_sentences_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    write_lines(tmp_path / "base" / "config.json", ["{}"])
    for texts in (["a", "b"], ["a", "b"]):
        monkeypatch.setattr(base, "sentences", lambda _, texts=texts: texts)
        base.make(Base(), tmp_path, tmp_path)
    monkeypatch.setattr(base, "sentences", lambda _: ["a", "c"])
    with pytest.raises(ValueError, match="expected the sentences that this base was begun on, got others"):
        base.make(Base(), tmp_path, tmp_path)


def test_rows_of_a_seed_differ_only_in_their_method(tmp_path: Path) -> None:
    write_lines(tmp_path / "en-fr.tsv", [])
    rows = table_rows(Scale())
    assert len(rows) == len(METHODS) * 2 * 3
    recipes = [recipe_of(row, Path("start"), tmp_path, 1e-3).as_dict() for row in rows if row.seed == 2]
    for recipe in recipes:
        recipe["name"] = ""
        recipe["data"]["only_with_words"] = None
        for name in ("loss", "levels", "head"):
            del recipe["objective"][name]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert {row.changes["levels"] for row in rows} == {"sentence", "multi", "apart"}


def test_key_changes_with_the_configuration() -> None:
    row = Row("CZ-snt", "base", 1, {"alpha": 0.1})
    keys = {row.key({}), row.key({"rate": 1}), Row("CZ-snt", "base", 1, {"alpha": 0.2}).key({})}
    assert len(keys) == 3
    assert row.key({}) == Row("CZ-snt", "base", 1, {"alpha": 0.1}).key({})
    assert all(key.startswith("cz-snt-base-1-") for key in keys)


def test_every_run_of_the_study_sees_the_same_number_of_pairs() -> None:
    rows = [study_row(arm, 1, Scale()) for arm in study_arms(Scale())]
    assert {row.changes["batch_size"] * row.changes["max_steps"] for row in rows} == {12800}
    assert {(row.changes["batch_size"], row.changes["clip"]) for row in rows} == {(8, 1), (8, 0), (32, 1), (64, 1)}
    assert {row.name for row in rows} == {"info-snt", "CZ-snt"}
    assert len({row.key({}) for row in rows}) == len(rows) == 18
    rates = {row.changes["batch_size"]: row.changes["learning_rate"] for row in rows if "learning_rate" in row.changes}
    assert rates == {8: pytest.approx(2e-3 / 8**0.5), 32: pytest.approx(2e-3 / 2**0.5)}


@pytest.mark.slow
def test_a_small_ablation_from_start_to_end(data: Path, tmp_path: Path) -> None:
    def run() -> str:
        ablation = whole.Ablation(data, output, TINY, output / "figures")
        ablation.check_base()
        for part in PARTS:
            getattr(ablation, part)()
        return ablation.write()

    output = tmp_path / "first"
    text = run()
    for name in ("base", "random", "CZ-snt", "CZ-snt, from random"):
        assert f"| **{name}** |" in text
    assert "| 4 | bf16 |  | info-snt | 1 |" in text
    for name in ("CZ-snt", "CZ-snt, from random"):
        assert re.search(rf"\n\| {name} \| 1 \| 0\.\d+ \| (-?\d+\.\d+ \| ){{2}}0 % \|", text)
    assert re.search(r"\n\| 4 \| fp32 \| not clipped \| CZ-snt \| 1 \|", text)
    assert re.search(r"\n\| 4 \| fp32 \|  \| 1 \| [+-]\d+\.\d \|", text)
    assert (output / "report.md").read_text(encoding="utf-8") == text
    pictures = {path.name for path in (output / "figures").iterdir()}
    names = ("batch", "forces", "tasks", "words")
    assert pictures == {f"ablation-{name}{page}.png" for name in names for page in ("", "-dark")}
    kept = read_results(next((output / "rows").glob("cz-snt-base-*/evaluation")))
    assert set(kept.tasks) == {"xnli", "pawsx", "pos", "ner", "bucc", "tatoeba", "pairs", "words", "align"}
    assert {score.language for score in kept.tasks["pos"].scores} == {"en", "de-gsd", "mean"}

    def written() -> dict[Path, int]:
        return {path.relative_to(output): path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}

    before = written()
    assert run() == text
    assert written() == before
    output = output.rename(tmp_path / "second")
    assert run() == text
    assert written() == before


def test_a_base_that_is_no_better_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = whole.Ablation(data, tmp_path, dataclasses.replace(TINY, better_after=2), tmp_path)
    reached = {"base": 0.2, "random": 0.3}
    monkeypatch.setattr(whole, "tags_english", lambda model, *_: reached[model.name])
    with pytest.raises(ValueError, match=r"got F1 of base 0\.200, random 0\.300 in tagging English .*; train the base"):
        ablation.check_base()
    (checked,) = tmp_path.glob("base-*/starts.json")
    checked.unlink()
    reached["base"] = 0.4
    ablation.check_base()
    assert "base 0.400, random weights 0.300" in ablation.write()


def test_english_tagging_is_measured(data: Path, tmp_path: Path) -> None:
    assert 0 <= tags_english(Path(tiny_tasks.save_model(tmp_path / "model", positions=128)), data, 2) <= 1


def test_output_is_the_same_however_it_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = []
    for output in (Path("out"), tmp_path / "out"):
        ablation = whole.Ablation(data, output, TINY, output)
        recipes.append(recipe_of(table_rows(TINY)[0], ablation.starts["base"], ablation.corpus, 1e-3))
    assert recipes[0] == recipes[1]


def test_starts_keep_the_seeds_that_they_have(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = whole.Ablation(data, tmp_path, dataclasses.replace(TINY, seeds=(2,)), tmp_path)
    kept = Results("base", "base", {"pos": TaskResult({"seeds": [1, 3]}, [], 1.0), "bucc": TaskResult({}, [], 1.0)})
    folder = ablation.starts["base"] / "evaluation"
    folder.mkdir(parents=True)
    write_results(folder, kept)
    asked: dict[str, tuple[int, ...]] = {}
    monkeypatch.setattr(whole, "evaluate", lambda model, name, seeds, *_: asked.update({name: seeds}))
    ablation.base()
    assert asked == {"base": (1, 2, 3), "random": (2,)}


def test_report_of_nothing_is_refused_and_trains_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(data), "--output", str(tmp_path), "--quick", "--only", "report"]) == 2
    assert "found none of this size and data" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    with pytest.raises(FileNotFoundError, match="train the table first"):
        whole.Ablation(data, tmp_path, TINY, tmp_path).words()


def test_command_refuses_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing, document = str(tmp_path), tmp_path / "page.md"
    write_lines(document, ["no marks"])
    for arguments, message in (
        ([], "expected"),
        (["--seeds", "0"], "expected --seeds from 1 on, each once, got 0"),
        (["--seeds", "1", "1"], "each once, got 1 1"),
        (["--threads", "0"], "expected --threads at least 1, got 0"),
        # Before the first hour is spent, not after the last.
        (["--summary", str(document)], "expected the lines '<!-- python -m benchmarks.ablation -->' and"),
        (["--write", str(tmp_path / "none.md")], "none.md"),
    ):
        assert main(["--data", nothing, "--output", str(tmp_path / "out"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["--data", nothing, "--output", str(document)]) == 2
