"""What counts as a language code, and the language that it names."""

from __future__ import annotations

import pytest

from ctloss.shared.languages import XTREME_CODES, find_code, is_language, meaning, primary


@pytest.mark.parametrize("code", ["en", "ast", "pt-br", "pt_BR", "zh_Hant", "zho_Hans", "sr-Latn-RS", "es-419"])
def test_codes_with_script_and_region(code: str) -> None:
    assert is_language(code)
    assert primary(code) == {"zho": "zh"}.get(code[:3], code.replace("_", "-").partition("-")[0])


@pytest.mark.parametrize(
    "name",
    [
        *("", "e", "EN", "Pt-br", "gz", "md-5", "tokens", "en-", "en..fr", "ею", "en fr", "xx", "en-latin1"),
        # Some of these are codes of small languages.
        *("ids", "out", "tok", "bak", "log", "tmp", "old", "orig", "txt", "raw", "src", "tgt", "err", "bpe", "sh"),
        *("en-tok", "en_old", "fr.bak"),
    ],
)
def test_other_endings_of_names_are_no_codes(name: str) -> None:
    assert not is_language(name)


@pytest.mark.parametrize(
    ("code", "language"),
    [
        *(("cmn", "zh"), ("pes_Arab", "fa"), ("swh", "sw"), ("DEU", "de"), ("yue_Hant", "yue"), ("arb", "ar")),
        *(("iw", "he"), ("lvs", "lv"), ("zsm", "ms"), ("npi", "ne"), ("nob", "nb"), ("tgl", "tl"), ("fil", "tl")),
        *(("eng_Latn", "en"), ("pt-BR", "pt"), ("sh", "sr"), ("xx", "xx"), ("", ""), ("x-y-z-1", "x")),
    ],
)
def test_codes_mean_a_language(code: str, language: str) -> None:
    assert primary(code) == language


def test_every_code_of_xtreme_is_a_language() -> None:
    assert {code: primary(code) for code in XTREME_CODES} == XTREME_CODES
    assert all(is_language(code) and is_language(short) for code, short in XTREME_CODES.items())


@pytest.mark.parametrize(
    ("code", "among", "found"),
    [
        ("en", ["fr", "en"], "en"),
        ("pt-br", ["pt", "pt_BR"], "pt_BR"),
        ("deu", ["en", "de"], "de"),
        ("zh", ["zh-tw", "cmn"], "cmn"),
        ("pt", ["pt-br"], None),
        ("tok", ["tok"], "tok"),
    ],
)
def test_codes_are_found_by_spelling_then_by_meaning(code: str, among: list[str], found: str | None) -> None:
    assert find_code(code, among) == found
    assert found is None or meaning(found) == meaning(code)
