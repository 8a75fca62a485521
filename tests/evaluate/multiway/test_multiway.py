"""FLORES-200 and NTREX-128: their folders as they are published, and xsim against its definition in loops."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctloss.evaluate import MultiwayOptions, evaluate_flores, evaluate_ntrex
from ctloss.evaluate.__main__ import main
from ctloss.evaluate.data.multiway import FLORES, NTREX, files_of_layout, read_multiway
from ctloss.evaluate.results.scores import read_results
from ctloss.evaluate.tasks.multiway import search
from support import tiny_tasks
from support.tiny_encoder import Table, write
from support.tiny_results import refused, value

pytestmark = pytest.mark.numeric

NUMBERS = Table(
    {"eins": [1.0, 0.0, 0.0], "zwei": [0.9, 0.3, 0.0], "drei": [0.0, 0.2, 1.0]}
    | {"one": [2.0, 0.1, 0.0], "two": [0.0, 0.5, 0.6], "three": [0.0, 0.0, 3.0]}
    | {"un": [2.0, 0.1, 0.1], "deux": [0.0, 1.0, 1.0], "trois": [0.1, 0.0, 3.0]}
)
TEXTS = {"deu": ["eins", "zwei", "drei"], "eng": ["one", "two", "three"], "fra": ["un", "deux", "trois"]}


def write_flores(folder: Path) -> Path:
    """A folder as FLORES-200 unpacks, whose dev sentences are in another order."""
    for split, order in (("devtest", 1), ("dev", -1)):
        files = {f"{code}_Latn__{split}": lines[::order] for code, lines in TEXTS.items()}
        write(folder / split, **files)
    write(folder, README=["how it was made"], metadata_devtest__tsv=["URL\tdomain"])
    return folder


def write_ntrex(folder: Path) -> Path:
    """A folder as NTREX-128 unpacks, with CRLF line ends as most of its files have them."""
    place = folder / "NTREX-128"
    write(place, newstest2019___src__eng__txt=TEXTS["eng"], newstest2019___ref__deu__txt=TEXTS["deu"])
    write(place, newstest2019___ref___2__spa__txt=TEXTS["fra"], newstest2019___ref__fra___CA__txt=TEXTS["fra"])
    for path in place.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    write(folder, LANGUAGES__tsv=["deu\tGerman"], DOCUMENT_IDS__tsv=["1", "1", "2"])
    return folder


def test_folders_as_they_are_published(tmp_path: Path) -> None:
    flores, ntrex = write_flores(tmp_path / "flores200_dataset"), write_ntrex(tmp_path / "NTREX")
    assert list(files_of_layout(flores, FLORES, "devtest")) == ["deu_Latn", "eng_Latn", "fra_Latn"]
    assert list(files_of_layout(flores / "dev", FLORES, "dev")) == ["deu_Latn", "eng_Latn", "fra_Latn"]
    # The second Spanish reference is no language of its own.
    assert list(files_of_layout(ntrex, NTREX)) == ["deu", "eng", "fra_CA"]
    assert {code: lines for code, (_, lines) in read_multiway(ntrex, NTREX).items()} == {
        "deu": TEXTS["deu"],
        "eng": TEXTS["eng"],
        "fra_CA": TEXTS["fra"],
    }


def test_codes_that_usually_end_other_files_are_languages_here(tmp_path: Path) -> None:
    """Bashkir's code is bak, Kyrgyz' file may be compressed."""
    write(tmp_path / "devtest", bak_Cyrl__devtest=["a"])
    (tmp_path / "devtest" / "kir_Cyrl.devtest.gz").write_bytes(gzip.compress(b"b\n"))
    assert [lines for _, lines in read_multiway(tmp_path, FLORES, split="devtest").values()] == [["a"], ["b"]]


def test_languages_are_found_by_what_their_codes_mean(tmp_path: Path) -> None:
    files = {f"{code}__devtest": ["a"] for code in ("deu_Latn", "zho_Hans", "zho_Hant", "arb_Arab", "arb_Latn")}
    write(tmp_path / "devtest", **files)
    found = read_multiway(tmp_path, FLORES, ["de", "zh-Hant", "deu_Latn"], "devtest")
    assert list(found) == ["deu_Latn", "zho_Hant"]
    with refused("in 'zh', got several: zho_Hans, zho_Hant; name one", where=tmp_path):
        read_multiway(tmp_path, FLORES, ["de", "zh"], "devtest")
    with refused("in 'fr', got no such file; check the code .there are 5 languages: arb_Arab", where=tmp_path):
        read_multiway(tmp_path, FLORES, ["de", "fr"], "devtest")


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "devtest", deu_Latn__devtest=["a", "b"])
    with refused("at least two languages of FLORES-200, files such as devtest/deu_Latn.devtest", where=tmp_path):
        read_multiway(tmp_path, FLORES, split="devtest")
    write(tmp_path / "devtest", eng_Latn__devtest=["a"])
    with refused("expected 2 lines as in deu_Latn", where=tmp_path / "devtest" / "eng_Latn.devtest", line=2):
        read_multiway(tmp_path, FLORES, split="devtest")
    with refused("files such as NTREX-128/newstest2019-ref.deu.txt, got none", where=tmp_path):
        read_multiway(tmp_path, NTREX)


def test_accuracy_by_hand_between_every_two_languages(tmp_path: Path) -> None:
    outcome = evaluate_flores(NUMBERS, write_flores(tmp_path))
    directions = {score.language for score in outcome.scores if score.metric == "accuracy"}
    assert directions == {
        *("deu_Latn-eng_Latn", "eng_Latn-deu_Latn", "deu_Latn-fra_Latn", "fra_Latn-deu_Latn"),
        *("eng_Latn-fra_Latn", "fra_Latn-eng_Latn", "mean", "eng_Latn-X", "X-eng_Latn"),
    }
    # two finds drei, and zwei finds one; un is one, and deux and trois are nearest to two and three.
    assert value(outcome, "deu_Latn-eng_Latn", "accuracy") == pytest.approx(2 / 3)
    assert value(outcome, "eng_Latn-fra_Latn", "accuracy") == value(outcome, "fra_Latn-eng_Latn", "accuracy") == 1
    assert value(outcome, "eng_Latn-fra_Latn", "xsim_cosine") == 0
    assert value(outcome, "eng_Latn-X", "accuracy") == pytest.approx((2 / 3 + 1) / 2)
    assert outcome.predictions == {}
    sums = {(item.language, item.metric): item.value for item in outcome.items}
    assert sums == {
        (score.language, score.metric): pytest.approx(score.value)
        for score in outcome.scores
        if score.metric != "xsim_cosine" and not score.about
    }


def test_pairs_with_english_and_the_other_split(tmp_path: Path) -> None:
    """Each language is encoded once."""
    encoded: list[str] = []

    class Counting(Table):
        def sentences(self, texts: Sequence[str]) -> np.ndarray:
            encoded.extend(texts)
            return NUMBERS.sentences(texts)

    options = MultiwayOptions(language_pairs="english", flores_split="dev")
    outcome = evaluate_flores(Counting({}), write_flores(tmp_path), ["de", "fr"], options)
    assert encoded == [*TEXTS["eng"][::-1], *TEXTS["deu"][::-1], *TEXTS["fra"][::-1]]
    found = {score.language for score in outcome.scores if not score.about}
    assert found == {"eng_Latn-deu_Latn", "deu_Latn-eng_Latn", "eng_Latn-fra_Latn", "fra_Latn-eng_Latn"}


def test_ntrex_spells_regions_with_an_underscore(tmp_path: Path) -> None:
    outcome = evaluate_ntrex(NUMBERS, write_ntrex(tmp_path), ["en", "fr"])
    assert value(outcome, "eng-fra_CA", "accuracy") == value(outcome, "eng-X", "accuracy") == 1


def xsim_errors(x: np.ndarray, y: np.ndarray, k: int) -> int:
    """How many rows of x find another row of y than their own by ratio margin: the definition, in loops."""
    cosines = [[float(a @ b) for b in y] for a in x]
    forth = [sum(sorted(row, reverse=True)[:k]) / k for row in cosines]
    back = [sum(sorted(column, reverse=True)[:k]) / k for column in zip(*cosines, strict=True)]
    errors = 0
    for i, row in enumerate(cosines):
        near = sorted(range(len(y)), key=lambda j: -row[j])[:k]
        margins = {j: row[j] / ((forth[i] + back[j]) / 2) for j in near}
        errors += max(margins, key=lambda j: margins[j]) != i
    return errors


@given(st.integers(0, 2**32 - 1), st.integers(4, 30), st.integers(1, 4))
def test_xsim_is_its_definition(seed: int, n: int, k: int) -> None:
    draw = np.random.default_rng(seed)
    # A common direction keeps the margins' denominators away from zero, as in real encoders.
    x = draw.normal(size=(n, 6)) + 1
    sides = [
        (side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32)
        for side in (x, x + draw.normal(size=x.shape))
    ]
    found = search(sides[0], sides[1], k)
    exact = [side.astype(np.float64) for side in sides]
    for (hits, margin_hits), (a, b) in zip(found, (exact, exact[::-1]), strict=True):
        assert int(hits.sum()) == int(((a @ b.T).argmax(axis=1) == np.arange(n)).sum())
        assert n - int(margin_hits.sum()) == xsim_errors(a, b, k)


def test_both_from_the_command_line(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = [f"the {noun} {verb} a dog ." for noun in tiny_tasks.NOUNS for verb in tiny_tasks.VERBS]
    flores = write(tmp_path / "f" / "devtest", **{f"{code}__devtest": sentences for code in ("deu_Latn", "eng_Latn")})
    write(tmp_path / "n" / "NTREX-128", newstest2019___src__eng__txt=sentences, newstest2019___ref__deu__txt=sentences)
    output = tmp_path / "out"
    data = ["--data", f"flores={flores.parent}", f"ntrex={tmp_path / 'n'}"]
    command = [model, "--tasks", "flores", "ntrex", *data, "--output", str(output), "--pooling", "mean"]
    assert main(command) == 0
    assert "| FLORES-200 acc. | FLORES-200 xsim | NTREX-128 acc. | NTREX-128 xsim |" in capsys.readouterr().out
    shown = (output / "results.md").read_text(encoding="utf-8")
    assert "| accuracy | deu_Latn-eng_Latn | 1.000 |" in shown
    assert "| xsim (mean of 1) | X-eng | 0.000 |" in shown
    assert {task: len(read_results(output).items(task)) for task in ("flores", "ntrex")} == {"flores": 4, "ntrex": 4}
    # Another split, or other pairs, is another result.
    assert main([*command, "--flores-split", "dev"]) == 2
    assert "expected a result with flores_split 'dev', got one with None" in capsys.readouterr().err
    assert main([model, "--tasks", "tatoeba", *data, "--language-pairs", "english"]) == 2
    assert "expected --language-pairs for a task that uses it (flores, ntrex)" in capsys.readouterr().err
