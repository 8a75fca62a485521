"""Which bitexts --corpus names, in which languages, and how it refuses what it cannot read."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from datasets import Dataset

from ctloss.shared.text import BadLine, DataError
from ctloss.train.corpus import Bitext, find_bitexts
from ctloss.train.corpus.names import languages_in


def write(folder: Path, contents: dict[str, str | bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def languages_of(bitexts: list[Bitext]) -> list[tuple[str, str]]:
    return [(bitext.source_language, bitext.target_language) for bitext in bitexts]


def pairs_of(bitext: Bitext) -> list[tuple[str, str]]:
    return [pair for chunk in bitext.chunks(2) for pair in zip(chunk.sources, chunk.targets, strict=True)]


def bad_of(bitext: Bitext) -> list[BadLine]:
    return [line for chunk in bitext.chunks(2) for line in chunk.bad]


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("en-fr", ("en", "fr")),
        ("news.en-fr", ("en", "fr")),
        ("news_2021-en-fr", ("en", "fr")),
        ("tatoeba-deu-eng", ("deu", "eng")),
        ("en-zh-tw", ("en", "zh-tw")),
        ("en-pt_BR", ("en", "pt_BR")),
        ("en-pt-br", ("en", "pt-br")),
        ("pt-br-en", ("pt-br", "en")),
        ("pt-br-fr", ("pt-br", "fr")),
        ("en-fr-ca", ("en", "fr-ca")),
        ("zho_Hans-eng_Latn", ("zho_Hans", "eng_Latn")),
        ("flores.zho_Hans-eng_Latn", ("zho_Hans", "eng_Latn")),
        ("sr-Latn-en", ("sr-Latn", "en")),
        ("en-sr-Latn-RS", ("en", "sr-Latn-RS")),
        ("es-419-pt-pt", ("es-419", "pt-pt")),
        ("yue-zh-tw", ("yue", "zh-tw")),
        # Tepo Krumen, Domung and Toki Pona have these codes.
        ("ted-en-fr", ("en", "fr")),
        ("dev-en-fr", ("en", "fr")),
        ("tok-en-fr", ("en", "fr")),
        ("news", None),
        ("news-2021", None),
        ("en", None),
        ("english-french", None),
        ("en-out", None),
    ],
)
def test_names_of_files_name_languages(tmp_path: Path, name: str, pair: tuple[str, str] | None) -> None:
    assert languages_in(name) == pair
    write(tmp_path, {f"{name}.tsv": "a\tb\n", f"{name}.jsonl": '{"source": "a", "target": "b"}\n'})
    for ending in ("tsv", "jsonl"):
        if pair:
            assert languages_of(find_bitexts([f"{tmp_path}/{name}.{ending}"], [])) == [pair]
        else:
            with pytest.raises(DataError, match="give --languages with both"):
                find_bitexts([f"{tmp_path}/{name}.{ending}"], [])


@pytest.mark.parametrize(
    ("name", "languages", "pair"),
    [
        ("en-zh-tw", ["en", "zh_TW"], ("en", "zh_TW")),
        ("en-zh-tw", ["zh", "tw"], ("zh", "tw")),
        ("deu-eng", ["de", "fr", "en"], ("de", "en")),
        ("en-tok", ["en", "tok"], ("en", "tok")),
        ("ted-en-fr", ["ted", "en-fr"], ("ted", "en-fr")),
        ("en-cmn", ["en", "zh"], ("en", "zh")),
    ],
)
def test_languages_asked_for_decide_what_a_name_says(name: str, languages: list[str], pair: tuple[str, str]) -> None:
    assert languages_in(name, languages) == pair


def test_line_aligned_files_pair_the_first_language_with_every_other(tmp_path: Path) -> None:
    junk = {
        f"x.{ending}": "\n" for ending in ("out", "tok", "bak", "log", "ids", "tmp", "old", "orig", "txt", "en-tok")
    }
    write(tmp_path, {"x.fr": "Un\nDeux\n", "x.de": "Eins\r\nZwei", "x.en": "One\nTwo\n", **junk})
    prefix = str(tmp_path / "x")
    german, french = find_bitexts([prefix], [])
    assert languages_of([german, french]) == [("en", "de"), ("en", "fr")]
    assert {german.name, french.name} == {prefix}
    assert pairs_of(german) == [("One", "Eins"), ("Two", "Zwei")] == pairs_of(german)
    assert pairs_of(french) == [("One", "Un"), ("Two", "Deux")]
    assert languages_of(find_bitexts([prefix], ["deu", "fr"])) == [("deu", "fr")]
    write(tmp_path, {"x.tok": "wan\ntu\n"})
    [named] = find_bitexts([prefix], ["en", "tok"])
    assert pairs_of(named) == [("One", "wan"), ("Two", "tu")]


def test_several_files_of_several_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(
        tmp_path,
        {
            "a.en": "a\n",
            "a.fr": "b\n",
            "b.en": "c\n",
            "b.de": "d\n",
            "part1.tsv": "e\tf\n",
            "more.en-fr.tsv": "g\th\n",
            "rows.jsonl": '{"fr": "j", "en": "i", "de": "k"}\n',
        },
    )
    names = ["~/a", "~/b", "~/more.en-fr.tsv", "~/rows.jsonl"]
    found = find_bitexts(names, ["en", "fr", "de"])
    assert [bitext.name for bitext in found] == [*names, "~/rows.jsonl"]
    assert [pairs_of(bitext) for bitext in found] == [[(a, b)] for a, b in ("ab", "cd", "gh", "ij", "ik")]
    assert languages_of(found) == [("en", code) for code in ("fr", "de", "fr", "fr", "de")]
    assert languages_of(find_bitexts(["~/part1.tsv", "~/more.en-fr.tsv"], ["en", "fr"])) == [("en", "fr")] * 2


def test_moses_archives(tmp_path: Path) -> None:
    for name, members in {
        "en-fr.txt.zip": {
            "README": "x",
            "LICENSE": "y",
            "A.en-fr.en": "a\nb\n",
            "A.en-fr.fr": "c\nd\n",
            "A.en-fr.ids": "1",
        },
        "de-en.zip": {"sub/B.de-en.de": "a\n", "sub/B.de-en.en": "b\n", "B.de-en.xml": "<x/>", "B.de-en.tok": ""},
        "en-tok.zip": {"C.en-tok.en": "a\n", "C.en-tok.tok": "b\n"},
    }.items():
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, text in members.items():
                archive.writestr(member, text)
    french, german = (find_bitexts([f"{tmp_path}/{name}"], []) for name in ("en-fr.txt.zip", "de-en.zip"))
    toki = find_bitexts([f"{tmp_path}/en-tok.zip"], ["en", "tok"])
    assert [languages_of(found) for found in (french, german, toki)] == [[("en", c)] for c in ("fr", "de", "tok")]
    assert pairs_of(french[0]) == [("a", "c"), ("b", "d")]
    assert pairs_of(german[0]) == [("b", "a")]
    [turned] = find_bitexts([f"{tmp_path}/en-fr.txt.zip"], ["fra", "eng"])
    assert (turned.source_language, pairs_of(turned)[0]) == ("fra", ("c", "a"))
    with pytest.raises(
        DataError, match=r"de-en\.zip: expected line-aligned files .* in en and one of fr, got B\.de-en"
    ):
        find_bitexts([f"{tmp_path}/de-en.zip"], ["en", "fr"])


@pytest.mark.parametrize(
    ("row", "languages", "pairs"),
    [
        ({"id": "1", "en": "a", "fr": "b"}, [], [("en", "fr")]),
        ({"id": "1", "en": "a"}, ["en", "id"], [("en", "id")]),
        ({"translation": {"fr": "b", "en": "a", "id": "c"}, "de": "d"}, [], [("en", "fr"), ("en", "id")]),
        ({"eng_Latn": "a", "zho_Hans": "b"}, ["en-Latn", "zh_Hans"], [("en-Latn", "zh_Hans")]),
        ({"source": "a", "target": "b"}, ["en", "fr"], [("en", "fr")]),
        ({"src": "a", "tgt": "b", "en": 1}, ["en", "fr"], [("en", "fr")]),
        ({"de": "a", "fr": "b"}, [], [("de", "fr")]),
    ],
)
def test_columns(tmp_path: Path, row: dict[str, object], languages: list[str], pairs: list[tuple[str, str]]) -> None:
    write(tmp_path, {"rows.jsonl": json.dumps(row) + "\n", "hub/train.jsonl": json.dumps(row) + "\n"})
    Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet", "hub"):
        found = find_bitexts([f"hub:{tmp_path}/{name}" if name == "hub" else f"{tmp_path}/{name}"], languages)
        assert languages_of(found) == pairs
        assert len({bitext.identity for bitext in found}) == len(found)
        texts = {text for bitext in found for pair in pairs_of(bitext) for text in pair}
        assert texts <= set("abcd1")
        assert all(len(pairs_of(bitext)) == 1 for bitext in found)


def test_bad_lines_say_what_is_wrong(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "x.en": b"a\nb\xff\nc\n",
            "x.fr": b"a\nb\nc\xc3\n",
            "en-fr.tsv": b"a\tb\n\na b\na\tb\tc\n\xff\tb\na\tb\n\n\n",
            "en-fr.jsonl": b'{"en": "a", "fr": "b"}\n\n{"en": "a"}\n{"en": 1, "fr": "b"}\n[\n'
            b'{"en": "\\udc00", "fr": ""}\n\n',
        },
    )
    places = {name: str(tmp_path / name) for name in ("x.en", "x.fr", "en-fr.tsv", "en-fr.jsonl")}
    utf8 = "expected UTF-8, got byte 0x{} at position {} of the line"
    columns = "expected two columns with one tab between them, got {}"
    [lines], [tsv], [rows] = (find_bitexts([str(tmp_path / name)], []) for name in ("x", "en-fr.tsv", "en-fr.jsonl"))
    assert bad_of(lines) == [
        BadLine(places["x.en"], 2, utf8.format("ff", 1), "b\ufffd"),
        BadLine(places["x.fr"], 3, utf8.format("c3", 1), "c\ufffd"),
    ]
    assert pairs_of(lines) == [("a", "a")]
    assert [(line.line, line.reason, line.text) for line in bad_of(tsv)] == [
        (2, columns.format("an empty line"), ""),
        (3, columns.format("no tab"), "a b"),
        (4, columns.format("3 columns"), "a\tb\tc"),
        (5, utf8.format("ff", 0), "\ufffd\tb"),
    ]
    assert [(line.line, line.reason) for line in bad_of(rows)] == [
        (2, "expected a JSON object, got an empty line"),
        (3, "expected a text as fr, got none"),
        (4, "expected a text as en, got int"),
        (5, "expected a JSON object, got other text"),
        (6, "expected Unicode text as en, got half of a surrogate pair"),
    ]


def test_unequal_line_counts_name_file_and_line(tmp_path: Path) -> None:
    for lengths in ((2, 3), (3, 2), (4, 6), (0, 1)):
        write(tmp_path, {f"x.{code}": "a\n" * length for code, length in zip(("en", "fr"), lengths, strict=True)})
        [bitext] = find_bitexts([str(tmp_path / "x")], [])
        shorter, longer = ("en", "fr") if lengths[0] < lengths[1] else ("fr", "en")
        expected = rf"expected {max(lengths)} lines as in x\.{longer}, got {min(lengths)}"
        with pytest.raises(DataError, match=rf"x\.{shorter}, line {min(lengths) + 1}: {expected}"):
            list(bitext.chunks(2))


def test_identity_follows_files_columns_and_alignment(tmp_path: Path) -> None:
    write(tmp_path, {"x.en": "a\n", "x.fr": "b\n", "y.en-fr.tsv": "a\tb\n", "links": "0-0\n"})

    def identities() -> list[str]:
        prefix = str(tmp_path / "x")
        found = [
            *find_bitexts([prefix], []),
            *find_bitexts([prefix], ["fr", "en"]),
            *find_bitexts([prefix], [], [f"{tmp_path}/links"]),
        ]
        return [bitext.identity for bitext in [*found, *find_bitexts([f"{tmp_path}/y.en-fr.tsv"], [])]]

    before = identities()
    assert len(set(before)) == 4
    assert identities() == before
    os.utime(tmp_path / "x.fr", ns=(1, 1))
    assert [a == b for a, b in zip(before, identities(), strict=True)] == [False, False, False, True]
    write(tmp_path, {"y.en-fr.tsv": "a\tbc\n"})
    os.utime(tmp_path / "links", ns=(1, 1))
    again = identities()
    assert again[3] != before[3]
    assert again[2] != before[2]


@pytest.mark.parametrize(
    ("names", "languages", "message"),
    [
        (["none.en-fr.tsv"], [], r"none\.en-fr\.tsv: expected a readable file, got No such file or directory"),
        (["none"], [], r"none: expected at least two files .*none\.LANGUAGE"),
        (["x"], ["en", "de"], r"x\.de: expected the sentences in 'de', got no such file; there are files of en, fr"),
        (["x", "en-fr.tsv"], ["en", "fr", "de"], r"languages: expected those of the corpus, en, fr, got 'de' too"),
        (["x"], ["en", "eng"], r"languages: expected different languages, got en and eng, which are one"),
        (
            ["en-fr.tsv"],
            ["fr", "en"],
            r"languages: expected those that .*en-fr\.tsv is named after, en then fr, got fr en",
        ),
        (["plain.tsv"], ["en", "fr", "de"], r"plain\.tsv: expected a name that ends in the languages of its columns"),
        (["plain.jsonl"], [], r"plain\.jsonl: expected to know the languages of source and target, got none"),
        (
            ["plain.jsonl"],
            ["en", "fr", "de"],
            r"plain\.jsonl: expected to know .* got en fr de; give --languages with both",
        ),
        (["other.jsonl"], [], r"other\.jsonl: expected texts in two languages .* got a, b; name the columns so"),
        (["other.jsonl"], ["en", "fr"], r"other\.jsonl: expected texts in en and fr .* got a, b; name the columns so"),
        (["text.jsonl"], [], r"text\.jsonl: expected a JSON object in each line"),
        (["text.parquet"], [], r"text\.parquet: expected a whole parquet file, got a damaged one"),
        (["text.zip"], [], r"text\.zip: expected a whole \.zip file, got a damaged one"),
        (["hub:none-of-that-name"], [], r"hub:none-of-that-name: expected a data set with a split 'train', .*got: "),
        (["hub:none/of/that"], [], r"hub:none/of/that: expected a data set with a split 'train'"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], languages: list[str], message: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    text = "some text\n"
    write(tmp_path, {"x.en": "a\n", "x.fr": "b\n", "en-fr.tsv": "a\tb\n", "plain.tsv": "a\tb\n", "text.zip": text})
    write(tmp_path, {"plain.jsonl": '{"source": "a", "target": "b"}\n', "text.jsonl": text, "text.parquet": text})
    write(tmp_path, {"other.jsonl": '{"a": "x", "b": "y"}\n'})
    with pytest.raises(DataError, match=message):
        find_bitexts([name if name.startswith("hub:") else str(tmp_path / name) for name in names], languages)


def test_local_data_sets_are_read_like_those_of_the_hub(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"translation": {"en": f"a{n}", "fr": f"e{n}\u0301"}}) + "\n" for n in range(5))
    write(tmp_path, {"set/train.jsonl": rows, "set/test.jsonl": '{"translation": {"en": "x", "fr": "y"}}\n'})
    [bitext] = find_bitexts([f"hub:{tmp_path}/set"], [])
    assert bitext.name == f"hub:{tmp_path}/set"
    assert pairs_of(bitext) == [(f"a{n}", f"e{n}\u0301") for n in range(5)] == pairs_of(bitext)
    assert find_bitexts([f"hub:{tmp_path}/set"], ["en", "fr"])[0].identity == bitext.identity
    card = (
        "---\nconfigs:\n- config_name: en-fr\n  data_files: rows.jsonl\n- config_name: x\n  data_files: x.jsonl\n---\n"
    )
    write(tmp_path, {"two/README.md": card, "two/rows.jsonl": '{"src": "a", "tgt": "b"}\n', "two/x.jsonl": "{}\n"})
    [chosen] = find_bitexts([f"hub:{tmp_path}/two/en-fr"], [])
    assert (languages_of([chosen]), pairs_of(chosen)) == ([("en", "fr")], [("a", "b")])
    with pytest.raises(DataError, match=r"two: expected a data set .*en-fr.*; check the name"):
        find_bitexts([f"hub:{tmp_path}/two"], [])
    write(tmp_path, {"bad/test.jsonl": rows})
    with pytest.raises(DataError, match=r"bad: expected a data set with a split 'train'.*'?test'?"):
        find_bitexts([f"hub:{tmp_path}/bad"], [])
