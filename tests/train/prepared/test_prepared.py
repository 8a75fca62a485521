"""A prepared corpus: which words are kept, that every pair given is counted, and that a folder is sound or refused."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from ctloss.shared.text import DataError
from ctloss.train.prepared import build, mapping, reading
from ctloss.train.prepared.build import prepare
from ctloss.train.prepared.folder import DOCUMENT, SAMPLES, Prepared, describe, open_prepared
from ctloss.train.recipe import Data, EncoderChoice
from ctloss.train.text.sentences import stable_hash, text_key
from ctloss.train.text.tokenizer import definition, train_wordpiece
from ctloss.train.text.words import fold, is_stop_word
from support.tiny_runs import write_corpus
from support.tiny_text import ENGLISH_FRENCH, LEXICON

SMALL = EncoderChoice(vocabulary=400)
# Held-out parts of their own, for corpora of a few pairs.
VALIDATION = [("A green tree", "Un arbre vert"), ("My old friend", "Mon vieil ami")]
TEST = [("The blue sea", "La mer bleue"), ("Her new car", "Sa voiture neuve")]


def write(path: Path, pairs: list[tuple[str, str]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return str(path)


def settings(folder: Path, **changes: Any) -> Data:
    """Settings with held-out parts and a lexicon in files of their own."""
    values = {
        "languages": ("en", "fr"),
        "validation": (write(folder / "validation.en-fr.tsv", VALIDATION),),
        "test": (write(folder / "test.en-fr.tsv", TEST),),
        "lexicon": (write(folder / "lexicon.tsv", LEXICON),),
        "stop_words": "iso",
    }
    return Data(**(values | changes))


def make(folder: Path, pairs: list[tuple[str, str]], name: str = "made", **changes: Any) -> Prepared:
    corpus = write(folder / "en-fr.tsv", pairs)
    return prepare(settings(folder, corpus=(corpus,), **changes), SMALL, folder / name, workers=1, say=Mock())


def words(prepared: Prepared) -> list[list[tuple[str, str]]]:
    """The words at the spans of each training row, as the tokenizer spells them."""
    tokenizer = prepared.tokenizer()
    return [
        [
            (str(tokenizer.decode(row["source_ids"][a:b])), str(tokenizer.decode(row["target_ids"][c:d])))
            for a, b, c, d in row["word_pairs"]
        ]
        for row in prepared.table("train").to_pylist()
    ]


def test_words_are_kept_where_unique_and_no_stop_word(tmp_path: Path) -> None:
    prepared = make(tmp_path, ENGLISH_FRENCH)
    found = [
        [("red", "rouge"), ("house", "maison")],
        [("black", "noir"), ("dog", "chien")],
        [],
        [("teacher", "professeur"), ("letter", "lettre")],
        [("garden", "jardin"), ("river", "rivière")],
    ]
    assert words(prepared) == found
    counts = prepared.counts["train"]
    assert (counts.pairs, counts.rows, counts.rows_with_words, counts.word_pairs) == (5, 5, 4, 8)
    assert counts.languages == {"en-fr": {"rows": 5, "rows_with_words": 4, "word_pairs": 8}}
    # "The" ↔ "La" in the first row; the fourth has "la" but "the" only; the fifth "The"/"the" with one "la".
    assert counts.skipped_words == {"stop word": 4, "not unique": 4, "ambiguous": 0, "span not verified": 0}
    assert "train: 5 of 5 sentence pairs kept" in describe(prepared)
    for row, pairs in zip(prepared.table("train").to_pylist(), found, strict=True):
        assert row["word_types"] == [stable_hash("en", source, "fr", target) for source, target in pairs]
        assert row["source_words"] == [stable_hash("en", source) for source, _ in pairs]
        assert row["target_words"] == [stable_hash("fr", target) for _, target in pairs]
        assert row["source_key"] == stable_hash(text_key(row["source"]))
        assert row["target_key"] == stable_hash(text_key(row["target"]))


def test_rows_of_held_out_parts_have_their_words_as_texts(tmp_path: Path) -> None:
    lexicon = write(tmp_path / "words.tsv", [("Red", "rouge"), ("letter", "Lettre"), ("狗", "chien")])
    held = [("A RED river", "Une rivière rouge"), ("Our letter", "Notre Lettre"), ("The 狗 sleeps", "Le chien dort")]
    validation = write(tmp_path / "held.tsv", held)
    prepared = make(tmp_path, ENGLISH_FRENCH, lexicon=(lexicon,), validation=(validation,))
    rows = prepared.rows("validation")
    assert [(row["source"], row["target"]) for row in rows] == held
    assert [(row["source_words"], row["target_words"]) for row in rows] == [
        (["red"], ["rouge"]),
        (["letter"], ["lettre"]),
        ([], []),
    ]
    assert (rows[0]["source_language"], rows[0]["target_language"]) == ("en", "fr")
    assert rows[0]["word_types"] == [stable_hash("en", "red", "fr", "rouge")]
    # The tokenizer was trained without that character.
    assert prepared.counts["validation"].skipped_words["span not verified"] == 1
    with pytest.raises(ValueError, match="expected 'validation' or 'test', got 'train'"):
        prepared.rows("train")


def test_a_table_is_as_documented(tmp_path: Path) -> None:
    prepared = make(tmp_path, ENGLISH_FRENCH)
    assert prepared.table("train").schema.remove_metadata().equals(SAMPLES)
    assert [origin.languages for origin in prepared.origins] == ["en-fr"] * 3
    assert prepared.rows("test")[1]["target"] == "Sa voiture neuve"


@pytest.mark.parametrize("seed", [0, 1])
def test_every_pair_given_is_kept_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(reading, "ROWS", 40)
    draw = random.Random(seed)
    good = write_corpus(tmp_path).read_text(encoding="utf-8").splitlines()
    bad = ["no tab", "one\ttab\ttoo many", "", "\t", "the cat\t", " \tle chat", "the cat " * 30 + "\tle chat"]
    lines = draw.choices(good, k=300) + good + draw.choices(bad, k=60)
    draw.shuffle(lines)
    corpus = tmp_path / "en-fr.tsv"
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = Data(corpus=(str(corpus),), evaluation_pairs=10, max_length=40, max_pairs=100, max_bad_lines=1000)
    prepared = prepare(data, SMALL, tmp_path / "made", workers=1, say=Mock())
    counts = prepared.counts.values()
    assert sum(count.rows + sum(count.skipped_pairs.values()) for count in counts) == len(lines)
    assert all(count.pairs == count.rows + sum(count.skipped_pairs.values()) for count in counts)
    train = prepared.counts["train"].skipped_pairs
    assert train["bad line"] == prepared.bad_lines == sum(line.count("\t") != 1 for line in lines)
    assert train["empty"] == sum(line.count("\t") == 1 and not all(map(str.strip, line.split("\t"))) for line in lines)
    assert train["too long"] <= 1
    assert train["duplicate"] == sum(line in good or "the cat the" in line for line in lines) - len(
        set(lines) - {*bad[:-1]}
    )
    assert prepared.counts["train"].rows + train["too long"] == 100
    keys = [
        set(map(tuple, np.stack([prepared.table(split)[f"{side}_key"] for side in ("source", "target")]).T))
        for split in prepared.counts
    ]
    assert [len(found) for found in keys] == [count.rows for count in counts]
    held = {key for found in keys[1:] for pair in found for key in pair}
    assert not held & {key for pair in keys[0] for key in pair}
    # One and a half times ten, as all source texts are different.
    assert [count.rows for count in counts][1:] == [15, 15]


def test_bad_lines_are_shown_and_refused_beyond_the_limit_all_at_once(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    lines = corpus.read_text(encoding="utf-8").splitlines()
    for number in range(5, 65, 5):
        lines[number - 1] = f"line {number}"
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = Data(corpus=(str(corpus),), evaluation_pairs=10, max_bad_lines=11)
    with pytest.raises(
        DataError, match=r"corpus: expected at most 11 lines .*, got 12; .* --max-bad-lines 12"
    ) as refused:
        prepare(data, SMALL, tmp_path / "made", workers=1, say=Mock())
    assert [f"line {5 * i}:" in str(refused.value) for i in range(1, 13)] == [True] * 10 + [False] * 2
    assert "and 2 more" in str(refused.value)
    say = Mock()
    prepared = prepare(replaced(data, max_bad_lines=12), SMALL, tmp_path / "made", workers=1, say=say)
    assert prepared.bad_lines == 12
    assert any("skipped 12 lines that cannot be read" in call.args[0] for call in say.call_args_list)
    with pytest.raises(DataError, match="corpus: expected at most 0 lines that cannot be read, got 12"):
        prepare(replaced(data, max_bad_lines=0), SMALL, tmp_path / "made", workers=1)


def replaced(data: Data, **changes: Any) -> Data:
    return Data(**(vars(data) | changes))


def test_a_finished_folder_is_opened_and_never_touched(tmp_path: Path) -> None:
    first = make(tmp_path, ENGLISH_FRENCH)
    stamps = {path: path.stat().st_mtime_ns for path in sorted(first.path.rglob("*"))}
    data = settings(tmp_path, corpus=(str(tmp_path / "en-fr.tsv"),))
    # Settings of the files that these have just been written again with, at another time.
    with pytest.raises(
        DataError, match=r"the same settings, but other sizes or times of their files, .*; choose another"
    ):
        prepare(data, SMALL, first.path, workers=1)
    for file in ("en-fr", "validation.en-fr", "test.en-fr", "lexicon"):
        os.utime(tmp_path / f"{file}.tsv", ns=(0, 0))
    again = prepare(data, SMALL, tmp_path / "again", workers=1, say=Mock())
    assert again.fingerprint == first.fingerprint
    assert again.key != first.key
    say = Mock()
    assert prepare(data, SMALL, again.path, say=say) == again
    say.assert_not_called()
    with pytest.raises(DataError, match=r"got one made from max_length 128 there, 99 here; choose another folder"):
        prepare(replaced(data, max_length=99), SMALL, again.path)
    write(tmp_path / "en-fr.tsv", [*ENGLISH_FRENCH, ("More text", "Plus de texte")])
    with pytest.raises(DataError, match="other sizes or times"):
        prepare(data, SMALL, again.path)
    assert {path: path.stat().st_mtime_ns for path in sorted(first.path.rglob("*"))} == stamps


def test_content_that_differs_has_another_fingerprint(tmp_path: Path) -> None:
    first = make(tmp_path, ENGLISH_FRENCH)
    others = [
        make(tmp_path, ENGLISH_FRENCH[::-1], "reversed"),
        make(tmp_path, ENGLISH_FRENCH, "words", lexicon=(write(tmp_path / "fewer.tsv", LEXICON[1:]),)),
        make(tmp_path, [*ENGLISH_FRENCH, ("Hello", "Bonjour")], "more"),
    ]
    assert len({prepared.fingerprint for prepared in (first, *others)}) == 4


def test_the_cache_is_shared_by_settings_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = settings(tmp_path, corpus=(write(tmp_path / "en-fr.tsv", ENGLISH_FRENCH),))
    first, second, other = (
        prepare(one, SMALL, workers=1, say=Mock()) for one in (data, data, replaced(data, max_length=64))
    )
    assert first == second
    assert {first.path.parent, other.path.parent} == {tmp_path / "cache" / "ctloss"}
    assert first.path != other.path
    assert len(list((tmp_path / "cache" / "ctloss").iterdir())) == 2


def test_pairs_from_python(tmp_path: Path) -> None:
    data = settings(tmp_path)
    made = prepare(data, SMALL, tmp_path / "made", pairs=ENGLISH_FRENCH, workers=1, say=Mock())
    assert made.fingerprint == make(tmp_path, ENGLISH_FRENCH, "same").fingerprint
    assert made.settings["corpus"] == ["pairs from Python"]


def test_a_given_folder_is_opened_with_settings_that_fit(tmp_path: Path) -> None:
    made = make(tmp_path, ENGLISH_FRENCH)
    assert prepare(Data(prepared=str(made.path)), SMALL) == made
    with pytest.raises(DataError, match=r"prepared: expected the settings .*max_length 128 there, 50 here; give the"):
        prepare(Data(prepared=str(made.path), max_length=50), SMALL)
    with pytest.raises(DataError, match=r"prepared: expected the settings .*vocabulary 400 there, 8000 here"):
        prepare(Data(prepared=str(made.path)), EncoderChoice())


def damage_document(folder: Path, content: str) -> None:
    (folder / DOCUMENT).write_text(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"prepared\.json: expected what .* wrote, got other content"),
        ("[]", r"prepared\.json: expected what .* wrote, got other content"),
        ('"text"', r"prepared\.json: expected what .* wrote, got other content"),
        ('{"format": 4, "counts": 1}', r"prepared\.json: expected what .* wrote, got other content"),
        ('{"format": 1}', "expected a prepared corpus of format 4, got format 1; remove the folder and make it again"),
    ],
)
def test_documents_of_other_content_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / DOCUMENT).write_text(content)
    with pytest.raises(DataError, match=message):
        open_prepared(tmp_path)


def test_folders_that_are_none_or_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a corpus prepared by .*, got no such folder; make it first"):
        open_prepared(tmp_path / "none")
    with pytest.raises(DataError, match=r"got a folder without prepared\.json; make it first"):
        open_prepared(tmp_path)
    made = make(tmp_path, ENGLISH_FRENCH)
    samples = next((made.path / "train").iterdir())
    size = samples.stat().st_size
    samples.write_bytes(samples.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"arrow: expected {size:,} bytes, got {size - 100:,}; the prepared corpus is"):
        open_prepared(made.path)
    samples.unlink()
    with pytest.raises(DataError, match=rf"arrow: expected {size:,} bytes, got no file; the prepared corpus is"):
        open_prepared(made.path)


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    "pairs",
    [[], [("One", "Un")], [("One", "Un"), ("One", "Une")], [("One", "Un"), ("long " * 200, "long")]],
    ids=["empty", "one", "one source", "too long"],
)
def test_a_part_of_fewer_than_two_pairs_is_refused_at_once(
    tmp_path: Path, part: str, pairs: list[tuple[str, str]]
) -> None:
    held = write(tmp_path / "held.en-fr.tsv", pairs)
    with pytest.raises(
        DataError, match=rf"{part}: expected at least two sentence pairs that share no sentence .*--{part}"
    ):
        make(tmp_path, ENGLISH_FRENCH, **{part: (held,)})
    assert not (tmp_path / "made").exists()


def test_training_without_pairs_is_refused(tmp_path: Path) -> None:
    for pairs, message in (
        ([("", "chien")], "train: expected sentence pairs to train on, got none out of 5"),
        (
            [("long " * 200, "long")],
            r"train: expected sentence pairs to train on, got none: skipped .*raise max_length=12",
        ),
    ):
        with pytest.raises(DataError, match=message):
            make(tmp_path, pairs, max_length=12)


def test_texts_of_test_are_left_out_of_the_others(tmp_path: Path) -> None:
    shared = [("the  BLUE sea", "Autre chose"), ("Something", "sa voiture NEUVE")]
    validation = write(tmp_path / "held.en-fr.tsv", [*VALIDATION, *shared])
    prepared = make(tmp_path, [*ENGLISH_FRENCH, *shared, ("x", "mon vieil ami")], validation=(validation,))
    assert [prepared.counts[split].skipped_pairs["held out"] for split in prepared.counts] == [3, 2, 0]
    assert prepared.notes == [
        "train: left out 3 pairs with a text of validation or test",
        "validation: skipped 2 pairs whose texts are also in test",
    ]


def test_the_embedded_corpus_comes_alone_and_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus: expected the embedded corpus alone, or files, got embedded x\.tsv"):
        prepare(Data(corpus=("embedded", "x.tsv")), SMALL)
    with pytest.raises(DataError, match="lexicon: expected nothing with the embedded corpus"):
        prepare(Data(lexicon=("x.tsv",)), SMALL)
    encoder = EncoderChoice(vocabulary=1500)
    prepared = prepare(Data(languages=("fr", "zh"), max_pairs=500), encoder, tmp_path / "made", workers=1, say=Mock())
    assert [count.rows for count in prepared.counts.values()] == [500, 1000, 1000]
    assert all(count.rows_with_words > 0.9 * count.rows for count in prepared.counts.values())
    # Words of the held-out parts may have characters that the tokenizer never saw.
    assert prepared.counts["train"].skipped_words["span not verified"] == 0


def test_an_encoder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    data = settings(tmp_path, corpus=(write(tmp_path / "en-fr.tsv", ENGLISH_FRENCH),))
    with pytest.raises(DataError, match="encoder: expected the name or folder of a Hugging Face encoder"):
        prepare(data, EncoderChoice(encoder=str(tmp_path)), tmp_path / "made", workers=1, say=Mock())


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(build, "map_rows", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(
            DataError, match=r"made: expected a disk .*, got No space left on device; make room"
        ) as full:
            make(tmp_path, ENGLISH_FRENCH)
    assert len(str(full.value).splitlines()) == 1
    assert not (tmp_path / "made").exists()
    data = settings_as_they_are(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_batch", Mock(side_effect=AssertionError("read again")))
        assert prepare(data, SMALL, tmp_path / "made", workers=1, say=Mock()).counts["train"].rows == 5


def settings_as_they_are(folder: Path) -> Data:
    """The settings of make, whose files stay as they are."""
    before = {path: path.stat() for path in folder.glob("*.tsv")}
    data = settings(folder, corpus=(str(folder / "en-fr.tsv"),))
    for path, stat in before.items():
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return data


def test_folders_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"expected a folder to write to, got .*file.*; choose another"):
        make(tmp_path, ENGLISH_FRENCH, "file/made")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match=r"full: expected a new or empty folder, got one with files; choose another"):
        make(tmp_path, ENGLISH_FRENCH, "full")
    (tmp_path / "empty").mkdir()
    assert make(tmp_path, ENGLISH_FRENCH, "empty").path == tmp_path / "empty"


def test_the_tokenizer_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = (text for pair in ENGLISH_FRENCH for text in pair)
    trained = train_wordpiece(texts, vocabulary=400, lower_case=True, max_length=128)
    assert definition(make(tmp_path, ENGLISH_FRENCH).tokenizer()) == definition(trained)


def test_document_lists_every_file(tmp_path: Path) -> None:
    made = make(tmp_path, ENGLISH_FRENCH)
    files = json.loads((made.path / DOCUMENT).read_text(encoding="utf-8"))["files"]
    there = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert there == {*files, DOCUMENT}
    assert mapping.NAME in next(name for name in files if name.startswith("train/"))


@pytest.mark.data
@pytest.mark.skipif("CTLOSS_DATA" not in os.environ, reason="CTLOSS_DATA names no folder of real parallel text")
def test_real_sentences_with_the_lexicon(tmp_path: Path) -> None:
    data = Path(os.environ["CTLOSS_DATA"])
    corpus = tuple(str(data / "tatoeba-train" / f"en-{language}.tsv") for language in ("ar", "zh"))
    chosen = Data(corpus=corpus, lexicon=(str(data / "lexicon"),), max_pairs=4000, evaluation_pairs=200)
    prepared = prepare(chosen, EncoderChoice(), tmp_path / "made", workers=2, say=Mock())
    train, validation, test = prepared.counts.values()
    assert train.pairs + validation.pairs + test.pairs == 14_316 + 22_757
    assert train.rows + train.skipped_pairs["too long"] == 4000
    assert all(found["rows_with_words"] > 0.15 * found["rows"] for found in train.languages.values())
    for row in prepared.rows("test"):
        for side in ("source", "target"):
            text, language = fold(row[side]), row[f"{side}_language"]
            for word in row[f"{side}_words"]:
                assert word in text
                assert not is_stop_word(word, language)
