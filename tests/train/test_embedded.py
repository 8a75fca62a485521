"""The embedded corpus: size, disjoint splits, distinct texts, spans that point at listed forms, and orthography."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import FrozenInstanceError
from itertools import chain, pairwise

import pytest

from ctloss.train.text.embedded import LANGUAGES, SPLITS, sentences
from ctloss.train.text.embedded.tables import Entry, Form, _parse_table, concept_tables
from ctloss.train.text.embedded.templates import templates

CORPUS = {split: list(sentences(split)) for split in SPLITS}
EVERYTHING = list(chain.from_iterable(CORPUS.values()))

LETTERS = {
    "ar": r"[\u0621-\u063a\u0641-\u064a ]+",
    "en": r"[A-Za-z' ]+",
    "es": r"[A-Za-záéíóúüñÁÉÍÓÚÑ ]+",
    "fr": r"[A-Za-zàâäçéèêëîïôöùûüœÀÂÇÉÈÊÎÔÙÛŒ' -]+",
    "ru": r"[А-Яа-яЁё -]+",
    "zh": r"[\u4e00-\u9fff]+",
}
MARKS = {"ar": "[.،؟]", "en": "[.,?]", "es": "[.,¿?]", "fr": "[.,?]", "ru": "[.,?]", "zh": "[。，？]"}
ENDINGS = {"ar": (".", "؟"), "fr": (".", " ?"), "zh": ("。", "？")} | dict.fromkeys(("en", "es", "ru"), (".", "?"))

# What careful writers never produce: missed contractions and elisions, "a" before a vowel, doubled words.
FORBIDDEN = {
    "en": [r"\ba [aeiou](?!ni)", r"\ban [^aeiou]", r"\b(\w+) \1\b"],
    "es": [r"\ba el\b", r"\bde el\b", r"\by h?i", r"\bo h?o", r"\b(\w+) \1\b"],
    "fr": [
        r"\b(?:le|la|de|du|que|ne|je|se|me|à le|au) [aeiouâàéèêîôœ]",
        r"\bdes? les?\b",
        r"\bà les?\b",
        r"\bsi ils?\b",
        r"\bma [aeiouéèê]",
        r"(?<! )\?",
    ],
    "ru": [r"\bс с[тк]", r"\bв [вф][бвгджзклмнпрстфхцчшщ]"],
    "zh": [r"[a-zA-Z,.? ]", r"的的", r"了了", r"一两"],
    "ar": [r"[\u064b-\u0652]", r"[a-zA-Z,?]", r"\bلال", r"الال"],
}


def listed_words(entry: Entry, language: str) -> set[str]:
    features = {"g", "mw"}
    return {form.word.lower() for name, form in entry.forms[language].items() if name not in features}


def test_size_of_splits_lexicon_templates_and_sentences() -> None:
    assert len(CORPUS["train"]) >= 20_000
    assert len(CORPUS["validation"]) == len(CORPUS["test"]) == 1_000
    assert len(concept_tables()) >= 300
    assert len(templates()) >= 12
    lengths = [len(sentence.texts["en"].split()) for sentence in EVERYTHING]
    assert min(lengths) >= 4
    assert max(lengths) <= 18


def test_no_id_and_no_text_of_any_language_occurs_twice() -> None:
    assert len({sentence.id for sentence in EVERYTHING}) == len(EVERYTHING)
    for language in LANGUAGES:
        assert len({sentence.texts[language].casefold() for sentence in EVERYTHING}) == len(EVERYTHING), language


def test_every_word_has_a_span_in_every_language_on_a_listed_form() -> None:
    tables = concept_tables()
    for sentence in EVERYTHING:
        assert len(sentence.words) >= 2, sentence.id
        for concept, spans in sentence.words.items():
            assert tuple(sorted(spans)) == LANGUAGES, sentence.id
            for language, (start, end) in spans.items():
                word = sentence.texts[language][start:end].lower()
                listed = listed_words(tables[concept], language)
                if language == "ar":
                    assert word in listed or word[1:] in listed, (sentence.id, word)
                else:
                    assert word in listed, (sentence.id, language, word)


@pytest.mark.parametrize("language", LANGUAGES)
def test_spans_are_whole_words_and_never_overlap(language: str) -> None:
    for sentence in EVERYTHING:
        text, spans = sentence.texts[language], sorted(word[language] for word in sentence.words.values())
        assert all(left[1] <= right[0] for left, right in pairwise(spans)), sentence.id
        for start, end in spans if language != "zh" else []:
            assert start == 0 or not text[start - 1].isalpha(), (sentence.id, text)
            assert not text[end].isalpha(), (sentence.id, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_form_belongs_to_one_concept(language: str) -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for entry in concept_tables().values():
        for word in listed_words(entry, language):
            owners[word].add(entry.id)
    assert {word: ids for word, ids in owners.items() if len(ids) > 1} == {}


def test_lexicon_is_complete_and_every_concept_is_trained_on() -> None:
    seen = Counter(chain.from_iterable(sentence.words for sentence in CORPUS["train"]))
    for concept in concept_tables().values():
        assert tuple(sorted(concept.forms)) == LANGUAGES
        assert all(concept.citation(language) for language in LANGUAGES)
        assert seen[concept.id] >= 10, concept.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_script_and_punctuation(language: str) -> None:
    sentence_shape = re.compile(f"(?:{LETTERS[language]}|{MARKS[language]})+")
    for sentence in EVERYTHING:
        text = sentence.texts[language]
        assert sentence_shape.fullmatch(text), text
        assert text.endswith(ENDINGS[language]), text
        assert "  " not in text, text
        assert text == text.strip(), text
        first = text.lstrip("¿")[0]
        assert first == first.upper(), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_forbidden_sequence(language: str) -> None:
    text = "\n".join(sentence.texts[language].lower() for sentence in EVERYTHING)
    assert {part: match.group() for part in FORBIDDEN[language] if (match := re.search(part, text))} == {}


def test_templates_share_the_corpus() -> None:
    counts = Counter(sentence.id.split("/")[0] for sentence in CORPUS["train"])
    assert set(counts) == {template.name for template in templates()}
    assert max(counts.values()) < len(CORPUS["train"]) / 12


def test_same_corpus_in_a_process_with_another_string_hash() -> None:
    program = (
        "import hashlib; from ctloss.train.text.embedded import sentences, SPLITS;"
        "print(hashlib.sha256(repr([list(sentences(s)) for s in SPLITS]).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr([list(sentences(split)) for split in SPLITS]).encode()).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


def test_sentences_are_frozen_and_unknown_splits_refused() -> None:
    with pytest.raises(FrozenInstanceError):
        CORPUS["test"][0].id = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"expected split to be one of .* got 'dev'"):
        sentences("dev")


def test_form_lookup_goes_from_specific_to_general() -> None:
    names = {"past": "went", "past.f": "gone", "m": "him"}
    entry = Entry("x", "verb", None, {"en": {name: Form.parse(word) for name, word in names.items()}})
    assert [entry.form("en", "past", agreement) for agreement in ("f", "fv", "m", "n", "")] == [
        Form("", word, "") for word in ("gone", "gone", "him", "went", "went")
    ]
    assert entry.form("en", "future") is None
    assert Form.parse("l'[hôpital]") == Form("l'", "hôpital", "")


def test_a_row_with_a_missing_form_names_table_row_and_language() -> None:
    with pytest.raises(ValueError, match=r"verb.tsv, row 'go', column fr: expected 2 forms .* got 1 in 'aller'"):
        _parse_table("verb", "concept\tfr:inf|past\ngo\taller\n")
    with pytest.raises(ValueError, match=r"verb.tsv, row 'go': expected 2 columns, got 1"):
        _parse_table("verb", "concept\tfr:inf|past\ngo\n")
