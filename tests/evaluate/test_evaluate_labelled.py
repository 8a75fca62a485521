"""Labelled files in XTREME's layout, in CoNLL-U and on the hub; refusals name file and line."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from pathlib import Path

import pytest

from ctloss.evaluate import DataError
from ctloss.evaluate.data.labelled import (
    PANX,
    PAWSX,
    UDPOS,
    XNLI,
    LabelledPair,
    TaggedSentence,
    Task,
    read_files,
    read_pairs,
    read_tagged,
)
from ctloss.evaluate.data.sources import read_split
from support import tiny_tasks

CONTRACTIONS = """\
# text = del perro
1-2\tdel\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\t_\tADP\t_\t_\t3\tcase\t_\t_
2\tel\t_\tDET\t_\t_\t3\tdet\t_\t_
3\tperro\t_\tNOUN\t_\t_\t0\troot\t_\t_
3.1\tnada\t_\tVERB\t_\t_\t_\t_\t_\t_

1-3\tdámelo\t_\t_\t_\t_\t_\t_\t_\t_
1\tda\t_\tVERB\t_\t_\t0\troot\t_\t_
2\tme\t_\tPRON\t_\t_\t1\tobj\t_\t_
3\tlo\t_\tPRON\t_\t_\t1\tobj\t_\t_
4\t10 000\t_\tNUM\t_\t_\t1\tobl\t_\t_

"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("task", [XNLI, PAWSX, UDPOS, PANX], ids=lambda task: task.name)
@pytest.mark.parametrize("inside", [False, True], ids=["parent", "folder"])
def test_xtremes_layout(tmp_path: Path, task: Task, inside: bool) -> None:
    tiny_tasks.write_task(tmp_path, task.name)
    data = tmp_path / task.name if inside else tmp_path
    assert {language: len(rows) for language, rows in read_split(data, task, "test").items()} == {"en": 30, "xx": 30}
    assert len(read_split(data, task, "train", ["en"])["en"]) == 192


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("a cat\ta dog\n", LabelledPair("a cat", "a dog", None)),
        # CR LF at the end, quotation marks of the CSV writer, U+2028 within a line.
        ('"a ""cat"""\ta\u2028dog\tneutral\r\n', LabelledPair('"a ""cat"""', "a\u2028dog", "neutral")),
        # A fourth column is ignored.
        ("a cat\ta dog\tneutral\t3.2\n", LabelledPair("a cat", "a dog", "neutral")),
    ],
)
def test_pairs(tmp_path: Path, text: str, row: LabelledPair) -> None:
    assert read_pairs(write(tmp_path / "pairs.tsv", text), XNLI.labels) == [row]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("a\ncat\n\n.\n\n", (None, None)),
        # No blank line after the last sentence.
        ("a\tDET\ncat\tNOUN\n\n\n.\tPUNCT", (("DET", "NOUN"), ("PUNCT",))),
    ],
)
def test_words(tmp_path: Path, text: str, tags: tuple[tuple[str, ...] | None, ...]) -> None:
    expected = [TaggedSentence(words, found) for words, found in zip((("a", "cat"), (".",)), tags, strict=True)]
    assert read_tagged(write(tmp_path / "words.tsv", text), UDPOS.labels) == expected


@pytest.mark.parametrize("tagged", [True, False], ids=["tagged", "bare"])
def test_a_space_outside_ascii_is_a_word(tmp_path: Path, tagged: bool) -> None:
    """As in Japanese treebanks; in a file without tags its line looks like the blank line after a sentence."""
    words = ("東京", "\u3000", "a\u00a0b", "\u00a0", "cat")
    lines = [f"{word}\tX" if tagged else word for word in words]
    path = write(tmp_path / "words.tsv", "\r\n".join([*lines, " ", "dog\tX" if tagged else "dog", ""]))
    expected = [TaggedSentence(each, ("X",) * len(each) if tagged else None) for each in (words, ("dog",))]
    assert read_tagged(path, UDPOS.labels) == expected


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        (XNLI, "a\tb\tneutral\na\n", "line 2: expected SENTENCE, SENTENCE and LABEL separated by tabs, got 1 columns"),
        (XNLI, "a\tb\tneutral\n\n", "line 2: expected SENTENCE"),
        (XNLI, "a\tb\tc\td\te\n", "line 1: expected SENTENCE, SENTENCE and LABEL separated by tabs, got 5"),
        (XNLI, "a\t \tneutral\n", "line 1: expected two sentences, got an empty one"),
        (XNLI, "a\tb\tneutral\na\tb\tx\n", "line 2: expected a label of contradiction, entailment, neutral, got 'x'"),
        (PAWSX, "a\tb\tneutral\n", "line 1: expected a label of 0, 1, got 'neutral'"),
        (PAWSX, "a\tb\t1\na\tb\n", "line 2: expected a label as before, got none"),
        (PAWSX, "a\tb\na\tb\t1\n", "line 2: expected no label as before, got one"),
        (PAWSX, "", "line 1: expected labelled items, got an empty file"),
        (UDPOS, "a\tDET\ncat\tNOUN\tN\n", "line 2: expected WORD and TAG separated by a tab, got 3 columns"),
        (UDPOS, "a\tDET\ncat\tN\n", "line 2: expected a label of ADJ, ADP"),
        (UDPOS, "a\tDET\n\ncat\n", "line 3: expected a label as before, got none"),
        (UDPOS, "a\tDET\n\tNOUN\n", "line 2: expected a word before the tab, got none"),
        (UDPOS, "\n\n", "line 1: expected labelled items, got an empty file"),
        (PANX, "Oslo\tB-MISC\n", "line 1: expected a label of B-LOC, B-ORG, B-PER, I-LOC, I-ORG, I-PER, O, got 'B-MI"),
    ],
)
def test_refused(tmp_path: Path, task: Task, text: str, message: str) -> None:
    path = write(tmp_path / "test-de.tsv", text)
    with pytest.raises(DataError, match="^" + re.escape(f"{path}, {message}")):
        read_split(tmp_path, task, "test", ["de"])


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "test-de.tsv"
    path.write_bytes(b"a\tDET\n\xe9t\xe9\tNOUN\n")
    with pytest.raises(DataError, match="line 2: expected UTF-8, got byte 0xe9"):
        read_tagged(path, UDPOS.labels)


def test_decomposed_and_compressed_files_are_read_alike(tmp_path: Path) -> None:
    rows = [("ein Café", "über Žluť", "neutral")]
    tiny_tasks.write_pairs(tmp_path / "plain" / "test-de.tsv", rows)
    text = unicodedata.normalize("NFD", (tmp_path / "plain" / "test-de.tsv").read_text(encoding="utf-8"))
    (tmp_path / "test-de.tsv.gz").write_bytes(gzip.compress(text.encode()))
    expected = {"de": [LabelledPair(*rows[0])]}
    assert read_split(tmp_path, XNLI, "test") == read_split(tmp_path / "plain", XNLI, "test") == expected


def test_missing_language_file_and_split(tmp_path: Path) -> None:
    tiny_tasks.write_task(tmp_path, "xnli")
    with pytest.raises(DataError, match=r"expected test-de\.tsv there or in its folder xnli, got languages en, xx"):
        read_split(tmp_path, XNLI, "test", ["en", "de"])
    with pytest.raises(DataError, match=r"expected train-en\.tsv or en_TREEBANK-ud-train\.conllu .* got no train file"):
        read_split(tmp_path, UDPOS, "train", ["en"])
    with pytest.raises(DataError, match=r"expected test-LANGUAGE\.tsv"):
        read_split(tmp_path, PAWSX, "test")
    with pytest.raises(DataError, match="expected a readable text file, got No such file"):
        read_files([tmp_path / "other.tsv"], XNLI)


def test_a_short_file_of_a_parallel_task(tmp_path: Path) -> None:
    tiny_tasks.write_pairs(tmp_path / "test-en.tsv", tiny_tasks.nli_rows(5, 0))
    tiny_tasks.write_pairs(tmp_path / "test-de.tsv", tiny_tasks.nli_rows(4, 0))
    with pytest.raises(DataError, match=r"test-de\.tsv, line 5: expected 5 items as in .*test-en\.tsv, got 4"):
        read_split(tmp_path, XNLI, "test")


def test_labels_in_some_of_several_files(tmp_path: Path) -> None:
    labelled, bare = write(tmp_path / "one.tsv", "a\tb\t1\n"), write(tmp_path / "two.tsv", "a\tb\n")
    with pytest.raises(DataError, match=r"two\.tsv: expected labels as in .*one\.tsv"):
        read_files([labelled, bare], PAWSX)


def test_conllu_contractions_as_xtreme_tags_them(tmp_path: Path) -> None:
    """Of two parts equally high, ADP comes before DET; among a verb and its pronouns, the verb is highest."""
    path = write(tmp_path / "es_gsd-ud-test.conllu", CONTRACTIONS)
    assert read_split(tmp_path, UDPOS, "test") == {
        "es": [
            TaggedSentence(("del", "perro"), ("ADP", "NOUN")),
            TaggedSentence(("dámelo", "10000"), ("VERB", "NUM")),
        ]
    }
    assert read_tagged(path, UDPOS.labels, "de")[0] == TaggedSentence(("del", "perro"), ("ADP", "NOUN"))


def test_treebanks_of_a_language_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "es_ancora-ud-test.tsv", "hola\tINTJ\n")
    write(tmp_path / "es_gsd-ud-test.conllu", CONTRACTIONS)
    [rows] = read_split(tmp_path, UDPOS, "test").values()
    assert [len(row.words) for row in rows if isinstance(row, TaggedSentence)] == [1, 2, 2]
    write(tmp_path / "es_gsd-ud-test.tsv", "hola\tINTJ\n")
    with pytest.raises(DataError, match="expected each treebank once"):
        read_split(tmp_path, UDPOS, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\ta\t_\tDET\n", "line 1: expected CoNLL-U's 10 columns separated by tabs, got 4"),
        ("1\ta\t_\tDET\t_\t_\t0\t_\t_\t_\n", "line 1: expected a blank line after the last sentence"),
        ("2\ta\t_\tDET\t_\t_\t0\t_\t_\t_\n\n", "line 1: expected id 1, got '2'"),
        ("1\ta\t_\tART\t_\t_\t0\t_\t_\t_\n\n", "line 1: expected a tag of ADJ"),
        ("1\t\t_\tDET\t_\t_\t0\t_\t_\t_\n\n", "line 1: expected a word, got none"),
        ("2-3\tdel" + "\t_" * 8 + "\n\n", "line 1: expected a range from 1, got 2-3"),
        ("1-2\tdel" + "\t_" * 8 + "\n1\tde\t_\tADP\t_\t_\t0\t_\t_\t_\n\n", "line 1: expected words up to id 2, got 1"),
        (CONTRACTIONS.replace("\t3\tdet", "\t_\tdet"), "line 2: expected the parts' HEAD to be a word of the sentence"),
        ("".join(f"{i}\t_\t_\tDET\t_\t_\t0\t_\t_\t_\n" for i in "12") + "\n", "line 3: expected words, got a sentence"),
    ],
)
def test_refused_conllu(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "es_gsd-ud-test.conllu", text)
    with pytest.raises(DataError, match="^" + re.escape(f"{path}, {message}")):
        read_split(tmp_path, UDPOS, "test", ["es"])


def hub_folder(folder: Path, configs: dict[str, dict[str, list[dict[str, object]]]], features: str = "") -> str:
    """Writes a data set as the hub lays it out: a README that names configurations and files, and JSON lines."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            write(folder / config / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    if features:
        lines += ["dataset_info:", *(line for config in configs for line in (f"- config_name: {config}", features))]
    write(folder / "README.md", "\n".join([*lines, "---", ""]))
    return f"hub:{folder}"


CLASS_LABELS = """\
  features:
  - name: tokens
    sequence: string
  - name: ner_tags
    sequence:
      class_label:
        names:
          '0': O
          '1': B-PER
          '2': I-PER"""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
def test_hub_one_configuration_per_language(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"tokens": ["Anna", "Berg", "lives"], "ner_tags": [1, 2, 0]}]
    data = hub_folder(
        tmp_path / "wikiann", {"de": {"validation": rows, "test": rows}, "fr": {"test": rows}}, CLASS_LABELS
    )
    expected = [TaggedSentence(("Anna", "Berg", "lives"), ("B-PER", "I-PER", "O"))]
    assert read_split(data, PANX, "test") == {"de": expected, "fr": expected}
    assert read_split(data, PANX, "dev", ["de"]) == {"de": expected}
    with pytest.raises(DataError, match="fr: expected a split validation or dev, got test"):
        read_split(data, PANX, "dev", ["fr"])
    with pytest.raises(DataError, match=r"expected a configuration PAN-X\.es or es, got de, fr"):
        read_split(data, PANX, "test", ["es"])
    with pytest.raises(DataError, match="expected a column upos or pos_tags or tags, got tokens, ner_tags"):
        read_split(data, UDPOS, "test", ["de"])


@pytest.mark.usefixtures("offline")
def test_hub_xtremes_configurations(tmp_path: Path) -> None:
    pairs: list[dict[str, object]] = [
        {"language": code, "sentence1": "a", "sentence2": f"b {code}", "gold_label": "neutral"} for code in ("de", "fr")
    ]
    paraphrase: list[dict[str, object]] = [{"sentence1": "a", "sentence2": "b", "label": "1"}]
    tags: list[dict[str, object]] = [{"tokens": ["the", "cat"], "pos_tags": ["DET", "NOUN"]}]
    rows = {"XNLI": pairs, "PAWS-X.de": paraphrase, "udpos.German": tags, "udpos.Afrikans": tags}
    data = hub_folder(tmp_path / "xtreme", {config: {"test": found} for config, found in rows.items()})
    expected = {language: [LabelledPair("a", f"b {language}", "neutral")] for language in ("de", "fr")}
    assert read_split(data, XNLI, "test") == expected
    with pytest.raises(DataError, match="expected rows in zh, got de, fr"):
        read_split(data, XNLI, "test", ["zh"])
    assert read_split(data, PAWSX, "test") == {"de": [LabelledPair("a", "b", "1")]}
    assert sorted(read_split(data, UDPOS, "test")) == ["af", "de"]


@pytest.mark.usefixtures("offline")
def test_hub_treebanks_and_missing_labels(tmp_path: Path) -> None:
    words: list[dict[str, object]] = [{"tokens": ["del", "de", "el"], "upos": ["_", "ADP", "DET"]}]
    data = hub_folder(tmp_path / "ud", {"es_gsd": {"test": words}, "es_ancora": {"test": words}})
    assert read_split(data, UDPOS, "test") == {"es": [TaggedSentence(("de", "el"), ("ADP", "DET"))] * 2}
    bare: list[dict[str, object]] = [{"premise": "a", "hypothesis": "b", "label": -1}]
    data = hub_folder(tmp_path / "nli", {"de": {"test": bare}})
    assert read_split(data, XNLI, "test") == {"de": [LabelledPair("a", "b", None)]}
    with pytest.raises(DataError, match="expected a data set on the hub or a local folder"):
        read_split(f"hub:{tmp_path / 'nothing'}", XNLI, "test")


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "folder", "split", "count"),
    [
        (XNLI, "", "test", 8 * 5010),
        (PAWSX, "", "test", 7 * 2000),
        (PANX, "", "train", 20_000),
        (UDPOS, "ud/pud", "test", 12_000),
        (UDPOS, "ud/en", "train", 12_544),
    ],
)
def test_real_files(real_data: Path, task: Task, folder: str, split: str, count: int) -> None:
    assert sum(map(len, read_split(real_data / folder, task, split).values())) == count
