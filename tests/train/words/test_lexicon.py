"""Lexicons: what is found in sentences, and which files serve which language pair."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from ctloss.shared.text import DataError
from ctloss.train.text.lexicon import Lexicon, find_lexicon_lines, read_lexicon
from ctloss.train.text.sentences import ParallelSentence, WordPair
from ctloss.train.text.words import folded_words, word_spans
from support.tiny_text import ODD_TEXT, parallel

SOURCE_WORDS, TARGET_WORDS = ("a", "b", "ab", "É"), ("x", "y", "Straße", "狗")


def words_of(sentence: ParallelSentence, pairs: Sequence[WordPair]) -> list[tuple[str, str]]:
    return [(sentence.source[slice(*a)], sentence.target[slice(*b)]) for a, b in pairs]


def found(lexicon: Lexicon, source: str, target: str, *codes: str) -> list[tuple[str, str]]:
    [sentence] = parallel([(source, target)], *codes)
    [pairs] = lexicon.word_pairs([sentence])
    return words_of(sentence, pairs)


def phrases(words: Sequence[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=3).map(" ".join)


def plain_segments(text: str, language: str, entries: list[str]) -> list[tuple[list[str], tuple[int, int]]]:
    """The entries in a text from left to right, longest first."""
    words, spans = folded_words(text, language), word_spans(text, language)
    split = [folded_words(entry, language) for entry in entries]
    place, segments = 0, []
    while place < len(words):
        fits = [entry for entry in split if entry and words[place : place + len(entry)] == entry]
        longest = max(fits, key=len, default=None)
        if longest is not None:
            segments.append((longest, (spans[place][0], spans[place + len(longest) - 1][1])))
        place += len(longest or [""])
    return segments


def plain_pairs(sentence: ParallelSentence, entries: list[tuple[str, str]], source: str, target: str) -> list[WordPair]:
    translations = [(folded_words(a, source), folded_words(b, target)) for a, b in entries]
    usable = [pair for pair, (a, b) in zip(entries, translations, strict=True) if a and b]
    sources = plain_segments(sentence.source, source, [a for a, _ in usable])
    targets = plain_segments(sentence.target, target, [b for _, b in usable])
    return [(s, t) for (a, s), (b, t) in product(sources, targets) if (a, b) in translations]


@given(
    st.lists(st.tuples(phrases(SOURCE_WORDS), phrases(TARGET_WORDS)), max_size=6),
    st.lists(st.tuples(phrases(SOURCE_WORDS * 3), phrases(TARGET_WORDS * 3)), max_size=4),
    st.sampled_from(["fr", "zh"]),
)
def test_word_pairs_are_those_of_a_plain_search(
    entries: list[tuple[str, str]], texts: list[tuple[str, str]], target: str
) -> None:
    lexicon, corpus = Lexicon.from_entries("en", target, entries), parallel(texts, "en", target)
    expected = [plain_pairs(sentence, entries, "en", target) for sentence in corpus]
    assert [sorted(pairs) for pairs in lexicon.word_pairs(corpus)] == [sorted(pairs) for pairs in expected]


@given(st.lists(st.tuples(ODD_TEXT, ODD_TEXT), max_size=4), st.lists(st.tuples(ODD_TEXT, ODD_TEXT), max_size=4))
def test_any_text_gives_spans_inside_it(entries: list[tuple[str, str]], texts: list[tuple[str, str]]) -> None:
    corpus = parallel([*texts, *entries], "en", "zh")
    for sentence, pairs in zip(corpus, Lexicon.from_entries("en", "zh", entries).word_pairs(corpus), strict=True):
        for text, span in (
            (t, s) for pair in pairs for t, s in zip((sentence.source, sentence.target), pair, strict=True)
        ):
            assert 0 <= span[0] < span[1] <= len(text)


@pytest.mark.parametrize(
    ("entries", "texts", "target", "expected"),
    [
        pytest.param(
            [("inside", "à l'intérieur"), ("garden", "jardin"), ("interior", "intérieur")],
            ("Inside the interior garden", "À l’intérieur du jardin"),
            "fr",
            [("Inside", "À l’intérieur"), ("garden", "jardin")],
            id="several words, longest first",
        ),
        pytest.param([("coffee", "cafe\u0301")], ("Coffee", "Un café"), "fr", [("Coffee", "café")], id="entry in NFD"),
        pytest.param(
            [("coffee", "café")], ("Coffee", "Un cafe\u0301"), "fr", [("Coffee", "cafe\u0301")], id="sentence in NFD"
        ),
        pytest.param([("street", "Straße")], ("Street", "STRASSE"), "de", [("Street", "STRASSE")], id="case folding"),
        pytest.param(
            [("evening", "晚上"), ("on", "上"), ("up", "上")],
            ("The evening is on", "晚上好"),
            "zho_Hans",
            [("evening", "晚上")],
            id="characters, longest first",
        ),
        pytest.param([("hour", "ชั่วโมง")], ("An hour", "กี่ชั่วโมง"), "tha", [("hour", "ชั่วโมง")], id="Thai"),
        pytest.param([("!", "!"), ("dog", "")], ("dog !", "chien !"), "fr", [], id="entries without words"),
    ],
)
def test_words_by_hand(
    entries: list[tuple[str, str]], texts: tuple[str, str], target: str, expected: list[tuple[str, str]]
) -> None:
    assert found(Lexicon.from_entries("en", target, entries), *texts, "en", target) == expected


def test_other_codes_of_the_same_languages_are_served() -> None:
    lexicon = Lexicon.from_entries("en", "zh", [("dog", "狗")])
    assert found(lexicon, "dog", "狗", "eng_Latn", "zho_Hans") == [("dog", "狗")]
    assert found(lexicon, "狗", "dog", "zh", "en") == []
    assert lexicon.serves("eng", "cmn")
    assert not lexicon.serves("en", "fr")


def write(folder: Path, **contents: str) -> None:
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("en-fr.tsv", "dog\tchien\ncat\tchat, minou\n\n"),
        ("en-fr.txt", "dog chien\ncat chat\ncat minou\n"),
        ("en-fr.0-5000.txt", "dog\tchien\ncat\tchat\ncat\tminou\n"),
        ("fr-en.txt", "chien dog\nchat cat\nminou cat\n"),
        ("fr-en.5000-6500.txt", "chien dog\nchat cat\nminou cat\n"),
        ("my_en-fr.tsv", "dog\tchien\ncat\tchat\ncat\tminou\n"),
        ("words.eng_Latn-fra_Latn.tsv", "dog\tchien\ncat\tchat，minou\n"),
        ("dictionary.tsv", "dog\tchien\ncat\tchat, minou\n"),
        ("dictionary", "dog chien\r\ncat chat\r\ncat minou\r\n"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_files_of_each_form(tmp_path: Path, name: str, text: str, compressed: bool) -> None:
    path = tmp_path / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    lexicon = read_lexicon([str(path)], [("en", "fr")])
    assert found(lexicon, "The dog, the cat", "Le chien, le minou") == [("dog", "chien"), ("cat", "minou")]
    assert len(lexicon) == 3


@pytest.mark.parametrize(
    ("names", "pairs", "served"),
    [
        (["en-fr.txt"], ["en fr", "en de"], ["en fr"]),
        (["en-fr.txt", "en-de.txt"], ["en de", "en fr"], ["en de", "en fr"]),
        (["en-fr.txt"], ["en fr", "fr en"], ["en fr", "fr en"]),
        (["en-fr.txt", "b"], ["en fr", "en de"], ["en fr", "en de"]),
        (["a", "b"], ["en fr", "en de"], ["en fr", "en de"]),
        (["en-fr.txt", "en-fr.5000-6500.txt"], ["en fr"], ["en fr"]),
        (["a", "b"], ["en fr"], ["en fr"]),
        (["en-zh-tw.tsv"], ["en zh-tw", "en fr"], ["en zh-tw"]),
        (["en-pt-br.tsv"], ["en pt", "en pt-br"], ["en pt-br"]),
        (["en-pt.tsv"], ["en pt_BR", "en fr"], ["en pt_BR"]),
        (["eng_Latn-zho_Hans.tsv"], ["en zh"], ["en zh"]),
    ],
)
def test_which_pairs_a_name_serves(tmp_path: Path, names: list[str], pairs: list[str], served: list[str]) -> None:
    write(tmp_path, **dict.fromkeys(names, "dog\tword\n"))
    wanted = [(source, target) for source, target in map(str.split, pairs)]
    lexicon = read_lexicon([str(tmp_path / name) for name in names], wanted)
    assert [f"{source} {target}" for source, target in wanted if (source, target) in lexicon._tables] == served


def test_the_columns_turn_with_the_direction(tmp_path: Path) -> None:
    write(tmp_path, **{"en-fr.txt": "dog chien\n"})
    lexicon = read_lexicon([str(tmp_path / "en-fr.txt")], [("fr", "en"), ("en", "fr")])
    assert found(lexicon, "Un chien", "A dog", "fr", "en") == [("chien", "dog")]
    assert found(lexicon, "A dog", "Un chien", "en", "fr") == [("dog", "chien")]


def test_several_files_of_a_pair_are_one_lexicon(tmp_path: Path) -> None:
    write(tmp_path, **{"en-fr.0-5000.txt": "dog chien\nhot chaud\n", "en-fr.5000-6500.txt": "dog\tun chien\n"})
    lexicon = read_lexicon([str(path) for path in tmp_path.iterdir()], [("en", "fr")])
    assert found(lexicon, "hot dog", "chaud, un chien") == [("hot", "chaud"), ("dog", "un chien")]


def test_commas_part_variants_but_not_numbers(tmp_path: Path) -> None:
    write(tmp_path, **{"en-fr.tsv": "thousand\t1,000,mille\n"})
    lexicon = read_lexicon([str(tmp_path / "en-fr.tsv")], [("en", "fr")])
    assert found(lexicon, "thousand", "1,000") == [("thousand", "1,000")]
    assert found(lexicon, "thousand", "mille") == [("thousand", "mille")]
    assert found(lexicon, "thousand", "000") == []


@pytest.mark.parametrize("files", ["lists", "dictionaries"])
def test_folders(tmp_path: Path, files: str) -> None:
    if files == "lists":
        write(tmp_path, **{"en_uni.txt": "house\ndog\n", "fr_uni.txt": "maison, domicile\nchien\n"})
        write(tmp_path, **{"zh_uni.txt": "房子\n\n", "readme.md": "x"})
    else:
        write(tmp_path, **{"en-fr.txt": "house maison\nhouse domicile\ndog chien\n", "zh-en.txt": "房子 house\n"})
        write(tmp_path, **{"en-de.txt": "house"})
    lexicon = read_lexicon([str(tmp_path)], [("eng", "fra"), ("eng", "cmn"), ("eng", "rus")])
    assert found(lexicon, "The dog is home", "Le chien", "eng", "fra") == [("dog", "chien")]
    assert found(lexicon, "A house", "一个房子", "eng", "cmn") == [("house", "房子")]
    assert not lexicon.serves("eng", "rus")
    assert len(lexicon) == (3 + 1)


def test_word_lists_serve_all_directions(tmp_path: Path) -> None:
    for language, text in {"en": "house\ndog\n", "fr": "maison, domicile\nchien\n", "de": "Haus\nHund\n"}.items():
        (tmp_path / f"{language}_uni.txt").write_text(text)
    lexicon = Lexicon.read_lines(find_lexicon_lines(tmp_path))
    assert found(lexicon, "maison", "Haus", "fr", "de") == [("maison", "Haus")]
    assert len(lexicon) == 2 * (3 + 2 + 3)
    (tmp_path / "fr_uni.txt").write_text("maison\n")
    with pytest.raises(DataError, match=r"fr_uni\.txt, line 2: expected 2 lines as in en_uni\.txt, got 1"):
        read_lexicon([str(tmp_path)], [("en", "fr")])


@pytest.mark.parametrize(
    ("names", "pairs", "message"),
    [
        (["en-de.txt"], ["en fr"], r"en-de\.txt: expected a lexicon of en-fr.*got en-de; rename the file$"),
        (["a"], ["en fr", "en de"], r"a: expected a lexicon of en-fr, en-de.*got none; .*one for each language pair"),
        (["a", "b", "c"], ["en fr", "en de"], r"a: expected a lexicon of"),
        (["none.tsv"], ["en fr"], r"none\.tsv: expected a readable text file"),
        (
            ["bad.txt"],
            ["en fr"],
            r"bad\.txt, line 2: expected two columns.*or two words and a space, got 3: 'hot dog x'",
        ),
        (["bad.tsv"], ["en fr"], r"bad\.tsv, line 1: expected two columns, word TAB translation, got 1: 'dog chien'"),
        (["three.tsv"], ["en fr"], r"three\.tsv, line 1: expected two columns.*got 3"),
        (["empty.tsv"], ["en fr"], r"empty\.tsv: expected words and their translations, got none"),
        (["marks.tsv"], ["en fr"], r"marks\.tsv: expected words and their translations, got none"),
        (["folder"], ["en fr"], r"folder: expected word lists of both languages of en-fr, got de, en"),
    ],
)
def test_refusals(tmp_path: Path, names: list[str], pairs: list[str], message: str) -> None:
    write(tmp_path, **dict.fromkeys(["a", "b", "c", "en-de.txt"], "dog chien\n"))
    write(tmp_path, **{"bad.txt": "dog chien\nhot dog x\n", "bad.tsv": "dog chien\n", "three.tsv": "a\tb\tc\n"})
    write(tmp_path, **{"empty.tsv": "\n", "marks.tsv": "!\t?\n"})
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", **{"en.txt": "dog\n", "de.txt": "Hund\n"})
    wanted = [(source, target) for source, target in map(str.split, pairs)]
    with pytest.raises(DataError, match=message):
        read_lexicon([str(tmp_path / name) for name in names], wanted)


def test_bad_utf8_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "en-fr.tsv").write_bytes(b"a\tb\nc\td\xff\n")
    with pytest.raises(DataError, match=r"en-fr\.tsv, line 2: expected UTF-8, got byte 0xff at position 3"):
        read_lexicon([str(tmp_path / "en-fr.tsv")], [("en", "fr")])
